"""A value cache in the memory of one process, for all its requests."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Generic, TypeVar

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
    Give each batch function one of its own. Threads and event loops may share one. Its methods are
    no checkpoints, and take the time of a few dict look-ups for each key.

    :param maxsize: how many values it keeps; the least recently used one goes first. One whose time
        is over stays among them until it is asked for or its turn comes
    :param ttl: for how many seconds; ``None`` for as long as there is room
    :param timer: a clock that tells seconds
    :raises TypeError: if ``maxsize`` is not an int, or ``ttl`` not a number
    :raises ValueError: if ``maxsize`` is less than 1, or ``ttl`` is not greater than 0
    """

    def __init__(
        self, maxsize: int, ttl: float | None, *, timer: Callable[[], float] = time.monotonic
    ) -> None:
        if isinstance(maxsize, bool) or not isinstance(maxsize, int):
            raise TypeError(f"maxsize must be an int, not of type {type(maxsize).__name__}")
        if maxsize < 1:
            raise ValueError(f"maxsize must be at least 1, not {maxsize}")
        if isinstance(ttl, bool) or not isinstance(ttl, (int, float, type(None))):
            raise TypeError(f"ttl must be a number of seconds, not of type {type(ttl).__name__}")
        if ttl is not None and not ttl > 0:
            raise ValueError(f"ttl must be greater than 0, or None, not {ttl}")
        self._maxsize = maxsize
        self._ttl = math.inf if ttl is None else ttl
        self._timer = timer
        #: By key: when its time is over, and the value. What was used last is last.
        self._entries: OrderedDict[K, tuple[float, V]] = OrderedDict()
        self._lock = Lock()

    async def get_many(self, keys: Sequence[K]) -> Mapping[K, V]:
        """See :meth:`ValueCache.get_many <anyloader.ValueCache.get_many>`."""
        found: dict[K, V] = {}
        now = self._timer()
        with self._lock:
            for key in keys:
                entry = self._entries.get(key)
                if entry is None:
                    continue
                end, value = entry
                if now < end:
                    self._entries.move_to_end(key)
                    found[key] = value
                else:
                    del self._entries[key]
        return found

    async def set_many(self, items: Mapping[K, V]) -> None:
        """See :meth:`ValueCache.set_many <anyloader.ValueCache.set_many>`."""
        end = self._timer() + self._ttl
        with self._lock:
            for key, value in items.items():
                self._entries[key] = (end, value)
                self._entries.move_to_end(key)
                if len(self._entries) > self._maxsize:
                    self._entries.popitem(last=False)

    async def delete_many(self, keys: Sequence[K]) -> None:
        """See :meth:`ValueCache.delete_many <anyloader.ValueCache.delete_many>`."""
        with self._lock:
            for key in keys:
                self._entries.pop(key, None)

    def __repr__(self) -> str:
        return f"<MemoryValueCache of {len(self._entries)} values>"
