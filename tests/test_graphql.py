"""graphql-core as it is on asyncio, and with `AnyioExecutor` on every backend."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

pytest.importorskip("graphql")

from anyloader import DataLoader, LoadDeadlockError, schedules
from anyloader.integrations.graphql import AnyioExecutor, all_waiting
from support import Recorder, wait_all_tasks_blocked
from support.graphql_calls import (
    IS_3_3,
    SCHEMA,
    execute,
    fail,
    graphql,
    number,
    on_asyncio,
    only_3_3,
    outcome,
)

pytestmark = pytest.mark.anyio

pytest_plugins = ["support.graphql_calls"]


# --- Queries and mutations ---


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("{number}", {"number": 1}),
        ("{a{x y} b{x}}", {"a": {"x": 1, "y": 1}, "b": {"x": 1}}),
        ("{items{x y}}", {"items": [{"x": 1, "y": 1}] * 3}),
        ("{must{items{x}}}", {"must": [{"items": [{"x": 1}] * 3}] * 3}),
        ("{any{x ... on Item{y}}}", {"any": {"x": 1, "y": 1}}),
    ],
)
async def test_fields_and_lists_are_awaited(query: str, expected: object) -> None:
    class Item:
        x = y = staticmethod(number)
        __typename = "Item"

        async def items(self, _info: object) -> list[Item]:
            await checkpoint()
            return [Item(), Item(), Item()]

        async def __call__(self, _info: object) -> Item:
            await checkpoint()
            return self

    item = Item()
    root = {"a": item, "b": item, "items": item.items, "must": [item] * 3, "any": item}
    assert await execute(query, {**root, "number": number}) == (expected, None)


@pytest.mark.parametrize("made", [list, tuple, deque, iter])
async def test_awaitable_items_of_a_list_are_awaited(made: Callable[[Any], Any]) -> None:
    async def item(x: int) -> dict[str, int]:
        await checkpoint()
        return {"x": x}

    root = {"items": lambda _info: made([item(1), {"x": 2}, item(3)])}
    assert await execute("{items{x}}", root) == ({"items": [{"x": x} for x in (1, 2, 3)]}, None)


async def test_async_iterables_are_lists() -> None:
    async def items(_info: object) -> AsyncIterator[dict[str, Any]]:
        for _ in range(3):
            await checkpoint()
            yield {"x": number}

    result = await execute("{items{x}}", {"items": items})
    assert result == ({"items": [{"x": 1}] * 3}, None)


async def test_async_is_type_of_decides_about_an_abstract_type() -> None:
    def asks(kind: str) -> Callable[[dict[str, str], object], Awaitable[bool]]:
        async def is_type_of(value: dict[str, str], _info: object) -> bool:
            await checkpoint()
            return value["kind"] == kind

        return is_type_of

    schema = graphql.build_schema(graphql.print_schema(SCHEMA))
    for kind in ("Item", "Other"):
        schema.type_map[kind].is_type_of = asks(kind)
    for kind in ("Item", "Other"):
        root = {"any": {"kind": kind, "x": 5}}
        result = await execute("{any{__typename x}}", root, schema=schema)
        assert result == ({"any": {"__typename": kind, "x": 5}}, None)


async def test_fields_below_an_async_is_type_of_are_awaited() -> None:
    async def is_type_of(_value: object, _info: object) -> bool:
        await checkpoint()
        return True

    schema = graphql.build_schema(graphql.print_schema(SCHEMA))
    schema.type_map["Item"].is_type_of = is_type_of
    root = {"a": {"x": number, "y": 2}, "items": [{"x": number}, {"x": 3}]}
    result = await execute("{a{x y} items{x}}", root, schema=schema)
    assert result == ({"a": {"x": 1, "y": 2}, "items": [{"x": 1}, {"x": 3}]}, None)


async def test_an_async_type_resolver_decides_about_an_abstract_type() -> None:
    async def resolve_type(_value: object, _info: object, _type: object) -> str:
        await checkpoint()
        return "Other"

    result = await execute("{any{__typename}}", {"any": {}}, type_resolver=resolve_type)
    assert result == ({"any": {"__typename": "Other"}}, None)


async def test_fields_run_at_the_same_time() -> None:
    there: list[object] = []

    async def meet(info: object) -> int:
        there.append(info)
        if len(there) == 4:
            all_there.set()
        await all_there.wait()
        return 1

    all_there = anyio.Event()
    root = {"a": {"x": meet, "y": meet}, "items": [{"x": meet}, {"x": meet}]}
    with anyio.fail_after(5):
        result = await execute("{a{x y} items{x}}", root)
    assert result.errors is None


async def test_a_mutation_runs_one_field_after_the_other() -> None:
    def resolver(name: str) -> Callable[[object], Awaitable[int]]:
        async def resolve(_info: object) -> int:
            events.append(f"{name} starts")
            await checkpoint()
            events.append(f"{name} ends")
            return len(events)

        return resolve

    events: list[str] = []
    names = ["first", "second", "third"]
    if not IS_3_3:
        names = ["first"]  # 3.2 makes the coroutines of all fields first; the order is as promised
    root = {name: resolver(name) for name in names}
    await execute(f"mutation {{{' '.join(names)}}}", root)
    assert events == [f"{name} {event}" for name in names for event in ("starts", "ends")]


@only_3_3
async def test_resolvers_gather_with_the_helper_of_graphql_core() -> None:
    async def resolve(info: Any) -> int:
        numbers: list[int] = await info.async_helpers.gather([number(info), number(info)])
        return sum(numbers)

    async def resolve_few(info: Any) -> int:
        gather = info.async_helpers.gather
        few: list[int] = [*await gather([]), *await gather([number(info)])]
        return sum(few)

    assert await execute("{number}", {"number": resolve}) == ({"number": 2}, None)
    assert await execute("{number}", {"number": resolve_few}) == ({"number": 1}, None)


async def test_an_operation_in_a_resolver_is_executed_too() -> None:
    async def resolve(_info: object) -> int:
        result = await execute("{a{x y}}", {"a": {"x": number, "y": number}})
        return sum(result.data["a"].values())

    root = {"a": {"x": resolve, "y": resolve}}
    assert await execute("{a{x y}}", root) == ({"a": {"x": 2, "y": 2}}, None)


# --- Hits ---


@only_3_3
async def test_hits_are_completed_with_no_task_to_wait_for_them() -> None:
    async with DataLoader(Recorder[int, int](lambda key: key)) as loader:
        loader.prime_many({1: 1, 2: 2})
        item = {"x": lambda _info: loader.load(1), "y": lambda _info: loader.load(2)}
        root = {"a": item, "items": [item, item]}
        result = graphql.execute(
            SCHEMA, graphql.parse("{a{x y} items{x y}}"), root, executor_class=AnyioExecutor
        )
        assert not graphql.pyutils.is_awaitable(result)
    found = {"x": 1, "y": 2}
    assert result == ({"a": found, "items": [found, found]}, None)


async def test_hits_have_fields_and_errors_of_their_own(stock: bool) -> None:
    async with DataLoader(Recorder[int, Any](lambda key: key)) as loader:
        error = ValueError("primed")
        loader.prime_many({1: {"x": number, "y": 1}, 2: "no number", 3: error, 4: None})

        def hit(key: int) -> Callable[[object], object]:
            return lambda _info: loader.load(key)

        root = {
            "a": hit(1),
            "b": {"x": hit(2), "y": hit(3)},
            "items": [{"boom": hit(4), "x": hit(4)}, {"boom": hit(3)}, {"boom": lambda _info: 5}],
            "must": lambda _info: [loader.load(1), loader.load(1)],
        }
        query = "{a{x y} b{x y} items{x y ...on Item{boom}} must{x y}}"
        result = await execute(query, root, stock=stock)
    found = {"x": 1, "y": 1}
    assert result.data == {
        "a": found,
        "b": {"x": None, "y": None},
        "items": [None, None, {"x": None, "y": None, "boom": 5}],
        "must": [found, found],
    }
    assert sorted((error.path, error.message.partition(":")[0]) for error in result.errors) == [
        (["b", "x"], "Int cannot represent non-integer value"),
        (["b", "y"], "primed"),
        (["items", 0, "boom"], "Cannot return null for non-nullable field Item.boom."),
        (["items", 1, "boom"], "primed"),
    ]


async def test_a_hit_takes_the_errors_of_its_own_fields(stock: bool) -> None:
    async with DataLoader(Recorder[int, Any](lambda key: key)) as loader:
        loader.prime_many({1: {"boom": fail, "x": number}, 2: [{"boom": fail}]})
        root = {"a": lambda _info: loader.load(1), "must": lambda _info: loader.load(2)}
        result = await execute(
            "{a{boom x} must{boom} number}", {**root, "number": number}, stock=stock
        )
    assert outcome(result) == (
        {"a": None, "must": None, "number": 1},
        [("boom", ["a", "boom"]), ("boom", ["must", 0, "boom"])],
    )


@only_3_3
@on_asyncio
async def test_hits_can_be_streamed() -> None:
    async with DataLoader(Recorder[int, Any](lambda key: key)) as loader:
        loader.prime_many({1: {"x": 1}, 2: {"x": number}})
        result: Any = graphql.experimental_execute_incrementally(
            SCHEMA,
            graphql.parse("{items @stream(initialCount: 0) {x}}"),
            {"items": lambda _info: [loader.load(1), loader.load(2)]},
            executor_class=AnyioExecutor,
        )
        if graphql.pyutils.is_awaitable(result):
            result = await result
        later = [patch async for patch in result.subsequent_results]
    items = [item for patch in later for part in patch.incremental or () for item in part.items]
    assert items == [{"x": 1}, {"x": 1}]


@only_3_3
@on_asyncio
async def test_an_abort_signal_stops_hits_too(stock: bool) -> None:
    controller = graphql.pyutils.AbortController()

    def abort(_info: object) -> Any:
        controller.abort()
        return loader.load(1)

    async with DataLoader(Recorder[int, int](lambda key: key)) as loader:
        loader.prime(1, 1)
        root = {"a": {"x": abort, "y": 1}}
        with pytest.raises(graphql.AbortedGraphQLExecutionError):
            await execute("{a{x y}}", root, stock=stock, abort_signal=controller.signal)
        await wait_all_tasks_blocked()  # it completes in the background what can be


# --- Depth ---

NESTED = graphql.build_schema("type Query { n: Node } type Node { n: Node, m: Node, x: Int }")


def nested_document(levels: int, *more: str) -> Any:
    """Give ``{n {n {... {x}}}}`` by fragments, as a parser does not take so many levels."""
    beside = " ".join(f"{name} {{x}}" for name in more)
    fragments = [
        f"fragment F{level} on Node {{n {{...F{level + 1}}} {beside}}}" for level in range(levels)
    ]
    fragments.append(f"fragment F{levels} on Node {{x}}")
    return graphql.parse("\n".join(["{n {...F1}}", *fragments]))


async def depth(levels: int, resolve: Callable[[Any, Any], Any], *more: str) -> int:
    """Give how many levels of a nested query were answered."""
    option = {"executor_class" if IS_3_3 else "execution_context_class": AnyioExecutor}

    def resolver(source: Any, info: Any) -> Any:
        return resolve(source, info) if info.field_name != "x" else 1

    document = nested_document(levels, *more)
    result: Any = graphql.execute(NESTED, document, field_resolver=resolver, **option)
    if graphql.pyutils.is_awaitable(result):
        result = await result
    answered, data = 0, result.data
    while data is not None and "n" in data:
        answered += 1
        data = data["n"]
    assert not result.errors
    return answered


@pytest.mark.parametrize("more", [(), ("m",)])
async def test_nested_hits_are_completed_at_any_depth(more: tuple[str, ...]) -> None:
    async with DataLoader(Recorder[int, int](lambda key: key)) as loader:
        loader.prime(1, 1)
        assert await depth(1_000, lambda _source, _info: loader.load(1), *more) == 1_000


async def test_nested_loads_are_completed_at_any_depth() -> None:
    async with DataLoader(Recorder[int, int](lambda key: key)) as loader:

        def load(source: Any, _info: object) -> Any:
            return loader.load((source or 0) + 1)

        async def load_too(source: Any, _info: object) -> Any:
            return await loader.load((source or 0) + 1)

        for resolve in (load, load_too):
            assert await depth(1_000, resolve) == 1_000
            loader.clear_all()


# --- What resolvers see ---


async def test_what_a_resolver_sets_is_seen_below_its_field_and_not_beside_it(stock: bool) -> None:
    variable: ContextVar[str] = ContextVar("variable", default="nothing")

    def sets(name: str) -> Callable[[object], Awaitable[object]]:
        async def resolve(_info: object) -> object:
            await checkpoint()
            before = variable.get()
            variable.set(name)
            await checkpoint()
            seen.append((name, before))
            return {"x": lambda _info: below(name), "y": lambda _info: see(f"{name}.y")}

        return resolve

    async def below(name: str) -> int:
        await checkpoint()
        return see(f"{name}.x")

    def see(name: str) -> int:
        seen.append((name, variable.get()))
        return 1

    seen: list[tuple[str, str]] = []
    result = await execute("{a{x y} b{x y}}", {"a": sets("a"), "b": sets("b")}, stock=stock)
    assert result.errors is None
    assert sorted(seen) == [
        ("a", "nothing"),
        ("a.x", "a"),
        ("a.y", "a"),
        ("b", "nothing"),
        ("b.x", "b"),
        ("b.y", "b"),
    ]
    assert variable.get() == "nothing"


async def test_resolvers_at_the_same_time_have_tasks_of_their_own() -> None:
    tasks: list[int] = []

    async def resolve(_info: object) -> int:
        await checkpoint()
        tasks.append(anyio.get_current_task().id)
        await checkpoint()
        return 1

    item = {"x": resolve, "y": resolve}
    await execute("{a{x y} b{x y}}", {"a": item, "b": item})
    assert len(set(tasks)) == 4
    assert anyio.get_current_task().id not in tasks


# --- Loads that resolvers return ---


async def test_a_load_many_can_be_returned() -> None:
    fetch = Recorder[int, Any](lambda key: ValueError("boom") if key == 3 else {"x": key})
    async with DataLoader(fetch) as loader, DataLoader(fetch) as other:
        root = {
            "items": lambda _info: loader.load_many([1, 2]),
            "must": lambda _info: other.load_many([2, 3]),
            "a": {"items": lambda _info: loader.load_many([3, 4], return_exceptions=True)},
        }
        result = await execute("{items{x} must{x} a{items{x}}}", root)
        assert outcome(result) == (
            {"items": [{"x": 1}, {"x": 2}], "must": None, "a": {"items": [None, {"x": 4}]}},
            [("boom", ["a", "items", 0]), ("boom", ["must"])],
        )
        root = {"items": lambda _info: loader.load_many([1, 2])}
        assert (await execute("{items{x}}", root)).data == {"items": [{"x": 1}, {"x": 2}]}


async def test_loads_of_a_cancelled_selection_are_given_up() -> None:
    cancelled: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            cancelled.append(sorted(keys))
            raise
        return keys

    async def fails_late(_info: object) -> int:
        await wait_all_tasks_blocked()
        raise ValueError("boom")

    for boom, schedule in (
        (fail, None),
        (fails_late, None),
        (fails_late, all_waiting()),
    ):
        async with DataLoader(fetch, schedule=schedule) as loader:
            item = {"x": lambda _info: loader.load(1), "y": lambda _info: loader.load_many([2, 3])}
            a = {"boom": boom, **item, "items": [item, {"x": lambda _info: loader.load(4)}]}
            root = {"a": a, "number": number}
            with anyio.fail_after(5):
                result = await execute("{a{boom x y items{x}} number}", root)
            assert outcome(result) == ({"a": None, "number": 1}, [("boom", ["a", "boom"])])
            await wait_all_tasks_blocked()
            assert loader.statistics().running == 0
    assert cancelled[-1] == [1, 2, 3, 4]


async def test_a_load_of_a_selection_that_is_cancelled_may_be_awaited_by_others() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        await gate.wait()
        return keys

    async def others() -> None:
        found.append(await loader.load(1))
        found.append((await loader.load_many([1, 2]))[0])

    gate = anyio.Event()
    found: list[int] = []
    async with DataLoader(fetch) as loader, anyio.create_task_group() as tg:
        tg.start_soon(others)
        await wait_all_tasks_blocked()
        item = {"boom": fail, "x": lambda _info: loader.load(1)}
        result = await execute("{a{boom x}}", {"a": item})
        assert result.data == {"a": None}
        gate.set()
    assert found == [1, 1]


async def test_an_operation_in_a_batch_function_cannot_wait_for_it() -> None:
    async def fetch(keys: list[int]) -> list[Any]:
        item = {"x": lambda _info: own.load(1), "y": lambda _info: other.load(2)}
        results.append(await execute("{a{x y} b{y}}", {"a": item, "b": item}))
        return keys

    results: list[Any] = []
    async with DataLoader(Recorder[int, int](lambda key: key)) as other, DataLoader(fetch) as own:
        assert await own.load(1) == 1
    (result,) = results
    assert result.data == {"a": {"x": None, "y": 2}, "b": {"y": 2}}
    assert isinstance(result.errors[0].original_error, LoadDeadlockError)


async def test_a_load_may_settle_while_a_resolver_runs() -> None:
    async def primes(_info: object) -> int:
        loader.prime(1, 10, force=True)
        await wait_all_tasks_blocked()
        return 1

    def primes_at_once(_info: object) -> int:
        loader.prime(2, 20, force=True)
        return 1

    fetch = Recorder[int, int](lambda key: key, gate=anyio.Event())
    async with DataLoader(fetch, schedule=schedules.manual()) as loader:
        item = {"x": lambda _info: loader.load(1), "y": lambda _info: loader.load(2)}
        root = {"a": item, "b": {"x": primes}, "items": lambda _info: later()}

        async def later() -> object:
            await checkpoint()
            return [{"x": primes_at_once}]

        with anyio.fail_after(5):
            result = await execute("{a{x y} b{x} items{x}}", root)
        assert result.data == {"a": {"x": 10, "y": 20}, "b": {"x": 1}, "items": [{"x": 1}]}
    assert fetch.calls == []
