"""Batch functions that block."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from anyio import CapacityLimiter, to_thread

from ._batch import running_batch
from ._limits import limit
from ._split import Split

if TYPE_CHECKING:
    from ._limits import LimiterOption

__all__ = ("THREADS", "InThread", "in_thread", "thread_limiter")

#: As many as anyio's own limiter has, which would not do: who waits for a load in a worker thread, as
#: endpoints do that are not async, holds one of its tokens, and with all of them taken no batch would
#: ever get a thread.
THREADS = limit(40)

K = TypeVar("K")
R = TypeVar("R")


class InThread(Generic[K, R]):
    """A blocking function as a batch function; :func:`in_thread` makes it."""

    def __init__(self, fn: Callable[[list[K]], R], limiter: LimiterOption) -> None:
        self._fn = fn
        #: A loader takes its tokens as those of its own limiter, so that they count when it is asked
        #: who waits for whom, and a batch grows while all threads are busy.
        self.limiter = limiter
        self.__name__ = getattr(fn, "__name__", "batch_load_fn")
        self.__qualname__ = getattr(fn, "__qualname__", "batch_load_fn")
        self.__wrapped__ = fn

    async def __call__(self, keys: list[K], /, **arguments: Any) -> R:
        batch = running_batch.get()
        limiter: CapacityLimiter
        if batch is not None and thread_limiter(batch.function) is self.limiter:
            limiter = CapacityLimiter(1)  # its batch holds the token
        else:
            option = self.limiter
            limiter = option if isinstance(option, CapacityLimiter) else option()
        result, error = await to_thread.run_sync(
            partial(_outcome, self._fn, keys, arguments), limiter=limiter
        )
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame, which shall not hold it
        returned: R = result
        return returned

    def __repr__(self) -> str:
        return f"<in_thread {self.__qualname__}>"


def _outcome(fn: Any, keys: list[Any], arguments: dict[str, Any]) -> Any:
    # An error is carried over as a value: who raises it on the way from the thread may want to set its
    # traceback, which not every error lets him.
    try:
        return fn(keys, **arguments), None
    except Exception as exc:
        return None, exc


def in_thread(
    fn: Callable[[list[K]], R], *, limiter: LimiterOption | None = None
) -> Callable[[list[K]], Awaitable[R]]:
    """
    Make a batch function of a blocking function, to be run in a worker thread.

    A batch that is cancelled waits for the thread, which cannot be interrupted; the result is
    dropped. A batch waits for its thread as for a token of its loader's limiter: it goes on taking
    keys meanwhile, and a load in the thread that could never get a thread raises
    :class:`LoadDeadlockError`.

    :param fn: called with the list of keys, in a worker thread; returns what a batch function
        returns, but for streams. It sees the context variables that a batch function sees
    :param limiter: bounds the threads: an ``anyio.CapacityLimiter``, or :func:`limit`; by default
        all functions that have none share 40 threads, besides those of ``anyio.to_thread.run_sync``
    :raises TypeError: if ``fn`` is not callable
    """
    if not callable(fn):
        raise TypeError(f"in_thread() takes a blocking function, not {fn!r}")
    return InThread(fn, limiter or THREADS)


def thread_limiter(function: object) -> LimiterOption | None:
    """Return what bounds the threads of a batch function, if :func:`in_thread` made it or a part of it."""
    while isinstance(function, (partial, Split)):
        function = function.func
    return function.limiter if isinstance(function, InThread) else None
