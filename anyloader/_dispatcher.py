"""
Where batches run: a task group, its event loop, its context, and what happens at its end.

A loader in an ``async with`` of its own has a dispatcher, all loaders of a ``LoaderScope`` share
one, and a loader in somebody else's task group has one that only starts tasks.

Each batch gets a *worker*: a task that runs the schedule, waits for the limiter and calls the batch
function. Starting a task through anyio costs several times what a small batch costs, so where the
task group is our own a worker that is done waits for the next batch. In a foreign group it ends,
since a task parked there would keep the group from ending.
"""

from __future__ import annotations

import math
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Sequence
from contextvars import Context, ContextVar, copy_context
from types import CoroutineType, coroutine
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio
from anyio import CancelScope

from . import _batch, _values
from ._backend import (
    FOREIGN,
    Backend,
    Waiter,
    Waiters,
    delegate,
    has_ended,
    park,
    running_backend,
    wake_all,
)
from ._batch import Batch, BatchRules
from ._errors import LoaderClosedError
from ._handle import running_batch
from ._results import excerpt, without_our_frames, wrong_result
from .hooks import BatchStarted, Hook, watches
from .schedules import Manual, Polling, quiescent

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

__all__ = ("Dispatcher", "LoaderRules", "ambient", "leave_bare")

#: The dispatcher of the innermost LoaderScope.
ambient: ContextVar[Dispatcher | None] = ContextVar("anyloader_ambient", default=None)

_WHILE_LEAVING = quiescent()

OPEN: Final = "open"
CLOSING: Final = "closing"
CLOSED: Final = "closed"


class LoaderRules(BatchRules, Protocol):
    """What a dispatcher asks of a loader."""

    @property
    def _is_manual(self) -> bool:
        """Whether it opens batches that have no task, so that nothing tells of a group's end."""
        ...

    def _bind(self, token: object) -> None:
        """From now on take loads only in the event loop with this token; ``None``: in no one."""
        ...


class _Worker:
    __slots__ = ("batch", "begun", "scope", "waiter")

    def __init__(self, batch: Batch) -> None:
        #: Whether its task has made its first step.
        self.begun = False
        #: What to do now; ``None`` while idle.
        self.batch: Batch | None = batch
        self.scope = CancelScope()
        #: What wakes it; set before it becomes idle.
        self.waiter: Waiter


