"""`AnyioExecutor`: the schedule that waits for all resolvers, and what is not supported."""

from __future__ import annotations

import gc
import inspect
import sys
from collections.abc import AsyncIterator, Callable, Generator
from importlib import import_module
from types import coroutine
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

pytest.importorskip("graphql")

from anyloader import DataLoader, integrations
from anyloader.integrations import _graphql_units as units
from anyloader.integrations.graphql import AnyioExecutor, all_waiting
from support import Recorder
from support.graphql_calls import IS_3_3, SCHEMA, execute, graphql, number, on_asyncio, only_3_3

pytestmark = pytest.mark.anyio
on_trio = pytest.mark.only_on("trio")


# --- The schedule that waits for all resolvers ---


@pytest.mark.virtual_time
@pytest.mark.parametrize("rounds", range(6))
async def test_whenever_the_last_resolver_waits_the_batch_leaves_at_once(rounds: int) -> None:
    async def late(_info: object) -> int:
        for _ in range(rounds):
            await checkpoint()
        return 1

    fetch = Recorder[int, int](lambda key: key)
    async with DataLoader(fetch, schedule=all_waiting()) as loader:
        item = {"x": lambda _info: loader.load(1), "y": late}
        start = anyio.current_time()
        assert await execute("{a{x y}}", {"a": item}) == ({"a": {"x": 1, "y": 1}}, None)
        assert anyio.current_time() == start


async def test_a_batch_that_always_gets_one_more_key_leaves_nevertheless() -> None:
    async def produce() -> None:
        while True:
            keys.append(len(keys))
            loader.load(keys[-1])
            await checkpoint()

    async def load(_info: object) -> int:
        value = await loader.load(0)
        loaded.set()
        return value

    async def wait(_info: object) -> int:
        await loaded.wait()
        return 1

    keys: list[int] = []
    loaded = anyio.Event()
    fetch = Recorder[int, int](lambda key: key)
    async with (
        DataLoader(fetch, schedule=all_waiting()) as loader,
        anyio.create_task_group() as tg,
    ):
        tg.start_soon(produce)
        with anyio.fail_after(5):
            result = await execute("{a{x y}}", {"a": {"x": load, "y": wait}})
            assert result == ({"a": {"x": 0, "y": 1}}, None)
        tg.cancel_scope.cancel()


# --- What is not supported ---


def run_by_nobody(awaitable: Any) -> object:
    """Run what never waits without any event loop."""
    try:
        awaitable.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


def test_without_a_known_event_loop_there_is_an_error_in_the_response() -> None:
    async def at_once(_info: object) -> int:
        return 1

    root = {"a": {"x": at_once, "y": at_once}}
    result: Any = run_by_nobody(execute("{a{x y}}", root))
    assert result.data == {"a": {"x": None, "y": None}}
    assert all("asyncio and trio only" in error.message for error in result.errors)


def test_what_awaits_nothing_needs_no_event_loop() -> None:
    result = graphql.graphql_sync(
        SCHEMA,
        "{number}",
        {"number": 1},
        **{"executor_class" if IS_3_3 else "execution_context_class": AnyioExecutor},
    )
    assert result == ({"number": 1}, None)


@only_3_3
@on_trio
@pytest.mark.parametrize(
    ("query", "directive"),
    [
        ("{... @defer {number}}", "@defer"),
        ("{a {... @defer {x}}}", "@defer"),
        ("{items @stream(initialCount: 1) {x}}", "@stream"),
    ],
)
async def test_incremental_delivery_is_refused_under_trio(query: str, directive: str) -> None:
    root = {"a": {"x": number}, "items": [{"x": number}] * 3, "number": number}
    result = graphql.experimental_execute_incrementally(
        SCHEMA, graphql.parse(query), root, executor_class=AnyioExecutor
    )
    if graphql.pyutils.is_awaitable(result):
        result = await result
    assert f"{directive} is not supported under trio" in result.errors[0].message


@only_3_3
@on_asyncio
async def test_incremental_delivery_is_as_ever_under_asyncio() -> None:
    result: Any = graphql.experimental_execute_incrementally(
        SCHEMA,
        graphql.parse("{number ... @defer {a{x y}}}"),
        {"a": {"x": number, "y": number}, "number": number},
        executor_class=AnyioExecutor,
    )
    result = await result
    assert result.initial_result.data == {"number": 1}
    later = [patch.incremental[0].data async for patch in result.subsequent_results]
    assert later == [{"a": {"x": 1, "y": 1}}]


