"""
How a task parks until a load settles: the one module that touches asyncio and trio themselves.

anyio's public parts would do, at a price that ``python -m benchmarks`` shows in the rows
"tasks", "one miss at a time" and "waiting tasks cancelled": an :class:`anyio.Event` costs more
than a bare future, and on asyncio it takes cancelled waiters off a list one by one. Here every
waiter has a future of its own (asyncio) or is parked by itself (trio), in a dict, so that a
waiter can leave in constant time and no waiter can reach another one's.
"""

from __future__ import annotations

import gc
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sized
from contextvars import Context
from functools import partial
from types import coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import asyncio

__all__ = (
    "ELSEWHERE",
    "Backend",
    "Waiter",
    "Waiters",
    "delegate",
    "has_ended",
    "park",
    "prove_stack_room",
    "running_backend",
    "wake_all",
)


class Waiter(Protocol):
    """
    One task's wait for one thing: an asyncio future, or the like for trio.

    Whatever else has ``set_result`` can be among those to wake, too.
    """

    def __iter__(self) -> Generator[Any, Any, None]: ...

    def __await__(self) -> Generator[Any, Any, None]: ...

    def set_result(self, result: None, /) -> None: ...


#: Who waits for the same thing. A dict because it keeps order and lets any one of them leave in
#: constant time.
Waiters = dict[Any, None]

T = TypeVar("T")

ELSEWHERE = (
    "this loader was opened in another event loop than the one that runs here, or this is another "
    "thread. From a thread, of whatever kind, call anyio.from_thread.run(loader.load, key, "
    "token=token), with token = anyio.lowlevel.current_token() taken in the event loop of the loader, or "
    "run_sync for what is not awaited, such as clear, prime and scope.set; in another event loop open a "
    "loader of its own"
)


class Backend(Protocol):
    @property
    def token(self) -> object:
        """The event loop that this backend was made in, to compare with ``current()``."""
        ...

    #: Returns the event loop that runs in this thread now, or ``None``.
    current: Any
    #: So many checkpoints without news make a round quiet.
    quiet: int
    #: Whether a task group of anyio that has no task is no more than its cancel scope. Its own way out
    #: passes a shielded round then, which costs twice as much as all else that it does.
    group_is_scope: bool
    #: Whether tasks count how often they were cancelled, and scopes take their share off in the end.
    counts_cancellations: bool
    #: What can run in this round, where that can be seen: nothing can if it is empty.
    ready: Sized

    def is_here(self) -> bool:
        """As ``current() is token``, but surely: also where one event loop is a guest of the other."""
        ...

    def current_task(self) -> object:
        """Return the task that runs now (on asyncio ``None`` in a plain callback)."""
        ...

    def is_being_cancelled(self) -> bool:
        """Whether the current task has a native cancellation ahead, from outside of any scope."""
        ...

    def after_first_step(self, callback: Callable[[], object]) -> None:
        """
        Call ``callback`` once a task that was started now has made its first step, or never will.

        Not at all where every task makes one.
        """
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


#: Of a loop whose queue cannot be seen: something may always be ready.
_UNSEEN = (None,)


