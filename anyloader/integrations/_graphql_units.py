"""
What an operation awaits, with as few tasks as can be.

Theory of operation
===================

A *unit* is a coroutine of graphql-core that is to be awaited at the same time as others: a field, an
item of a list. The task that awaits the operation makes the steps of all its units, by a
:class:`_Scheduler`. A unit parks for a gather of its own (its children are units, and it goes on when all
of them have ended) or for a load (as one of those who await it). When no unit is ready the task sleeps, and
whoever makes one ready wakes it.

What a resolver wrote itself may use cancel scopes, task groups and whatever else belongs to the task that
runs it. So a unit that comes to await it moves into a task of its own, which makes its steps from then on:
those of the resolver, and what graphql-core does with its result, until the unit has ended or parks
again. Units that it has made ready then make their steps in that task too, since the task of the
operation would come a round later.

A unit has a context of its own, as a task would have. Where code runs that is no step of a unit (a
resolver that gathers, graphql-core's deliveries on asyncio) loads are simply awaited, and a gather is run
by a scheduler of its own in the task that awaits it.

**Failure.** The first child that fails makes its gather cancel the others, once all that are ready have
made their step. A unit is cancelled by closing its coroutine, which runs no code but graphql-core's:
at once if it waits for a load, else after its children, or its task, have ended.

How :func:`all_waiting` knows what an operation waits for
=========================================================

``_Operation.others`` counts who can go on without a load: each scheduler that does not sleep, and each
task of a unit that does not await a load. At zero the operation can only go on by a load. The coroutine
of a unit shows by the chain of what awaits what whether its task waits for a load; that is looked at after
every step, by :func:`_drive`, from the first use of ``all_waiting`` in the process on.
"""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Awaitable, Coroutine, Generator, Iterable, Sequence
from contextvars import Context, ContextVar, copy_context
from inspect import (
    CO_ITERABLE_COROUTINE,
    CORO_CREATED,
    GEN_CREATED,
    getcoroutinestate,
    getgeneratorstate,
)
from types import CoroutineType, GeneratorType, coroutine
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary, finalize

import anyio
from anyio.lowlevel import checkpoint
from graphql import GraphQLError

from .._backend import TrioBackend, running_backend
from .._batch import (
    LoadHandle,
    LoadManyHandle,
    Parked,
    await_settled,
    batches_of,
    outcome_in,
    park,
)
from .._dispatcher import ambient
from .._results import Failure
from ..schedules import DEFAULT_MAX_ROUNDS, duration

if TYPE_CHECKING:
    from .._batch import Batch
    from ..schedules import Schedule

__all__ = (
    "all_waiting",
    "apart",
    "discard",
    "gather",
    "gather_resolved",
    "is_deep",
    "is_under_trio",
    "operate",
    "resolved",
)

_Load: TypeAlias = "LoadHandle[Any] | LoadManyHandle[Any]"


# Units