@only_3_3
async def test_an_abort_signal_is_refused_under_trio_only(anyio_backend_name: str) -> None:
    signal = graphql.pyutils.AbortController().signal
    result = await execute("{a{x y}}", {"a": {"x": number, "y": number}}, abort_signal=signal)
    if anyio_backend_name == "trio":
        assert "abort_signal is not supported under trio" in result.errors[0].message
    else:
        assert result == ({"a": {"x": 1, "y": 1}}, None)


async def subscribe(*, waits: bool = False, **options: Any) -> Any:
    """Subscribe to two events, with our executor where graphql-core asks for one."""
    schema = graphql.build_schema(
        "type Query { x: Int } type Subscription { tick: Tick } type Tick { x: Int y: Int }"
    )

    async def ticks(_info: object) -> AsyncIterator[object]:
        for _ in range(2):
            await checkpoint()
            yield {"tick": {"x": number, "y": number}}

    async def ticks_later(info: object) -> AsyncIterator[object]:
        await checkpoint()
        return ticks(info)

    if IS_3_3:
        options["executor_class"] = AnyioExecutor
    document = graphql.parse("subscription {tick{x y}}")
    root = {"tick": ticks_later if waits else ticks}
    stream = graphql.subscribe(schema, document, root, **options)
    if graphql.pyutils.is_awaitable(stream):
        stream = await stream
    if isinstance(stream, graphql.ExecutionResult):
        return stream
    return [result async for result in stream]


@pytest.mark.parametrize("waits", [False, True])
async def test_events_of_a_subscription_are_executed(waits: bool, anyio_backend_name: str) -> None:
    if not IS_3_3 and anyio_backend_name == "trio":
        with pytest.raises(
            graphql.GraphQLError, match="a subscription is not supported under trio"
        ):
            await subscribe(waits=waits)
    else:
        assert await subscribe(waits=waits) == [({"tick": {"x": 1, "y": 1}}, None)] * 2


@only_3_3
async def test_a_subscription_keeps_nothing_of_its_events() -> None:
    """graphql-core would keep which fields each of them had until the subscription ends."""
    schema = graphql.build_schema(
        "type Query { x: Int } type Subscription { tick: Tick } type Tick { x: Int y: Int }"
    )

    async def ticks(_info: object) -> AsyncIterator[object]:
        while True:
            await checkpoint()
            yield {"tick": {"x": number, "y": number}}

    document = graphql.parse("subscription {tick{x y}}")
    stream: Any = graphql.subscribe(schema, document, {"tick": ticks}, executor_class=AnyioExecutor)
    kept = []
    for _ in range(3):
        assert (await anext(stream)).data == {"tick": {"x": 1, "y": 1}}
        gc.collect()
        kept.append(sum(type(thing).__name__ == "CollectedFields" for thing in gc.get_objects()))
    await stream.aclose()
    assert kept[0] == kept[1] == kept[2]


@only_3_3
async def test_an_abort_signal_of_a_subscription_is_refused_under_trio_only(
    anyio_backend_name: str,
) -> None:
    signal = graphql.pyutils.AbortController().signal
    if anyio_backend_name != "trio":
        assert await subscribe(abort_signal=signal) == [({"tick": {"x": 1, "y": 1}}, None)] * 2
        return
    with pytest.raises(graphql.GraphQLError, match="abort_signal is not supported under trio"):
        await subscribe(abort_signal=signal)
    result = await subscribe(waits=True, abort_signal=signal)
    assert "abort_signal is not supported under trio" in result.errors[0].message


