"""Loads whose value may not be ``None``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

from ._batch import LoadHandle
from ._errors import KeyNotFoundError
from ._results import Failure, excerpt

__all__ = ("RequiredHandle", "not_found", "required_maker")

V_co = TypeVar("V_co", covariant=True)


class RequiredHandle(LoadHandle[V_co]):
    """One load of a key, beside others, to which ``None`` is an error."""

    __slots__ = ("_not_found",)

    _not_found: Callable[[Any], Exception]

    def _settle(self, value: Any) -> Iterable[Any]:
        return super()._settle(Failure(self._not_found(self._key)) if value is None else value)


def required_maker(name: str) -> Callable[[], RequiredHandle[Any]]:
    """Return what makes the handles of a loader."""
    refuse = partial(not_found, name)

    def make() -> RequiredHandle[Any]:
        handle: RequiredHandle[Any] = object.__new__(RequiredHandle)
        handle._not_found = refuse
        return handle

    return make


def not_found(name: str, key: Any) -> KeyNotFoundError:
    error = KeyNotFoundError(f"{name} found nothing for the key {excerpt(key)}")
    error.key = key
    return error
