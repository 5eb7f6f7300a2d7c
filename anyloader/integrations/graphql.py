"""
GraphQL operations on asyncio and on trio, with graphql-core 3.3 or 3.2.

What an operation does at the same time (fields, items of a list, ``is_type_of``) graphql-core gathers
with asyncio. :class:`AnyioExecutor` overrides the methods that gather: with graphql-core's own code,
but for a ``gather`` that runs in an anyio task group. So nothing of graphql-core is changed, and
nothing is repeated here that would have to be kept in step with it. That rests on knowing which of
its functions use asyncio, and an import fails where they are others.

How :func:`all_waiting` knows what an operation waits for
=========================================================

An operation consists of *units*: the operation itself, and each awaitable that is gathered, which
has a task of its own. Every step of a unit is made by :func:`_drive`. When the step ends with the unit
parked, the chain of what awaits what shows whether that is for a load. ``_Operation.others`` counts
the units that do not wait for a load, and are not waiting for their own gather either: at zero the
operation can only go on by a load.
"""

from __future__ import annotations

import math
import sys
from collections.abc import AsyncIterable, Awaitable, Generator
from contextvars import ContextVar
from functools import update_wrapper
from inspect import CORO_CREATED, getcoroutinelocals, getcoroutinestate
from types import CodeType, CoroutineType, FunctionType, GeneratorType, coroutine
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

import anyio
import graphql
from anyio.lowlevel import checkpoint
from graphql import GraphQLError

from .._backend import TrioBackend, running_backend
from .._batch import LoadHandle, LoadManyHandle
from ..schedules import DEFAULT_MAX_ROUNDS, duration

if TYPE_CHECKING:
    from .._batch import Batch
    from ..schedules import Schedule

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

if TYPE_CHECKING:
    from graphql.execution import Executor as _Core
    from graphql.execution.incremental import IncrementalExecutor as _Stock
else:
    try:
        from graphql.execution import Executor as _Core
        from graphql.execution.incremental import IncrementalExecutor as _Stock
    except ImportError:  # pragma: no cover - 3.2 has a run of its own
        # object is refused below, as any other class would be that is not known
        _Core = _Stock = getattr(graphql.execution, "ExecutionContext", object)

__all__ = ("AnyioExecutor", "all_waiting")

_Load: TypeAlias = "LoadHandle[Any] | LoadManyHandle[Any]"


# What we rely on in graphql-core

#: By the name of what gathers in each line: the methods to override; those that use asyncio where
#: AnyioExecutor does not get under trio; and others that it overrides or calls.
_KNOWN = {
    "gather_with_cancel": (
        {
            "complete_async_iterator_value",
            "complete_iterable_value",
            "execute_fields",
            "gather_async_work",
        },
        {
            "cancel_incremental_work",
            "run_async_work_finished_hook",
            "settle_in_background",
            "with_abort_signal",
            "with_aborted_execution_error",
        },
        {
            "build_response",
            "cancellable_iterable",
            "complete_awaitable_value",
            "complete_value",
            "execute_operation",
            "get_new_delivery_group_map",
            "handle_field_error",
            "handle_stream",
        },
    ),
    "gather": ({"complete_list_value", "execute_fields"}, set[str](), {"execute_operation"}),
}

_core: dict[str, Any] = vars(sys.modules[_Core.__module__])
_IS_3_3 = "gather_with_cancel" in _core
_GATHER = "gather_with_cancel" if _IS_3_3 else "gather"


def _names(code: CodeType) -> set[str]:
    """Return the global names that a function uses, its inner functions too."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)


def _check() -> None:
    """:raises ImportError: if other methods than those known here use asyncio"""
    asynchronous = {
        name
        for name, value in _core.items()
        if str(getattr(value, "__module__", "")).partition(".")[0] in ("asyncio", "_asyncio")
    }
    asynchronous.add(_GATHER)
    found = {
        name: _names(value.__code__) & asynchronous
        for name, value in vars(_Core).items()
        if isinstance(value, FunctionType)
    }
    gathering, others, more = _KNOWN[_GATHER]
    resolver = _core.get("default_type_resolver")
    if (
        {name for name, used in found.items() if used} != gathering | others
        or any(found[name] != {_GATHER} for name in gathering)
        or not isinstance(resolver, FunctionType)
        or "gather" not in _names(resolver.__code__)
        or not all(hasattr(_Stock, name) for name in more)
    ):  # pragma: no cover - tested in a process of its own
        raise ImportError(
            f"graphql-core {graphql.version} is not supported by anyloader.integrations.graphql: "
            "its executor is not made as those of graphql-core 3.2 and 3.3 that are known",
            name=__name__,
        )


_check()


def _gathering(function: Any) -> Any:
    """Return a copy of one of graphql-core's functions that gathers with :func:`_gather`."""
    names = {**function.__globals__, _GATHER: _gather}
    copy = FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return update_wrapper(copy, function)


