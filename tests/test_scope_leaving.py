"""The end of a scope: as of a loader, over all its loaders (contract 1, 7)."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import pytest

from anyloader import (
    DataLoader,
    LoadCancelledError,
    LoaderClosedError,
    LoaderNotOpenError,
    LoaderScope,
    LoadHandle,
    current_scope,
    schedules,
)
from support import Recorder, run_seeds, wait_all_tasks_blocked
from support.scopes import Slow, Squares, calls, double, negate, triple

# --- task_group= ---


def open_group(kind: str) -> AbstractAsyncContextManager[Any]:
    if kind == "trio":
        return pytest.importorskip("trio").open_nursery()  # type: ignore[no-any-return]
    if kind == "asyncio":
        return asyncio.TaskGroup()  # type: ignore[attr-defined,no-any-return,unused-ignore]  # pyright: ignore
    return anyio.create_task_group()


pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


# --- Exit rules: as for a loader, over all loaders of the scope ---


@pytest.mark.virtual_time
async def test_leaving_finishes_what_is_awaited_and_cancels_the_rest() -> None:
    awaited, unwanted = Slow(), Slow()
    results: list[int] = []

    async def waiter(handle: LoadHandle[int]) -> None:
        results.append(await handle)

    async def let_go() -> None:
        await anyio.sleep(1)
        results.append(0)
        awaited.go_on.set()

    async with anyio.create_task_group() as tg:
        async with LoaderScope() as scope:
            tg.start_soon(waiter, scope.get(awaited).load(1))
            abandoned = scope.get(unwanted).load(1)
            await wait_all_tasks_blocked()
            assert (awaited.log, unwanted.log) == (["started"], ["started"])
            tg.start_soon(let_go)
        assert awaited.log == ["started", "finished"]
        assert unwanted.log == ["started", "cancelled"]
        with pytest.raises(LoadCancelledError):
            await abandoned
    assert results == [0, 2]


async def test_leaving_sends_at_once_what_is_awaited_and_not_yet_sent() -> None:
    manual = DataLoader(double, schedule=schedules.manual())
    results: list[int] = []

    async def waiter(handle: LoadHandle[int]) -> None:
        results.append(await handle)

    async with anyio.create_task_group() as tg:
        async with LoaderScope():
            tg.start_soon(waiter, manual.load(1))
            await wait_all_tasks_blocked()
            assert not calls
        await wait_all_tasks_blocked()
    assert results == [2]


async def test_leaving_does_not_send_what_nobody_awaits() -> None:
    async with LoaderScope() as scope:
        handle = scope.get(double).load(1)
    assert not calls
    with pytest.raises(LoadCancelledError):
        await handle


async def test_while_a_scope_is_left_only_its_batch_functions_may_load() -> None:
    go_on, refused = anyio.Event(), anyio.Event()
    log: list[str] = []

    async def nested(keys: list[int]) -> list[int]:
        await go_on.wait()
        return await negate.load_many(keys)

    async def waiter() -> None:
        log.append(str(await current_scope().get(nested).load(1)))

    async def somebody(scope: LoaderScope) -> None:
        await wait_all_tasks_blocked()
        assert "closing" in repr(scope)
        for attempt in (lambda: negate.load(2), lambda: scope.get(triple)):
            with pytest.raises(LoaderClosedError):
                attempt()
        log.append("refused")
        refused.set()
        go_on.set()

    async with anyio.create_task_group() as tg:
        async with LoaderScope() as scope:
            tg.start_soon(waiter)
            await wait_all_tasks_blocked()
            tg.start_soon(somebody, scope)
        await wait_all_tasks_blocked()
    assert log == ["refused", "-1"]


async def test_an_exception_of_the_body_comes_out_bare_and_cancels_all_batches() -> None:
    class TeapotError(Exception):
        pass

    slow = Slow()
    errors: list[BaseException] = []

    async def waiter(handle: LoadHandle[int]) -> None:
        try:
            await handle
        except LoadCancelledError as exc:
            errors.append(exc)

    teapot = TeapotError()
    async with anyio.create_task_group() as tg:
        with pytest.raises(TeapotError, check=lambda exc: exc is teapot):
            async with LoaderScope() as scope:
                tg.start_soon(waiter, scope.get(slow).load(1))
                await wait_all_tasks_blocked()
                raise teapot
        assert slow.log == ["started", "cancelled"]
    assert len(errors) == 1


@pytest.mark.virtual_time
async def test_a_timeout_around_a_scope_cancels_its_batches() -> None:
    slow = Slow()
    with anyio.move_on_after(1) as timeout:
        async with LoaderScope() as scope:
            await scope.get(slow).load(1)
    assert timeout.cancelled_caught
    assert slow.log == ["started", "cancelled"]


async def test_a_failing_batch_function_reaches_its_loads_and_not_the_scope() -> None:
    async def fail(keys: list[int]) -> list[int]:
        raise ZeroDivisionError

    async with LoaderScope() as scope:
        handle = scope.get(fail).load(1)
        with pytest.raises(ZeroDivisionError):
            await handle
        assert await scope.get(double).load(1) == 2


@pytest.fixture(params=["anyio", "trio", "asyncio"])
def kind(request: pytest.FixtureRequest, anyio_backend: tuple[str, dict[str, Any]]) -> str:
    """Name a kind of task group that there is on this backend."""
    if request.param not in ("anyio", anyio_backend[0]):
        pytest.skip(f"{anyio_backend[0]} has no such group")
    if request.param == "asyncio" and not hasattr(asyncio, "TaskGroup"):
        pytest.skip("this Python has no asyncio.TaskGroup")
    return str(request.param)


async def test_a_scope_can_run_in_a_foreign_group(kind: str) -> None:
    bound = DataLoader(double)
    async with open_group(kind) as group:
        async with LoaderScope(task_group=group) as scope:
            assert current_scope() is scope
            assert await bound.load(1) == 2
            assert await scope.get(Squares).load(3) == 9
            assert await negate.load(3) == -3
        for late in (bound, scope, negate):
            with pytest.raises((LoaderClosedError, LoaderNotOpenError)):
                late.get(double) if isinstance(late, LoaderScope) else late.load(1)
        # The group lives on, and takes another scope.
        async with LoaderScope(task_group=group) as scope:
            assert await scope.get(triple).load(1) == 3


async def test_exit_rules_hold_in_a_foreign_group(kind: str) -> None:
    awaited, unwanted, log = Slow(), Slow(), []

    async def waiter(handle: LoadHandle[int]) -> None:
        log.append(await handle)

    async def let_go() -> None:
        await wait_all_tasks_blocked()
        awaited.go_on.set()

    async with anyio.create_task_group() as tg, open_group(kind) as group:
        async with LoaderScope(task_group=group) as scope:
            tg.start_soon(waiter, scope.get(awaited).load(1))
            scope.get(unwanted).load(1)
            await wait_all_tasks_blocked()
            tg.start_soon(let_go)
        assert awaited.log == ["started", "finished"]
        assert unwanted.log == ["started", "cancelled"]
    assert log == [2]


async def test_an_exception_comes_out_bare_in_a_foreign_group(kind: str) -> None:
    slow = Slow()
    async with open_group(kind) as group:
        with pytest.raises(ZeroDivisionError):
            async with LoaderScope(task_group=group) as scope:
                scope.get(slow).load(1)
                await wait_all_tasks_blocked()
                raise ZeroDivisionError
        assert slow.log == ["started", "cancelled"]


@pytest.mark.virtual_time
async def test_a_scope_does_not_hold_a_foreign_group_open(kind: str) -> None:
    scope = None
    with anyio.fail_after(1):
        async with open_group(kind) as group:
            scope = LoaderScope(task_group=group)
            await scope.__aenter__()
            assert await scope.get(double).load(1) == 2
    with pytest.raises(LoaderClosedError):
        scope.get(double).load(2)
    await scope.__aexit__(None, None, None)


@pytest.mark.parametrize("wrong", [1, "group", anyio.create_task_group, object()])
def test_what_is_no_task_group_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"TaskGroup.*Nursery"):
        LoaderScope(task_group=wrong)


async def test_a_scope_that_was_cancelled_refuses_loads_and_settles_waiters() -> None:
    async with LoaderScope() as scope:
        loader = scope.get(Recorder[int, int](abs, gate=anyio.Event())).prime(0, 0)
        handle, queued = loader.load(1), loader.load(2)
        await wait_all_tasks_blocked()
        later = loader.load(3)
        scope.cancel("enough")
        for load in handle, queued, later:
            with pytest.raises(LoadCancelledError, match="enough"):
                await load
        for key in 4, 0:
            with pytest.raises(LoaderClosedError):
                loader.load(key)


def test_leaving_a_scope_waits_for_a_task_that_has_not_begun(shuffled_backend: str) -> None:
    async def fetch(keys: list[int]) -> list[int]:
        raise AssertionError("nobody awaits this")

    async def main() -> list[str]:
        names: list[str | None] = []
        async with anyio.create_task_group() as tg:
            async with LoaderScope(tg) as loaders:
                loaders.get(fetch).load(1)
            names += [task.name for task in anyio.get_running_tasks()]
        return [name for name in names if name and name.startswith("anyloader")]

    assert run_seeds(shuffled_backend, range(20), main) == []


# --- A scope in which nothing was loaded ---


async def test_leaving_an_unused_scope_passes_no_round_on_asyncio(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("a nursery of trio passes a round in any case")
    soon: list[str] = []
    asyncio.get_running_loop().call_soon(soon.append, "ran")
    async with LoaderScope():
        pass
    assert soon == []
    async with LoaderScope() as scope:
        await scope.get(double).load(1)
    assert soon == ["ran"]


@pytest.mark.virtual_time
async def test_an_unused_scope_lets_what_ended_its_body_through() -> None:
    with pytest.raises(KeyError):
        async with LoaderScope():
            raise KeyError
    with anyio.move_on_after(1) as around:
        async with LoaderScope():
            await anyio.sleep_forever()
    assert around.cancelled_caught
    with anyio.CancelScope() as around:
        async with LoaderScope():
            around.cancel()
        await anyio.lowlevel.checkpoint()
        pytest.fail("leaving an unused scope has swallowed the cancellation around it")
    assert around.cancelled_caught
    await anyio.lowlevel.checkpoint()
