"""
The tasks of a scope: they count the rounds for its batches, and run the functions of those.

Starting a task through anyio costs several times what a small batch costs, so where the task group is
our own a worker that is done waits for the next job. In a foreign group it ends, since a task parked
there would keep the group from ending.

One worker at a time *leads*: it passes checkpoints for all open batches of the scope until some of
them may leave, seals these in one step, gives each a worker and runs the first one itself. That is why
what a batch function loads never falls into a batch that was open beside its own, and why one load at
a time needs no second task. Batches under a schedule of the user's have a worker from their opening on;
those under ``manual()`` have none before they are dispatched.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextvars import Context
from functools import partial
from types import CoroutineType, coroutine
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio import CancelScope

from . import _batch
from ._backend import Backend, Waiter, Waiters, prove_stack_room, wake_all
from ._batch import Batch, running_batch
from ._errors import LoaderClosedError
from ._results import article, rebased, without_our_frames, wrong_result
from ._streams import run_stream
from .hooks import BatchStarted, watches
from .schedules import Polling

if TYPE_CHECKING:
    from ._limits import Gate

__all__ = ("Workers", "closed")

_LEAD: Final = "lead"


class _Worker:
    __slots__ = ("_is_counted", "job", "scope", "steps", "waiter")

    def __init__(self, job: Any, is_counted: bool) -> None:
        #: What its task will run, until that makes its first step.
        self.steps: Coroutine[Any, Any, None] | None = None
        #: What to do now: a batch to run, or ``_LEAD``; ``None`` while idle.
        self.job = job
        self.scope = CancelScope()
        self._is_counted = is_counted
        #: What wakes it; set before it becomes idle.
        self.waiter: Waiter

    def __enter__(self) -> None:
        self.scope.__enter__()

    def __exit__(self, *exc: Any) -> bool:
        if self._is_counted and self.scope.cancel_called:
            # Else, where a scope around is cancelled too, anyio hands what this one has to take off
            # `Task.cancelling()` to that: the group's, whose task would lose a cancellation of its own.
            self.scope.shield = True
        return self.scope.__exit__(*exc)


class _Unheard:
    """Stands in for the rounds where a batch is past its schedule: its keys are news to nobody."""

    news = 0


_UNHEARD = _Unheard()


class Workers:
    """The part of a dispatcher that has tasks."""

    backend: Backend
    #: Copied for every call of a batch function.
    context: Context
    _group: Any
    _owns_group: bool
    #: Starts ``work(*args)`` in the group, under a name. Not there before the group is entered.
    _start_task: Callable[..., None]
    #: Whether a task was started in it ever; and is being started now: an eager task group runs its
    #: first step inside.
    _has_started = _starting = False

    def __init__(self) -> None:
        #: How many keys and batches have come, and how often somebody was woken; and what it was when that
        #: was last so. By this the leader knows a quiet round.
        self.news = self._woken = 0
        #: Counted while there is a leader: all rounds, how many of the last were quiet, and the news by
        #: which that is known.
        self._round = self._quiet = self._seen = 0
        #: Open batches whose rounds are counted, and whether somebody counts them.
        self._counted: list[Batch] = []
        self._leading = False
        #: While it is decided who is still wanted, nothing leaves.
        self._holding = False
        self._workers: set[_Worker] = set()
        #: How many workers store values.
        self.storing = 0
        #: At most one worker: it serves a program that loads one thing after the other, and a crowd
        #: is started so rarely that keeping one parked would only hold memory.
        self._idle: list[_Worker] = []
        #: Who waits for the end of all batches, and of all workers.
        self._changed: Waiters = {}

    @property
    def _is_open(self) -> bool:
        """Whether workers stay for the next job."""
        raise NotImplementedError

    def _is_at_rest(self) -> bool:
        """Whether all batches, or all workers, have ended."""
        raise NotImplementedError

    def woken(self) -> None:
        """Loads have settled, or tasks of a gather begin or end: who waited for that may load now."""
        self.news = self._woken = self.news + 1

    def begin(self, batch: Batch) -> None:
        """
        Let the schedule of a new, empty batch begin.

        :raises LoaderClosedError: if the task group takes no more tasks; nothing has changed then
        :raises RecursionError: the same, near the end of the stack
        """
        prove_stack_room()
        if isinstance(batch.schedule, Polling):
            if not self._leading:
                self._seen = self.news
                self._give(_LEAD, batch.name)
                self._leading = True
            self._counted.append(batch)
            self.news += 1
        else:
            self._give(batch, batch.name)
        batch.has_task = True

    def send(self, batch: Batch) -> None:
        """
        Give a sealed batch a task, unless it has one that is waiting for that.

        :raises LoaderClosedError: if the task group takes no more tasks; the batch has failed then
        """
        if batch.worker_scope is None and not batch.is_done:
            try:
                self._give(batch, batch.name)
            except LoaderClosedError as exc:
                batch.fail(exc)
                raise
            batch.has_task = True

    def _give(self, job: Any, name: str) -> None:
        """:raises LoaderClosedError: if the task group takes no more tasks"""
        if self._idle:
            worker = self._idle.pop()
            worker.job = job
            if job is not _LEAD:
                job.worker_scope = worker.scope
            self.backend.wake((worker.waiter,))
            return
        # In the context, as its scope asks which library runs.
        worker = self.context.run(_Worker, job, self.backend.counts_cancellations)
        self._workers.add(worker)
        self._has_started = self._starting = True
        try:
            self.context.run(self._start_task, self._steps_of, worker, name=f"anyloader: {name}")
        except BaseException as exc:
            self._workers.discard(worker)
            if worker.steps is not None:
                worker.steps.close()
            if isinstance(exc, RuntimeError) and not isinstance(exc, RecursionError):
                raise LoaderClosedError(closed(name)) from exc
            raise
        finally:
            self._starting = False
        if job is not _LEAD and worker.job is job:
            job.worker_scope = worker.scope
        if worker.steps is not None:
            self.backend.after_first_step(partial(self._check_begun, worker))

    def _steps_of(self, worker: _Worker) -> Coroutine[Any, Any, None]:
        worker.steps = self._work(worker)
        return worker.steps

    def _check_begun(self, worker: _Worker) -> None:
        if worker.steps is not None:  # its task was cancelled natively before that
            worker.steps.close()
            worker.steps = None
            self._ended(worker)

    # The life of a worker

    async def _work(self, worker: _Worker) -> None:
        worker.steps = None
        try:
            if self._starting:
                # An eager task group runs this inside load(). Without a checkpoint first the
                # batch would leave earlier than on a lazy one, with rounds(0) before its key is in.
                await self.backend.checkpoint()
            with worker:
                while True:
                    if worker.job is _LEAD:
                        worker.job = self._pass_round()
                        while worker.job is _LEAD:
                            await self.backend.checkpoint()
                            self._round += 1
                            worker.job = self._pass_round()
                    batch = worker.job
                    if batch is not None:
                        batch.worker_scope = worker.scope
                        fit = await self._run(batch)
                        worker.job = None
                        if not fit:
                            break
                    if self._idle or not self._owns_group or not self._is_open:
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
            # It was given to an idle worker just as that was cancelled, and is none of its.
            if self._owns_group and worker.job is not None:
                job: Any = worker.job
                self._give(job, self._counted[0].name if job is _LEAD else job.name)
                worker.job = None
        finally:
            self._ended(worker)

    def _ended(self, worker: _Worker) -> None:
        """Clean up after a worker; also called for one that never made its first step."""
        if worker in self._idle:
            self._idle.remove(worker)
        self._workers.discard(worker)
        job, worker.job = worker.job, None
        if job is _LEAD:
            self._leading = False
            left, self._counted = self._counted, []
        else:
            left = [] if job is None else [job]
        self._release_tokens(left)
        for batch in left:
            if not batch.is_done:
                batch.cancel("its task was cancelled before the batch was sent", None)
        self.changed()

    def changed(self) -> None:
        """Some batch or worker has ended: wake who leaves, if that is what he waits for."""
        if self._changed and self._is_at_rest():
            wake_all(self.backend, self._changed)

    # Rounds

    def _pass_round(self) -> Any:
        """Return what the leader does now: a batch to run, nothing, or going on after a checkpoint."""
        # Who was woken may start tasks that load, or end as the last one that a task group waits for. That
        # takes a round in which nothing can be seen, so one more is counted.
        self._quiet = self._quiet + 1 if self.news == self._seen else -(self._woken > self._seen)
        self._seen = self.news
        while not self._holding:
            backend = self.backend
            is_quiet = not backend.ready or self._quiet >= backend.quiet
            if len(self._counted) == 1:
                # What follows comes to this, where one thing is loaded after the other.
                (batch,) = self._counted
                if batch.state is _batch.OPEN and not batch.gates:
                    if not self._may_leave(batch, is_quiet):
                        break
                    batch.seal("schedule", True)
                    if len(self._counted) == 1:  # no hook has loaded
                        self._counted.clear()
                        self._leading = False
                        return None if batch.is_done else batch
            leaving: list[Batch] = []
            staying: list[Batch] = []
            for batch in self._counted:
                if batch.state is _batch.OPEN:
                    leaves = self._may_leave(batch, is_quiet)
                    (leaving if leaves else staying).append(batch)
                elif batch.worker_scope is None and batch.state is _batch.SEALED:
                    leaving.append(batch)  # who sealed it was interrupted before it could be sent
            self._counted = staying
            if leaving:
                mine = self._let_go(leaving)
                if mine is not None:
                    return mine
            elif staying:
                break
            if not self._counted:
                self._leading = False
                return None
        return _LEAD

    def _may_leave(self, batch: Batch, is_quiet: bool) -> bool:
        if is_quiet and batch.schedule.ends_when_quiet:
            return True
        if batch.due is None:
            batch.due = self._round + batch.schedule.rounds
        return self._round >= batch.due  # pyright: ignore[reportOperatorIssue]

    def _let_go(self, leaving: list[Batch]) -> Batch | None:
        """
        Seal these in one step and give each a task; return the first one, if nobody has to lead on.

        Those with no token yet go on taking keys, and are sealed when they get it.
        """
        try:
            for batch in leaving:
                if batch.gates:
                    self._take_tokens(batch)
            for batch in leaving:
                if batch.state is _batch.OPEN and batch.pulse is self:
                    batch.seal("schedule")
        except BaseException:
            self._release_tokens(leaving)
            for batch in leaving:
                if not batch.is_done:
                    batch.cancel("its task ended before the batch was sent", None)
            raise
        to_run = []
        for batch in leaving:
            if batch.state is not _batch.DONE:
                to_run.append(batch)
            elif batch.gates:
                self._release_tokens((batch,))
        mine = None
        if to_run and not self._counted:
            mine = to_run.pop(0)
            self._leading = False
        for batch in to_run:
            try:
                self.send(batch)
            except LoaderClosedError:  # it has failed by this
                self._release_tokens((batch,))
        return mine

    # Tokens

    def _take_tokens(self, batch: Batch) -> Gate | None:
        """
        Take the tokens that a batch needs; return a gate that has none, and it goes on taking keys.

        All or nothing: one that held a token while it waits for another could close a cycle of those who
        wait already, with no await that could be refused for it.
        """
        if batch.live:  # or nobody wants it, and its seal will end it
            for gate in batch.gates:
                if batch not in gate.holders and not gate.take(batch):
                    self._release_tokens((batch,))
                    batch.pulse = _UNHEARD
                    batch.settle_deferred()
                    return gate
        return None

    def _release_tokens(self, batches: Any) -> None:
        for batch in batches:
            for gate in batch.gates:
                if batch in gate.holders:
                    gate.release(batch)

    # Running

    async def _run(self, batch: Batch) -> bool:
        """See a batch through; return whether the task is fit for another one."""
        try:
            if batch.state is _batch.OPEN or batch.gates:
                await self._get_ready(batch)
            if batch.state is _batch.SEALED and batch.start():
                context = self.context.copy()
                beyond = batch.loader.second_level is not None
                steps = self._ask_and_fetch(batch) if beyond else self._fetch(batch, True)
                try:
                    yielded = context.run(steps.send, None)
                except StopIteration:
                    pass  # most functions of a test, and none of a service, end with their first step
                else:
                    await _in_context(context, steps, yielded)
        except Exception as exc:
            rebased(exc, without_our_frames(exc))
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
            if batch.gates:
                self._release_tokens((batch,))
            batch.release()
        return not batch.was_cancelled

    async def _get_ready(self, batch: Batch) -> None:
        """Wait for the schedule and for the tokens of a batch, and seal it."""
        if batch.state is _batch.OPEN and batch.pulse is self:
            await self._await_schedule(batch)
        while not batch.is_done and (gate := self._take_tokens(batch)) is not None:
            batch.waits_for_token = True
            await gate.acquire(batch)
            batch.waits_for_token = False
        if batch.state is _batch.OPEN:
            batch.seal("schedule")

    async def _ask_and_fetch(self, batch: Batch) -> None:
        """Get the values of a batch from the second level, and the rest from its function."""
        # Nobody waits for what it does afterwards but the way out, so that the last values are
        # stored too.
        _begin(batch)
        self.storing += 1
        try:
            await batch.loader.second_level.fetch(batch, self._fetch_and_release)
        finally:
            self.storing -= 1
            self.changed()

    async def _fetch_and_release(self, batch: Batch) -> None:
        """Storing comes afterwards, and however long it takes, others may call their functions."""
        try:
            await self._fetch(batch)
        finally:
            self._release_tokens((batch,))

    async def _fetch(self, batch: Batch, begins: bool = False) -> None:
        """Call the batch function, and settle the batch by what it gives."""
        if begins:
            _begin(batch)
        if batch.state is not _batch.RUNNING:
            return
        keys = batch.keys_to_send()
        result = batch.function(keys)
        is_coroutine = type(result) is CoroutineType  # as nearly always, and no look at its class
        if not is_coroutine and isinstance(result, AsyncIterator):
            await run_stream(batch, keys, result)
        elif is_coroutine or isinstance(result, Awaitable):
            result = await result
            if batch.state is _batch.RUNNING:
                batch.settle(result)
        else:
            problem = (
                f"is not async: it returned {article(result)}, which cannot be awaited; write `async def`, "
                "or wrap it in in_thread()"
            )
            raise wrong_result(batch.loader, keys, problem, result)

    @staticmethod
    async def _await_schedule(batch: Batch) -> None:
        # What it loads is for this batch; a load of the batch itself it must not await.
        token = running_batch.set(batch)
        try:
            with CancelScope() as batch.schedule_scope:
                await batch.schedule(batch)
        finally:
            running_batch.reset(token)
            batch.schedule_scope = None
        batch.pulse = _UNHEARD


def _begin(batch: Batch) -> None:
    """In the context of the function: it begins."""
    running_batch.set(batch)
    hooks = batch.loader.hooks
    if hooks is not None:
        watches.set(hooks.watches)
        hooks.tell(BatchStarted, batch.name, batch.number, batch.keys)


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


@coroutine
def _in_context(
    context: Context, steps: Coroutine[Any, Any, None], yielded: Any
) -> Generator[Any, Any, None]:
    """
    Go on with a coroutine that has begun in a context of its own, in the task that awaits this.

    A task has one context for good, and a worker runs many batches.

    :param yielded: what its first step gave
    """
    run = context.run
    try:
        while True:
            try:
                sent = [(yield yielded)]
            except BaseException as exc:
                yielded = run(steps.throw, exc)
            else:
                yielded = run(steps.send, sent.pop())
    except StopIteration:
        return


def closed(name: str) -> str:
    return (
        f"{name} is closed, as the scope it was opened in has ended; make a loader for each request, "
        "job or message, for instance by scope.get() or @batch_loader, and use it within. A task "
        "group whose tasks load has to be opened inside the scope, not around it"
    )
