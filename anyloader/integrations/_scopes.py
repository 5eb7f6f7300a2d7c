"""What all integrations that open scopes do with the ``make_scope`` that they are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._scope import LoaderScope


def make(make_scope: Callable[[], Any], whose: str) -> LoaderScope:
    """
    Return a new scope, which ``async with`` enters.

    :param whose: each of them has one: "request", "operation"
    :raises TypeError: if ``make_scope`` returns no ``LoaderScope``
    """
    scope = make_scope()
    if not isinstance(scope, LoaderScope):
        raise TypeError(
            f"make_scope must return a new LoaderScope for each {whose}; it returned an object of "
            f"type {type(scope).__qualname__}"
        )
    return scope