class Dispatcher:
    """
    :param task_group: a foreign task group to start tasks in; without one the dispatcher makes its
        own when it is entered
    :param hooks: added to those of each loader
    """

    def __init__(self, task_group: Any = None, hooks: Sequence[Hook] = ()) -> None:
        #: Of all loaders that run here.
        self.hooks = tuple(hooks)
        self._group: Any = task_group
        self._owns_group = task_group is None
        #: The scope around this one.
        self.outer = ambient.get()
        self.entered = False
        #: Not set before the group is entered, and nobody is admitted before that.
        self._start_task: Any = None if task_group is None else _task_starter(task_group)
        #: OPEN -> CLOSING -> CLOSED; a dispatcher that is not entered stays OPEN.
        self.state = OPEN
        #: Copied for every call of a batch function.
        self.context: Context = copy_context()
        #: Those to tell when this is left, if it is ever left.
        self.loaders: list[LoaderRules] = []
        #: The batches that are not done, in order of their opening.
        self._outstanding: dict[Batch, None] = {}
        self._workers: set[_Worker] = set()
        #: How many workers store values.
        self._storing = 0
        #: At most one worker: it serves a program that loads one thing after the other, and a crowd
        #: is started so rarely that keeping one parked would only hold memory.
        self._idle: list[_Worker] = []
        #: Who waits, while CLOSING, for the next change of batches or workers.
        self._changed: Waiters = {}
        backend = running_backend()
        if backend is not None:
            self._use(backend)

    backend: Backend
    token: object = None
    #: True while a task is being started: an eager task group runs its first step inside.
    _starting: bool

    def _use(self, backend: Backend) -> None:
        self.backend = backend
        self.token = backend.token
        backend.prepare(self.context)

    # Loaders

    def attach(self, loader: LoaderRules) -> None:
        """Let a loader run here, which was admitted."""
        if self.entered or not loader._is_manual:
            loader._bind(self.token)
        if self.entered:
            self.loaders.append(loader)

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
        if self.state is CLOSED or (self.state is CLOSING and not self._runs_here()):
            raise LoaderClosedError(_closed(name))
        self.check_thread()
        if not self.entered and has_ended(self._group):
            for batch in list(self._outstanding):
                self.fail_if_ended(batch)
            raise LoaderClosedError(_closed(name))

    def fail_if_ended(self, batch: Batch) -> None:
        """Let a batch without a task fail if the foreign group takes no more tasks."""
        if not self._owns_group and batch.worker_scope is None and has_ended(self._group):
            batch.fail(LoaderClosedError(_closed(batch.name)))

    def check_thread(self) -> None:
        """:raises RuntimeError: if this is another event loop, or a thread without one"""
        if self.token is not None and self.backend.current() is not self.token:
            raise RuntimeError(FOREIGN)

    def _runs_here(self) -> bool:
        """Whether the caller is part of a batch function of this dispatcher."""
        batch = running_batch.get()
        while batch is not None:
            if batch.dispatcher is self:
                return not batch.is_done
            batch = batch.dispatcher.context.get(running_batch)
        return False

    # Batches come and go

    def open(self, batch: Batch) -> None:
        """
        Take charge of a new, empty batch.

        While its scope is being left a batch does not wait for a window, an event or a dispatch.

        :raises LoaderClosedError: if the task group takes no more tasks, or a hook has just ended
            the scope; the batch is void then
        """
        if self.state is CLOSED:
            raise LoaderClosedError(_closed(batch.name))
        if self.state is CLOSING and not isinstance(batch.schedule, Polling):
            batch.schedule = _WHILE_LEAVING
        if not isinstance(batch.schedule, Manual):
            self.send(batch)
        self._outstanding[batch] = None

    def send(self, batch: Batch) -> None:
        """
        Give a batch a task.

        :raises LoaderClosedError: if the task group takes no more tasks
        """
        if self._idle:
            worker = self._idle.pop()
            worker.batch = batch
            batch.worker_scope = worker.scope
            self.backend.wake((worker.waiter,))
            return
        worker = self.context.run(_Worker, batch)  # its scope asks which library runs
        batch.worker_scope = worker.scope
        self._workers.add(worker)
        self._starting = True
        try:
            self.context.run(self._start_task, self._work, worker, f"anyloader: {batch.name}")
        except RuntimeError as exc:
            self._workers.discard(worker)
            raise LoaderClosedError(_closed(batch.name)) from exc
        finally:
            self._starting = False

    def seal(self, batch: Batch, reason: str) -> None:
        """
        Let a batch leave, which has had no task yet if its schedule is manual.

        :raises LoaderClosedError: if the task group takes no more tasks; the batch has failed then
        """
        batch.seal(reason)
        if batch.worker_scope is None and not batch.is_done:
            self.send_or_fail(batch)

    def send_or_fail(self, batch: Batch) -> None:
        """As :meth:`send`; where that is refused, nobody is left waiting."""
        try:
            self.send(batch)
        except LoaderClosedError as exc:
            batch.fail(exc)
            raise

    def batches_of(self, rules: BatchRules) -> list[Batch]:
        """Return the batches of one loader that are not done."""
        return [batch for batch in self._outstanding if batch.rules is rules]

    def batch_done(self, batch: Batch) -> None:
        self._outstanding.pop(batch, None)

    def reconsider(self) -> None:
        """Something changed that the way out may be waiting for."""
        wake_all(self.backend, self._changed)

    # Workers

    async def _work(self, worker: _Worker) -> None:
        worker.begun = True
        try:
            if self._starting:
                # An eager task group runs this inside load(). Without a checkpoint first the
                # batch would leave earlier than on a lazy one, with rounds(0) before its key is in.
                await self.backend.checkpoint()
            with worker.scope as scope:
                while worker.batch is not None:  # pragma: no branch - nobody wakes it without one
                    fit = await self._run(worker.batch)
                    worker.batch = None
                    if not fit or scope.cancel_called or not self._owns_group:
                        break
                    if self.state is not OPEN or self._idle:
                        break
                    worker.waiter = self.backend.new_waiter()
                    self._idle.append(worker)
                    await worker.waiter
                if self.backend.is_being_cancelled():
                    # By the batch function, natively, and it has ended before it met that. It would
                    # hit the end of this task.
                    await self.backend.checkpoint()
        except BaseException as exc:
            if not _is_stray(exc):
                raise
            batch = worker.batch
            if batch is not None and self._owns_group:
                # It was given to an idle worker just as that was cancelled, and is none of its.
                worker.batch = None
                self.send_or_fail(batch)
        finally:
            self._ended(worker)

    def _ended(self, worker: _Worker) -> None:
        """Clean up after a worker; also called for one that never made its first step."""
        if worker in self._idle:
            self._idle.remove(worker)
        self._workers.discard(worker)
        batch, worker.batch = worker.batch, None
        if batch is not None and not batch.is_done:
            batch.cancel("its task was cancelled before the batch was sent", None)
        self.reconsider()

    async def _run(self, batch: Batch) -> bool:
        """See a batch through; return whether the task is fit for another one."""
        limiter = batch.rules.limiter
        borrowed = False
        try:
            if batch.state is _batch.OPEN:
                if isinstance(batch.schedule, Polling):  # lets go by itself
                    await batch.schedule(batch)
                else:
                    await self._await_schedule(batch)
                if batch.state is _batch.OPEN:
                    batch.seal("schedule")
            if limiter is not None and not batch.is_done:
                await limiter.acquire_on_behalf_of(batch)
                borrowed = True
            if batch.state is _batch.SEALED:
                batch.start()
                await _in_context(self.context.copy(), self._call(batch))
        except Exception as exc:
            exc.__traceback__ = without_our_frames(exc.__traceback__)
            if not batch.is_done:
                batch.fail(exc)
        except BaseException as exc:
            stray = _is_stray(exc)
            if not batch.is_done:
                batch.cancel(f"the batch function ended by {type(exc).__name__}", exc)
            if stray:
                return False
            raise
        finally:
            if borrowed and limiter is not None:
                limiter.release_on_behalf_of(batch)
        return True

    async def _call(self, batch: Batch) -> None:
        """Get the values of a batch, in the context of its function."""
        running_batch.set(batch)
        rules = batch.rules
        if rules._hooks is not None:
            watches.set(rules._hooks.watches)
            rules._hooks(BatchStarted(batch.name, batch.number, batch.keys))
        missing = None if rules.value_cache is None else await _values.ask(batch)
        try:
            if batch.state is _batch.DONE:
                return
            keys = batch.keys_to_send(distinct=rules._streams)
            result = rules.batch_load_fn(keys)
            if type(result) is not CoroutineType and isinstance(result, AsyncIterator):
                await _call_stream(batch, keys, result)
            elif type(result) is CoroutineType or isinstance(result, Awaitable):
                result = await result
                if batch.state is not _batch.DONE:
                    batch.settle(result)
            else:
                raise wrong_result(
                    rules, keys, f"returned {excerpt(result)}, which cannot be awaited"
                )
            if missing:
                # Nobody waits for this but the way out, so that the last values are stored too.
                self._storing += 1
                try:
                    await _values.store(batch, missing)
                finally:
                    self._storing -= 1
                    self.reconsider()
        except BaseException:
            missing = None  # the traceback leads here, and this to handles that hold the error
            raise

    @staticmethod
    async def _await_schedule(batch: Batch) -> None:
        with CancelScope() as batch.schedule_scope:
            await batch.schedule(batch)
        batch.schedule_scope = None

    # The way in and out

    async def enter(self) -> None:
        self.entered = True
        # Once more: what was set since, such as the ambient scope, belongs to it.
        self.context = copy_context()
        self.backend.prepare(self.context)
        if self._owns_group:
            self._group = anyio.create_task_group()
            self._start_task = _task_starter(self._group)
            await self._group.__aenter__()

    def cancel(self, why: str, cause: BaseException | None = None) -> None:
        """Cancel all batches and let no load in any more."""
        self.check_thread()
        self.state = CLOSED
        for loader in self.loaders:
            loader._bind(None)
        self._cancel_batches(why, cause)

    def _cancel_batches(self, why: str, cause: BaseException | None) -> None:
        for batch in list(self._outstanding):
            if not batch.is_done:  # pragma: no branch - a hook may have done anything
                batch.cancel(why, cause)

    async def leave(self, exc: BaseException | None) -> None:
        """
        Finish what is awaited, cancel the rest, and wait until nothing is left.

        What is to come out of the block comes out bare: the exception of the body by itself, an
        exception that ended a worker (only ever a ``KeyboardInterrupt`` or the like) raised here.
        """
        self.state = CLOSING
        for loader in self.loaders:
            loader._bind(None)
        leaving = exc
        if exc is None:
            try:
                await self._drain()
            except BaseException as exc_:
                leaving = exc_
        self._cancel_batches("its scope was left", leaving)
        for worker in list(self._workers):
            worker.scope.cancel()
        try:
            await self._join(leaving)
        finally:
            self.state = CLOSED
            # Nothing of the scope shall live on in loaders and handles that do.
            self.loaders = []
            self.context = Context()
            self._group = self._start_task = None
        if leaving is not exc and leaving is not None:
            raise leaving

    async def _join(self, leaving: BaseException | None) -> None:
        if not self._owns_group:
            with CancelScope(shield=True):
                for _ in range(2):  # after which every task has made its first step, in any order
                    if not all(worker.begun for worker in self._workers):
                        await self.backend.checkpoint()
                for worker in list(self._workers):
                    if not worker.begun:  # nor ever will: it was cancelled natively before that
                        self._ended(worker)
                while self._workers:
                    await delegate(park(self.backend, self._changed))
            return
        await leave_bare(self._group, leaving)

    async def _drain(self) -> None:
        for batch in self._wanted():
            if batch.is_open:
                self.seal(batch, "close")
        while self._outstanding or self._storing:
            wanted = self._wanted()
            for batch in list(self._outstanding):
                if batch not in wanted and not batch.is_done:
                    batch.cancel("nobody awaited it when its scope was left", None)
            if self._outstanding or self._storing:
                await delegate(park(self.backend, self._changed))
        # What was cleared last has no next batch that would delete it for other processes.
        for loader in self.loaders:
            await _values.delete(loader)

    def _wanted(self) -> dict[Batch, None]:
        """
        Return the batches that a task awaits, and those that their functions loaded from.

        A function that was called for somebody's sake may enqueue a load now and await it later.
        """
        wanted = {batch: None for batch in self._outstanding if batch.is_awaited}
        grows = True
        while grows:
            grows = False
            for batch in self._outstanding:
                origins = batch.origins
                if batch in wanted or not batch.live or not origins:
                    continue
                if not origins.isdisjoint(wanted):
                    wanted[batch] = None
                    grows = True
        return wanted


