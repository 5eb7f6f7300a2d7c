"""What is asked of a scope for all its loaders: clear, statistics, cancel, context (contract 7)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from typing import Any

import anyio
import pytest

from anyloader import (
    DataLoader,
    LoadCancelledError,
    LoaderClosedError,
    LoaderScope,
    LoaderStatistics,
    LoadHandle,
    current_scope,
    schedules,
)
from support import Recorder, wait_all_tasks_blocked
from support.scopes import Slow, Squares, calls, double, negate, triple

# --- task_group= ---


def open_group(kind: str) -> AbstractAsyncContextManager[Any]:
    if kind == "trio":
        return pytest.importorskip("trio").open_nursery()  # type: ignore[no-any-return]
    if kind == "asyncio":
        return asyncio.TaskGroup()  # type: ignore[attr-defined,no-any-return,unused-ignore]  # pyright: ignore
    return anyio.create_task_group()


pytestmark = pytest.mark.anyio

caller: ContextVar[str] = ContextVar("caller", default="nobody")


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


# --- clear_all, statistics, cancel ---


async def test_clear_all_forgets_what_all_loaders_of_the_scope_have_cached() -> None:
    bound = DataLoader(double)
    async with LoaderScope() as scope:
        loads: list[Callable[[int], LoadHandle[Any]]] = [
            bound.load,
            scope.get(Squares).load,
            scope.get(triple).load,
            negate.load,
        ]
        for expected in (4, 4, 8):
            for load in loads:
                await load(1)
            assert len(calls) == expected
            if len(calls) == 4 and scope.statistics().hits:
                scope.clear_all()
                assert scope.statistics().cached == 0


async def test_clear_all_leaves_other_scopes_alone() -> None:
    async with LoaderScope() as outer:
        await negate.load(1)
        async with LoaderScope() as inner:
            await negate.load(1)
            inner.clear_all()
            assert negate.peek(1) is None
            assert outer.get(negate).peek(1) is not None


async def test_clear_all_works_from_outside_of_the_scope() -> None:
    """Whoever holds the scope may clear it; a loader bound by a load is no exception."""
    bound = DataLoader(double)
    filled, cleared = anyio.Event(), anyio.Event()
    scope = LoaderScope()

    async def housekeeping() -> None:
        await filled.wait()
        scope.clear_all()
        cleared.set()

    async with anyio.create_task_group() as tg:
        tg.start_soon(housekeeping)
        async with scope:
            await bound.load(1)
            await negate.load(1)
            filled.set()
            await cleared.wait()
            assert scope.statistics().cached == 0
    scope.clear_all()


async def test_statistics_are_the_sums_over_all_loaders_of_the_scope() -> None:
    bound, slow = DataLoader(double), Slow()
    scope = LoaderScope()
    assert scope.statistics() == DataLoader(double).statistics()
    async with scope:
        await bound.load_many([1, 2])
        await bound.load(1)
        await negate.load_many([1, 2, 3])
        handle = scope.get(slow).load(5)
        await wait_all_tasks_blocked()
        scope.get(slow).load(5)
        scope.get(triple).load(5)
        each: list[DataLoader[int, Any]] = [
            bound,
            scope.get(negate),
            scope.get(slow),
            scope.get(triple),
        ]
        now = scope.statistics()
        for name in ("loads", "hits", "shared", "keys", "batches", "queued", "running", "cached"):
            total = sum(getattr(loader.statistics(), name) for loader in each)
            assert getattr(now, name) == total, name
        assert (now.loads, now.hits, now.shared) == (9, 1, 1)
        assert (now.keys, now.batches) == (6, 3)
        assert (now.queued, now.running, now.cached) == (1, 1, 7)
    assert scope.statistics().loads == 9
    with pytest.raises(LoadCancelledError):
        await handle


async def test_cancel_settles_all_loads_and_refuses_more_and_the_body_goes_on() -> None:
    slow, manual = Slow(), DataLoader(double, schedule=schedules.manual())
    errors: list[str] = []

    async def waiter(handle: LoadHandle[int]) -> None:
        with pytest.raises(LoadCancelledError) as caught:
            await handle
        errors.append(str(caught.value))

    async with anyio.create_task_group() as tg:
        async with LoaderScope() as scope:
            tg.start_soon(waiter, scope.get(slow).load(1))
            tg.start_soon(waiter, manual.load(1))
            settled = scope.get(triple).load(1)
            await settled
            await wait_all_tasks_blocked()
            scope.cancel("the client left")
            await wait_all_tasks_blocked()
            assert slow.log == ["started", "cancelled"]
            assert len(errors) == 2
            assert all("the client left" in error for error in errors)
            attempts: list[Callable[[], object]] = [
                lambda: manual.load(2),
                lambda: negate.load(1),
                lambda: scope.get(slow).load(1),
            ]
            for attempt in attempts:
                with pytest.raises(LoaderClosedError):
                    attempt()
            assert await settled == 3
            scope.cancel("again")
        scope.cancel("after the end")
    assert not [name for name, _ in calls if name == "double"]


async def test_cancel_before_entering_does_nothing() -> None:
    scope = LoaderScope()
    scope.cancel("too early")
    async with scope:
        assert await scope.get(double).load(1) == 2


async def test_repr_shows_the_state() -> None:
    scope = LoaderScope()
    assert repr(scope) == "<LoaderScope: not entered, 0 loaders>"
    async with scope:
        scope.get(double)
        assert repr(scope) == "<LoaderScope: open, 1 loader>"
    assert "closed" in repr(scope)


# --- 2.7: the context of batch functions ---


async def test_batch_functions_see_the_context_in_which_the_scope_was_entered() -> None:
    seen: list[tuple[str, LoaderScope]] = []

    async def see(keys: list[int]) -> list[int]:
        seen.append((caller.get(), current_scope()))
        caller.set("a batch function")
        return keys

    bound = DataLoader(see, cache=False)
    scope = LoaderScope()
    caller.set("who entered")
    async with scope:

        async def load(name: str) -> None:
            caller.set(name)
            await scope.get(see).load(ord(name))
            await bound.load(1)

        caller.set("the body")
        for names in ("ab", "cd"):
            async with anyio.create_task_group() as tg:
                for name in names:
                    tg.start_soon(load, name)
        assert caller.get() == "the body"
    assert seen == [("who entered", scope)] * 4


async def test_a_batch_function_of_an_outer_scope_sees_the_outer_scope() -> None:
    seen: list[LoaderScope] = []

    async def see(keys: list[int]) -> list[int]:
        seen.append(current_scope())
        return await negate.load_many(keys)

    async with LoaderScope() as outer, LoaderScope() as inner:
        assert await outer.get(see).load(1) == -1
        assert seen == [outer]
        assert inner.statistics().loads == 0


async def test_recorders_of_two_concurrent_scopes_are_kept_apart() -> None:
    """Concurrent requests, same keys: each gets a batch of its own."""
    fetch: Recorder[int, int] = Recorder(lambda key: key)

    async def request() -> None:
        async with LoaderScope() as scope:
            await scope.get(fetch).load_many([1, 2])

    async with anyio.create_task_group() as tg:
        for _ in range(3):
            tg.start_soon(request)
    assert fetch.calls == [[1, 2]] * 3


async def test_a_scope_that_was_not_entered_has_nothing_to_forget() -> None:
    scope = LoaderScope()
    scope.clear_all()
    scope.cancel("for nothing")
    async with scope:
        assert await scope.get(Recorder[int, int](abs)).load(-1) == 1
    scope.clear_all()


async def test_a_scope_without_loaders_has_statistics_of_nothing() -> None:
    async with LoaderScope() as scope:
        assert scope.statistics() == LoaderStatistics()


async def test_a_scope_that_has_ended_can_be_cleared_from_anywhere() -> None:
    async with LoaderScope() as scope:
        loader = scope.get(Recorder[int, int](abs))
        await loader.load(1)
    await anyio.to_thread.run_sync(scope.clear_all)
    assert loader.statistics().cached == 0