class _Unit(Parked):
    """See the theory of operation on top of this module."""

    __slots__ = (
        "batches",
        "cancelled",
        "context",
        "coroutine",
        "depth",
        "group",
        "index",
        "is_native",
        "stops",
        "task",
        "waits",
    )

    def __init__(
        self, group: _Group, index: int, steps: Coroutine[Any, Any, Any], context: Context
    ) -> None:
        super().__init__()
        self.group = group
        self.index = index
        #: ``None`` once it has ended.
        self.coroutine: Coroutine[Any, Any, Any] | None = steps
        self.context = context
        #: The gather it has parked for, if it has; a load is known to :class:`Parked`.
        self.waits: _Group | None = None
        #: What to cancel to cancel its task; ``None`` while it has none.
        self.stops: Any = None
        #: The task, once it can be cancelled.
        self.task: object = None
        #: Whether what a resolver wrote is being awaited, in its task.
        self.is_native = False
        #: How many fields may be nested in its coroutine: it has waited for so many.
        self.depth = 0
        self.cancelled = False
        #: Batches that its operation has noted it to wait for.
        self.batches: tuple[Batch, ...] | None = None

    def step(self, scheduler: _Scheduler) -> None:
        """Make one step, as one of all that are ready."""
        steps = self.coroutine
        if steps is None:  # cancelled while it was ready
            return
        if self.cancelled:
            self.close()
            return
        scheduler.unit = self
        try:
            yielded = self.context.run(steps.send, None)
        except StopIteration as stop:
            self.coroutine = None
            self.group.ended(self.index, stop.value)
        except Exception as exc:
            self.coroutine = None
            self.group.failed(self.index, exc)
        else:
            if yielded is _PARKED:
                return
            if yielded is _MOVES:
                scheduler.tasks.add(self)
                scheduler.operation.others += 1
                scheduler.start(self)
                scheduler.runner = scheduler.here  # it may have made a step by this
            else:
                steps.close()
                self.coroutine = None
                self.group.failed(self.index, RuntimeError(_NATIVE))

    def resume(self) -> None:
        """What it has parked for has come to an end, however it did."""
        scheduler = self.group.scheduler
        if self.batches is not None:
            scheduler.operation.forget(self.batches)
            self.batches = None
        scheduler.ready.append(self)
        scheduler.stir()

    def cancel(self) -> None:
        if self.coroutine is None or self.cancelled:
            return
        self.cancelled = True
        if self.stops is not None:
            self.stop()
        elif self.waits is not None:
            self.waits.cancel()  # and it is closed when all of them have ended
        else:
            self.leave()
            if self.batches is not None:
                self.group.scheduler.operation.forget(self.batches)
            self.close()

    def stop(self) -> None:
        """Cancel its task."""
        # One of asyncio's that is cancelled before its first step makes none.
        if self.task is not None:
            self.stops.cancel()

    def close(self) -> None:
        steps = self.coroutine
        self.coroutine = None
        if steps is not None:  # pragma: no branch - closed twice by a cancellation amid its end
            discard(steps)
            steps.close()
            self.group.ended(self.index, None)


class _Group:
    """One gather: the units that are its children, and the one that waits for them."""

    __slots__ = ("children", "error", "left", "results", "return_exceptions", "scheduler", "unit")

    def __init__(
        self,
        scheduler: _Scheduler,
        unit: _Unit | None,
        awaitables: Sequence[Awaitable[Any]],
        return_exceptions: bool,
    ) -> None:
        self.scheduler = scheduler
        self.unit = unit
        self.left = len(awaitables)
        self.results: list[Any] = [None] * self.left
        self.error: Exception | None = None
        self.return_exceptions = return_exceptions
        self.children = [
            _Unit(
                self,
                index,
                awaitable if type(awaitable) is CoroutineType else resolved(awaitable),
                copy_context(),
            )
            for index, awaitable in enumerate(awaitables)
        ]
        scheduler.ready += self.children
        scheduler.stir()

    def ended(self, index: int, value: Any) -> None:
        self.results[index] = value
        self.left -= 1
        if not self.left:
            if self.unit is not None:
                self.unit.waits = None
                self.unit.resume()
            else:
                self.scheduler.stir()  # it is to see that it has ended

    def failed(self, index: int, error: Exception) -> None:
        if not self.return_exceptions and self.error is None:
            self.error = error
            self.scheduler.failed.append(self)
        self.ended(index, error)

    def cancel(self) -> None:
        for child in self.children:
            child.cancel()

    def outcome(self) -> list[Any]:
        if self.error is None:
            return self.results
        try:
            raise self.error
        finally:
            self.error = None  # its traceback holds this frame, which shall not hold it
            self.results = []


#: What a unit yields when it has parked, and when it has to have a task to go on.
_PARKED = object()
_MOVES = object()

_NATIVE = (
    "what graphql-core awaits by itself, in the task of the operation, awaited something of the event "
    "loop: a method of a subclass of AnyioExecutor may not do so"
)

