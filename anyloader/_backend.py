"""
How a task parks until a load settles: the one module that touches asyncio and trio themselves.

anyio's public parts would do, at a price that ``python -m benchmarks`` shows in the rows
"tasks", "one miss at a time" and "waiting tasks cancelled": an :class:`anyio.Event` costs more
than a bare future, and on asyncio it takes cancelled waiters off a list one by one. Here every
waiter has a future of its own (asyncio) or is parked by itself (trio), in a dict, so that a
waiter can leave in constant time and no waiter can reach another one's.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Generator
from contextvars import Context
from typing import Any, Protocol

__all__ = ("FOREIGN", "Backend", "Waiters", "has_ended", "running_backend")

#: Who is parked: asyncio futures or trio tasks. A dict because it keeps order and lets any one of
#: them leave in constant time. Only ``park`` and ``wake`` may look inside.
Waiters = dict[Any, None]


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

    @staticmethod
    def current_task() -> object:
        """Return the task that runs now (on asyncio ``None`` in a plain callback)."""
        ...

    @staticmethod
    def prepare(context: Context) -> None:
        """Make ``context`` fit to start anyio tasks in, also from a plain callback of the loop."""
        ...

    def park(self, waiters: Waiters) -> Generator[Any, Any, None]:
        """
        Wait, as a member of ``waiters``, until :meth:`wake` is called with it.

        Whoever leaves early, by cancellation or otherwise, is no longer a member by then.
        """
        ...

    @staticmethod
    def wake(waiters: Waiters) -> None:
        """Let all of ``waiters`` go on; they have no members afterwards."""
        ...


class AsyncioBackend:
    __slots__ = ("_create_future", "current", "token")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.token: object = loop
        # No wrapper around it, as it is called by every load.
        self.current: Any = asyncio._get_running_loop
        self._create_future = loop.create_future

    @staticmethod
    def current_task() -> object:
        return asyncio.current_task()

    @staticmethod
    def prepare(context: Context) -> None:
        # In a callback there is no task by which sniffio could see where it is.
        sniffio = sys.modules.get("sniffio")
        if sniffio is not None:
            context.run(sniffio.current_async_library_cvar.set, "asyncio")

    def park(self, waiters: Waiters) -> Generator[Any, Any, None]:
        if asyncio._get_running_loop() is not self.token:
            raise RuntimeError(FOREIGN)
        future = self._create_future()
        waiters[future] = None
        try:
            yield from future
        except BaseException:
            waiters.pop(future, None)
            raise

    @staticmethod
    def wake(waiters: Waiters) -> None:
        for future in waiters:
            # A waiter that was cancelled in this very round is still a member.
            if not future.done():
                future.set_result(None)
        waiters.clear()


class TrioBackend:
    __slots__ = ("_trio", "current", "token")

    def __init__(self, lowlevel: Any) -> None:
        self._trio = lowlevel
        self.token: object = lowlevel.current_trio_token()
        self.current: Any = _current_trio_token

    @staticmethod
    def current_task() -> object:
        return sys.modules["trio.lowlevel"].current_task()

    @staticmethod
    def prepare(context: Context) -> None:
        pass

    def park(self, waiters: Waiters) -> Generator[Any, Any, None]:
        if self.current() is not self.token:
            raise RuntimeError(FOREIGN)
        lowlevel = self._trio
        task = lowlevel.current_task()
        waiters[task] = None

        def abort(_raise_cancel: object) -> Any:
            del waiters[task]
            return lowlevel.Abort.SUCCEEDED

        yield from lowlevel.wait_task_rescheduled(abort).__await__()

    @staticmethod
    def wake(waiters: Waiters) -> None:
        reschedule = sys.modules["trio.lowlevel"].reschedule
        for task in waiters:
            reschedule(task)
        waiters.clear()


def _current_trio_token() -> object:
    try:
        return sys.modules["trio.lowlevel"].current_trio_token()
    except RuntimeError:
        return None


def running_backend() -> Backend | None:
    """Return a backend for the event loop that runs in this thread, or ``None``."""
    # trio first: as a guest it runs inside the turns of a host loop that may be asyncio's. Not
    # imported here: whoever runs trio has done that.
    lowlevel = sys.modules.get("trio.lowlevel")
    if lowlevel is not None and lowlevel.in_trio_run():
        return TrioBackend(lowlevel)
    loop = asyncio._get_running_loop()
    return None if loop is None else AsyncioBackend(loop)


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
