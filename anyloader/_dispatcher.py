"""
The life of a scope: who may come in, and what happens at its end.

A loader in an ``async with`` of its own has a dispatcher, all loaders of a ``LoaderScope`` share
one, and a loader in somebody else's task group has one that only starts tasks.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import ref

import anyio
from anyio import CancelScope

from ._backend import ELSEWHERE, Backend, delegate, has_ended, park, running_backend
from ._batch import Batch, running_batch
from ._errors import LoadCancelledError, LoaderClosedError, LoaderNotOpenError
from ._statistics import Counts, LoaderStatistics
from ._workers import Workers, closed
from .hooks import Hook
from .schedules import Manual, Polling, quiescent

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from ._limits import LimiterOption

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

__all__ = ("Dispatcher", "LoaderRules", "ambient", "leave_bare", "shielded")

#: The dispatcher of the innermost LoaderScope. What runs in this context may outlive the scope, which
#: empties its dispatcher when it ends.
ambient: ContextVar[Dispatcher | None] = ContextVar("anyloader_ambient", default=None)

_WHILE_LEAVING = quiescent()

OPEN: Final = "open"
CLOSING: Final = "closing"
CLOSED: Final = "closed"

# What the last deletions from a value cache may take when a scope is left, whatever it is left by. A
# cache that answers does so in milliseconds; the request that has failed shall not hang on one that
# does not.
_FAREWELL = 1.0


_NOTHING_YET = LoaderStatistics()


class LoaderRules(Protocol):
    """What a dispatcher asks of a loader."""

    name: str
    counts: Counts

    @property
    def is_manual(self) -> bool:
        """Whether it opens batches that have no task, so that nothing tells of a group's end."""
        ...

    def bind(self, token: object, /) -> None:
        """From now on take loads only in the event loop with this token; ``None``: in no one."""
        ...

    def statistics(self) -> LoaderStatistics: ...

    def close(self) -> None:
        """The scope has ended: keep nothing that was loaded."""
        ...


