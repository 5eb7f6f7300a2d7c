"""
How a task parks until a load settles: the one module that touches asyncio and trio themselves.

anyio's public parts would do, at a price that ``python -m benchmarks`` shows in the rows
"tasks", "one miss at a time" and "waiting tasks cancelled": an :class:`anyio.Event` costs more
than a bare future, and on asyncio it takes cancelled waiters off a list one by one. Here every
waiter has a future of its own (asyncio) or is parked by itself (trio), in a dict, so that a
waiter can leave in constant time and no waiter can reach another one's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable
from contextvars import Context
from functools import partial
from types import coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import asyncio

__all__ = (
    "FOREIGN",
    "Backend",
    "Waiter",
    "Waiters",
    "delegate",
    "has_ended",
    "park",
    "running_backend",
    "wake_all",
)


class Waiter(Protocol):
    """One task's wait for one thing: an asyncio future, or the like for trio."""

    def __iter__(self) -> Generator[Any, Any, None]: ...

    def __await__(self) -> Generator[Any, Any, None]: ...


#: Who waits for the same thing. A dict because it keeps order and lets any one of them leave in
#: constant time.
Waiters = dict[Any, None]


T = TypeVar("T")

FOREIGN = (
    "this loader was opened in another event loop than the one that runs here (or in another "
    "thread); from a worker thread call anyio.from_thread.run(loader.load, key), and in another "
    "event loop open a loader of its own"
)


class Backend(Protocol):
    @property
    def token(self) -> object:
        """The event loop that this backend was made in, to compare with ``current()``."""
        ...

    #: Returns the event loop that runs in this thread now, or ``None``.
    current: Any

    def current_task(self) -> object:
        """Return the task that runs now (on asyncio ``None`` in a plain callback)."""
        ...

    def is_being_cancelled(self) -> bool:
        """Whether the current task has a native cancellation ahead, from outside of any scope."""
        ...

    @staticmethod
    def prepare(context: Context) -> None:
        """Make ``context`` fit to start anyio tasks in, also from a plain callback of the loop."""
        ...

    #: Returns something to await that is a checkpoint.
    checkpoint: Any
    #: Makes something to wait on, which goes into a dict of waiters: ``yield from`` it returns when
    #: :meth:`wake` is called with that dict. Who leaves early has to take it out.
    new_waiter: Callable[[], Waiter]
    #: Whether these are asyncio's futures, which ``LoadHandle.__await__`` yields as they are.
    waits_for_futures: bool

    def wake(self, waiters: Iterable[Any]) -> None:
        """Let all of these go on."""
        ...


@coroutine
def _next_round() -> Generator[None, None, None]:
    """What ``asyncio.sleep(0)`` comes to."""
    yield


class AsyncioBackend:
    waits_for_futures = True
    __slots__ = ("_invalid_state", "checkpoint", "current", "current_task", "new_waiter", "token")

    def __init__(self, asyncio: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._invalid_state: type[Exception] = asyncio.InvalidStateError
        self.token: object = loop
        # No wrappers around these: every load calls the first one, every wait the second one.
        self.current: Any = asyncio._get_running_loop
        # What ``loop.create_future`` does, but for its call through Python.
        self.new_waiter: Any = partial(asyncio.Future, loop=loop)
        self.checkpoint: Any = _next_round
        self.current_task = asyncio.current_task

    def is_being_cancelled(self) -> bool:
        return bool(getattr(self.current_task(), "_must_cancel", False))

    @staticmethod
    def prepare(context: Context) -> None:
        # In a callback there is no task by which sniffio could see where it is.
        library = getattr(sys.modules.get("sniffio"), "current_async_library_cvar", None)
        if library is not None:
            context.run(library.set, "asyncio")

    def wake(self, waiters: Iterable[asyncio.Future[None]]) -> None:
        for future in waiters:
            try:
                future.set_result(None)
            except self._invalid_state:
                pass  # cancelled in this very round, and has not left yet


class TrioBackend:
    waits_for_futures = False
    __slots__ = ("checkpoint", "current", "new_waiter", "token")

    def __init__(self, lowlevel: Any) -> None:
        self.token: object = lowlevel.current_trio_token()
        self.current: Any = _current_trio_token
        self.new_waiter: Any = _TrioWaiter
        self.checkpoint: Any = lowlevel.checkpoint

    def current_task(self) -> object:
        return sys.modules["trio.lowlevel"].current_task()

    def is_being_cancelled(self) -> bool:
        return False

    @staticmethod
    def prepare(context: Context) -> None:
        pass

    def wake(self, waiters: Iterable[_TrioWaiter]) -> None:
        reschedule = sys.modules["trio.lowlevel"].reschedule
        for waiter in waiters:
            # A waiter that was cancelled in this very round has not left yet.
            if waiter.task is not None:
                reschedule(waiter.task)
                waiter.task = None


class _TrioWaiter:
    __slots__ = ("task",)

    def __init__(self) -> None:
        self.task: Any = sys.modules["trio.lowlevel"].current_task()

    def __iter__(self) -> Generator[Any, Any, None]:
        lowlevel = sys.modules["trio.lowlevel"]

        def abort(_raise_cancel: object) -> Any:
            self.task = None
            return lowlevel.Abort.SUCCEEDED

        yield from lowlevel.wait_task_rescheduled(abort).__await__()

    __await__ = __iter__


@coroutine
def delegate(steps: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
    """Await a plain generator of waits, such as :func:`park`."""
    return (yield from steps)


def park(backend: Backend, waiters: Waiters) -> Generator[Any, Any, None]:
    """Wait, as a member of ``waiters``, until they are woken; leave them if that never comes."""
    waiter = backend.new_waiter()
    waiters[waiter] = None
    try:
        yield from waiter
    except BaseException:
        waiters.pop(waiter, None)
        raise


def wake_all(backend: Backend, waiters: Waiters) -> None:
    """Wake everybody in ``waiters``, and leave it empty for the next ones."""
    backend.wake(waiters)
    waiters.clear()


def _current_trio_token() -> object:
    try:
        return sys.modules["trio.lowlevel"].current_trio_token()
    except RuntimeError:
        return None


def running_backend() -> Backend | None:
    """Return a backend for the event loop that runs in this thread, or ``None``."""
    # Neither is imported here: whoever runs a loop of theirs has done that. While another thread is
    # just importing one, its module lacks names. trio first: as a guest it runs inside the turns of a
    # host loop that may be asyncio's.
    in_trio_run = getattr(sys.modules.get("trio.lowlevel"), "in_trio_run", None)
    if in_trio_run is not None and in_trio_run():
        return TrioBackend(sys.modules["trio.lowlevel"])
    running_loop = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)
    loop = None if running_loop is None else running_loop()
    return None if loop is None else AsyncioBackend(sys.modules["asyncio"], loop)


def has_ended(group: Any) -> bool:
    """
    Return whether a foreign task group is known to take no more tasks.

    There is no public way to ask without starting a task, which a batch under a manual schedule
    must not have. Where an attribute is missing the answer is no, and starting the task will tell.
    """
    scope = getattr(group, "cancel_scope", None)
    return bool(
        getattr(group, "_closed", False)  # trio.Nursery
        or not getattr(group, "_active", True)  # anyio's on trio
        or not getattr(scope, "_active", True)  # anyio's on asyncio
        or (getattr(group, "_exiting", False) and not getattr(group, "_tasks", True))
        or getattr(group, "_aborting", False)  # both asyncio.TaskGroup
    )