# The gather that asyncio's is replaced by

_STRAY = "the resolver was cancelled, though its operation was not: what it awaited was cancelled"


async def _gather(*awaitables: Awaitable[Any], return_exceptions: bool = False) -> list[Any]:
    """
    Await all at the same time, and return the results in order.

    The first exception comes out bare, after the others were cancelled and have ended.
    """
    if len(awaitables) < 2 and not return_exceptions:
        return [await awaitable for awaitable in awaitables]
    results: list[Any] = [None] * len(awaitables)
    failures: list[Exception] = []
    operation = _current_operation()
    left = len(awaitables)

    async def complete(index: int, awaitable: Awaitable[Any]) -> None:
        nonlocal left
        try:
            if operation is None:
                results[index] = await awaitable
            else:
                results[index] = await _drive(operation, awaitable)
            return
        except Exception as exc:
            failure = exc
        except anyio.get_cancelled_exc_class() as exc:
            if group.cancel_scope.cancel_called or _is_cancelled():
                raise
            # Nobody but the group has a reason to cancel this task. Let out, it would cancel the
            # whole group and pass for a cancellation of the operation.
            failure = RuntimeError(_STRAY)
            failure.__cause__ = exc
        finally:
            left -= 1
            if operation is not None and left:  # the last one hands over to who gathers
                operation.one_less()
        if return_exceptions:
            results[index] = failure
        else:
            failures.append(failure)
            group.cancel_scope.cancel()

    try:
        opening = _open_group()
    except Exception as exc:
        for awaitable in awaitables:
            _discard(awaitable)
        raise GraphQLError(f"AnyioExecutor runs under asyncio and trio only: {exc}") from exc
    if operation is not None:
        operation.others += len(awaitables) - 1  # not this one, which waits for them
    try:
        async with opening as group:
            for index, awaitable in enumerate(awaitables):
                group.start_soon(complete, index, awaitable)
    except BaseExceptionGroup as errors:  # of KeyboardInterrupt and the like
        if len(errors.exceptions) == 1:
            raise errors.exceptions[0] from None
        raise  # pragma: no cover - two of them in the same step
    if failures:
        try:
            raise failures[0]
        finally:
            failures.clear()  # its traceback holds this frame, which shall not hold it
    if group.cancel_scope.cancel_called:
        # asyncio: a task that cancelled itself natively, and then awaited nothing, ends as cancelled.
        # To its group that is a reason to cancel the others, and no error.
        raise RuntimeError(_STRAY)
    return results


def _open_group() -> Any:
    """
    Return a context manager of a task group.

    A nursery does all that is wanted here, and starts a task for half of what anyio's task group
    takes on top of it. asyncio's own group knows nothing of the cancel scopes around it.
    """
    return sys.modules["trio"].open_nursery() if _under_trio() else anyio.create_task_group()


def _is_cancelled() -> bool:
    """Whether a cancel scope around the current task is cancelled."""
    return anyio.current_effective_deadline() == -math.inf


def _is_stray_here() -> bool:
    """Whether nothing explains a cancellation that came out of what this task awaited."""
    backend = running_backend()
    if backend is None or isinstance(backend, TrioBackend) or _is_cancelled():
        return False
    # New in Python 3.11; before that a task does not know that it was cancelled.
    cancelling = getattr(backend.current_task(), "cancelling", None)
    return cancelling is not None and not cancelling()


def _discard(value: object) -> None:
    """Close a coroutine that was never started, and those that it would have awaited."""
    if not isinstance(value, CoroutineType) or getcoroutinestate(value) != CORO_CREATED:
        return
    frame: Any = value.cr_frame
    package = frame.f_globals.get("__name__", "").partition(".")[0]
    for held in list(getcoroutinelocals(value).values()):
        _discard(held)
        # Collections that others hold are data of the program, which may even contain themselves.
        if package in _COLLECTING and isinstance(held, (dict, list, tuple)):
            for item in held.values() if isinstance(held, dict) else held:
                _discard(item)
    value.close()


