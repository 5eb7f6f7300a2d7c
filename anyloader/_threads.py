"""Batch functions that block."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from anyio import to_thread

if TYPE_CHECKING:
    from anyio import CapacityLimiter

__all__ = ("in_thread",)

K = TypeVar("K")
R = TypeVar("R")


def in_thread(
    fn: Callable[[list[K]], R], *, limiter: CapacityLimiter | None = None
) -> Callable[[list[K]], Awaitable[R]]:
    """
    Make a batch function of a blocking function, to be run in a worker thread.

    A batch that is cancelled waits for the thread, which cannot be interrupted; the result is
    dropped.

    :param fn: called with the list of keys, in a worker thread; returns what a batch function
        returns, but for streams. It sees the context variables that a batch function sees
    :param limiter: bounds the threads; by default anyio's limiter for worker threads
    :raises TypeError: if ``fn`` is not callable
    """
    if not callable(fn):
        raise TypeError(f"in_thread() takes a blocking function, not {fn!r}")

    async def batch_load_fn(keys: list[K]) -> R:
        return await to_thread.run_sync(fn, keys, limiter=limiter)

    batch_load_fn.__name__ = getattr(fn, "__name__", "batch_load_fn")
    batch_load_fn.__qualname__ = getattr(fn, "__qualname__", "batch_load_fn")
    return batch_load_fn
