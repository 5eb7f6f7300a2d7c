"""The cache rules over a ``MutableMapping``, and the protocol of the cache behind it."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Protocol, TypeVar

from ._results import excerpt

__all__ = ("ValueCache", "check_hashable", "evict")

K = TypeVar("K")
V = TypeVar("V")


class ValueCache(Protocol[K, V]):
    """
    A second level of cache, behind the one of a loader and shared between loaders or processes.

    Its keys are cache keys. It is asked once per batch for all keys of it; only what it does not
    have reaches the batch function, and is stored afterwards, unless it is an error. What it raises
    is told to the hooks and never fails a load; how long a batch waits for it is its own affair.
    """

    async def get_many(self, keys: Sequence[K]) -> Mapping[K, V]:
        """Return the values that it has, and nothing for the other keys; ``None`` is a value."""
        ...

    async def set_many(self, items: Mapping[K, V]) -> None:
        """Store these values."""
        ...

    async def delete_many(self, keys: Sequence[K]) -> None:
        """Forget these keys, so that no later ``get_many`` has them."""
        ...


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
            f"{name} cannot {cannot} the key {excerpt(key)}, as a {type(cache_key).__name__} is "
            f"not hashable; give get_cache_key a function that makes a hashable key of it{otherwise}"
        ) from exc