def _is_stray(exc: BaseException) -> bool:
    """
    Whether a cancellation comes from no cancel scope around the running code.

    It was raised by a batch function itself, or is a native one of this task alone. Let out of the
    task it would cancel the whole group; kept in, it still ends the task.
    """
    return (
        isinstance(exc, anyio.get_cancelled_exc_class())
        and anyio.current_effective_deadline() != -math.inf
    )


async def leave_bare(group: TaskGroup, leaving: BaseException | None) -> None:
    """
    Leave an anyio task group, whose tasks are done or cancelled, without an ExceptionGroup.

    :param leaving: what made the body end; it goes on by itself, unless it is a cancellation: that
        has to pass through the group, which may be its target, and raises it if it is not
    """
    passed: tuple[Any, Any, Any] = (None, None, None)
    if isinstance(leaving, anyio.get_cancelled_exc_class()):
        passed = (type(leaving), leaving, leaving.__traceback__)
    try:
        await group.__aexit__(*passed)
    except BaseExceptionGroup as errors:
        if len(errors.exceptions) == 1:
            raise errors.exceptions[0] from None
        raise


async def _call_stream(batch: Batch, keys: list[Any], stream: AsyncIterator[object]) -> None:
    rules = batch.rules
    if not rules._streams:
        # The function did not look like an async generator, so it was given every key. A generator
        # that has not made its first step can be thrown away.
        distinct = batch.distinct_keys()
        if len(distinct) != len(keys):
            await _close(stream)
            stream = rules.batch_load_fn(distinct)
    try:
        async for pair in stream:
            if not batch.is_done:
                batch.settle_pair(pair)
    finally:
        await _close(stream)
    if not batch.is_done:
        batch.settle_rest()