#: Packages with functions that collect what they are going to await.
_COLLECTING = ("graphql", __name__.partition(".")[0])


# What we ask of handles and batches beyond what is public; nothing else here uses private names of them


def _pending_batches(load: _Load) -> list[Batch]:
    if isinstance(load, LoadManyHandle):
        return [batch for batch in load._batches if not batch.is_done]
    return [] if load._batch is None else [load._batch]


def _waiters(batch: Batch) -> int:
    """Return how many tasks wait for loads of a batch."""
    return batch.awaiting


_AWAITS = {LoadHandle.__await__.__code__, LoadManyHandle.__await__.__code__}


def _awaited_load(steps: Any) -> _Load | None:
    """Return the load that a suspended coroutine waits for, if it waits for one."""
    while True:
        kind = type(steps)
        if kind is CoroutineType:
            steps = steps.cr_await
        elif kind is GeneratorType:
            if steps.gi_code in _AWAITS:
                load: _Load = steps.gi_frame.f_locals["self"]
                return load
            steps = steps.gi_yieldfrom
        else:
            return None


# What an operation waits for

_operation: ContextVar[_Operation | None] = ContextVar("anyloader_operation", default=None)


class _Operation:
    __slots__ = ("batches", "ended", "others", "sleepers")

    def __init__(self) -> None:
        #: Tasks that resolvers have left behind may still see it.
        self.ended = False
        #: How many units can go on without a load, or wait for something else. Changed here and by
        #: ``_gather`` only.
        self.others = 1
        #: What the other units wait for, and how many wait for each. Changed here only.
        self.batches: dict[Batch, int] = {}
        #: Schedules that want to look again when a unit has made a step.
        self.sleepers: list[anyio.Event] = []

    def waits(self) -> bool:
        """Whether every unit waits for a load that has not come yet."""
        return self.others <= 0 and not any(batch.is_done for batch in self.batches)

    def wait(self, load: _Load) -> list[Batch]:
        """A unit, which was one of the others, waits for a load: for the batches returned."""
        batches = _pending_batches(load)
        for batch in batches:
            units = self.batches.get(batch, 0)
            self.batches[batch] = units + 1
            if not units and isinstance(batch.schedule, _AllWaiting):
                batch.schedule.hold(batch).operations.add(self)
        self.one_less()
        return batches

    def go_on(self, batches: list[Batch]) -> None:
        """A unit waits for these batches no more."""
        for batch in batches:
            self.batches[batch] -= 1
            if not self.batches[batch]:
                del self.batches[batch]
                if isinstance(batch.schedule, _AllWaiting):
                    batch.schedule.hold(batch).operations.discard(self)
        self.others += 1

    def wake(self) -> None:
        for sleeper in self.sleepers:
            sleeper.set()
        self.sleepers.clear()

    def one_less(self) -> None:
        """One of the others waits for a load, or has ended."""
        self.others -= 1
        if self.waits():
            # Decided for all batches here and now: the first that comes back lets units go on.
            for batch in self.batches:
                if isinstance(batch.schedule, _AllWaiting):
                    batch.schedule.hold(batch).reconsider()


@coroutine
def _drive(operation: _Operation, awaitable: Awaitable[Any]) -> Generator[Any, Any, Any]:
    """Await something as a unit of an operation, whose ``others`` the caller keeps right."""
    steps: Any = awaitable if type(awaitable) is CoroutineType else _as_coroutine(awaitable)
    batches: list[Batch] | None = None
    try:
        yielded = steps.send(None)
        while True:
            load = _awaited_load(steps)
            if load is not None:
                batches = operation.wait(load)
            elif operation.sleepers:
                operation.wake()
            try:
                sent = yield yielded
            except BaseException as exc:
                if batches is not None:
                    operation.go_on(batches)
                    batches = None
                yielded = steps.throw(exc)
            else:
                if batches is not None:
                    operation.go_on(batches)
                    batches = None
                yielded = steps.send(sent)
    except StopIteration as stop:
        return stop.value


