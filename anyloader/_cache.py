"""The cache rules over a ``MutableMapping``: what may be a key, and what is taken out."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from ._results import excerpt

__all__ = ("NO_KEY", "check_hashable", "evict")

#: What whoever has ``None`` for a key does instead.
NO_KEY = (
    "leave out what has no key, such as an empty foreign key; for a list of all use a constant, such as "
    "() or 'all'"
)


def evict(cache: MutableMapping[Any, Any], cache_key: Any, entry: object) -> None:
    """
    Take ``entry`` out of the cache, but leave a newer entry of the same key.

    The cache may have dropped the entry by its own rules already.
    """
    if cache.get(cache_key) is entry:
        cache.pop(cache_key, None)


def check_hashable(
    name: str,
    key: object,
    cache_key: object,
    cannot: str = "cache",
    otherwise: str = ", or switch the cache off with cache=False",
) -> None:
    """:raises TypeError: if the key cannot be cached"""
    # An error in a variable would be in a cycle with this frame, by its traceback, and hold the key.
    try:
        hash(cache_key)
    except TypeError as exc:
        raise TypeError(
            f"{name} cannot {cannot} the key {excerpt(key)}: {exc}; "
            f"give get_cache_key a function that makes a hashable key of it{otherwise}"
        ) from exc