async def _close(stream: Any) -> None:
    aclose = getattr(stream, "aclose", None)
    if aclose is not None:
        await aclose()


@coroutine
def _in_context(context: Context, steps: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
    """
    Run a coroutine in a context of its own, in the task that awaits this.

    A task has one context for good, and a worker runs many batches.
    """
    run = context.run
    try:
        yielded = run(steps.send, None)
        while True:
            try:
                sent = [(yield yielded)]
            except BaseException as exc:
                yielded = run(steps.throw, exc)
            else:
                yielded = run(steps.send, sent.pop())
    except StopIteration:
        return


def _task_starter(group: Any) -> Callable[[Any, _Worker, str], None]:
    """
    Return a function that starts a task in the group.

    :raises TypeError: if it is no anyio ``TaskGroup``, trio ``Nursery`` or ``asyncio.TaskGroup``
    """
    if hasattr(group, "start_soon"):

        def start_soon(work: Any, worker: _Worker, name: str) -> None:
            group.start_soon(work, worker, name=name)

        return start_soon
    if hasattr(group, "create_task"):

        def create_task(work: Any, worker: _Worker, name: str) -> None:
            coroutine = work(worker)
            try:
                task = group.create_task(coroutine, name=name)
            except BaseException:
                coroutine.close()
                raise
            # A group that aborts cancels tasks before their first step, so that no ``finally`` in
            # them runs.
            ended = work.__self__._ended
            task.add_done_callback(lambda _task: ended(worker))

        return create_task
    raise TypeError(
        "task_group must be an anyio TaskGroup, a trio Nursery or an asyncio.TaskGroup, "
        f"not {group!r}"
    )


def _closed(name: str) -> str:
    return (
        f"{name} is closed, as the scope it was opened in has ended; open a loader (or a "
        "LoaderScope) for each request, job or message, and use it within"
    )
