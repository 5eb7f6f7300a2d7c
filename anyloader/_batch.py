"""
A batch, its loads and who waits for them: what shares state stands in this file, and nothing awaits.

Theory of operation
===================

A batch collects *entries*: one handle for each key that the batch function will be given. All
other loads of an entry (a second ``load`` of a pending key, a key deduplicated with the cache off)
are its *followers*, handles of their own that settle with it. A ``load_many`` is one load in every
batch that it touches, whatever the number of its keys. So::

    loads on a batch  =  entries made by load  +  followers  +  load_manys
    ``live``          =  how many of these are still wanted
    ``awaiting``      =  how many tasks wait for one of these now (and for deferred hits)

When ``live`` drops to zero nobody wants the batch: sealed or running, it is cancelled at once; an
open one finds out when it is sealed, because until then an await may revive a load. These numbers are
kept up to date by whoever changes sides, so cancelling n waiters costs O(n). Which keys are unwanted
is worked out only once, at the seal, and only if ``live`` ever went down.

The states and all moves between them stand in ``TRANSITIONS``. A move that is not in the table
raises and changes nothing.

==========  ====================================================================================
OPEN        takes keys: its schedule has not returned, or its limiter has no token for it yet
SEALED      takes no more keys; waits for a task, or for its token
RUNNING     the batch function runs
DONE        all loads are settled; a cancelled function may still be cleaning up
==========  ====================================================================================

A pending handle is in one of three conditions, and its waiters say which:

=======================  =======================================================================
``_waiters``             the load is
=======================  =======================================================================
``None``                 wanted: nobody has awaited it yet
a waiter, or a dict      wanted: these await it now; a dict is made for the second one
with members
``NOBODY``, or an empty  given up: it was awaited, and every await of it was cancelled (or nobody
dict                     asked for this key by itself: a ``load_many`` brought it)
=======================  =======================================================================

The handle of a ``load_many`` knows ``None``, a dict with members and an empty one. There is no future
here that waiters share: each parks by itself, so cancelling one cannot reach another.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from contextvars import ContextVar
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from anyio import TaskCancelled, TaskFailed, TaskNotFinished
from anyio.lowlevel import checkpoint_if_cancelled

from ._backend import Backend, delegate, prove_stack_room, running_backend
from ._deadlock import begin_wait, end_wait
from ._errors import LoadCancelledError
from ._results import AWAITS, Failure, ResultRules, aligned, counted, outcome_of, traceback_of
from .hooks import BatchCancelled, BatchFailed, BatchFinished, BatchSealed, Hooks

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from anyio import CancelScope

    from ._dispatcher import Dispatcher
    from ._limits import Gate
    from ._statistics import Counts
    from .schedules import Schedule

__all__ = (
    "NOBODY",
    "TRANSITIONS",
    "Batch",
    "LoadHandle",
    "LoadManyHandle",
    "Parked",
    "await_settled",
    "batch_of",
    "batches_of",
    "extend",
    "give_up",
    "is_pending",
    "new_handle",
    "outcome_in",
    "park",
    "running_batch",
    "settled_handle",
    "withdraw",
)

V = TypeVar("V")
V_co = TypeVar("V_co", covariant=True)
T_co = TypeVar("T_co", covariant=True)

#: The batch whose function this code runs in, directly or in a task that it started. Such a task may
#: go on for long, so a batch that has ended keeps nothing that was loaded.
running_batch: ContextVar[Batch | None] = ContextVar("anyloader_running_batch", default=None)

#: False, as an empty dict is.
NOBODY: Any = ()

_numbers = count(1)

OPEN: Final = "open"
SEALED: Final = "sealed"
RUNNING: Final = "running"
DONE: Final = "done"

#: state -> event -> next state. The diagram in the documentation is generated from this table.
TRANSITIONS: Final = {
    OPEN: {"seal": SEALED, "fail": DONE, "cancel": DONE},
    SEALED: {"start": RUNNING, "drop": DONE, "fail": DONE, "cancel": DONE},
    RUNNING: {"settle": DONE, "fail": DONE, "cancel": DONE},
    DONE: {},
}


class _Moves(dict[str, str]):
    """What one event makes of each state in which it may come."""

    def __init__(self, event: str) -> None:
        super().__init__((s, moves[event]) for s, moves in TRANSITIONS.items() if event in moves)
        self._event = event

    def __missing__(self, state: str) -> str:
        raise RuntimeError(f"a batch cannot {self._event} while {state}")


_SEAL, _START, _DROP = _Moves("seal"), _Moves("start"), _Moves("drop")
_SETTLE, _FAIL, _CANCEL = _Moves("settle"), _Moves("fail"), _Moves("cancel")


class _Driven(Coroutine[Any, Any, T_co]):
    """
    Makes an awaitable pass for a coroutine, as ``asyncio.create_task`` and anyio demand.

    Several tasks may be given the same handle, and each then drives it by itself. So the iterator
    that a task advances belongs to that task: one that they shared would break for all once one of
    them is cancelled.
    """

    __slots__ = ("_drives",)

    # Not set before somebody drives the handle: most handles are simply awaited.
    _drives: tuple[Backend, dict[object, Generator[Any, Any, T_co]]]

    def _pending_in(self) -> Batch | None:
        """Return a batch that has to settle this first."""
        raise NotImplementedError

    def send(self, value: Any, /) -> Any:
        return self._drive("send", value)

    def throw(self, typ: Any, val: Any = None, tb: Any = None, /) -> Any:
        if val is None:
            val = typ() if isinstance(typ, type) else typ
        return self._drive("throw", val if tb is None else val.with_traceback(tb))

    def _drive(self, method: str, argument: Any) -> Any:
        pair = getattr(self, "_drives", None)
        if pair is None:
            batch = self._pending_in()
            backend: Any = running_backend() if batch is None else batch.backend
            if backend is None:
                # Settled, and where nothing is cancelled: the iterator ends with the first step.
                return getattr(await_settled(self), method)(argument)
            pair = self._drives = (backend, {})
        backend, drives = pair
        task = backend.current_task()
        iterator = drives.get(task)
        if iterator is None:
            iterator = drives[task] = self.__await__()
        try:
            return getattr(iterator, method)(argument)
        except BaseException:
            del drives[task]
            raise

    def close(self) -> None:
        """Give up the await that the current task drives, if any; the load itself goes on."""
        pair = getattr(self, "_drives", None)
        if pair is not None:
            iterator = pair[1].pop(pair[0].current_task(), None)
            if iterator is not None:
                iterator.close()


class LoadHandle(_Driven[V_co]):
    """
    One load, on its way or settled; ``loader.load(key)`` returns it.

    It can be awaited any number of times, by any number of tasks. Awaiting a settled handle returns
    at once, without a checkpoint (but a load that was cancelled lets a cancellation of the waiter go
    first); awaiting a pending one is a checkpoint. It also passes for a
    coroutine, for those who ask: ``task_group.start_soon(loader.load, key)``,
    ``asyncio.create_task(loader.load(key))`` and the like work.

    Awaiting it raises the error of the load. While it is pending it raises
    :class:`LoadDeadlockError` in a batch function that could not end before the load settles, and
    ``RuntimeError`` in another event loop or thread.

    **Cancellation.** Cancelling a task that awaits the handle affects no other waiter, no other
    handle of the same key, and no later load. Once every await of it was cancelled the load is
    given up: its key leaves a batch that was not yet sent (unless another load wants it), and a
    batch whose loads are all given up is cancelled. Awaiting it again before that revives it. In
    the other direction, where the batch is cancelled or its scope ends under a waiter, the waiter
    gets :class:`LoadCancelledError`; it is never cancelled itself.
    """

    class Status(enum.Enum):
        """The status of a load."""

        PENDING = enum.auto()
        FINISHED = enum.auto()
        FAILED = enum.auto()
        CANCELLED = enum.auto()

    # As few as can be: there may be millions, through which the garbage collector has to walk.
    __slots__ = ("_batch", "_key", "_value", "_waiters")

    #: The batch that will settle this handle; ``None`` once settled, which this module alone does.
    _batch: Batch | None
    #: Who waits; see the table on top of the module.
    _waiters: Any
    #: Not there before it is settled. Then the value, or a :class:`Failure`.
    _value: Any
    _key: Any

    def __init__(self) -> None:
        raise TypeError("handles are made by DataLoader.load()")

    @property
    def key(self) -> Any:
        """The key, as it was given to ``load``."""
        return self._key

    @property
    def status(self) -> LoadHandle.Status:
        """How the load stands."""
        if self._batch is not None:
            return LoadHandle.Status.PENDING
        if type(self._value) is not Failure:
            return LoadHandle.Status.FINISHED
        if isinstance(self._value.exception, LoadCancelledError):
            return LoadHandle.Status.CANCELLED
        return LoadHandle.Status.FAILED

    @property
    def return_value(self) -> V_co:
        """
        The value of the load.

        :raises anyio.TaskNotFinished: if the load is pending
        :raises anyio.TaskCancelled: if the load was cancelled
        :raises anyio.TaskFailed: if the load failed; ``__cause__`` is the error
        """
        failure = self._failure()
        if failure is not None:
            raise TaskFailed("the load failed") from failure.exception
        value: V_co = self._value
        return value

    @property
    def exception(self) -> BaseException | None:
        """
        The error that the load failed with, ``None`` if it has a value.

        :raises anyio.TaskNotFinished: if the load is pending
        :raises anyio.TaskCancelled: if the load was cancelled
        """
        failure = self._failure()
        return None if failure is None else failure.exception

    def _failure(self) -> Failure | None:
        status = self.status
        if status is LoadHandle.Status.PENDING:
            raise TaskNotFinished("the load has not finished yet")
        if status is LoadHandle.Status.CANCELLED:
            raise TaskCancelled("the load was cancelled") from self._value.exception
        return self._value if status is LoadHandle.Status.FAILED else None

    async def wait(self) -> None:
        """
        Wait until the load has settled, however it did; counts as awaiting it.

        Returns at once, without a checkpoint, if it has settled; is a checkpoint otherwise.

        :raises LoadDeadlockError: if called in a batch function that could not end before the load
            settles
        """
        await delegate(self.__await__(False))

    def __await__(self, outcome: bool = True, may_wait: bool = True) -> Generator[Any, Any, V_co]:
        # All in one generator, with nothing to delegate to but the waiter: it runs for every load
        # that is awaited.
        batch: Any = self._batch
        if batch is not None:
            backend: Any = batch.backend
            if backend.current() is not backend.token or not batch.has_task:
                batch.scope.check_await(batch)
            if self._batch is not None:  # it did not fail by this
                origin = running_batch.get()
                if origin is not None:
                    begin_wait(origin, (batch,))
                waiter: Any = backend.new_waiter()
                if self._waiters is None:
                    batch.awaiting += 1
                    self._waiters = waiter
                else:
                    self._enter(batch, waiter)
                try:
                    if backend.waits_for_futures:
                        # What ``yield from`` a future comes to, but for the iterator that it makes.
                        waiter._asyncio_future_blocking = True
                        yield waiter
                    else:
                        yield from waiter
                    if self._batch is not None:
                        raise RuntimeError("a load was resumed before it settled")
                except BaseException:
                    # Whatever ended it, this await is over without an outcome.
                    if self._batch is not None:
                        self._leave(batch, waiter)
                    raise
                finally:
                    if origin is not None:
                        end_wait(origin, (batch,))
        value: Any = self._value
        if type(value) is not Failure or not outcome:
            return value  # type: ignore[no-any-return]  # pyright: ignore[reportReturnType]
        # The traceback will hold this frame, which shall hold nothing that holds the error.
        batch = waiter = origin = None
        try:
            if may_wait and type(value.exception) is LoadCancelledError:
                # What has cancelled the batch may be about to reach who awaits it, too.
                yield from checkpoint_if_cancelled().__await__()
            raise value.renewed()
        finally:
            value.restore()
            del self, value

    def _enter(self, batch: Batch, waiter: Any) -> None:
        waiters = self._waiters
        batch.awaiting += 1
        if waiters is None:  # in ``__await__`` it never is
            self._waiters = waiter
        elif not waiters:
            batch.revive(self)
            self._waiters = waiter
        elif type(waiters) is dict:
            waiters[waiter] = None
        else:
            self._waiters = {waiters: None, waiter: None}

    def _leave(self, batch: Batch, waiter: Any, given_up: bool = True) -> None:
        waiters = self._waiters
        batch.awaiting -= 1
        if type(waiters) is dict:
            del waiters[waiter]
        else:
            self._waiters = waiters = NOBODY
        if not waiters:
            batch.was_left(batch.leave(self, given_up), given_up)

    @property
    def _is_wanted(self) -> bool:
        """Of a pending load; see the table on top of the module."""
        return self._waiters is None or bool(self._waiters)

    def _waiter_count(self) -> int:
        waiters = self._waiters
        return len(waiters) if type(waiters) is dict else bool(waiters)

    def _settle(self, value: Any) -> Iterable[Any]:
        """Take a value, or a failure; return those to wake. Done by its batch only."""
        waiters = self._waiters
        self._value = value
        self._batch = self._waiters = None
        return (waiters or ()) if type(waiters) is dict or not waiters else (waiters,)

    def _pending_in(self) -> Batch | None:
        return self._batch

    def _park(self, parked: Parked, here: object) -> bool:
        batch: Any = self._batch
        if batch is not None:
            backend = batch.backend
            if here is None:
                here = backend.current()
            if here is not backend.token or not batch.has_task:
                batch.scope.check_await(batch)
                batch = self._batch
        return batch is not None and parked.wait_for(self, (batch,))

    def __repr__(self) -> str:
        detail = f" of {self._batch!r}" if self._batch is not None else ""
        return f"<LoadHandle {self.status.name.lower()} key={self._key!r}{detail}>"


class LoadManyHandle(_Driven[list[V]], Generic[V]):
    """
    The loads of one ``load_many``, awaited together.

    Awaiting it gives the values in the order of the keys. The first failing key, in that order,
    raises its error; with ``return_exceptions=True`` errors stand in the list in place of values.
    It can be awaited any number of times and passes for a coroutine, as a :class:`LoadHandle` does;
    all said there of checkpoints and cancellation holds here, for all its loads together.
    """

    __slots__ = (
        "__weakref__",
        "_batches",
        "_handles",
        "_next",
        "_required",
        "_return_exceptions",
        "_waiters",
    )

    def __init__(
        self, return_exceptions: bool, required: Callable[[Any], Exception] | None = None
    ) -> None:
        # Filled by ``extend``.
        self._handles: list[LoadHandle[V]] = []
        #: The batches that have to settle some of the handles. In each of them this is one load.
        self._batches: dict[Batch, None] = {}
        #: All handles before this one have settled and are no reason to end.
        self._next = 0
        self._return_exceptions = return_exceptions
        #: Makes the error of a key whose value is ``None``, where that is one.
        self._required = required
        #: See the table on top of the module.
        self._waiters: dict[Any, None] | None = None

    @property
    def _is_wanted(self) -> bool:
        return self._waiters is None or bool(self._waiters)

    def _is_settled(self) -> bool:
        """Whether all handles have settled, or the first that fails makes the rest pointless."""
        handles = self._handles
        n = len(handles)
        i = self._next if self._batches else n
        while i < n and handles[i]._batch is None:
            value = handles[i]._value
            if type(value) is Failure and not self._return_exceptions:
                break
            if value is None and self._required is not None:
                break
            i += 1
        self._next = i
        return i == n or handles[i]._batch is None

    def __await__(self, may_wait: bool = True) -> Generator[Any, Any, list[V]]:
        if self._batches and not self._is_settled():
            yield from self._until_settled()
        handles = self._handles
        if self._batches and self._next < len(handles):
            handles = [handles[self._next]]
        values: list[Any] = [handle._value for handle in handles]
        if self._required is not None and type(None) in set(map(type, values)):
            values = list(map(self._refuse_none, handles))
        if Failure not in set(map(type, values)):
            return values
        if self._return_exceptions:
            values = [v.exception if type(v) is Failure else v for v in values]
            return values
        failure: Failure = next(value for value in values if type(value) is Failure)
        try:
            if may_wait and type(failure.exception) is LoadCancelledError:  # as in LoadHandle
                yield from checkpoint_if_cancelled().__await__()
            raise failure.renewed()
        finally:
            failure.restore()
            del self, failure, handles, values  # as in LoadHandle

    def _refuse_none(self, handle: LoadHandle[V]) -> Any:
        required: Any = self._required
        return Failure(required(handle._key)) if handle._value is None else handle._value

    def _until_settled(self) -> Generator[Any, Any, None]:
        for batch in list(self._batches):
            batch.scope.check_await(batch)
        if self._is_settled():
            return
        batches = tuple(self._batches)
        origin = running_batch.get()
        if origin is not None:
            begin_wait(origin, batches)
        waiter = batches[0].backend.new_waiter()
        self._enter(None, waiter)
        try:
            yield from waiter
            if not self._is_settled():
                raise RuntimeError("a load_many was resumed before it settled")
        except BaseException:
            if self._waiters and waiter in self._waiters:
                self._leave(None, waiter)
            raise
        finally:
            if origin is not None:
                end_wait(origin, batches)

    def _enter(self, _batch: object, waiter: Any) -> None:
        if not self._waiters:
            for batch in self._batches:
                batch.awaiting += 1
                if self._waiters is not None:
                    batch.revive(self)
            self._waiters = {}
            self._watch(True)
        self._waiters[waiter] = None

    def _leave(self, _batch: object, waiter: Any, given_up: bool = True) -> None:
        waiters: Any = self._waiters
        del waiters[waiter]
        if not waiters:
            self._watch(False)
            for batch in self._batches:
                batch.awaiting -= 1
            self._let_go(given_up)

    def _let_go(self, given_up: bool = True) -> None:
        left = [(batch, batch.leave(self, given_up)) for batch in self._batches]
        for batch, is_load in left:  # not before all know it, as hooks hear of what follows
            batch.was_left(is_load, given_up)

    def _watch(self, watch: bool) -> None:
        """Hear of the handle that is next, which its batch may settle before all others."""
        handle = self._handles[self._next]
        if handle._batch is not None:
            batch = handle._batch
            if not batch.watchers:
                batch.watchers = {}
            watchers = batch.watchers.setdefault(handle, {})
            watchers[self] = None
            if not watch:
                del watchers[self]

    def _progress(self, backend: Backend) -> None:
        """Some handles have settled: wake who waits if that was all, or go on to the next one."""
        if not self._waiters:
            return
        if not self._is_settled():
            self._watch(True)
            return
        woken, self._waiters = self._waiters, None  # got what they wanted, which is not giving up
        for batch in self._batches:
            batch.awaiting -= 1
        backend.wake(woken)
        for batch in list(self._batches):
            batch.scope.reconsider(batch)

    def _pending_in(self) -> Batch | None:
        return next(iter(self._batches), None)

    @property
    def _is_pending(self) -> bool:
        return bool(self._batches) and not self._is_settled()

    def _park(self, parked: Parked, here: object) -> bool:
        for batch in list(self._batches):
            batch.scope.check_await(batch)
        return self._is_pending and parked.wait_for(self, tuple(self._batches))

    def __repr__(self) -> str:
        pending = sum(handle._batch is not None for handle in self._handles)
        return f"<LoadManyHandle of {counted(len(self._handles), 'key')}, {pending} pending>"


class Parked:
    """
    Somebody who waits for one load after the other and is no task: it is called back.

    Counts as a task that awaits the load. See :func:`park`.
    """

    __slots__ = ("_batches", "_load", "_origin")

    _batches: tuple[Batch, ...]
    _origin: Batch | None

    def __init__(self) -> None:
        #: What it waits for; ``None`` while it does not.
        self._load: Any = None

    def resume(self) -> None:
        """The load has settled."""
        raise NotImplementedError

    def wait_for(self, load: Any, batches: tuple[Batch, ...]) -> bool:
        """For ``_park`` of the handle, which is pending."""
        self._origin = origin = running_batch.get()
        if origin is not None:
            begin_wait(origin, batches)
        load._enter(batches[0], self)
        self._load = load
        self._batches = batches
        return True

    def set_result(self, _: None) -> None:
        self._end()
        self.resume()

    def leave(self, given_up: bool = True) -> None:
        """
        Wait no more; nothing if it has settled.

        :param given_up: whether as a task does that is cancelled; else it is as if it had not waited
        """
        if self._load is not None:
            load = self._load
            self._end()
            load._leave(self._batches[0], self, given_up)

    def _end(self) -> None:
        self._load = None
        if self._origin is not None:
            end_wait(self._origin, self._batches)


AWAITS |= {LoadHandle.__await__.__code__, LoadManyHandle.__await__.__code__}

#: Makes a handle without its ``__init__``, and faster than that would be.
_bare_handle: Any = partial(object.__new__, LoadHandle)


def new_handle(
    key: Any, batch: Batch | None, waiters: Any = None, make: Any = _bare_handle
) -> LoadHandle[Any]:
    handle: LoadHandle[Any] = make()
    handle._key = key
    handle._batch = batch
    handle._waiters = waiters
    return handle


def settled_handle(key: Any, value: Any, make: Any = _bare_handle) -> LoadHandle[Any]:
    """
    :param value: the value, or a failure
    """
    handle = new_handle(key, None, None, make)
    handle._settle(value)
    return handle


# What else the package asks of handles, whose users shall not see it on them


def batch_of(handle: LoadHandle[Any]) -> Batch | None:
    """Return the batch that will settle it; ``None`` if it has settled."""
    return handle._batch


def outcome_in(handle: LoadHandle[Any]) -> Any:
    """Return the value of a settled handle, or its failure."""
    return handle._value


def await_settled(load: Any) -> Generator[Any, Any, Any]:
    """What awaiting a settled load comes to, by one step, whatever is being cancelled."""
    steps: Generator[Any, Any, Any] = load.__await__(may_wait=False)
    return steps


def batches_of(load: LoadHandle[Any] | LoadManyHandle[Any]) -> tuple[Batch, ...]:
    """Return the batches that have to settle a load first."""
    if isinstance(load, LoadManyHandle):
        return tuple(load._batches)
    return () if load._batch is None else (load._batch,)


def is_pending(load: LoadHandle[Any] | LoadManyHandle[Any]) -> bool:
    return load._is_pending if isinstance(load, LoadManyHandle) else load._batch is not None


def park(load: LoadHandle[Any] | LoadManyHandle[Any], parked: Parked, here: object = None) -> bool:
    """
    Let ``parked`` wait for ``load``, whose end it hears of; return ``False`` if it has settled already.

    :param here: the event loop that runs, if it is known
    :raises LoadDeadlockError: and whatever else awaiting it may raise
    """
    return load._park(parked, here)


def give_up(load: LoadHandle[Any] | LoadManyHandle[Any]) -> None:
    """
    Give up a load as a task does that awaits it and is cancelled, but without waiting for it.

    :raises RuntimeError: in another event loop, or a thread without one
    """
    for batch in batches_of(load):
        batch.scope.check_await(batch)
    if is_pending(load):
        batch, nobody = batches_of(load)[0], object()
        load._enter(batch, nobody)
        load._leave(batch, nobody)


def extend(many: LoadManyHandle[Any], handles: list[LoadHandle[Any]]) -> None:
    """Let a load_many that nobody has yet be of these, too."""
    many._handles += handles


def withdraw(many: LoadManyHandle[Any]) -> None:
    """Nobody will ever have this load_many."""
    many._waiters = {}
    many._let_go()


class BatchRules(ResultRules, Protocol):
    """What a batch asks of its loader."""

    counts: Counts
    hooks: Hooks | None
    #: Whether a list that is as long as the keys is not yet the values.
    gives_rows: bool
    #: Whether entries leave the cache when they settle.
    forgets: bool

    def keeps_error(self, error: Any, /) -> bool: ...

    def evict(self, pairs: Iterable[tuple[Any, LoadHandle[Any]]], /) -> None: ...

    def batch_left(self, batch: Batch, /) -> None: ...


#: Stands for no dict; never changed.
_NONE: Any = {}


class _Loads:
    """What is in a batch, and who wants it."""

    # Slots, as an attribute that stands on the class too is slow to read.
    __slots__ = (
        "_left",
        "_owners",
        "_sift_needed",
        "_waited_on",
        "awaiting",
        "cache_keys",
        "deferred",
        "entries",
        "followers",
        "index",
        "live",
        "loaded_from",
        "manys",
        "origins",
        "pulse",
        "settled",
        "watchers",
    )

    def __init__(self, pulse: Any) -> None:
        #: What hears of each new key: whoever counts rounds.
        self.pulse = pulse
        #: Appended to by the loader while OPEN, in one step for each; filtered by ``_sift`` only.
        self.entries: list[LoadHandle[Any]] = []
        self.live = self.awaiting = 0
        #: How many of the entries have been settled, each by itself, and are still in the list.
        self.settled = 0
        #: Whether ``live`` ever went down since it was last looked through for who is not wanted.
        self._sift_needed = False
        # Empty, and replaced rather than changed, in the batches that need no dict:
        #: The load_manys that are loads of this batch, with their entries in it.
        self.manys: dict[LoadManyHandle[Any], list[LoadHandle[Any]]] = _NONE
        #: Handle -> the load_manys that wait for it to settle before others.
        self.watchers: dict[LoadHandle[Any], dict[LoadManyHandle[Any], None]] = _NONE
        #: The load_manys that wait for a deferred hit, and are no loads of this batch for that.
        self._waited_on: dict[LoadManyHandle[Any], None] = _NONE
        #: Entry -> cache key, where that is not the key itself.
        self.cache_keys: dict[LoadHandle[Any], Any] | None = None
        #: Entry -> other loads of it.
        self.followers: dict[LoadHandle[Any], list[LoadHandle[Any]]] | None = None
        #: Cache key -> entry, where the batch deduplicates or is fed by a stream.
        self.index: dict[Any, LoadHandle[Any]] | None = None
        #: Hits that wait for this batch, with their outcomes. No loads of it.
        self.deferred: dict[LoadHandle[Any], Any] | None = None
        #: The batches whose running functions loaded from this one, and those that its own loaded from.
        self.origins: dict[Batch, None] | None = None
        self.loaded_from: dict[Batch, None] | None = None
        #: Entry -> the load_manys that it is in, and how many entries each of these is waiting for.
        #: Made when the first entry is settled by itself.
        self._owners: dict[LoadHandle[Any], list[LoadManyHandle[Any]]] | None = None
        self._left: dict[LoadManyHandle[Any], int] = _NONE

    # Of the batch, see there.
    loader: Any
    state: str
    scope: Any
    backend: Backend

    def cancel_if_there_is_room(self, why: str) -> None:
        raise NotImplementedError

    @property
    def keys(self) -> tuple[Any, ...]:
        return tuple(entry._key for entry in self.entries if entry._batch is self)

    @property
    def size(self) -> int:
        return len(self.entries) - self.settled

    @property
    def added(self) -> int:
        return len(self.entries)  # nothing leaves the list while the batch is open

    # Loads come in

    def add(self, key: Any, waiters: Any = None) -> LoadHandle[Any]:
        """
        Return the entry of a new key, which is in the batch from then on.

        :param waiters: ``None`` if the entry is a load, ``NOBODY`` if a load_many brings it
        """
        entry: Any = _bare_handle()
        entry._key = key
        entry._batch = self
        entry._waiters = waiters
        # In an order in which no interruption makes a batch that hangs: one load too many is counted
        # at worst.
        if waiters is None:
            self.live += 1
        self.entries.append(entry)
        self.pulse.news += 1
        return entry  # type: ignore[no-any-return]

    def add_all(self, entries: list[Any], many: LoadManyHandle[Any]) -> None:
        """Take the entries of many new keys, which a load_many brings."""
        for entry in entries:
            entry._batch = self
        self.join(many, entries)
        self.entries += entries
        self.pulse.news += 1

    def share(self, entry: LoadHandle[Any], follower: LoadHandle[Any]) -> LoadHandle[Any]:
        """Let ``follower`` be one more load of a pending entry."""
        if self.followers is None:
            self.followers = {}
        self.followers.setdefault(entry, []).append(follower)
        self.live += 1
        self.note_origin()
        return follower

    def defer(self, hit: LoadHandle[Any], handle: LoadHandle[Any], many: Any) -> None:
        """
        Let ``handle`` settle as ``hit`` did, but not before this batch does.

        :param many: the load_many that it is of, or ``None``
        """
        if self.deferred is None:
            self.deferred = {}
        self.deferred[handle] = hit._value
        if many is not None:
            many._batches[self] = None
            if not self._waited_on:
                self._waited_on = {}
            self._waited_on[many] = None

    def join(self, many: Any, entries: list[LoadHandle[Any]]) -> None:
        """Count ``many`` as one load of this batch, and these entries as wanted by it."""
        known = self.manys.get(many)
        if known is None:
            if not self.manys:
                self.manys = {}
            self.manys[many] = entries
            many._batches[self] = None
            self.live += 1
            self.note_origin()
        else:
            known += entries
        if self._owners is not None:
            self._own(many, entries)

    def note_origin(self) -> None:
        """Remember it if the load comes from a batch function."""
        origin: Any = running_batch.get()
        if origin is not None and origin is not self and origin.state is not DONE:
            if self.origins is None:
                self.origins = {}
            self.origins[origin] = None
            if origin.loaded_from is None:
                origin.loaded_from = {}
            origin.loaded_from[self] = None

    # Loads change their minds

    def leave(self, load: LoadHandle[Any] | LoadManyHandle[Any], given_up: bool = True) -> bool:
        """
        Nobody awaits a load any more.

        :param given_up: whether it is not wanted any more, as every await of it was cancelled
        :return: whether one less of this batch's loads is wanted; a deferred hit is none
        """
        if not given_up:
            load._waiters = None
            return False
        is_load = self._is_load(load)
        if is_load:
            self.live -= 1
            self._sift_needed = True
        return is_load

    def was_left(self, is_load: bool, given_up: bool = True) -> None:
        """
        See whether anybody wants what is in here.

        :param is_load: what :meth:`leave` has returned
        """
        if not given_up:
            self.scope.doubt(self)  # as it may be awaited again in this very step
            return
        if is_load and not self.live and self.state in (SEALED, RUNNING):
            self.cancel_if_there_is_room("all its loads were given up")
        self.scope.reconsider(self)

    def revive(self, load: LoadHandle[Any] | LoadManyHandle[Any]) -> None:
        """A load that was given up is awaited again."""
        if self._is_load(load):
            self.live += 1

    def _is_load(self, load: LoadHandle[Any] | LoadManyHandle[Any]) -> bool:
        if isinstance(load, LoadManyHandle):
            return load in self.manys
        return self.deferred is None or load not in self.deferred

    def loads_of(self, entry: LoadHandle[Any]) -> Iterator[LoadHandle[Any]]:
        """Return an entry, and all that settles with it."""
        yield entry
        if self.followers is not None:
            for follower in self.followers.get(entry, ()):
                # In a stream, a follower may be an entry that has followers: see ``distinct_keys``.
                yield from self.loads_of(follower)

    def distinct_keys(self) -> list[Any]:
        """Return each distinct key once; the other entries of a key follow the first from now on."""
        first: dict[Any, LoadHandle[Any]] = {}
        self.index = first
        keys = []
        for entry in self.entries:
            cache_key = self.loader.cache_key(entry._key)
            if cache_key in first:
                if self.followers is None:
                    self.followers = {}
                self.followers.setdefault(first[cache_key], []).append(entry)
            else:
                first[cache_key] = entry
                keys.append(entry._key)
        return keys

    # Loads settle

    def settle_some(self, outcomes: Iterable[tuple[LoadHandle[Any], Any]]) -> None:
        """Settle some entries, or deferred hits, by themselves; others remain."""
        if self._owners is None and self.manys:
            self._owners, self._left = {}, {}
            for many, entries in self.manys.items():
                self._own(many, entries)
        waiting: list[Any] = []
        told: dict[LoadManyHandle[Any], None] = {}
        for entry, outcome in outcomes:
            is_load = self._is_load(entry)
            for load in self.loads_of(entry):
                if load._batch is None:
                    continue  # in a stream, an entry that is a follower too comes twice
                if is_load and load._is_wanted:
                    self.live -= 1
                told.update(self.watchers.pop(load, ()))
                self.awaiting -= load._waiter_count()
                waiting.extend(load._settle(outcome))
                self._disown(load)  # one that follows another may be an entry of a load_many
            self.settled += is_load
        self.scope.woken()
        if waiting:
            self.backend.wake(waiting)
        for many in told:
            many._progress(self.backend)
        self.scope.doubt(self)

    def _own(self, many: LoadManyHandle[Any], entries: list[LoadHandle[Any]]) -> None:
        owners: Any = self._owners
        for entry in entries:
            owners.setdefault(entry, []).append(many)
            self._left[many] = self._left.get(many, 0) + 1

    def _disown(self, entry: LoadHandle[Any]) -> None:
        """An entry has settled; a load_many with no other one in here is no load of this any more."""
        for many in () if self._owners is None else self._owners.pop(entry, ()):
            self._left[many] -= 1
            if not self._left[many]:
                del self._left[many], self.manys[many]
                self.live -= many._is_wanted
                if many not in self._waited_on:
                    self._part(many)

    def _part(self, many: Any) -> None:
        """A load_many waits for nothing in here any more."""
        self.awaiting -= bool(many._waiters)
        many._batches.pop(self, None)

    def settle_deferred(self) -> None:
        """Let the hits go that waited for this batch."""
        deferred, self.deferred = self.deferred or {}, None
        self.scope.woken()
        for hit, outcome in deferred.items():
            self.awaiting -= hit._waiter_count()
            self.backend.wake(hit._settle(outcome))
        waited_on, self._waited_on = self._waited_on, {}
        for many in waited_on:
            if many not in self.manys:
                self._part(many)
        for many in (*waited_on, *self.manys):
            many._progress(self.backend)
        self.scope.doubt(self)


class Batch(_Loads):
    """See the theory of operation on top of this module."""

    __slots__ = (
        "__weakref__",
        "_number",
        "_sealed",
        "awaited_by",
        "backend",
        "due",
        "front",
        "function",
        "gates",
        "has_task",
        "loader",
        "name",
        "schedule",
        "schedule_scope",
        "scope",
        "state",
        "waits",
        "waits_for_token",
        "was_cancelled",
        "weight",
        "worker_scope",
    )

    def __init__(
        self,
        loader: BatchRules,
        scope: Dispatcher,
        schedule: Schedule,
        function: Any,
        front: object,
        gates: tuple[Gate, ...],
    ) -> None:
        super().__init__(scope)
        self.loader: Any = loader
        self.name = loader.name
        self.scope = scope
        self.backend = scope.backend
        self.schedule: Any = schedule
        self.function: Any = function
        #: Keeps alive whose methods may be called.
        self.front = front
        self.gates = gates
        #: One of the four states. Changed only by looking up the next one.
        self.state: str = OPEN
        #: Whether a task of its own, or that of its scope's rounds, will see to it.
        self.has_task = self.was_cancelled = False
        #: What to cancel to make the schedule, or the function, let go. Set by the workers.
        self.schedule_scope: CancelScope | None = None
        self.worker_scope: CancelScope | None = None
        #: While its task waits for a token.
        self.waits_for_token = False
        #: After so many rounds it leaves; set by the rounds, when they first see it.
        self.due: int | None = None
        #: The weight of its keys.
        self.weight: float = 0
        #: The batches that this one's function awaits now, with how many of its tasks do; and those whose
        #: functions await this one. Changed by ``_deadlock`` only.
        self.waits: dict[Batch, int] | None = None
        self.awaited_by: dict[Batch, None] | None = None
        self._number = 0
        #: How many of its keys are counted as sealed by the loader.
        self._sealed = 0

    @property
    def number(self) -> int:
        """For hooks: unique in the process, and not given before one asks for it."""
        if not self._number:
            self._number = next(_numbers)
        return self._number

    # What schedules see (BatchView)

    @property
    def is_open(self) -> bool:
        return self.state is OPEN

    @property
    def is_at_work(self) -> bool:
        """Whether its function runs, or is cleaning up after it was cancelled."""
        return self.state is RUNNING or (self.state is DONE and self.loader is not None)

    @property
    def is_done(self) -> bool:
        return self.state is DONE

    def checkpoint(self) -> Awaitable[None]:
        passing: Awaitable[None] = self.backend.checkpoint()
        return passing

    # From state to state

    def seal(self, reason: str, starts: bool = False) -> None:
        """
        Take no more keys, and let go of those that nobody wants any more.

        :param reason: "schedule", "full", "dispatch" or "close"
        :param starts: whether it is started next, so that only a hook could see it wait for that
        """
        end = _SEAL[self.state]
        loader = self.loader
        loader.batch_left(self)  # first: interrupted here, it is still open, and leaves later
        self.state = end
        if self._sift_needed:
            self._sift()
            if self.state is not SEALED:  # evicting runs code of the user's
                return
        size = len(self.entries) - self.settled
        if not starts or loader.hooks is not None:
            self._count_sealed(size)
        if self.schedule_scope is not None:
            self.schedule_scope.cancel()
        if loader.hooks is not None:
            loader.hooks.tell(BatchSealed, self.name, self.number, reason, size)
        if not size:
            self.drop()

    def drop(self) -> None:
        """Nothing of it is to be sent."""
        if self.state is SEALED:  # a hook may have ended it
            self._end(_DROP)

    def start(self) -> bool:
        """Let the function be called, unless nobody wants any of it any more."""
        if self._sift_needed:  # given up, or primed, while it waited for a token
            self._sift()
            if self.state is not SEALED:
                return False
            if not self.entries:
                self._end(_DROP)
                return False
        self.state = _START[self.state]
        if self._sealed:
            self._count_sealed(0)
        self.loader.counts.running += 1
        return True

    def _count_sealed(self, keys: int) -> None:
        """So many keys of this batch are sealed and wait to be sent."""
        if keys != self._sealed:
            self.loader.counts.sealed += keys - self._sealed
            self._sealed = keys

    def keys_to_send(self) -> list[Any]:
        """Return the keys for the batch function."""
        loader = self.loader
        keys = self.distinct_keys() if loader.streams else [entry._key for entry in self.entries]
        counts = loader.counts
        counts.batches += 1
        counts.keys += len(keys)
        return keys

    def _sift(self) -> None:
        """Drop the entries that are settled, and those that nobody wants."""
        self._sift_needed = False
        wanted: set[LoadHandle[Any]] = set()
        for many, entries in self.manys.items():
            if many._is_wanted:
                wanted.update(entries)
        kept: list[LoadHandle[Any]] = []
        unwanted: list[LoadHandle[Any]] = []
        for entry in self.entries:
            if entry._batch is self:
                is_wanted = entry in wanted or any(x._is_wanted for x in self.loads_of(entry))
                (kept if is_wanted else unwanted).append(entry)
        if unwanted:
            error = LoadCancelledError(f"a load of {self.name} was given up before it was sent")
            self.loader.evict(self._cached(unwanted))
            self.settle_some((entry, Failure(error)) for entry in unwanted)
        if self.state is not DONE:
            self.entries = kept
            self.settled = 0

    def _cached(self, entries: Iterable[LoadHandle[Any]]) -> Iterator[tuple[Any, LoadHandle[Any]]]:
        """Return entries with their cache keys."""
        for entry in entries:
            yield (entry._key if self.cache_keys is None else self.cache_keys.get(entry)), entry

    # Outcomes

    def settle(self, result: object) -> None:
        """
        Give every load the value for its key.

        :raises BatchResultError: if ``result`` does not have one value for each key
        """
        entries = self.entries
        values: Any = result
        if type(result) is not list or len(result) != len(entries) or self.loader.gives_rows:
            try:
                values = aligned(self.loader, [entry._key for entry in entries], result)
            except BaseException:
                del (
                    entries
                )  # by f_back the traceback may lead here, and this to handles with the error
                raise
        end = _SETTLE[self.state]
        failed: list[LoadHandle[Any]] = []
        waiting: list[Any] = []
        followers = self.followers
        kind: Any = None
        is_error = False
        for entry, value in zip(entries, values):
            if type(value) is not kind:
                kind = type(value)
                is_error = issubclass(kind, BaseException)
            if is_error:
                value = outcome_of(value)
                if type(value) is Failure:
                    failed.append(entry)
            waiters = entry._waiters
            entry._value = value
            entry._batch = entry._waiters = None
            if waiters:
                if type(waiters) is dict:
                    waiting.extend(waiters)
                else:
                    waiting.append(waiters)
            if followers is not None:
                for follower in followers.get(entry, ()):
                    waiting.extend(follower._settle(value))
        self.state = end
        if waiting:
            self.backend.wake(waiting)
        self._finish(entries if self.loader.forgets else failed, failed)

    def settle_found(self, outcomes: Iterable[tuple[LoadHandle[Any], Any]]) -> None:
        """Settle some entries of a running batch; the others remain for the function."""
        outcomes = list(outcomes)
        if self.loader.forgets:
            self.forget(outcomes)
        self.settle_some(outcomes)
        self.entries = [entry for entry in self.entries if entry._batch is self]
        self.settled = 0
        if not self.entries:
            self.state = _SETTLE[self.state]
            self._finish([], [])
        elif not self.live:
            self.cancel("all its loads were given up or answered otherwise", None)

    def settle_all(self, rest: list[tuple[LoadHandle[Any], Any]]) -> None:
        """Settle what is left of a batch whose entries were settled one by one."""
        end = _SETTLE[self.state]
        self.settle_some(rest)
        self.state = end
        failed = [entry for entry in (self.index or {}).values() if type(entry._value) is Failure]
        self._finish([entry for entry, _ in rest], failed)

    def take_out(self, entry: LoadHandle[Any], outcome: Any) -> bool:
        """Settle an entry that is still queued by a value from elsewhere; say if that was so."""
        if self.state is RUNNING:
            return False
        prove_stack_room()
        self.settle_some([(entry, outcome)])
        self._sift_needed = True
        if self.state is SEALED:
            self._count_sealed(self.size)
            if not self.live:
                self.cancel("all its loads were given up or answered otherwise", None)
        return True

    def refuse(self, entry: LoadHandle[Any], error: BaseException) -> None:
        """Take back an entry that could not be cached; nobody has its handle."""
        self.loader.evict(self._cached((entry,)))
        if entry._batch is self:
            self.settle_some([(entry, Failure(error))])
            self._sift_needed = True

    def _finish(self, settled: list[LoadHandle[Any]], failed: list[LoadHandle[Any]]) -> None:
        """The function has given its result: see which of ``settled`` may be cached, and end."""
        loader = self.loader
        if settled or failed:
            loader.counts.errors += len(failed)
            try:
                self.forget((entry, entry._value) for entry in settled)
            except BaseException:  # a predicate may raise a KeyboardInterrupt, or the like
                self._after(RUNNING)
                raise
        self._after(RUNNING)
        if loader.hooks is not None:
            loader.hooks.tell(BatchFinished, self.name, self.number, len(failed))

    def forget(self, outcomes: Iterable[tuple[LoadHandle[Any], Any]]) -> None:
        """
        Take out of the cache what is not to stay there.

        Before an entry is settled by itself, which may be the end of the batch.
        """
        loader = self.loader
        for entry, value in outcomes:
            if loader.forgets or (
                type(value) is Failure and not loader.keeps_error(value.exception)
            ):
                # Among the followers may be an entry of its own: cleared and loaded while queued.
                key = next(self._cached((entry,)))[0]
                loader.evict((key, load) for load in self.loads_of(entry))

    def fail(self, error: BaseException) -> None:
        """Give every unsettled load this error, and forget these keys."""
        loader = self.loader
        self._end(_FAIL, Failure(error, traceback_of(error)))
        if loader.hooks is not None:
            loader.hooks.tell(BatchFailed, self.name, self.number, error)

    def cancel_if_there_is_room(self, why: str) -> None:
        try:
            self.cancel(why, None)
        except RecursionError:
            pass  # deep in the stack of who gave up: nobody is hurt if the function runs to its end

    def cancel(self, why: str, cause: BaseException | None) -> None:
        """Settle every load as cancelled, forget the keys, and cancel the function."""
        prove_stack_room()
        loader = self.loader
        error = LoadCancelledError(f"a batch of {self.name} was cancelled: {why}")
        error.__cause__ = cause
        self._end(_CANCEL, Failure(error))
        self.was_cancelled = True
        for scope in (self.schedule_scope, self.worker_scope):
            if scope is not None:
                scope.cancel()
        if loader.hooks is not None:
            loader.hooks.tell(BatchCancelled, self.name, self.number, why)

    def _end(self, move: _Moves, failure: Failure | None = None) -> None:
        """Be done; with a failure for all that is left."""
        was, self.state = self.state, move[self.state]
        loader = self.loader
        self._count_sealed(0)
        if self.waits_for_token and self.worker_scope is not None:
            self.was_cancelled = True
            self.worker_scope.cancel()
        if failure is not None:
            # No list of pairs: this may be thousands of keys, at a time when nothing can be freed.
            pending = [entry for entry in self.entries if entry._batch is not None]
            loader.counts.errors += len(pending)
            self.settle_some((entry, failure) for entry in pending)
            loader.evict(self._cached(pending))
        loader.batch_left(self)
        self._after(was)

    def _after(self, was: str) -> None:
        """All that is left to do once all loads are settled."""
        if was is RUNNING:
            self.loader.counts.running -= 1
        if self.deferred is not None:
            self.settle_deferred()
        if self.manys:
            for many in self.manys:
                many._batches.pop(self, None)
                many._progress(self.backend)
            self.manys, self.watchers, self._left = {}, {}, {}
            self._owners = None
        self.scope.batch_done(self)
        # A load_many, and the traceback of an error, may refer to its batch for long.
        self.entries = []
        if self.followers is not None or self.index is not None or self.cache_keys is not None:
            self.followers = self.index = self.cache_keys = None
        if was is not RUNNING:
            self.release()

    def release(self) -> None:
        """Nothing runs for it any more: hold nothing of its loader."""
        self.loader = self.front = self.function = self.schedule = None

    def __repr__(self) -> str:
        return f"<Batch {self.state} of {self.name}, {counted(len(self.entries), 'key')}>"