_STRAY = "the resolver was cancelled, though its operation was not: what it awaited was cancelled"


@coroutine
def _parked() -> Generator[object, None, None]:
    yield _PARKED


_scheduler: ContextVar[_Scheduler | None] = ContextVar("anyloader_scheduler", default=None)


def _current_unit() -> _Unit | None:
    """Return the unit whose step this is, if it is one."""
    scheduler = _scheduler.get()
    if scheduler is None or scheduler.current_task() is not scheduler.runner:
        return None
    unit = scheduler.unit
    return None if unit is None or unit.is_native else unit


# What the executor awaits


async def operate(result: Awaitable[Any]) -> Any:
    """Run an operation in the task that awaits this."""
    return (await _schedule((result,), False))[0]


async def gather(*awaitables: Awaitable[Any], return_exceptions: bool = False) -> list[Any]:
    """
    Await coroutines of graphql-core's at the same time, and return the results in order.

    The first exception comes out bare, after the others were cancelled and have ended.
    """
    unit = _current_unit()
    if len(awaitables) < 2 and not return_exceptions:
        return [await awaitable for awaitable in awaitables]
    if unit is None:
        return await _schedule(awaitables, return_exceptions)
    group = unit.waits = _Group(unit.group.scheduler, unit, awaitables, return_exceptions)
    await _parked()
    return group.outcome()


def gather_resolved(*awaitables: Awaitable[Any], return_exceptions: bool = False) -> Any:
    """As :func:`gather`, for awaitables of resolvers."""
    return gather(*map(resolved, awaitables), return_exceptions=return_exceptions)


def is_deep() -> bool:
    """Whether so much is nested in the current unit that what comes next should be apart."""
    unit = _current_unit()
    return unit is not None and unit.depth >= _DEEP


# Each level takes two or three frames of the stack, of which there are a thousand by default.
_DEEP = 50


async def apart(awaitable: Awaitable[Any]) -> Any:
    """Await a coroutine of graphql-core's without adding to the stack of what awaits it."""
    unit = _current_unit()
    if unit is None:
        return await awaitable
    group = unit.waits = _Group(unit.group.scheduler, unit, (awaitable,), False)
    await _parked()
    return group.outcome()[0]


def awaited(awaitable: Any, executor: Any = None) -> Any:
    """
    Return what to await at once, and in this place, for what a resolver has returned.

    :param executor: learns by its ``_is_deep`` that so much is nested that it has to look at each value
    """
    # As _current_unit(), which would take as long as all the rest.
    scheduler = _scheduler.get()
    if scheduler is None or scheduler.current_task() is not scheduler.runner:
        return awaitable
    unit = scheduler.unit
    if unit is None or unit.is_native:
        return awaitable
    unit.depth += 1
    if unit.depth >= _DEEP and executor is not None:
        executor._is_deep = True
    kind = type(awaitable)
    if kind is not LoadHandle and kind is not LoadManyHandle:
        return _natively(unit, scheduler, awaitable)
    parked = park(awaitable, unit, scheduler.token)
    if parked and _AllWaiting.in_use:
        unit.batches = scheduler.operation.note(awaitable)
    return _loaded(awaitable, parked)


async def resolved(awaitable: Awaitable[Any]) -> Any:
    """Await what a resolver has returned."""
    return await awaited(awaitable)


@coroutine
def _loaded(load: _Load, parked: bool) -> Generator[Any, Any, Any]:
    if parked:
        yield _PARKED
    if type(load) is LoadHandle:
        value = outcome_in(load)
        if type(value) is not Failure:
            return value
    # One that was cancelled would look whether it is to wait, of which the task knows nothing.
    return (yield from await_settled(load))


