"""graphql-core as it is on asyncio, and with `AnyioExecutor` on every backend."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

graphql = pytest.importorskip("graphql")

from anyloader import (  # noqa: E402
    DataLoader,
    LoadDeadlockError,
    LoaderClosedError,
    LoaderNotOpenError,
    LoaderScope,
    batch_loader,
    current_scope,
    schedules,
)
from anyloader.integrations import _graphql_units as units  # noqa: E402
from anyloader.integrations.graphql import AnyioExecutor, all_waiting  # noqa: E402
from support import Recorder, run_seeds, wait_all_tasks_blocked  # noqa: E402

pytestmark = pytest.mark.anyio

IS_3_3 = hasattr(graphql, "Executor")
on_asyncio = pytest.mark.only_on("asyncio")
on_trio = pytest.mark.only_on("trio")
only_3_3 = pytest.mark.skipif(not IS_3_3, reason="new in graphql-core 3.3")

SCHEMA = graphql.build_schema(
    """
    type Query { a: Item, b: Item, items: [Item], must: [Item!], number: Int, any: Thing }
    type Mutation { first: Int, second: Int, third: Int }
    type Item implements Thing { boom: Int!, x: Int, y: Int, items: [Item] }
    type Other implements Thing { x: Int }
    interface Thing { x: Int }
    """
)


async def execute(
    query: str, root: object, *, stock: bool = False, schema: Any = SCHEMA, **options: Any
) -> Any:
    if not stock:
        options["executor_class" if IS_3_3 else "execution_context_class"] = AnyioExecutor
    result = graphql.execute(schema, graphql.parse(query), root, **options)
    return await result if graphql.pyutils.is_awaitable(result) else result


def outcome(result: Any) -> tuple[Any, list[tuple[str, list[str | int] | None]]]:
    return result.data, sorted((error.message, error.path) for error in result.errors or ())


async def number(_info: object) -> int:
    await checkpoint()
    return 1


async def fail(_info: object) -> int:
    await checkpoint()
    raise ValueError("boom")


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


async def test_awaitable_items_of_a_list_are_awaited() -> None:
    async def item(x: int) -> dict[str, int]:
        await checkpoint()
        return {"x": x}

    root = {"items": lambda _info: [item(1), {"x": 2}, item(3)]}
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


# --- A scope for each operation ---


@batch_loader
async def doubled(keys: list[int]) -> list[int]:
    await checkpoint()
    return [2 * key for key in keys]


class ScopedExecutor(AnyioExecutor):
    make_scope = LoaderScope


class ScopedByFunction(AnyioExecutor):
    make_scope = lambda: LoaderScope()  # noqa: E731


async def test_what_makes_no_scope_fails_the_operation() -> None:
    class NoScope(AnyioExecutor):
        make_scope = int

    option: Any = {"executor_class" if IS_3_3 else "execution_context_class": NoScope}
    with pytest.raises(TypeError, match=r"new LoaderScope for each operation; .* of type int$"):
        await execute("{number}", {"number": 1}, stock=True, **option)


@pytest.mark.parametrize("executor", [ScopedExecutor, ScopedByFunction])
async def test_an_operation_has_a_scope_where_its_executor_makes_one(executor: Any) -> None:
    async def scope(_info: object) -> int:
        scopes.append(current_scope())
        return 1

    scopes: list[LoaderScope] = []
    option = {"executor_class" if IS_3_3 else "execution_context_class": executor}
    root = {"a": {"x": lambda _info: doubled.load(1), "y": scope}, "number": 1}
    for _ in range(2):
        result = await execute("{a{x y} number}", root, stock=True, **option)
        assert result == ({"a": {"x": 2, "y": 1}, "number": 1}, None)
    assert len(set(map(id, scopes))) == 2
    with pytest.raises(LoaderNotOpenError):
        current_scope()
    assert await execute("{number}", root, stock=True, **option) == ({"number": 1}, None)


def test_a_scope_is_not_for_execute_sync() -> None:
    option = {"executor_class" if IS_3_3 else "execution_context_class": ScopedExecutor}
    with pytest.raises(RuntimeError, match="not for execute_sync"):
        graphql.execute_sync(SCHEMA, graphql.parse("{number}"), {"number": 1}, **option)


# --- Errors ---


@pytest.fixture(params=[False, True], ids=["AnyioExecutor", "stock"])
def stock(request: pytest.FixtureRequest, anyio_backend_name: str) -> bool:
    if request.param and anyio_backend_name == "trio":
        pytest.skip("graphql-core itself runs on asyncio only")
    return bool(request.param)


async def test_a_failing_sibling_leaves_the_load_of_a_shared_key_alone(stock: bool) -> None:
    fetch = Recorder[int, int](lambda key: key * 10)
    async with DataLoader(fetch) as loader:

        async def load(_info: object) -> int:
            return await loader.load(1)

        for x in (load, lambda _info: loader.load(1)):
            loader.clear(1)
            root = {"a": {"boom": fail, "x": x}, "b": {"boom": number, "x": x}}
            result = await execute("{a{boom x} b{boom x}}", root, stock=stock)
            assert outcome(result) == (
                {"a": None, "b": {"boom": 1, "x": 10}},
                [("boom", ["a", "boom"])],
            )
    assert fetch.calls == [[1], [1]]


async def test_errors_come_out_as_they_were_raised(stock: bool) -> None:
    error = ValueError("boom")

    async def raise_it(_info: object) -> int:
        await checkpoint()
        raise error

    root = {"a": {"x": raise_it, "y": number, "items": [{"boom": raise_it, "x": number}]}}
    result = await execute("{a{x y items{boom x}}}", root, stock=stock)
    assert outcome(result) == (
        {"a": {"x": None, "y": 1, "items": [None]}},
        [("boom", ["a", "items", 0, "boom"]), ("boom", ["a", "x"])],
    )
    assert all(found.original_error is error for found in result.errors)


async def test_a_failed_non_null_field_cancels_its_siblings_and_waits_for_them() -> None:
    async def sleep(_info: object) -> int:
        try:
            await anyio.sleep_forever()
        finally:
            events.append("cancelled")
            with anyio.CancelScope(shield=True):
                await checkpoint()
            events.append("cleaned up")
        return 0

    events: list[str] = []
    root = {"a": {"boom": fail, "x": sleep}, "number": number}
    result = await execute("{a{boom x} number}", root)
    assert outcome(result) == ({"a": None, "number": 1}, [("boom", ["a", "boom"])])
    assert events == ["cancelled", "cleaned up"]


async def test_a_failed_batch_function_fails_the_fields_that_load_from_it() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        await checkpoint()
        raise OSError("no database")

    async with DataLoader(fetch) as loader:
        root = {"items": [{"x": lambda _info: loader.load(1), "y": number}] * 2}
        result = await execute("{items{x y}}", root)
    assert outcome(result) == (
        {"items": [{"x": None, "y": 1}] * 2},
        [("no database", ["items", 0, "x"]), ("no database", ["items", 1, "x"])],
    )


async def test_a_load_from_a_closed_scope_is_an_error_in_the_response() -> None:
    async with DataLoader(Recorder[int, int](lambda key: key)) as loader:
        pending = loader.load(1)
    root = {"a": {"x": lambda _info: loader.load(2), "y": lambda _info: pending}, "number": number}
    with anyio.fail_after(5):
        result = await execute("{a{x y} number}", root)
    assert result.data == {"a": {"x": None, "y": None}, "number": 1}
    assert len(result.errors) == 2
    assert isinstance(
        next(e for e in result.errors if e.path[-1] == "x").original_error, LoaderClosedError
    )


async def test_nothing_that_a_sibling_failed_before_is_left_behind() -> None:
    """A field that fails at once leaves awaitables of others behind, which nobody awaits."""
    if not IS_3_3:
        pytest.skip("3.2 itself leaves them behind")
    root = {"a": {"x": number, "y": number, "boom": fail_at_once}, "number": number}
    result = await execute("{a{x y boom} number}", root)
    assert outcome(result) == ({"a": None, "number": 1}, [("boom", ["a", "boom"])])
    await wait_all_tasks_blocked()


def fail_at_once(_info: object) -> int:
    raise ValueError("boom")


@only_3_3
async def test_what_is_gathered_is_not_left_behind_either() -> None:
    def gathers(info: Any) -> Awaitable[Any]:
        gathering: Awaitable[Any] = info.async_helpers.gather([number(info), number(info)])
        return gathering

    result = await execute("{a{x boom}}", {"a": {"x": gathers, "boom": fail_at_once}})
    assert outcome(result) == ({"a": None}, [("boom", ["a", "boom"])])
    await wait_all_tasks_blocked()


@only_3_3
async def test_data_of_resolvers_that_are_left_behind_is_left_alone() -> None:
    """It may contain itself, and what others are going to await."""

    async def resolve(_info: object, data: dict[str, Any] | None = None) -> int:
        return 1

    data: dict[str, Any] = {"other": number(None)}
    data["data"] = data
    item = {"x": lambda info: resolve(info, data), "boom": fail_at_once}
    result = await execute("{a{x boom}}", {"a": item})
    assert outcome(result) == ({"a": None}, [("boom", ["a", "boom"])])
    assert await data["other"] == 1
    await wait_all_tasks_blocked()


def test_under_trio_errors_are_in_the_same_order_every_time(shuffled_backend: str) -> None:
    if IS_3_3 and shuffled_backend != "trio":
        pytest.skip("there they are in the order in which they come")

    async def paths() -> list[Any]:
        root = {"items": [{"x": fail, "y": fail}] * 3}
        result = await execute("{items{x y}}", root)
        return [error.path for error in result.errors]

    assert run_seeds(shuffled_backend, range(30), paths)


# --- Cancellation ---


async def test_a_cancelled_operation_cancels_its_resolvers_and_no_shared_load() -> None:
    cancelled: list[str] = []

    def waits(name: str) -> Callable[[object], Awaitable[int]]:
        async def resolve(_info: object) -> int:
            try:
                return await loader.load(1)
            except anyio.get_cancelled_exc_class():
                cancelled.append(name)
                raise

        return resolve

    gate = anyio.Event()
    fetch = Recorder[int, int](lambda key: key, gate=gate)
    other: list[int] = []
    async with DataLoader(fetch) as loader, anyio.create_task_group() as tg:

        async def load() -> None:
            other.append(await loader.load(1))

        tg.start_soon(load)
        with anyio.CancelScope() as scope:
            tg.start_soon(cancel_when_blocked, scope)
            await execute("{a{x y} number}", {"a": {"x": waits("x"), "y": waits("y")}, "number": 1})
        assert scope.cancelled_caught
        assert sorted(cancelled) == ["x", "y"]
        gate.set()
    assert other == [1]
    assert fetch.calls == [[1]]


async def cancel_when_blocked(scope: anyio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


async def test_a_timeout_in_a_resolver_is_an_error_of_its_field() -> None:
    async def resolve(_info: object) -> int:
        with anyio.fail_after(0):
            await anyio.sleep_forever()
        return 1

    result = await execute("{a{x y}}", {"a": {"x": resolve, "y": number}})
    assert result.data == {"a": {"x": None, "y": 1}}
    assert isinstance(result.errors[0].original_error, TimeoutError)


@on_asyncio
async def test_a_resolver_cancelled_by_others_is_an_error_and_no_cancellation() -> None:
    import asyncio

    future = asyncio.get_running_loop().create_future()

    async def resolve(_info: object) -> object:
        return await future

    async def cancel(_info: object) -> int:
        await checkpoint()
        future.cancel()
        return 1

    root = {"a": {"x": resolve, "y": number}, "number": cancel}
    result = await execute("{a{x y} number}", root)
    assert result.data == {"a": {"x": None, "y": 1}, "number": 1}
    assert [error.path for error in result.errors] == [["a", "x"]]
    assert "was cancelled" in result.errors[0].message


@on_asyncio
@pytest.mark.parametrize("awaits", [False, True])
async def test_a_resolver_that_cancels_its_own_task_fails_if_it_awaits(awaits: bool) -> None:
    import asyncio

    async def cancel(_info: object) -> int:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if awaits:
            await checkpoint()
        return 1

    async def wait(_info: object) -> int:
        await anyio.sleep(0.01)
        return 1

    result = await execute("{a{x boom} number}", {"a": {"x": cancel, "boom": wait}, "number": wait})
    assert result.data == {"a": {"x": None if awaits else 1, "boom": 1}, "number": 1}
    if awaits:
        assert [error.path for error in result.errors] == [["a", "x"]]
        assert "was cancelled" in result.errors[0].message
    else:
        assert result.errors is None


@only_3_3
@on_asyncio
async def test_what_is_gathered_and_cancelled_by_others_is_an_error_too() -> None:
    import asyncio

    async def cancelled() -> None:
        await checkpoint()
        raise asyncio.CancelledError

    async def resolve(info: Any) -> int:
        await info.async_helpers.gather([cancelled(), number(info)])
        return 1

    result = await execute("{a{x y}}", {"a": {"x": resolve, "y": number}})
    assert result.data == {"a": {"x": None, "y": 1}}
    assert "was cancelled" in result.errors[0].message


@on_asyncio
async def test_cancelling_the_task_of_an_operation_cancels_the_operation() -> None:
    import asyncio

    async def sleep(_info: object) -> None:
        await anyio.sleep_forever()

    for query in ("{number}", "{number a{x y}}"):
        root = {"number": sleep, "a": {"x": sleep, "y": sleep}}
        task = asyncio.create_task(execute(query, root))
        await wait_all_tasks_blocked()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_an_interrupt_comes_out_bare() -> None:
    class Stop(BaseException):
        pass

    async def stop(_info: object) -> int:
        await checkpoint()
        raise Stop

    def stop_at_once(_info: object) -> int:
        raise Stop

    async def later(_info: object) -> object:
        await checkpoint()
        return {"x": stop_at_once, "y": number}

    for a in ({"x": stop, "y": number}, later):
        with pytest.raises(Stop):
            await execute("{a{x y} number}", {"a": a, "number": number})
    async with DataLoader(Recorder[int, Any](lambda key: {"x": stop_at_once})) as loader:
        with pytest.raises(Stop):
            root = {"a": lambda _info: loader.load(1), "number": number, "items": [{"x": number}]}
            await execute("{a{x} number items{x}}", root)


async def test_an_interrupt_comes_out_of_what_a_resolver_has_made_ready() -> None:
    class Stop(BaseException):
        pass

    def stop(_info: object) -> int:
        raise Stop

    async def items(_info: object) -> object:
        await checkpoint()
        return [loader.load(1), loader.load(1)]

    async with DataLoader(Recorder[int, Any](lambda key: key)) as loader:
        loader.prime(1, {"x": stop})
        with pytest.raises(Stop):
            await execute("{items{x} number}", {"items": items, "number": number})


@on_asyncio
async def test_a_resolver_that_was_not_begun_is_none_that_was_never_awaited() -> None:
    import asyncio

    def factory(loop: Any, steps: Any, **options: Any) -> Any:
        return asyncio.Task(steps, loop=loop, **options)

    asyncio.get_running_loop().set_task_factory(factory)
    async with DataLoader(Recorder[int, Any](lambda key: key)) as loader:
        loader.prime(1, ValueError("boom"))
        root = {"a": {"boom": lambda _info: loader.load(1), "x": number}, "number": number}
        result = await execute("{a{boom x} number}", root)
    assert outcome(result) == ({"a": None, "number": 1}, [("boom", ["a", "boom"])])


async def test_units_await_anything_and_anywhere() -> None:
    class Answer:
        def __await__(self) -> Any:
            return number(self).__await__()

    assert await units.gather(Answer(), units.resolved(Answer())) == [1, 1]
    assert await units.apart(number(None)) == 1


async def test_a_resolver_may_go_on_though_it_is_cancelled() -> None:
    async def goes_on(_info: object) -> object:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await checkpoint()
            events.append("went on")
        return [{"x": number, "y": number}]

    events: list[str] = []
    result = await execute("{must{boom items{x y}}}", {"must": [{"boom": fail, "items": goes_on}]})
    assert outcome(result) == ({"must": None}, [("boom", ["must", 0, "boom"])])
    for after in ({"x": number, "y": number}, 1):
        root = {"a": {"boom": fail, "items": lambda _info, after=after: [swallow(after, events)]}}
        result = await execute("{a{boom items{x y}}}", root)
        assert outcome(result) == ({"a": None}, [("boom", ["a", "boom"])])
    assert len(events) == 3


async def swallow(value: Any, events: list[str]) -> Any:
    try:
        await anyio.sleep_forever()
    except anyio.get_cancelled_exc_class():
        events.append("swallowed")
    return value


async def test_resolvers_clean_up_when_their_operation_is_cancelled() -> None:
    async def sleep(_info: object) -> int:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(3):
                    await checkpoint()
            events.append("cleaned up")
        return 1

    events: list[str] = []
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tg:
            tg.start_soon(cancel_when_blocked, scope)
            item = {"x": sleep, "y": sleep, "items": [{"x": sleep}, {"x": sleep}]}
            await execute("{a{x y items{x}} number}", {"a": item, "number": number})
    assert events == ["cleaned up"] * 4


@on_asyncio
async def test_who_cancels_an_operation_twice_cancels_its_resolvers_twice() -> None:
    import asyncio

    async def stubborn(_info: object) -> int:
        for _ in range(2):
            try:
                await anyio.sleep_forever()
            except asyncio.CancelledError:
                events.append("cancelled")
        return 1

    events: list[str] = []
    task = asyncio.create_task(execute("{a{x y}}", {"a": {"x": stubborn, "y": stubborn}}))
    for _ in range(2):
        await wait_all_tasks_blocked()
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert events == ["cancelled"] * 4


@only_3_3
async def test_a_subclass_cannot_await_what_belongs_to_the_event_loop() -> None:
    class Awaits(AnyioExecutor):
        async def complete_awaitable_value(self, *args: Any, **kwargs: Any) -> Any:
            value = await super().complete_awaitable_value(*args, **kwargs)
            await checkpoint()
            return value

    async with DataLoader(Recorder[int, int](lambda key: key)) as loader:
        root = {"a": {"x": lambda _info: loader.load(1), "y": lambda _info: loader.load(2)}}
        result = await execute("{a{x y}}", root, stock=True, executor_class=Awaits)
    assert "a method of a subclass" in result.errors[0].message


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
    code = """