class Dispatcher(Workers):
    """
    :param task_group: a foreign task group to start tasks in; without one the dispatcher makes its
        own when it is entered
    :param hooks: added to those of each loader
    :param limiter: bounds all batches together
    :param is_shared: whether loaders of scopes inside may run here
    :param front: the LoaderScope
    """

    def __init__(
        self,
        task_group: Any = None,
        hooks: Sequence[Hook] = (),
        limiter: LimiterOption | None = None,
        is_shared: bool = False,
        front: Any = None,
    ) -> None:
        super().__init__()
        self.hooks = tuple(hooks)
        self.limiter = limiter
        self.is_shared = is_shared
        self.front: Any = front
        self._group: Any = task_group
        self._owns_group = task_group is None
        #: The scope around this one.
        self.outer = _still_open(ambient.get())
        self.entered = False
        #: OPEN -> CLOSING -> CLOSED; a dispatcher that is not entered stays OPEN.
        self.state: str = OPEN
        #: Those to tell when this is left, with what they count. A loader that nobody can reach any
        #: more goes, and what it has counted joins ``_past``.
        self._loaders: dict[ref[Any], Counts] = {}
        self._past = _NOTHING_YET
        self._purge_at = 64
        #: The batches that are not done, in order of their opening.
        self._outstanding: dict[Batch, None] = {}
        #: While CLOSING: whether it is known who is still wanted; and those that nobody awaits at the
        #: moment, as some of their loads have just settled.
        self._decided = False
        self._doubtful: dict[Batch, int] = {}
        #: Second levels with something to delete there.
        self.to_delete: dict[Any, None] = {}
        if task_group is not None:  # which may be never entered
            self._start_task = _task_starter(task_group)
            self.context = copy_context()
            backend = running_backend()
            if backend is not None:
                self._use(backend)

    backend: Backend
    token: object = None

    def _use(self, backend: Backend) -> None:
        self.backend = backend
        self.token = backend.token
        backend.prepare(self.context)

    @property
    def _is_open(self) -> bool:
        return self.state is OPEN

    def _is_at_rest(self) -> bool:
        return not (self._workers and self._outstanding) or bool(self._doubtful)

    # Loaders

    def attach(self, loader: LoaderRules) -> None:
        """Let a loader run here, which was admitted."""
        if self.entered or not loader.is_manual:
            loader.bind(self.token)
        if self.entered:
            if len(self._loaders) >= self._purge_at:
                self._purge()
            self._loaders[ref(loader)] = loader.counts

    def _purge(self) -> None:
        gone = [reference for reference in self._loaders if reference() is None]
        past = [self._loaders.pop(reference).snapshot() for reference in gone]
        self._past = LoaderStatistics(*map(sum, zip(self._past, *past)))
        self._purge_at = max(64, 2 * len(self._loaders))

    def loaders(self) -> list[Any]:
        """Return the loaders that run here."""
        return [loader for reference in self._loaders if (loader := reference()) is not None]

    def batches(self) -> dict[Any, list[Batch]]:
        """Return the batches that are not done, by their loaders."""
        batches: dict[Any, list[Batch]] = {}
        for batch in self._outstanding:
            batches.setdefault(batch.loader, []).append(batch)
        return batches

    def statistics(self) -> LoaderStatistics:
        each = [
            counts.snapshot() if (loader := reference()) is None else loader.statistics()
            for reference, counts in self._loaders.items()
        ]
        return LoaderStatistics(*map(sum, zip(self._past, *each)))

    # Who may come in

    def admit(self, loader: LoaderRules) -> None:
        """
        Decide about a load that does not come, or not surely, from where the loader is open.

        :raises LoaderClosedError: if the scope has ended, or is being left and this is not one of
            its batch functions
        :raises RuntimeError: if this is another event loop, or a thread without one
        """
        if self.token is None:
            backend = running_backend()
            if backend is None:
                raise RuntimeError(f"{loader.name} was used where no event loop is running")
            self._use(backend)
            self.attach(loader)
        self.admit_to(loader.name)

    def admit_to(self, name: str) -> None:
        """
        As :meth:`admit`, for something that runs here already.

        :raises LoaderClosedError: if the scope has ended, or is being left and this is not one of
            its batch functions
        :raises RuntimeError: if this is another event loop, or a thread without one
        """
        if self.state is CLOSED or (self.state is CLOSING and not self.runs_here()):
            raise LoaderClosedError(closed(name))
        self.check_thread()
        if not self.entered and has_ended(self._group):
            for batch in list(self._outstanding):
                self._fail_if_ended(batch)
            raise LoaderClosedError(closed(name))

    def check_ambient(self, name: str) -> None:
        """:raises LoaderNotOpenError: if this scope is none of those around the calling code"""
        inner = ambient.get()
        while self.state is OPEN and inner is not self:
            if inner is None:
                raise LoaderNotOpenError(
                    f"{name} belongs to the LoaderScope that its first load was made in, and this is "
                    "another one; make a loader for each scope, for instance by scope.get() or "
                    "@batch_loader"
                )
            inner = inner.outer

    def check_await(self, batch: Batch) -> None:
        """
        Look, before something is awaited that is pending, whether it can ever settle here.

        A batch without a task fails if it cannot get one any more: its task group has ended.

        :raises RuntimeError: if this is another event loop, or a thread without one
        """
        self.check_thread()
        self._fail_if_ended(batch)

    def check_thread(self) -> None:
        """:raises RuntimeError: if this is another event loop, or a thread without one"""
        if self.token is not None and not self.backend.is_here():
            raise RuntimeError(ELSEWHERE)

    def _fail_if_ended(self, batch: Batch) -> None:
        """Let a batch without a task fail if the foreign group takes no more tasks."""
        without = not self._owns_group and not batch.has_task and not batch.is_done
        if without and has_ended(self._group):
            batch.fail(LoaderClosedError(closed(batch.name)))

    def runs_here(self) -> bool:
        """Whether the caller is part of a batch function of this dispatcher."""
        batch = running_batch.get()
        while batch is not None:
            if batch.scope is self:
                return not batch.is_done
            batch = batch.scope.context.get(running_batch)
        return False

    # Batches come and go

    def open(self, batch: Batch) -> None:
        """
        Take charge of a new, empty batch.

        While its scope is being left a batch does not wait for a window, an event or a dispatch.

        :raises LoaderClosedError: if the task group takes no more tasks, or a hook has just ended
            the scope; the batch is void then
        :raises RuntimeError: if this is another event loop
        :raises RecursionError: near the end of the stack
        """
        if self.state is not OPEN:
            if self.state is CLOSED:
                raise LoaderClosedError(closed(batch.name))
            if not isinstance(batch.schedule, Polling):
                batch.schedule = _WHILE_LEAVING
        # One event loop may be a guest of the other.
        if "trio" in sys.modules and not self.backend.is_here():
            raise RuntimeError(ELSEWHERE)
        if not isinstance(batch.schedule, Manual):
            if not self._owns_group and has_ended(self._group):
                raise LoaderClosedError(closed(batch.name))
            self.begin(batch)
        self._outstanding[batch] = None

    def seal(self, batch: Batch, reason: str) -> None:
        """
        Let a batch leave, which has had no task of its own yet if rounds are counted for it.

        :raises LoaderClosedError: if the task group takes no more tasks; the batch has failed then
        """
        try:
            batch.seal(reason)
        finally:  # a hook may be interrupted that hears of it, or what comes before the seal
            if not batch.is_open:  # pragma: no branch
                if not batch.size:
                    batch.drop()
                self.send(batch)

    def batch_done(self, batch: Batch) -> None:
        """All loads of a batch are settled: its function's loads are wanted for its sake no more."""
        self._outstanding.pop(batch, None)
        self.woken()
        if batch.loaded_from is not None:
            loaded_from, batch.loaded_from = batch.loaded_from, None
            for other in loaded_from:
                # Another one's end may have been the end of this one.
                (other.origins or {}).pop(batch, None)
                other.scope.reconsider(other)
        if batch.origins is not None:
            for origin in batch.origins:
                (origin.loaded_from or {}).pop(batch, None)
            batch.origins = None
        if self._changed:
            self.changed()

    def reconsider(self, batch: Batch) -> None:
        """While the scope is left: cancel a batch if nobody is left who wants it."""
        if self._decided and not (batch.awaiting or batch.origins or batch.is_done):
            batch.cancel_if_there_is_room("nobody awaited it when its scope was left")

    def doubt(self, batch: Batch) -> None:
        """While the scope is left: some of a batch has settled, and maybe the rest is not wanted."""
        if self._decided and not batch.awaiting:
            self._doubtful[batch] = self._doubtful.get(batch, 0) + 1
            self.changed()

    # The way in and out

    async def enter(self) -> None:
        self.entered = True
        # What was set since it was made, such as the ambient scope, belongs to it.
        self.context = copy_context()
        backend: Any = running_backend()
        self._use(backend)
        if self._owns_group:
            self._group = anyio.create_task_group()
            self._start_task = self._group.start_soon
            await self._group.__aenter__()

    def cancel(self, why: str, cause: BaseException | None = None) -> None:
        """Cancel all batches and let no load in any more."""
        self.check_thread()
        self.state = CLOSED
        for loader in self.loaders():
            loader.bind(None)
        self._cancel_batches(why, cause)

    def _cancel_batches(self, why: str, cause: BaseException | None) -> None:
        """:raises BaseException: what a hook raised, once all have ended"""
        errors: list[BaseException] = []
        for batch in list(self._outstanding):
            if not batch.is_done:  # pragma: no branch - a hook may have done anything
                try:
                    batch.cancel(why, cause)
                except BaseException as exc:
                    errors.append(exc)
        if errors:
            try:
                raise errors[0]
            finally:
                errors.clear()  # or the error would hold itself, by its traceback

    async def leave(self, exc: BaseException | None) -> None:
        """
        Finish what is awaited, cancel the rest, and wait until nothing is left.

        What is to come out of the block comes out bare: the exception of the body by itself, an
        exception that ended a worker (only ever a ``KeyboardInterrupt`` or the like) raised here.
        """
        was_open = self.state is OPEN
        self.state = CLOSING if was_open else CLOSED
        leaving = exc
        if self._loaders or self._outstanding or self.storing:  # or there is nothing to end
            for loader in self.loaders():
                loader.bind(None)
            if exc is None:
                try:
                    await self._drain()
                except BaseException as exc_:
                    leaving = exc_
            try:
                self._cancel_batches("its scope was left", leaving)
            except BaseException as exc_:
                leaving = exc_
        for worker in list(self._workers):
            worker.scope.cancel()
        try:
            if self._owns_group:
                is_scope = self.backend.group_is_scope and not self._has_started
                await leave_bare(self._group, leaving, is_scope)
            elif self._workers:
                await shielded(self._join)
        finally:
            self.state = CLOSED
            try:
                if self.to_delete:
                    await _delete(*(partial(level.delete, again=True) for level in self.to_delete))
                    self.to_delete.clear()
            finally:
                self._forget()
        if leaving is not exc and leaving is not None:
            raise leaving

    def _forget(self) -> None:
        """Keep nothing: what was started in the scope, and goes on, has this in its context."""
        if self._loaders:  # most requests of many a service load nothing
            for loader in self.loaders():
                loader.close()
            self._past = self.statistics()
            self._loaders = {}
        self.context = Context()
        self._group = self.front = self.limiter = None
        self._start_task = None  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
        self.hooks = ()
        self.outer = _still_open(self.outer)

    async def _join(self) -> None:
        """Wait, in a foreign group, until all workers have ended."""
        for _ in range(2):  # after which every task has made its first step, in any order
            if any(worker.steps is not None for worker in self._workers):
                await self.backend.checkpoint()
        for worker in list(self._workers):
            self._check_begun(worker)
        while self._workers:
            await delegate(park(self.backend, self._changed))

    async def _drain(self) -> None:
        """Let what is wanted come to its end, and cancel the rest."""
        if self._outstanding:
            self._holding = True  # or something would leave that nobody wants
            try:
                await self._pass_two_rounds()
            finally:
                self._holding = False
        self._decide()
        while self._outstanding or self.storing:
            # Storing is for others, and they do without it rather than this one wait for long.
            with anyio.move_on_after(math.inf if self._outstanding else _FAREWELL) as patience:
                await delegate(park(self.backend, self._changed))
            if patience.cancelled_caught:
                break
            while self._doubtful:
                doubts = dict(self._doubtful)
                await self._pass_two_rounds()
                for batch, when in doubts.items():
                    if self._doubtful[batch] == when:  # nothing of it has settled since
                        del self._doubtful[batch]
                        self.reconsider(batch)

    async def _pass_two_rounds(self) -> None:
        """After two checkpoints every task that could run has had its step, and awaits what it wants."""
        for _ in range(2):
            await self.backend.checkpoint()

    def _decide(self) -> None:
        """
        Wanted are the batches that a task awaits, and those that their functions loaded from.

        A function that was called for somebody's sake may enqueue a load now and await it later.
        """
        wanted = {batch: None for batch in self._outstanding if batch.awaiting}
        todo = list(wanted)
        while todo:
            for batch in todo.pop().loaded_from or ():
                if batch.live and batch in self._outstanding and batch not in wanted:
                    wanted[batch] = None
                    todo.append(batch)
        for batch in wanted:
            if batch.is_open:
                self.seal(batch, "close")
        for batch in list(self._outstanding):
            if batch not in wanted and not batch.is_done:
                batch.cancel("nobody awaited it when its scope was left", None)
        # From now on only those have to be looked at that somebody gives up.
        self._decided = True

    @property
    def deletes_again(self) -> bool:
        """Whether what was deleted is deleted on the way out too: that of a shared scope may be far."""
        return self.entered and not self.is_shared

    def delete_soon(self, level: Any) -> None:
        """A task deletes what was cleared, and the way out what that could not."""
        if self.entered:
            self.to_delete[level] = None
        if self.token is not None and self._group is not None and not has_ended(self._group):
            self._has_started = True
            try:
                # A foreign group that is cancelled right after ``clear`` is a way out, too.
                self.context.run(self._start_task, _delete, level.delete, name="anyloader: delete")
            except RuntimeError:  # the group has ended after all
                pass


