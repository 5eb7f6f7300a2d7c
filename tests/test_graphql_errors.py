"""`AnyioExecutor`: errors, and a scope for each operation."""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from types import coroutine
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

pytest.importorskip("graphql")

from anyloader import (
    DataLoader,
    LoaderClosedError,
    LoaderNotOpenError,
    LoaderScope,
    batch_loader,
    current_scope,
)
from anyloader.integrations.graphql import AnyioExecutor
from support import Recorder, run_seeds, wait_all_tasks_blocked
from support.graphql_calls import IS_3_3, SCHEMA, execute, fail, graphql, number, only_3_3, outcome

pytestmark = pytest.mark.anyio

pytest_plugins = ["support.graphql_calls"]


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


class Wrapped:
    """An awaitable that is no coroutine, and holds one."""

    def __init__(self, steps: Any) -> None:
        self.steps = steps

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield from self.steps.__await__())


class Slotted:
    __slots__ = ("__weakref__", "steps")

    def __init__(self, steps: Any) -> None:
        self.steps = steps

    def __await__(self) -> Any:
        return self.steps.__await__()


@coroutine
def generated(steps: Any) -> Generator[Any, Any, Any]:
    return (yield from steps.__await__())


@only_3_3
@pytest.mark.parametrize("wrap", [Wrapped, Slotted, generated])
@pytest.mark.parametrize("boom", [fail, fail_at_once])
async def test_what_a_resolver_has_wrapped_is_not_left_behind(wrap: Any, boom: Any) -> None:
    def wrapped(info: Any) -> Any:
        return wrap(number(info))

    def items(_info: object) -> Any:
        return [wrap(ready({"x": wrapped})) for _ in range(2)]

    root = {"a": {"x": wrapped, "items": items, "boom": boom}}
    result = await execute("{a{x items{x} boom}}", root)
    assert outcome(result) == ({"a": None}, [("boom", ["a", "boom"])])
    await wait_all_tasks_blocked()


async def ready(value: Any) -> Any:
    return value


@only_3_3
@pytest.mark.only_on("trio")  # asyncio runs it in the background
async def test_what_a_resolver_has_wrapped_may_be_awaited_by_others() -> None:
    wrapped = Wrapped(number(None))
    result = await execute("{a{x boom}}", {"a": {"x": lambda _: wrapped, "boom": fail_at_once}})
    assert outcome(result) == ({"a": None}, [("boom", ["a", "boom"])])
    assert await wrapped == 1


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
