"""The end of ``async with loader``: what finishes, what is cancelled, what comes out."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest

from anyloader import DataLoader, LoadCancelledError, LoadHandle, schedules
from support import wait_all_tasks_blocked
from support.leaving import Batches, statuses, wait_for

pytestmark = pytest.mark.anyio

Status = LoadHandle.Status

# --- batches that some task awaits ---

AWAITS: dict[str, Callable[[DataLoader[int, int]], Coroutine[Any, Any, object]]] = {
    "load": lambda loader: loader.load(1),
    "second load": lambda loader: (loader.load(1), loader.load(1))[1],
    "load_many": lambda loader: loader.load_many([1, 2]),
    "wait": lambda loader: loader.load(1).wait(),
}

AWAITED = pytest.mark.parametrize("ask", AWAITS.values(), ids=AWAITS)


@AWAITED
async def test_awaited_batch_that_runs_is_finished(
    ask: Callable[[DataLoader[int, int]], Coroutine[Any, Any, object]],
) -> None:
    batches = Batches(1)
    seen: list[object] = []
    async with anyio.create_task_group() as outside:
        async with DataLoader(batches) as loader:
            outside.start_soon(wait_for, ask(loader), seen)
            await wait_all_tasks_blocked()
            outside.start_soon(batches.open_once_all_wait, 1)
        batches.events.append("left")
    assert batches.events[1:] == ["gate 1", "left"]
    assert seen in ([10], [[10, 20]], [None])


async def never(batch: schedules.BatchView) -> None:
    await anyio.sleep_forever()


@pytest.mark.virtual_time
@AWAITED
@pytest.mark.parametrize(
    "schedule",
    [schedules.manual(), schedules.window(1_000), never],
    ids=["manual", "window", "own"],
)
async def test_awaited_batch_that_is_not_yet_sent_goes_at_once(
    schedule: schedules.Schedule,
    ask: Callable[[DataLoader[int, int]], Coroutine[Any, Any, object]],
) -> None:
    batches = Batches()
    seen: list[object] = []
    async with anyio.create_task_group() as outside:
        async with DataLoader(batches, schedule=schedule) as loader:
            outside.start_soon(wait_for, ask(loader), seen)
            await wait_all_tasks_blocked()
            assert batches.events == []
            before = anyio.current_time()
        assert len(batches.events) == 1
        assert anyio.current_time() == before
    assert seen in ([10], [[10, 20]], [None])


async def test_awaited_batch_is_finished_for_all_its_loads() -> None:
    batches = Batches(1)
    seen: list[object] = []
    async with anyio.create_task_group() as outside:
        async with DataLoader(batches) as loader:
            handles = [loader.load(key) for key in (1, 2, 3)]
            outside.start_soon(wait_for, handles[1], seen)
            await wait_all_tasks_blocked()
            outside.start_soon(batches.open_once_all_wait, 1)
        assert statuses(handles) == ["FINISHED"] * 3
    assert seen == [20]


async def test_error_of_a_batch_that_is_awaited_at_the_end_goes_to_its_waiters() -> None:
    gate = anyio.Event()

    async def fail(keys: list[int]) -> list[int]:
        await gate.wait()
        raise ValueError

    seen: list[object] = []
    async with anyio.create_task_group() as outside:
        async with DataLoader(fail) as loader:
            outside.start_soon(wait_for, loader.load(1), seen)
            await wait_all_tasks_blocked()
            gate.set()
    assert seen == [ValueError]


# --- batches that nobody awaits ---


async def test_batch_that_nobody_awaits_is_cancelled() -> None:
    batches = Batches(1)
    async with DataLoader(batches) as loader:
        handle, many = loader.load(1), loader.load_many([1, 2])
        await wait_all_tasks_blocked()
    batches.events.append("left")
    assert batches.events == [[1, 2], (1, 2, "cancelled"), (1, 2, "cleaned"), "left"]
    assert handle.status is Status.CANCELLED
    for awaitable in (handle, many):
        with pytest.raises(LoadCancelledError, match="Batches"):
            await awaitable


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    "schedule",
    [schedules.quiescent(), schedules.manual(), schedules.window(1_000), never],
    ids=["quiescent", "manual", "window", "own"],
)
async def test_batch_that_nobody_awaits_is_never_sent(schedule: schedules.Schedule) -> None:
    batches = Batches()
    async with DataLoader(batches, schedule=schedule) as loader:
        handle = loader.load(1)
    assert anyio.current_time() == 0
    assert handle.status is Status.CANCELLED
    assert batches.events == []


async def test_batch_that_was_awaited_but_is_not_any_more_is_cancelled() -> None:
    batches = Batches(2)
    seen: list[object] = []
    async with DataLoader(batches) as loader:
        loader.load(2)
        async with anyio.create_task_group() as tg:
            tg.start_soon(wait_for, loader.load(1), seen)
            await wait_all_tasks_blocked()
            tg.cancel_scope.cancel()
        batches.events.append("leaving")
    assert batches.events == [[2, 1], "leaving", (2, 1, "cancelled"), (2, 1, "cleaned")]
    assert seen == []


async def test_batch_that_nobody_awaits_is_cancelled_before_others_have_finished() -> None:
    batches = Batches(1, 2)
    seen: list[object] = []
    async with anyio.create_task_group() as outside:
        async with DataLoader(batches, batch=False) as loader:
            handles = [loader.load(1), loader.load(2)]
            outside.start_soon(wait_for, handles[0], seen)
            await wait_all_tasks_blocked()
            outside.start_soon(batches.open_once_all_wait, 1)
        assert statuses(handles) == ["FINISHED", "CANCELLED"]
    assert batches.events[2:] == [(2, "cancelled"), (2, "cleaned"), "gate 1"]


@pytest.mark.parametrize("rest", [[], [2]], ids=["alone", "with a load never awaited"])
async def test_batch_that_is_given_up_during_leaving_is_cancelled(rest: list[int]) -> None:
    batches = Batches(1)
    waiter = anyio.CancelScope()

    async def wait_in_scope(handle: LoadHandle[int]) -> None:
        with waiter:
            await handle

    async def give_up() -> None:
        await wait_all_tasks_blocked()
        batches.events.append("given up")
        waiter.cancel()

    async with anyio.create_task_group() as outside:
        async with DataLoader(batches) as loader:
            outside.start_soon(wait_in_scope, loader.load(1))
            loader.load_many(rest)
            await wait_all_tasks_blocked()
            outside.start_soon(give_up)
        batches.events.append("left")
    keys = [1, *rest]
    assert batches.events == [keys, "given up", (*keys, "cancelled"), (*keys, "cleaned"), "left"]


async def test_batch_that_only_an_unwanted_batch_awaits_is_cancelled() -> None:
    loader: DataLoader[int, int]
    events: list[object] = []

    async def load_next(keys: list[int]) -> list[int]:
        events.append(keys)
        try:
            if keys == [3]:
                await anyio.sleep_forever()
            return await loader.load_many([key + 1 for key in keys])
        except BaseException as exc:
            events.append((*keys, isinstance(exc, anyio.get_cancelled_exc_class())))
            raise

    async with DataLoader(load_next) as loader:
        loader.load(1)
        await wait_all_tasks_blocked()
        assert events == [[1], [2], [3]]
    assert sorted(map(repr, events[3:])) == ["(1, True)", "(2, True)", "(3, True)"]
