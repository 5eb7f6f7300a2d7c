"""
The handles that ``load`` and ``load_many`` return, and who waits for them.

A pending load is in one of three conditions, and the set of its waiters says which:

=======================  =======================================================================
``_content``             the load is
=======================  =======================================================================
``None``                 wanted: nobody has awaited it yet
a waiter, or a dict      wanted: these await it now; a dict is made for the second one
with members
``NOBODY``, or an empty  given up: it was awaited, and every await of it was cancelled (or nobody
dict                     asked for this key by itself: a ``load_many`` brought it)
=======================  =======================================================================

A batch counts the loads that are wanted; the handle tells it when it changes sides. There is no
future here that waiters share: each parks by itself, so cancelling one cannot reach another.
"""

from __future__ import annotations

import enum
from collections.abc import Coroutine, Generator
from contextvars import ContextVar
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from anyio import TaskCancelled, TaskFailed, TaskNotFinished

from ._backend import delegate, park
from ._errors import LoadCancelledError

if TYPE_CHECKING:
    from ._backend import Backend
    from ._batch import Batch

__all__ = (
    "NOBODY",
    "Failure",
    "LoadHandle",
    "LoadManyHandle",
    "bare_handle",
    "outcome_of",
    "running_batch",
)

V = TypeVar("V")
V_co = TypeVar("V_co", covariant=True)
T_co = TypeVar("T_co", covariant=True)

#: The batch whose function this code runs in, directly or in a task that it started.
running_batch: ContextVar[Batch | None] = ContextVar("anyloader_running_batch", default=None)

#: False, as an empty dict is.
NOBODY: Any = ()


class Failure:
    """An error as the outcome of a load, with the traceback it had when it became one."""

    __slots__ = ("exception", "traceback")

    def __init__(self, exception: BaseException, traceback: TracebackType | None) -> None:
        self.exception = exception
        self.traceback = traceback

    def renewed(self) -> BaseException:
        # Python appends to an exception's traceback wherever it passes. Starting each time from the
        # original one keeps it from growing with every waiter that the error is raised to.
        return self.exception.with_traceback(self.traceback)


def outcome_of(value: Any) -> Any:
    """
    Return what was returned, or primed, as a value: itself, or for an error its :class:`Failure`.

    The same error may have been raised to waiters before, which has put their frames, and ours, on
    top of its traceback. What counts is below these.
    """
    if not issubclass(type(value), Exception):  # isinstance would make a lazy proxy load
        return value
    traceback = tb = value.__traceback__
    while tb is not None:
        if tb.tb_frame.f_code in _OUR_AWAITS:
            traceback = tb.tb_next
        tb = tb.tb_next
    return Failure(value, traceback)


def check_place(batch: Batch) -> None:
    """
    Look, before something is awaited that is pending, whether it can ever settle here.

    A batch without a task fails if it cannot get one any more: its task group has ended.

    :raises RuntimeError: if the loader was opened in another event loop or thread
    """
    batch.dispatcher.check_thread()
    batch.dispatcher.fail_if_ended(batch)


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

    def _pending_backend(self) -> Backend | None:
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
            pending = self._pending_backend()
            if pending is None:  # settled, so the iterator ends with the first step
                return getattr(self.__await__(), method)(argument)
            pair = self._drives = (pending, {})
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
        try:
            backend, drives = self._drives
        except AttributeError:
            return
        iterator = drives.pop(backend.current_task(), None)
        if iterator is not None:
            iterator.close()