@coroutine
def _natively(unit: _Unit, scheduler: _Scheduler, awaitable: Any) -> Generator[Any, Any, Any]:
    """Await what a resolver wrote, in a task of the unit's."""
    if unit.stops is None:
        if not scheduler.has_loop:
            discard(awaitable)
            raise GraphQLError(
                "AnyioExecutor runs under asyncio and trio only: no event loop is running"
            )
        try:
            yield _MOVES
        except GeneratorExit:
            discard(awaitable)
            raise
    unit.is_native = True
    try:
        # A generator that types.coroutine() has made awaitable has no __await__().
        is_steps = type(awaitable) in (CoroutineType, GeneratorType)
        steps: Any = awaitable if is_steps else awaitable.__await__()
        return (yield from steps)
    except scheduler.Cancelled as exc:
        if scheduler.is_cancelled(unit):
            raise
        # Let out it would pass for a cancellation of the operation.
        raise RuntimeError(_STRAY) from exc
    finally:
        # What comes next in this step is graphql-core's.
        unit.is_native = False
        scheduler.unit = unit
        scheduler.runner = unit.task
        scheduler.stepping = True


@coroutine
def _drive(unit: _Unit) -> Generator[Any, Any, None]:
    """Make the steps of a unit that has a task, in that task, until it ends or parks."""
    scheduler = unit.group.scheduler
    unit.task = scheduler.current_task()
    # One that is started eagerly makes its first step amid those of others.
    nested = scheduler.stepping
    steps: Any = unit.coroutine
    step, argument = steps.send, None
    while True:
        try:
            yielded = step(argument)
        except StopIteration as stop:
            unit.coroutine = None
            unit.group.ended(unit.index, stop.value)
            return
        except Exception as exc:
            unit.coroutine = None
            unit.group.failed(unit.index, exc)
            return
        finally:
            scheduler.stepping = nested
        if yielded is _PARKED:
            return
        if scheduler.ready:
            scheduler.stir()
        batches = None
        if _AllWaiting.in_use:
            operation = scheduler.operation
            batches = _awaited_batches(operation, steps)
            if batches is not None:
                operation.one_less()
            elif operation.sleepers:
                operation.wake()
        nested = False
        try:
            argument = yield yielded
            step = steps.send
        except BaseException as exc:
            argument = exc
            step = steps.throw
        if batches is not None:
            scheduler.operation.others += 1
            scheduler.operation.forget(batches)


def discard(value: Any) -> None:
    """Close a coroutine that was never started, and those that it would have awaited."""
    frame = None
    if isinstance(value, CoroutineType):
        if getcoroutinestate(value) == CORO_CREATED:
            frame = value.cr_frame
    elif isinstance(value, GeneratorType):
        # types.coroutine() makes these awaitable. All others are data of the program.
        is_awaitable = value.gi_code.co_flags & CO_ITERABLE_COROUTINE
        if is_awaitable and getgeneratorstate(value) == GEN_CREATED:
            frame = value.gi_frame
    else:
        _discard_held(value)
    if frame is None:
        return
    package = frame.f_globals.get("__name__", "").partition(".")[0]
    for held in list(frame.f_locals.values()):
        discard(held)
        # Collections that others hold are data of the program, which may even contain themselves.
        if package in _COLLECTING and isinstance(held, (dict, list, tuple)):
            for item in held.values() if isinstance(held, dict) else held:
                discard(item)
    value.close()


def _discard_held(awaitable: object) -> None:
    """
    Close the coroutines that some awaitable object holds, when it goes.

    Not before that: unlike a coroutine, it may be awaited by others as well.
    """
    if not hasattr(type(awaitable), "__await__") or type(awaitable) in _OURS:
        return
    # Its attributes, in slots too.
    held = [*gc.get_referents(awaitable), *getattr(awaitable, "__dict__", {}).values()]
    coroutines = [item for item in held if isinstance(item, CoroutineType)]
    if coroutines:
        try:
            finalize(awaitable, _discard_all, coroutines).atexit = False
        except TypeError:
            pass  # it takes no weak references


def _discard_all(values: Iterable[object]) -> None:
    for value in values:
        discard(value)


_OURS = (LoadHandle, LoadManyHandle)

#: Packages with functions that collect what they are going to await.
_COLLECTING = ("graphql", __name__.partition(".")[0])