def test_an_import_is_refused_where_graphql_core_differs() -> None:
    execution: Any = import_module("graphql.execution")
    name = "anyloader.integrations.graphql"
    base = "Executor" if IS_3_3 else "ExecutionContext"
    core = getattr(execution, base)
    gathers = eval(f"lambda self: {'gather_with_cancel' if IS_3_3 else 'gather'}()")
    module = sys.modules[core.__module__]
    changes: list[Callable[[pytest.MonkeyPatch], None]] = [
        lambda patch: patch.setattr(core, "other", gathers, raising=False),
        lambda patch: patch.setattr(core, "execute_fields", lambda self: None),
        lambda patch: patch.delattr(core, "execute_fields"),
        lambda patch: patch.delattr(core, "execute_operation"),
        lambda patch: patch.delattr(module, "default_type_resolver"),
        lambda patch: patch.delattr(execution, base),
    ]
    if IS_3_3:
        incremental: Any = None  # so that it cannot be imported
        changes.append(
            lambda patch: patch.setitem(sys.modules, "graphql.execution.incremental", incremental)
        )
    for change in (None, *changes):
        with pytest.MonkeyPatch.context() as patch:
            patch.delitem(sys.modules, name)
            patch.setattr(integrations, "graphql", None)  # is set by an import that succeeds
            if change is None:
                assert import_module(name).AnyioExecutor is not AnyioExecutor
                continue
            change(patch)
            with pytest.raises(ImportError) as caught:
                import_module(name)
            assert str(caught.value).startswith(
                f"graphql-core {graphql.version} is not supported by {name}: "
            )


@only_3_3
@on_asyncio
async def test_a_stream_is_as_ever_under_asyncio() -> None:
    result: Any = graphql.experimental_execute_incrementally(
        SCHEMA,
        graphql.parse("{items @stream(initialCount: 1) {x}}"),
        {"items": [{"x": number}] * 3},
        executor_class=AnyioExecutor,
    )
    result = await result
    assert result.initial_result.data == {"items": [{"x": 1}]}
    later = [patch async for patch in result.subsequent_results]
    items = [item for patch in later for part in patch.incremental or () for item in part.items]
    assert items == [{"x": 1}] * 2


async def test_a_resolver_may_return_any_awaitable() -> None:
    class Answer:
        def __await__(self) -> Any:
            return number(self).__await__()

    root: Any = {"a": {"x": lambda _info: Answer(), "y": lambda _info: Answer()}}
    assert await execute("{a{x y}}", root) == ({"a": {"x": 1, "y": 1}}, None)
    root = {"a": {"x": lambda _info: generated(number(None)), "y": lambda _info: Answer()}}
    assert await execute("{a{x y}}", root) == ({"a": {"x": 1, "y": 1}}, None)


@coroutine
def generated(steps: Any) -> Generator[Any, Any, Any]:
    """It can be awaited, but has no ``__await__``."""
    return (yield from steps.__await__())


async def test_errors_can_be_gathered_in_place() -> None:
    """graphql-core asks for it where it only waits for what is left of a failed selection."""

    async def fail() -> int:
        raise LookupError("gone")

    error, value = await units.gather_resolved(fail(), number(None), return_exceptions=True)
    assert isinstance(error, LookupError)
    assert value == 1


async def test_what_was_started_is_not_discarded() -> None:
    async def twice() -> None:
        await checkpoint()

    started = twice()
    started.send(None)
    units.discard(started)
    assert inspect.getcoroutinestate(started) == inspect.CORO_SUSPENDED
    steps: Any = generated(twice())
    steps.send(None)
    units.discard(steps)
    assert inspect.getgeneratorstate(steps) == inspect.GEN_SUSPENDED
    started.close()
    steps.close()


async def test_generators_that_are_data_are_left_alone() -> None:
    items = (number for number in range(2))
    units.discard(items)
    assert list(items) == [0, 1]


async def test_what_is_no_coroutine_of_its_own_is_left_alone() -> None:
    class Data:
        """It holds what it shares with others."""

        def __init__(self, shared: dict[str, Any]) -> None:
            self.shared = shared

        def __await__(self) -> Any:
            return self.shared["steps"].__await__()

    shared = {"steps": number(None)}
    units.discard(Data(shared))
    assert await shared["steps"] == 1


async def test_what_takes_no_weak_references_is_left_alone() -> None:
    class Slotted:
        __slots__ = ("steps",)
        steps: Any

        def __await__(self) -> Any:
            return self.steps.__await__()

    slotted = Slotted()
    slotted.steps = number(None)
    units.discard(slotted)
    assert await slotted == 1