class LoadHandle(_Driven[V_co]):
    """
    One load, on its way or settled; ``loader.load(key)`` returns it.

    It can be awaited any number of times, by any number of tasks. Awaiting a settled handle returns
    at once, without a checkpoint; awaiting a pending one is a checkpoint. It also passes for a
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
    __slots__ = ("__weakref__", "_batch", "_content", "_key")

    #: The batch that will settle this handle; ``None`` once settled, which ``_batch`` alone does.
    _batch: Batch | None
    #: Once settled the value, or a :class:`Failure`; before that, who waits: see the table on top of
    #: the module.
    _content: Any
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
        if type(self._content) is not Failure:
            return LoadHandle.Status.FINISHED
        if isinstance(self._content.exception, LoadCancelledError):
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
            raise TaskFailed(f"the load of {self._key!r} failed") from failure.exception
        value: V_co = self._content
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
            raise TaskNotFinished(f"the load of {self._key!r} has not finished yet")
        if status is LoadHandle.Status.CANCELLED:
            raise TaskCancelled(
                f"the load of {self._key!r} was cancelled"
            ) from self._content.exception
        return self._content if status is LoadHandle.Status.FAILED else None

    async def wait(self) -> None:
        """
        Wait until the load has settled, however it did; counts as awaiting it.

        Returns at once, without a checkpoint, if it has settled; is a checkpoint otherwise.

        :raises LoadDeadlockError: if called in a batch function that could not end before the load
            settles
        """
        await delegate(self.__await__(False))

    def __await__(self, outcome: bool = True) -> Generator[Any, Any, V_co]:
        # All in one generator, with nothing to delegate to but the waiter: it runs for every load
        # that is awaited.
        batch: Any = self._batch
        if batch is not None:
            backend: Any = batch.backend
            if backend.current() is not backend.token or batch.worker_scope is None:
                check_place(batch)
            if self._batch is not None:  # it did not fail by this
                origin = running_batch.get()
                if origin is not None:
                    origin.begin_wait((batch,))
                waiter: Any = backend.new_waiter()
                if self._content is None:
                    self._content = waiter
                else:
                    self._add_waiter(batch, waiter)
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
                        self._remove_waiter(batch, waiter)
                    raise
                finally:
                    if origin is not None:
                        origin.end_wait((batch,))
        value: Any = self._content
        if type(value) is not Failure or not outcome:
            return value  # type: ignore[no-any-return]  # pyright: ignore[reportReturnType]
        # The traceback will hold this frame, which shall hold nothing that holds the error.
        batch = waiter = origin = None
        try:
            raise value.renewed()
        finally:
            del self, value

    def _add_waiter(self, batch: Batch, waiter: Any) -> None:
        waiters = self._content
        if not waiters:
            batch.revive(self)
            self._content = waiter
        elif type(waiters) is dict:
            waiters[waiter] = None
        else:
            self._content = {waiters: None, waiter: None}

    def _remove_waiter(self, batch: Batch, waiter: Any) -> None:
        waiters = self._content
        if type(waiters) is dict:
            del waiters[waiter]
        else:
            self._content = waiters = NOBODY
        if not waiters:
            batch.give_up(self)

    @property
    def _waiters(self) -> Any:
        """Who waits for it now; not for where it matters how long it takes."""
        return None if self._batch is None else self._content

    @property
    def _is_wanted(self) -> bool:
        """Of a pending load; see the table on top of the module."""
        return self._content is None or bool(self._content)

    def _pending_backend(self) -> Backend | None:
        return None if self._batch is None else self._batch.backend

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
        "_awaits",
        "_batches",
        "_handles",
        "_return_exceptions",
        "_sorted",
    )

    def __init__(self, return_exceptions: bool) -> None:
        # Filled by the loader, and by ``Batch.join``.
        self._handles: list[LoadHandle[V]] = []
        #: The batches that may settle some of the handles. In each of them this object is one load.
        #: With the handles in question, as far as these were sorted: see :meth:`_pending_in`.
        self._batches: dict[Batch, list[LoadHandle[V]]] = {}
        self._sorted = 0
        self._return_exceptions = return_exceptions
        #: How many tasks await it now; ``None`` before the first.
        self._awaits: int | None = None

    @property
    def _is_wanted(self) -> bool:
        return self._awaits != 0

    @property
    def _is_awaited(self) -> bool:
        return bool(self._awaits)

    def _pending_in(self, batch: Batch) -> list[LoadHandle[V]]:
        """Return the handles that ``batch`` will settle, without a look at those of all others."""
        for handle in self._handles[self._sorted :]:
            if handle._batch is not None:
                self._batches[handle._batch].append(handle)
        self._sorted = len(self._handles)
        return [handle for handle in self._batches[batch] if handle._batch is batch]

    def __await__(self) -> Generator[Any, Any, list[V]]:
        if self._batches:
            yield from self._until_settled()
        values: list[Any] = [handle._content for handle in self._handles]
        if Failure not in set(map(type, values)):
            return values
        if self._return_exceptions:
            values = [v.exception if type(v) is Failure else v for v in values]
            return values
        failure: Failure = next(value for value in values if type(value) is Failure)
        try:
            raise failure.renewed()
        finally:
            del self, failure, values  # as in LoadHandle

    def _until_settled(self) -> Generator[Any, Any, None]:
        """Wait for all handles, or for the failure that makes the rest pointless."""
        pending = [batch for batch in self._batches if not batch.is_done]
        for batch in pending:
            check_place(batch)
        origin = running_batch.get()
        if origin is not None:
            origin.begin_wait(pending)
        if self._awaits == 0:
            for batch in pending:
                batch.revive(self)
        self._awaits = (self._awaits or 0) + 1
        try:
            yield from self._until_first_failure()
        except BaseException:
            self._awaits -= 1
            if not self._awaits:
                for batch in pending:
                    batch.give_up(self)
            raise
        finally:
            if origin is not None:
                origin.end_wait(pending)
        # Got what it wanted, which is not giving up: so never back to 0.
        self._awaits = self._awaits - 1 or None
        self._batches = {batch: self._batches[batch] for batch in pending if not batch.is_done}
        for batch in self._batches:
            batch.dispatcher.reconsider()

    def _until_first_failure(self) -> Generator[Any, Any, None]:
        for handle in self._handles:
            while (batch := handle._batch) is not None:
                yield from park(batch.backend, batch.watchers)
                if batch.is_done and len(self._batches) == 1:
                    return  # __await__ looks at all values at once, which is faster
            if type(handle._content) is Failure and not self._return_exceptions:
                return

    def _pending_backend(self) -> Backend | None:
        return next((batch.backend for batch in self._batches), None)

    def __repr__(self) -> str:
        pending = sum(handle._batch is not None for handle in self._handles)
        return f"<LoadManyHandle of {len(self._handles)} keys, {pending} pending>"


#: Makes a handle without its ``__init__``, and faster than that would be.
bare_handle: Any = partial(object.__new__, LoadHandle)

_OUR_AWAITS = {LoadHandle.__await__.__code__, LoadManyHandle.__await__.__code__}