# Schedulers


async def _schedule(awaitables: Sequence[Awaitable[Any]], return_exceptions: bool) -> list[Any]:
    """Await coroutines of graphql-core's at the same time, in the task that awaits this."""
    scheduler: _Scheduler
    backend = running_backend()
    if backend is None:
        scheduler = _Scheduler()
    elif isinstance(backend, TrioBackend):
        scheduler = _TrioScheduler()
    else:
        scheduler = _AsyncioScheduler()
    scheduler.token = None if backend is None else backend.token
    outer = _scheduler.get()
    is_part = outer is not None and not outer.operation.ended
    operation = scheduler.operation = outer.operation if outer and is_part else _Operation()
    context = copy_context()
    context.run(_scheduler.set, scheduler)
    root = context.run(_Group, scheduler, None, awaitables, return_exceptions)
    scheduler.root = root
    operation.others += 1
    try:
        await scheduler.run()
    finally:
        operation.others -= 1
        if not is_part:
            operation.ended = True
    return root.outcome()


class _Scheduler:
    """
    Runs the units of one gather, and those of theirs. By itself it is for where no event loop runs.
    """

    operation: _Operation
    root: _Group
    #: The event loop, if one runs.
    token: object
    has_loop = False
    Cancelled: type[BaseException] = GeneratorExit

    def __init__(self) -> None:
        #: Of whom the next step is to be made, in order.
        self.ready: list[_Unit] = []
        #: Gathers of which a child has failed, and the others are to be cancelled.
        self.failed: list[_Group] = []
        #: Whose step is made now, and in which task.
        self.unit: _Unit | None = None
        self.runner: object = None
        #: The task in which the steps of all that are ready are being made.
        self.here: object = None
        #: The units that have tasks.
        self.tasks: set[_Unit] = set()
        #: Whether its own task waits for somebody to make a unit ready.
        self.sleeping = False
        #: Whether meanwhile another one makes a step, and then those of all that are ready.
        self.stepping = False
        #: What is no ``Exception`` ends the operation, wherever it came out.
        self.interrupt: BaseException | None = None
        self.task = self.current_task()

    def current_task(self) -> object:
        return None

    def is_cancelled(self, unit: _Unit) -> bool:
        """Whether there is a reason to cancel the unit, whose task this is."""
        return unit.cancelled

    def stir(self) -> None:
        """There is something to be done: a unit that is ready, or the end."""
        if self.sleeping and not self.stepping:
            self.wake()

    async def run(self) -> None:
        """Make steps until all units have ended, in the task that awaits this."""
        try:
            await self._work()
        except BaseException:
            self.root.cancel()
            await self._join()
            self._step_all()  # which closes what had to wait for a task
            raise

    async def _work(self) -> None:
        while True:
            self._step_all()
            if self.interrupt is not None:
                raise self.interrupt
            if not self.root.left:
                return
            await self._rest()

    async def _rest(self) -> None:
        """Wait until somebody makes a unit ready."""
        operation = self.operation
        if operation.sleepers:  # pragma: no cover - depends on which of two operations rests first
            operation.wake()
        self.sleeping = True
        operation.one_less()
        try:
            await self._sleep()
        finally:
            if self.sleeping:
                self._woken()

    def _woken(self) -> None:
        self.sleeping = False
        self.operation.others += 1

    def _step_all(self) -> None:
        self.here = self.current_task()
        while self.ready or (self.failed and not self.stepping):
            ready, self.ready = self.ready, []
            failed: list[_Group] = []
            if not self.stepping:
                # Not before all that were ready have made their step. So not in a task of a unit either:
                # others may be about to make theirs.
                failed, self.failed = self.failed, []
            self.runner = self.here
            for unit in ready:
                unit.step(self)
            for group in failed:
                group.cancel()

    def wake(self) -> None:
        self._woken()
        self._wake()

    async def _sleep(self) -> None:
        raise NotImplementedError

    def _wake(self) -> None:
        raise NotImplementedError

    async def _join(self) -> None:
        """Wait until all tasks have ended, which were cancelled."""

    def start(self, unit: _Unit) -> None:
        """Give a unit a task."""
        raise NotImplementedError

    def left(self, unit: _Unit, interrupt: BaseException | None) -> None:
        """The task of a unit ends: it has ended itself, or parked, or was cancelled."""
        self.tasks.discard(unit)
        unit.stops = unit.task = None
        if unit.coroutine is not None:
            unit.context = copy_context()
        if unit.cancelled or interrupt is not None:
            unit.cancelled = False
            unit.cancel()  # what it has parked for since, or itself
        if self.ready and self.sleeping and not self.stepping and interrupt is None:
            # A round earlier than its own task would, and so no later than with a task for each.
            self.stepping = True
            try:
                self._step_all()
            except BaseException as exc:
                interrupt = exc
            finally:
                self.stepping = False
        if interrupt is not None:
            self.interrupt = interrupt
        if self.sleeping and (self.failed or self.interrupt is not None or not self.root.left):
            self.wake()
        self.operation.one_less()