async def _as_coroutine(awaitable: Awaitable[Any]) -> Any:  # pragma: no cover - by extensions
    return await awaitable


# The schedule

# A round trip to a database takes some milliseconds, and a batch that has waited for many of them has
# lost more than one batch more would have cost.
DEFAULT_MAX_WAIT = 0.05


class _Hold:
    """What holds a batch back."""

    __slots__ = ("operations", "released", "woken")

    def __init__(self) -> None:
        #: Those with units that wait for the batch. Changed by ``_Operation`` only.
        self.operations: set[_Operation] = set()
        self.released = False
        #: Set when it is released, or a unit has made a step.
        self.woken: anyio.Event | None = None

    def reconsider(self) -> None:
        if all(operation.waits() for operation in self.operations):
            self.released = True
            if self.woken is not None:
                self.woken.set()


class _AllWaiting:
    def __init__(self, max_wait: float) -> None:
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
                if not units or _waiters(batch) > units:
                    # Who else waits may be a task of a resolver, which waits for that task.
                    return
            limit = min(limit, anyio.current_time() + self._max_wait)
            hold.woken = anyio.Event()
            for operation in hold.operations:
                operation.sleepers.append(hold.woken)
            with anyio.CancelScope(deadline=limit) as timeout:
                await hold.woken.wait()
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


# The executor


class AnyioExecutor(_Stock):
    """
    Executes operations under asyncio and under trio.

    With graphql-core 3.3 pass it as ``executor_class``, with 3.2 as ``execution_context_class``;
    Ariadne calls it ``execution_context_class`` with both. On 3.3 it is also all that the incremental
    executor is, graphql-core's default.

    What resolvers return is awaited in anyio task groups, so a resolver may use cancel scopes, task
    groups and whatever else runs on the backend. Errors are reported as graphql-core reports them.

    **Cancellation.** Where a field that must not be null fails, its siblings are cancelled and have
    ended before the error goes on; loads they awaited go on for everybody else. (Where it fails before
    anything was awaited, its siblings were not started. With 3.3 they are under asyncio, as ever, and
    run on in the background; otherwise they never are.) If the operation is
    cancelled, its resolvers are, and have ended. A resolver that is cancelled for no such reason, as
    by awaiting what somebody else cancelled, fails with a ``RuntimeError``, as any other error of a
    field (with 3.2, of the selection around the field).

    **Not under trio:** ``@defer``, ``@stream`` and ``abort_signal`` are refused by an error in the
    response, and with 3.2 ``graphql.subscribe`` raises a ``GraphQLError``; with 3.3 subscriptions run.
    Under asyncio all of them do what they do without this class.

    **Checkpoints.** The operation is executed without one as long as nothing is awaited; with 3.3 a
    settled load that a resolver returns is not. Gathering two or more awaitables is a checkpoint.

    **Errors.** Under an event loop that is neither asyncio nor trio, what has to be gathered fails
    with a ``GraphQLError`` in the response.
    """

    execute_fields: Any = _gathering(_Core.execute_fields)

    if TYPE_CHECKING or _IS_3_3:
        complete_iterable_value: Any = _gathering(_Core.complete_iterable_value)
        complete_async_iterator_value: Any = _gathering(_Core.complete_async_iterator_value)
        gather_async_work: Any = _gathering(_Core.gather_async_work)
    else:  # pragma: no cover - 3.2

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if self.type_resolver is _core["default_type_resolver"]:
                self.type_resolver = _default_type_resolver

        def complete_list_value(self, *args: Any) -> Any:
            completed = _complete_list_value(self, *args)
            if isinstance(args[-1], AsyncIterable):
                return _await_twice(completed)
            return completed

    def execute_operation(self, *args: Any, **kwargs: Any) -> Any:
        """As graphql-core's; what it returns is awaited by the task that is to run the operation."""
        if getattr(self, "abort_signal", None) is not None and _under_trio():
            self.collected_errors.add(_unsupported("abort_signal"), None)
            return self.build_response(None)
        result = super().execute_operation(*args, **kwargs)
        # An operation that a resolver executes is part of its own.
        if self.is_awaitable(result) and _current_operation() is None:
            return _run(result)
        return result

    if TYPE_CHECKING or _IS_3_3:  # pragma: no branch

        def build_response(self, data: Any) -> Any:
            if _under_trio():
                # In an order that is the same every time; 3.2 does so on every backend.
                self.collected_errors.errors.sort(key=_position)
            return super().build_response(data)

        def complete_awaitable_value(
            self,
            return_type: Any,
            field_details_list: Any,
            info: Any,
            path: Any,
            result: Any,
            position_context: Any,
        ) -> Any:
            rest = (return_type, field_details_list, info, path)
            if (
                type(result) is not LoadHandle
                or result.status is not LoadHandle.Status.FINISHED
                or self.abort_signal is not None
                or not isinstance(path.key, str)  # an item of @stream, which is awaited
            ):
                return super().complete_awaitable_value(*rest, result, position_context)
            # A hit of a field. There is nothing to wait for, so no task is needed that would wait.
            try:
                completed = self.complete_value(*rest, result.return_value, position_context)
            except Exception as exc:
                self.handle_field_error(exc, return_type, field_details_list, path)
                return None
            if self.is_awaitable(completed):
                return self._await_completed(completed, return_type, field_details_list, path)
            return completed

        async def _await_completed(
            self, completed: Any, return_type: Any, field_details_list: Any, path: Any
        ) -> Any:
            try:
                return await completed
            except Exception as exc:
                self.handle_field_error(exc, return_type, field_details_list, path)
                return None

        async def with_abort_signal(self, awaitable: Awaitable[Any]) -> Any:
            if self.abort_signal is not None:
                if _under_trio():  # while subscribing; queries are refused as a whole
                    _discard(awaitable)
                    raise _unsupported("abort_signal")
                return await super().with_abort_signal(awaitable)
            try:
                return await awaitable
            except Exception:
                raise
            except BaseException as exc:
                if isinstance(exc, anyio.get_cancelled_exc_class()) and _is_stray_here():
                    raise RuntimeError(_STRAY) from exc
                raise

        def cancellable_iterable(self, iterable: AsyncIterable[Any]) -> AsyncIterable[Any]:
            if self.abort_signal is not None and _under_trio():
                raise _unsupported("abort_signal")
            return super().cancellable_iterable(iterable)

        def settle_in_background(self, awaitables: list[Awaitable[Any]]) -> None:
            if _under_trio():
                # There is no background that a task could be left to.
                for awaitable in awaitables:
                    _discard(awaitable)
            else:
                super().settle_in_background(awaitables)

        def get_new_delivery_group_map(self, *args: Any, **kwargs: Any) -> Any:
            if _under_trio():
                raise _unsupported("@defer")
            return super().get_new_delivery_group_map(*args, **kwargs)

        def handle_stream(self, *args: Any, **kwargs: Any) -> Any:
            if _under_trio():
                raise _unsupported("@stream")
            return super().handle_stream(*args, **kwargs)