class AsyncioBackend:
    waits_for_futures = group_is_scope = counts_cancellations = True
    # What is only one round on trio (the end of a task group, or of a gather) takes asyncio three: the
    # child, its done callback, who waits for it. With two checkpoints a load after a group with a
    # child would miss the batch that it shares on trio.
    quiet = 3
    __slots__ = (
        "_invalid_state",
        "checkpoint",
        "current",
        "current_task",
        "new_waiter",
        "ready",
        "token",
    )

    def __init__(self, asyncio: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._invalid_state: type[Exception] = asyncio.InvalidStateError
        self.token: object = loop
        # No wrappers around these: every load calls the first one, every wait the second one.
        self.current: Any = asyncio._get_running_loop
        # What ``loop.create_future`` does, but for its call through Python.
        self.new_waiter: Any = partial(asyncio.Future, loop=loop)
        self.checkpoint: Any = _next_round
        self.current_task = asyncio.current_task
        self.ready = _ready_queue(loop)

    def is_here(self) -> bool:
        return self.current() is self.token and not _in_trio_task()

    def is_being_cancelled(self) -> bool:
        return bool(getattr(self.current_task(), "_must_cancel", False))

    def after_first_step(self, callback: Callable[[], object]) -> None:
        loop: Any = self.token
        loop.call_soon(loop.call_soon, callback)

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


#: The queues of loops that were met.
_queues: WeakKeyDictionary[asyncio.AbstractEventLoop, Sized] = WeakKeyDictionary()

_SCHEDULING = ("call_soon", "_call_soon", "_run_once")


def _ready_queue(loop: Any) -> Sized:
    """
    Return the queue of what is ready to run, of a loop that is known to have no other one.

    An empty queue while a task runs means that nothing else can run before something comes from
    outside. There is no public way to ask. A loop that somebody has changed, or that is not known
    here, may keep what is ready anywhere.
    """
    try:
        return _queues[loop]
    except KeyError:
        queue = _queues[loop] = _find_queue(loop)
        return queue
    except TypeError:  # no weak reference, or no hash
        return _UNSEEN


def _find_queue(loop: Any) -> Sized:
    kind = type(loop)
    if any(name in getattr(loop, "__dict__", ()) for name in _SCHEDULING):
        return _UNSEEN
    base = sys.modules["asyncio"].BaseEventLoop
    if all(getattr(kind, name, None) is getattr(base, name, ...) for name in _SCHEDULING):
        return getattr(loop, "_ready", _UNSEEN)
    if kind is getattr(sys.modules.get("uvloop"), "Loop", None):
        # A field of C. It is the one that takes what is to be called soon.
        for queue in gc.get_referents(loop):
            if type(queue) is deque:
                before = len(queue)
                loop.call_soon(before.__bool__).cancel()
                if len(queue) == before + 1:
                    return queue
    return _UNSEEN


class TrioBackend:
    waits_for_futures = group_is_scope = counts_cancellations = False
    quiet = 2
    ready: Sized = _UNSEEN
    __slots__ = ("checkpoint", "current", "new_waiter", "token")

    def __init__(self, lowlevel: Any) -> None:
        self.token: object = lowlevel.current_trio_token()
        self.current: Any = _current_trio_token
        self.new_waiter: Any = _TrioWaiter
        self.checkpoint: Any = lowlevel.checkpoint

    def is_here(self) -> bool:
        return self.current() is self.token

    def current_task(self) -> object:
        return sys.modules["trio.lowlevel"].current_task()

    def is_being_cancelled(self) -> bool:
        return False

    def after_first_step(self, callback: Callable[[], object]) -> None:
        pass

    @staticmethod
    def prepare(context: Context) -> None:
        pass

    def wake(self, waiters: Iterable[Any]) -> None:
        for waiter in waiters:
            waiter.set_result(None)


class _TrioWaiter:
    __slots__ = ("_lowlevel", "task")

    def __init__(self) -> None:
        self._lowlevel: Any = sys.modules["trio.lowlevel"]
        self.task: Any = self._lowlevel.current_task()

    def __iter__(self) -> Generator[Any, Any, None]:
        steps: Generator[Any, Any, None] = self._lowlevel.wait_task_rescheduled(
            self._abort
        ).__await__()
        return steps

    __await__ = __iter__

    def _abort(self, _raise_cancel: object) -> Any:
        self.task = None
        return self._lowlevel.Abort.SUCCEEDED

    def set_result(self, _: None) -> None:
        # A waiter that was cancelled in this very round has not left yet.
        if self.task is not None:
            self._lowlevel.reschedule(self.task)
            self.task = None


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
    finally:
        waiters.pop(waiter, None)


def wake_all(backend: Backend, waiters: Waiters) -> None:
    """Wake all of ``waiters``, who are its members no more."""
    woken = list(waiters)
    waiters.clear()
    backend.wake(woken)


# Waking a task goes through Python code of asyncio: ``call_soon``, what that calls, and in debug mode
# some frames more. Where the stack ends in there the task is lost for good, as its future is done and
# nobody has heard of it. So many frames were enough in every place that was found.
_FRAMES = 24


def prove_stack_room() -> None:
    """
    Go so far down the stack as waking a task will; to be called before anything changes.

    :raises RecursionError: if the stack ends before
    """
    # Nearly always this is the end of it. C code takes its share of the limit, too, and has no frames
    # here: hence a quarter of it.
    if _is_deep(sys.getrecursionlimit() // 4):
        _descend(_FRAMES)


def _has_frames(depth: int) -> bool:
    try:
        sys._getframe(depth)
    except ValueError:
        return False
    return True


#: Tells whether there are so many frames; from Python 3.12 on something can be asked that does not raise.
_is_deep: Callable[[int], object] = getattr(sys, "_getframemodulename", _has_frames)


def _descend(frames: int) -> None:
    if frames:
        _descend(frames - 1)


def _in_trio_task() -> bool:
    lowlevel = sys.modules.get("trio.lowlevel")
    if lowlevel is None:
        return False
    in_trio_task = getattr(lowlevel, "in_trio_task", None)
    return in_trio_task is not None and in_trio_task()


def _current_trio_token() -> object:
    # Not only whether trio runs in this thread: as a guest it does so all the time, and the turns of
    # its host are no place for its tasks.
    lowlevel = sys.modules["trio.lowlevel"]
    return lowlevel.current_trio_token() if lowlevel.in_trio_task() else None


def running_backend() -> Backend | None:
    """Return a backend for the event loop that runs in this thread, or ``None``."""
    # Neither is imported here: whoever runs a loop of theirs has done that. While another thread is
    # just importing one, its module lacks names. trio first: as a guest it runs inside the turns of a
    # host loop that may be asyncio's.
    if _in_trio_task():
        return TrioBackend(sys.modules["trio.lowlevel"])
    running_loop = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)
    loop = None if running_loop is None else running_loop()
    return None if loop is None else AsyncioBackend(sys.modules["asyncio"], loop)


def has_ended(group: Any) -> bool:
    """
    Return whether a foreign task group is known to take no more tasks, or to let none run.

    There is no public way to ask without starting a task, which a batch under a manual schedule
    must not have. Where an attribute is missing the answer is no, and starting the task will tell.
    """
    scope = getattr(group, "cancel_scope", None)
    return bool(
        getattr(group, "_closed", False)  # trio.Nursery
        or not getattr(group, "_active", True)  # anyio's on trio
        or getattr(getattr(group, "_nursery", None), "_closed", False)  # the same
        or not getattr(scope, "_active", True)  # anyio's on asyncio
        or (getattr(group, "_exiting", False) and not getattr(group, "_tasks", True))
        # A task that is started now would be cancelled. On asyncio it may not even be that: anyio
        # cancels no more once the tasks have ended that were there.
        or getattr(scope, "cancel_called", False)
        or getattr(group, "_aborting", False)  # both asyncio.TaskGroup
    )