class _AsyncioScheduler(_Scheduler):
    has_loop = True

    def __init__(self) -> None:
        self._asyncio = asyncio = sys.modules["asyncio"]
        self.current_task = asyncio.current_task  # type: ignore[method-assign]
        self.Cancelled = asyncio.CancelledError
        self._loop = asyncio.get_running_loop()
        self._waiter: Any = None
        # New in Python 3.12; a factory of somebody else's may not know it.
        self._is_eager = sys.version_info >= (3, 12) and (self._loop.get_task_factory() is None)
        super().__init__()

    async def _sleep(self) -> None:
        self._waiter = self._loop.create_future()
        await self._waiter

    def _wake(self) -> None:
        if not self._waiter.done():  # pragma: no branch - cancelled in this very round
            self._waiter.set_result(None)

    def start(self, unit: _Unit) -> None:
        # anyio's task groups take several times as long as this. What they are for is done here:
        # nothing outlives the operation, and who cancels it cancels this task.
        steps = self._run(unit)
        unit.stops = _STARTS
        if self._is_eager:
            # The first step is made here: what waits for nobody needs no other one.
            task = self._asyncio.Task(
                steps, loop=self._loop, context=unit.context, eager_start=True
            )
        else:
            task = unit.context.run(self._loop.create_task, steps)
            if unit.task is None:
                _announce(unit)
        if unit.stops is not None:
            unit.stops = task

    async def _run(self, unit: _Unit) -> None:
        interrupt = None
        if not unit.cancelled:
            try:
                await _drive(unit)
            except self._asyncio.CancelledError:
                pass  # the unit was cancelled
            except BaseException as exc:
                interrupt = exc
        self.left(unit, interrupt)

    async def _join(self) -> None:
        # Not cancelled again and again by a cancel scope, so that resolvers can clean up.
        with anyio.CancelScope(shield=True):
            while self.tasks:
                try:
                    await self._rest()
                except self._asyncio.CancelledError:
                    for unit in list(self.tasks):
                        unit.stop()


#: Stands for a task that is being made.
_STARTS = object()


def _announce(unit: _Unit) -> None:
    """
    Tell the scope around that a task was started which makes its first step in the next round.

    It is no quiet round: the resolver is about to load, or to lead to others that are. With eager tasks
    these make all their first steps at once, however deep they are nested.
    """
    scope = unit.context.get(ambient)
    if scope is not None:
        scope.news += 1


