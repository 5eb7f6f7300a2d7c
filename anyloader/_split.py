"""Batch functions of which one bad key fails all others."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sized
from copy import copy
from typing import Any, TypeVar

from ._errors import BatchResultError
from ._results import article, counted

__all__ = ("Split", "split_on_error")

K = TypeVar("K")
R = TypeVar("R")


class Split:
    """A batch function that halves what fails; :func:`split_on_error` makes it."""

    def __init__(
        self, func: Callable[..., Any], kinds: tuple[type[Exception], ...], max_calls: int | None
    ) -> None:
        self.func = self.__wrapped__ = func
        self._kinds = kinds
        self._max_calls = math.inf if max_calls is None else max_calls
        self.__name__ = getattr(func, "__name__", "batch_load_fn")
        self.__qualname__ = getattr(func, "__qualname__", "batch_load_fn")

    async def __call__(self, keys: list[Any], /, **arguments: Any) -> Any:
        parts: list[tuple[list[Any], Any]] = []
        calls = 0
        # What is still to be asked, the next one last, with the error of the call that it was in.
        todo: list[tuple[list[Any], Exception | None]] = [(keys, None)]
        while todo:
            part, last = todo.pop()
            if last is not None and calls >= self._max_calls:
                parts.append((part, last))
                continue
            calls += 1
            try:
                parts.append((part, await self.func(list(part), **arguments)))
            except self._kinds as exc:
                if len(part) < 2:
                    parts.append((part, exc))
                    continue
                half = len(part) // 2
                todo += [(part[half:], exc), (part[:half], exc)]
        return _joined(parts)

    def __repr__(self) -> str:
        return f"<split_on_error {self.__qualname__}>"


def split_on_error(
    fn: Callable[[list[K]], Awaitable[R]],
    *,
    on: type[Exception] | tuple[type[Exception], ...],
    max_calls: int | None = None,
) -> Callable[[list[K]], Awaitable[R]]:
    """
    Find the keys that make a call fail, so that these fail alone.

    When a call raises one of ``on``, its keys are halved and each half is asked again, one after the
    other, until the key that fails is alone: that load gets the error. One bad key of n costs some
    ``2 * log2(n)`` calls more, n bad ones ``2 * n``.

    :param fn: a batch function that returns a list or a mapping
    :param on: what a bad key raises; other errors fail the whole batch, as they do without this
    :param max_calls: of ``fn`` for one batch; what has not been found out by then fails with the error
        of the last call that it was in
    :raises TypeError: if an argument has the wrong type
    :raises ValueError: if ``max_calls`` is less than 1
    """
    if not callable(fn):
        raise TypeError(f"split_on_error() takes a batch function, not {fn!r}")
    kinds = on if isinstance(on, tuple) else (on,)
    if not kinds or not all(isinstance(k, type) and issubclass(k, Exception) for k in kinds):
        raise TypeError(
            f"on of split_on_error() must be a class of exceptions, or some, not {on!r}"
        )
    if max_calls is not None and (isinstance(max_calls, bool) or not isinstance(max_calls, int)):
        raise TypeError(f"max_calls must be an int >= 1 or None, not {max_calls!r}")
    if max_calls is not None and max_calls < 1:
        raise ValueError(f"max_calls must be an int >= 1 or None, not {max_calls!r}")

    return Split(fn, kinds, max_calls)


def _joined(parts: list[tuple[list[Any], Any]]) -> Any:
    """Make one result of those of some calls, or of their errors."""
    if len(parts) == 1 and not isinstance(parts[0][1], Exception):
        return parts[0][1]
    if any(isinstance(result, Mapping) for _, result in parts):
        # One that says itself what it gives for what it lacks, as a defaultdict does, goes on to do so.
        found: Any = next((copy(x) for _, x in parts if hasattr(type(x), "__missing__")), {})
        for keys, result in parts:
            found.update(
                result if isinstance(result, Mapping) else zip(keys, _values(keys, result))
            )
        return found
    return [value for keys, result in parts for value in _values(keys, result)]


def _values(keys: list[Any], result: Any) -> list[Any]:
    if isinstance(result, Exception):
        return [result] * len(keys)
    if (
        isinstance(result, (str, bytes))
        or not isinstance(result, Sized)
        or len(result) != len(keys)
    ):
        size = f", of {len(result)}" if isinstance(result, Sized) else ""
        raise BatchResultError(
            f"a batch function under split_on_error() gave {article(result)}{size} for "
            f"{counted(len(keys), 'key')}; return a list with one value for each key, or a mapping"
        )
    values: Any = result
    return list(values)