if not TYPE_CHECKING and not _IS_3_3:  # pragma: no cover - 3.2
    _complete_list_value = _gathering(_Core.complete_list_value)
    _default_type_resolver = _gathering(_core["default_type_resolver"])

    class _Events(graphql.MapAsyncIterator):
        """The events of a subscription. It needs asyncio, and says so only when it is iterated."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if _under_trio():
                raise _unsupported("a subscription")
            super().__init__(*args, **kwargs)

    # No executor takes part in subscribing, so there is no method to override.
    sys.modules[graphql.subscribe.__module__].MapAsyncIterator = _Events


async def _await_twice(completed: Awaitable[Any]) -> Any:  # pragma: no cover - 3.2
    """3.2 forgets that items of an async iterable may have to be awaited too."""
    items = await completed
    return await items if isinstance(items, Awaitable) else items


async def _run(result: Awaitable[Any]) -> Any:
    operation = _Operation()
    _operation.set(operation)
    try:
        return await _drive(operation, result)
    finally:
        operation.ended = True
        _operation.set(None)


def _current_operation() -> _Operation | None:
    operation = _operation.get()
    return None if operation is None or operation.ended else operation


def _position(error: GraphQLError) -> tuple[Any, ...]:
    return (error.locations or [], error.path or [], error.message)


def _under_trio() -> bool:
    return isinstance(running_backend(), TrioBackend)


def _unsupported(what: str) -> GraphQLError:
    return GraphQLError(
        f"{what} is not supported under trio: graphql-core {graphql.version} uses asyncio for it"
    )