class _TrioScheduler(_Scheduler):
    has_loop = True

    def __init__(self) -> None:
        self._trio = sys.modules["trio"]
        self.current_task = self._trio.lowlevel.current_task  # type: ignore[method-assign]
        self.Cancelled = self._trio.Cancelled
        super().__init__()

    def is_cancelled(self, unit: _Unit) -> bool:
        return bool(self._trio.current_effective_deadline() == -math.inf)

    async def run(self) -> None:
        interrupt = None
        try:
            async with self._trio.open_nursery() as self._nursery:
                try:
                    await self._work()
                except self._trio.Cancelled:
                    self.root.cancel()
                    raise
                except BaseException as exc:
                    self.root.cancel()
                    interrupt = exc
        finally:
            self._step_all()
        if interrupt is not None:
            try:
                raise interrupt
            finally:
                del interrupt

    async def _sleep(self) -> None:
        def abort(_raise_cancel: object) -> Any:
            self._woken()  # before anybody could wake what wakes by itself now
            return self._trio.lowlevel.Abort.SUCCEEDED

        await self._trio.lowlevel.wait_task_rescheduled(abort)

    def _wake(self) -> None:
        self._trio.lowlevel.reschedule(self.task)

    def start(self, unit: _Unit) -> None:
        unit.stops = self._trio.CancelScope()
        unit.task = _STARTS
        unit.context.run(self._nursery.start_soon, self._run, unit, name="a GraphQL resolver")
        _announce(unit)

    async def _run(self, unit: _Unit) -> None:
        interrupt = None
        try:
            with unit.stops:
                await _drive(unit)
        except self._trio.Cancelled:
            raise
        except BaseException as exc:
            interrupt = exc
        finally:
            self.left(unit, interrupt)


def is_under_trio() -> bool:
    return isinstance(running_backend(), TrioBackend)


# What an operation waits for


class _Operation:
    __slots__ = ("batches", "ended", "others", "sleepers")

    def __init__(self) -> None:
        #: Tasks that resolvers have left behind may still see it.
        self.ended = False
        #: See the theory of operation.
        self.others = 0
        #: What units wait for, and how many of them wait for each. Changed here only.
        self.batches: dict[Batch, int] = {}
        #: Schedules that want to look again when something has made a step.
        self.sleepers: list[anyio.Event] = []

    def waits(self) -> bool:
        """Whether it can only go on by a load that has not come yet."""
        return self.others <= 0 and not any(batch.is_done for batch in self.batches)

    def note(self, load: _Load) -> tuple[Batch, ...]:
        """A unit waits for a load: for the batches returned."""
        batches = batches_of(load)
        for batch in batches:
            waiting = self.batches.get(batch, 0)
            self.batches[batch] = waiting + 1
            if not waiting and isinstance(batch.schedule, _AllWaiting):
                batch.schedule.hold(batch).operations.add(self)
        return batches

    def forget(self, batches: Iterable[Batch]) -> None:
        """A unit waits for these batches no more."""
        for batch in batches:
            self.batches[batch] -= 1
            if not self.batches[batch]:
                del self.batches[batch]
                if isinstance(batch.schedule, _AllWaiting):
                    batch.schedule.hold(batch).operations.discard(self)

    def wake(self) -> None:
        for sleeper in self.sleepers:
            sleeper.set()
        self.sleepers.clear()

    def one_less(self) -> None:
        """One of the others waits for a load, sleeps or has ended."""
        self.others -= 1
        if not self.others:
            self.consider()

    def consider(self) -> None:
        if self.waits():
            # Decided for all batches here and now: the first that comes back lets units go on.
            for batch in self.batches:
                if isinstance(batch.schedule, _AllWaiting):
                    batch.schedule.hold(batch).reconsider()


_AWAITS = {LoadHandle.__await__.__code__, LoadManyHandle.__await__.__code__}


def _awaited_batches(operation: _Operation, steps: Any) -> tuple[Batch, ...] | None:
    """
    Say what a task of a unit waits for: the batches of a load, which are noted, or none of its own, if it runs a
    scheduler that sleeps; ``None`` if it is something else.
    """
    while True:
        kind = type(steps)
        if kind is CoroutineType:
            if steps.cr_code is _RESTS:
                return ()
            steps = steps.cr_await
        elif kind is GeneratorType:
            if steps.gi_code in _AWAITS:
                return operation.note(steps.gi_frame.f_locals["self"])
            steps = steps.gi_yieldfrom
        else:
            return None


