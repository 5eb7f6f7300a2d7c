"""`AnyioExecutor`: operations and resolvers that are cancelled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

pytest.importorskip("graphql")

from anyloader import DataLoader
from anyloader.integrations import _graphql_units as units
from anyloader.integrations.graphql import AnyioExecutor
from support import Recorder, wait_all_tasks_blocked
from support.graphql_calls import execute, fail, number, on_asyncio, only_3_3, outcome

pytestmark = pytest.mark.anyio


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


async def test_a_resolver_gathers_in_its_own_task_also_where_that_has_run_another_one() -> None:
    async def outer(_info: object) -> Any:
        await checkpoint()
        return {"x": inner}

    async def inner(_info: object) -> int:
        await checkpoint()
        one = await units.gather_resolved(number(None))
        return sum(one + await units.gather_resolved(number(None), number(None)))

    assert await execute("{a{x}}", {"a": outer}) == ({"a": {"x": 3}}, None)


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