import graphql.execution as execution
core = getattr(execution, "Executor", None) or execution.ExecutionContext
{change}
import anyloader.integrations.graphql
"""
    gather = "gather_with_cancel" if IS_3_3 else "gather"
    changes = [
        "",
        f"def other(self): return {gather}()\n{{core}}.other = other",
        "def other(self): pass\n{core}.execute_fields = other",
        "del {core}.execute_fields",
        "del {core}.execute_operation",
        "import sys\ndel sys.modules[{core}.__module__].default_type_resolver",
        "import sys\nsys.modules['graphql.execution.incremental'] = None",
        "del execution.Executor" if IS_3_3 else "del execution.ExecutionContext",
    ]
    if not IS_3_3:
        del changes[-2]
    outcomes = []
    for change in changes:
        run = subprocess.run(
            [sys.executable, "-c", code.format(change=change.format(core="core"))],
            capture_output=True,
            text=True,
            timeout=30,
        )
        outcomes.append((run.stderr.strip().splitlines() or [""])[-1])
    expected = rf"ImportError: graphql-core {re.escape(graphql.version)} is not supported by .*"
    assert outcomes[0] == ""
    assert all(re.fullmatch(expected, message) for message in outcomes[1:]), outcomes


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

    root = {"a": {"x": lambda _info: Answer(), "y": lambda _info: Answer()}}
    assert await execute("{a{x y}}", root) == ({"a": {"x": 1, "y": 1}}, None)


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
    units.discard([started])
    started.close()