_RESTS = _Scheduler._rest.__code__


# The schedule

# A round trip to a database takes some milliseconds, and a batch that has waited for many of them has
# lost more than one batch more would have cost.
DEFAULT_MAX_WAIT = 0.05


class _Hold:
    """What holds a batch back."""

    __slots__ = ("operations", "released", "woken")

    def __init__(self) -> None:
        #: Those that wait for the batch. Changed by ``_Operation`` only.
        self.operations: set[_Operation] = set()
        self.released = False
        #: Set when it is released, or a step was made.
        self.woken: anyio.Event | None = None

    def reconsider(self) -> None:
        if all(operation.waits() for operation in self.operations):
            self.released = True
            if self.woken is not None:
                self.woken.set()


class _AllWaiting:
    #: Whether what tasks wait for has to be known: nobody else should pay for that.
    in_use = False

    def __init__(self, max_wait: float) -> None:
        _AllWaiting.in_use = True
        self._max_wait = max_wait
        self._holds: WeakKeyDictionary[Batch, _Hold] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"all_waiting(max_wait={self._max_wait})"

    def hold(self, batch: Batch) -> _Hold:
        hold = self._holds.get(batch)
        if hold is None:
            hold = self._holds[batch] = _Hold()
        return hold

    async def __call__(self, batch: Any) -> None:
        hold = self.hold(batch)
        examined = None
        limit = math.inf
        rounds = 0
        while not hold.released:
            # As quiescent(), while something may be going on.
            added = batch.added
            for _ in range(2):
                await checkpoint()
                if hold.released:
                    return
            if batch.added != added:
                rounds += 2
                if rounds >= DEFAULT_MAX_ROUNDS:
                    return
                continue
            rounds = 0
            if added != examined:
                examined = added
                units = sum(operation.batches[batch] for operation in hold.operations)
                if not units or batch.awaiting > units:
                    # Who else waits may be a task of a resolver, which waits for that task.
                    return
            now = anyio.current_time()
            limit = min(limit, now + self._max_wait)
            if now >= limit:  # also where something makes a step in every round, and wakes this
                return
            woken = hold.woken = anyio.Event()
            for operation in hold.operations:
                operation.sleepers.append(woken)
            with anyio.CancelScope(deadline=limit) as timeout:
                await woken.wait()
            if timeout.cancelled_caught:
                return


def all_waiting(*, max_wait: float = DEFAULT_MAX_WAIT) -> Schedule:
    """
    Let a batch leave once every resolver of the operation waits for a load.

    A schedule for the loaders of operations under :class:`AnyioExecutor`. Resolvers that come late to
    their loads, by however many rounds of the scheduler or because they await something else first,
    still share one batch; and where all wait, all batches leave and nothing more is waited for: the
    rounds that Haxl had before its version 2. The price: a level of a query is as slow as its slowest
    resolver.

    **A function that still runs holds nobody back.** Who waits for its batch waits for a load like all
    others. So what two batch functions lead to is two batches where one takes longer, and where they end
    within a round or two of each other the scheduler decides. Holding the level back for the slowest
    function would cost more time than the batch: if it has to be one, give the loader that comes next
    :func:`anyloader.schedules.window` in place of this, with a time within which both functions end.

    A batch leaves by the rule of :func:`anyloader.schedules.quiescent` instead if no resolver waits
    for it, or a task does that the executor has not started: a resolver may be waiting for that
    task, so waiting for the resolver could last for ever.

    :param max_wait: the longest time in seconds, once nothing is going on, to hold a batch for
        resolvers that wait for something else. Two resolvers that share a lock, held while loading,
        wait for each other so long.
    :raises TypeError: if ``max_wait`` is not a number
    :raises ValueError: if ``max_wait`` is negative, infinite or NaN
    """
    return _AllWaiting(duration("max_wait", max_wait))