async def shielded(work: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
    """
    Run this to its end, whatever cancels the caller.

    In a task of its own, as asyncio's ``task.cancel()`` heeds no shield: it hits only who waits.
    """

    async def run() -> None:
        with CancelScope(shield=True):
            await work(*args)

    with CancelScope(shield=True):
        group = anyio.create_task_group()
        await group.__aenter__()
        group.start_soon(run)
        await leave_bare(group, None, False)


async def _delete(*deletions: Any) -> None:
    """Delete what was cleared, whatever cancels this, if the value caches answer in time."""
    await shielded(_delete_in_time, *deletions)


async def _delete_in_time(*deletions: Any) -> None:
    end = anyio.current_time() + _FAREWELL
    for number, delete in enumerate(deletions):
        # One that hangs leaves the others their share, and one that is quick leaves them its own.
        share = (end - anyio.current_time()) / (len(deletions) - number)
        with anyio.move_on_after(share):
            await delete()


def _still_open(scope: Dispatcher | None) -> Dispatcher | None:
    """Skip scopes that have ended: a task that was left behind has these around it."""
    while scope is not None and scope.state is CLOSED:
        scope = scope.outer
    return scope


async def leave_bare(group: TaskGroup, leaving: BaseException | None, is_scope: bool) -> None:
    """
    Leave an anyio task group, whose tasks are done or cancelled, without an ExceptionGroup.

    :param leaving: what made the body end; it goes on by itself, unless it is a cancellation: that
        has to pass through the group, which may be its target, and raises it if it is not
    :param is_scope: whether it never had a task and its cancel scope is all there is to leave, for a
        third of the price
    :raises LoadCancelledError: if that cancellation has come from the group itself
    """
    passed: tuple[Any, Any, Any] = (None, None, None)
    if leaving is not None and isinstance(leaving, anyio.get_cancelled_exc_class()):
        passed = (type(leaving), leaving, leaving.__traceback__)
    if is_scope:
        group.cancel_scope.__exit__(*passed)
        return
    try:
        swallowed = await group.__aexit__(*passed)
    except BaseExceptionGroup as errors:
        if len(errors.exceptions) == 1:
            raise errors.exceptions[0] from None
        raise
    if swallowed and passed[0] is not None:
        # On asyncio, where a task ends by a cancellation before it has begun, anyio cancels its group.
        raise LoadCancelledError(
            "the scope was cancelled, as one of its tasks was, by task.cancel() from outside"
        ) from leaving


def _task_starter(group: Any) -> Callable[..., None]:
    """
    Return a function that starts a task in the group: ``start(work, *args, name=name)``.

    :raises TypeError: if it is no anyio ``TaskGroup``, trio ``Nursery`` or ``asyncio.TaskGroup``
    """
    if hasattr(group, "start_soon"):

        def start_soon(work: Any, *args: Any, name: str) -> None:
            group.start_soon(work, *args, name=name)

        return start_soon
    if hasattr(group, "create_task"):

        def create_task(work: Any, *args: Any, name: str) -> None:
            coroutine = work(*args)
            try:
                group.create_task(coroutine, name=name)
            except BaseException:
                coroutine.close()
                raise

        return create_task
    raise TypeError(
        "task_group must be an anyio TaskGroup, a trio Nursery or an asyncio.TaskGroup, "
        f"not {group!r}"
    )
