"""What the cache and the keys of a loader demand of each other."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from ._results import excerpt

__all__ = ("evict", "unhashable")


def evict(cache: MutableMapping[Any, Any], cache_key: Any, entry: object) -> None:
    """
    Take ``entry`` out of the cache, but leave a newer entry of the same key.

    The cache may have dropped the entry by its own rules already.
    """
    if cache.get(cache_key) is entry:
        cache.pop(cache_key, None)


def unhashable(name: str, key: object, cache_key: object) -> TypeError | None:
    """Return the error for a key that cannot be cached, ``None`` if it can."""
    try:
        hash(cache_key)
    except TypeError as exc:
        error = TypeError(
            f"{name} cannot cache the key {excerpt(key)}, as a {type(cache_key).__name__} is not "
            "hashable; give get_cache_key a function that makes a hashable key of it, or switch "
            "the cache off with cache=False"
        )
        error.__cause__ = exc
        return error
    return None
