"""A value cache in the memory of one process, on ``cachetools``: shared by all its loaders."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from threading import Lock
from typing import Generic, TypeVar

from cachetools import LRUCache, TTLCache

__all__ = ("MemoryValueCache",)

K = TypeVar("K")
V = TypeVar("V")


class MemoryValueCache(Generic[K, V]):
    """
    Keeps the values that were used last, for some time::

        users = MemoryValueCache(maxsize=10_000, ttl=60)

        @batch_loader(value_cache=users)
        async def fetch_users(ids): ...

    It holds the very objects that batch functions gave: who changes one changes it for everybody.
    One of these can be shared between threads and event loops. Its methods are no checkpoints.

    :param maxsize: how many values it keeps; the least recently used one goes first
    :param ttl: for how many seconds; ``None`` for as long as there is room
    :param timer: a clock that tells seconds
    :raises TypeError: if ``maxsize`` is not an int
    :raises ValueError: if ``maxsize`` is less than 1, or ``ttl`` is not greater than 0
    """

    def __init__(
        self, maxsize: int, ttl: float | None = None, *, timer: Callable[[], float] = time.monotonic
    ) -> None:
        if isinstance(maxsize, bool) or not isinstance(maxsize, int):
            raise TypeError(f"maxsize must be an int, not {maxsize!r}")
        if maxsize < 1:
            raise ValueError(f"maxsize must be at least 1, not {maxsize!r}")
        if ttl is not None and not ttl > 0:
            raise ValueError(f"ttl must be greater than 0, or None, not {ttl!r}")
        self._values: MutableMapping[K, V]
        self._values = LRUCache(maxsize) if ttl is None else TTLCache(maxsize, ttl, timer)
        self._lock = Lock()

    async def get_many(self, keys: Sequence[K]) -> Mapping[K, V]:
        """See :meth:`ValueCache.get_many <anyloader.ValueCache.get_many>`."""
        missing = object()
        with self._lock:
            found = [(key, self._values.get(key, missing)) for key in keys]
        return {key: value for key, value in found if value is not missing}  # type: ignore[misc] # pyright: ignore

    async def set_many(self, items: Mapping[K, V]) -> None:
        """See :meth:`ValueCache.set_many <anyloader.ValueCache.set_many>`."""
        with self._lock:
            self._values.update(items)

    async def delete_many(self, keys: Sequence[K]) -> None:
        """See :meth:`ValueCache.delete_many <anyloader.ValueCache.delete_many>`."""
        with self._lock:
            for key in keys:
                self._values.pop(key, None)

    def __repr__(self) -> str:
        return f"<MemoryValueCache of {len(self._values)} values>"
