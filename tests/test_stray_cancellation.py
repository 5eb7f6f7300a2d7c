"""A cancellation that nobody asked for ends no scope and hangs nobody (contract 4.4)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from anyloader import (
    DataLoader,
    LoadCancelledError,
    LoaderScope,
    LoadHandle,
    schedules,
)
from support import Recorder, wait_all_tasks_blocked
from support.loads import outcome

pytestmark = pytest.mark.anyio

# --- 4: never a hang ---


class OnlyOnce:
    """A batch function that once does something bad, and after that its work."""

    def __init__(self, bad: Callable[[], Awaitable[object]]) -> None:
        self.bad: Callable[[], Awaitable[object]] | None = bad

    async def __call__(self, keys: list[int]) -> list[int]:
        bad, self.bad = self.bad, None
        if bad is not None:
            await bad()
        return [key * 10 for key in keys]


async def raise_cancelled() -> None:
    raise asyncio.CancelledError("stray")


async def cancel_this_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await checkpoint()


async def cancel_this_task_and_swallow_it() -> None:
    """So that only ``Task.cancelling()`` remembers it."""
    try:
        await cancel_this_task()
    except asyncio.CancelledError:
        await checkpoint()
    raise asyncio.CancelledError("stray")


async def raise_trio_cancelled() -> None:
    import trio

    caught: list[BaseException] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as exc:
            caught.append(exc)
    raise caught[0]


STRAY: dict[str, list[Any]] = {
    "asyncio": [raise_cancelled, cancel_this_task, cancel_this_task_and_swallow_it],
    "trio": [raise_trio_cancelled],
}

STRAY_CANCELLATIONS = pytest.mark.parametrize(
    "number", range(3), ids=["raised", "of its own task", "swallowed once"]
)


def stray(backend: str, number: int) -> Any:
    if number >= len(STRAY[backend]):
        pytest.skip("asyncio's")
    return STRAY[backend][number]


async def check_stray_cancellation(loader: DataLoader[int, int]) -> None:
    """Every waiter is settled with the cause, and the loader works as before."""
    cancelled = anyio.get_cancelled_exc_class()
    outcomes: list[Any] = []

    async def wait_for(load: Any) -> None:
        outcomes.append(await outcome(load))

    handle = loader.load(1)
    async with anyio.create_task_group() as tg:
        for load in handle, loader.load(2), loader.load(1), loader.load_many([2, 3]):
            tg.start_soon(wait_for, load)
    assert [type(error) for error in outcomes] == [LoadCancelledError] * 4
    assert [type(error.__cause__) for error in outcomes] == [cancelled] * 4
    assert handle.status is LoadHandle.Status.CANCELLED
    assert loader.peek(1) is None
    await checkpoint()  # the group that the loader runs in has not been cancelled
    assert await outcome(loader.load_many([1, 2])) == [10, 20]
    await checkpoint()
    assert await outcome(loader.load(3)) == 30


@STRAY_CANCELLATIONS
@pytest.mark.parametrize("limiter", [False, True], ids=["no limiter", "limiter"])
async def test_a_stray_cancellation_settles_everybody(
    number: int, limiter: bool, anyio_backend_name: str
) -> None:
    fetch = OnlyOnce(stray(anyio_backend_name, number))
    async with DataLoader(fetch, limiter=anyio.CapacityLimiter(1) if limiter else None) as loader:
        await check_stray_cancellation(loader)


@STRAY_CANCELLATIONS
async def test_a_stray_cancellation_does_not_cancel_a_foreign_group(
    number: int, anyio_backend_name: str
) -> None:
    fetch = OnlyOnce(stray(anyio_backend_name, number))
    async with anyio.create_task_group() as tg:
        loader = DataLoader(fetch, task_group=tg)
        await check_stray_cancellation(loader)
        assert not tg.cancel_scope.cancel_called


@STRAY_CANCELLATIONS
async def test_a_stray_cancellation_of_a_schedule_settles_everybody(
    number: int, anyio_backend_name: str
) -> None:
    once = OnlyOnce(stray(anyio_backend_name, number))

    async def schedule(batch: schedules.BatchView) -> None:
        await once([])

    fetch = Recorder[int, int](lambda key: key * 10)
    async with DataLoader(fetch, schedule=schedule) as loader:
        await check_stray_cancellation(loader)


@pytest.mark.only_on("asyncio")
async def test_a_cancellation_that_a_batch_function_never_met_hurts_nobody() -> None:
    """It asks for its own cancellation and returns before that can be delivered."""

    async def fetch(keys: list[int]) -> list[int]:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return [key * 10 for key in keys]

    async with DataLoader(fetch) as loader:
        for key in 1, 2, 3:
            assert await outcome(loader.load(key)) == key * 10
            await checkpoint()
            await checkpoint()


@pytest.mark.only_on("asyncio")
async def test_cancelling_the_task_of_a_batch_function_from_outside_settles_everybody() -> None:
    tasks: list[asyncio.Task[Any] | None] = []

    async def note_the_task() -> None:
        tasks.append(asyncio.current_task())
        await anyio.sleep_forever()

    async def cancel_it() -> None:
        await wait_all_tasks_blocked()
        assert tasks[0] is not None
        tasks[0].cancel()

    async with DataLoader(OnlyOnce(note_the_task)) as loader, anyio.create_task_group() as tg:
        tg.start_soon(cancel_it)
        await check_stray_cancellation(loader)


@pytest.mark.only_on("asyncio")
async def test_a_worker_that_was_cancelled_natively_passes_its_next_batch_on() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return keys

    async with DataLoader(fetch) as loader:
        assert [await loader.load(key) for key in range(5)] == [0, 1, 2, 3, 4]


@pytest.mark.only_on("asyncio")
async def test_a_native_cancellation_met_by_another_one_does_not_end_the_scope() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        raise asyncio.CancelledError

    async with LoaderScope() as loaders:
        gate = anyio.Event()
        other = loaders.get(Recorder[int, int](abs, gate=gate)).load(-1)
        with pytest.raises(LoadCancelledError):
            await loaders.get(fetch).load(1)
        await wait_all_tasks_blocked()
        gate.set()
        assert await other == 1


async def test_a_function_that_swallows_its_cancellation_costs_no_later_batch() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        if keys == [0]:
            try:
                await anyio.sleep_forever()
            except BaseException:
                pass
        return keys

    async with DataLoader(fetch, max_batch_size=1) as loader:
        async with anyio.create_task_group() as tg:
            tg.start_soon(loader.load(0).wait)
            await wait_all_tasks_blocked()
            tg.cancel_scope.cancel()
        loads = []
        for key in range(1, 20):
            loads.append(loader.load(key))
            await anyio.lowlevel.checkpoint()
        assert [await load for load in loads] == list(range(1, 20))


async def test_a_batch_that_is_given_to_a_task_which_is_being_cancelled_goes_with_it() -> None:
    recorder = Recorder[int, int](abs)
    loads: list[LoadHandle[int]] = []
    with anyio.CancelScope() as scope:
        async with DataLoader(recorder, schedule=schedules.rounds(0)) as loader:
            await loader.load(1)
            await wait_all_tasks_blocked()
            scope.cancel()  # the task too, which waits for its next batch
            loads.append(loader.load(2))
            with anyio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
    assert loads[0].status is LoadHandle.Status.CANCELLED
    assert recorder.calls == [[1]]


@pytest.mark.only_on("asyncio")
async def test_a_function_that_was_given_up_may_end_by_a_cancellation_of_its_own() -> None:
    gate, cleaned_up = anyio.Event(), anyio.Event()

    async def fetch(keys: list[int]) -> list[int]:
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            pass
        with anyio.CancelScope(shield=True):
            await cleaned_up.wait()
        raise asyncio.CancelledError  # such as that of a future which it has cancelled itself

    async with LoaderScope() as loaders:
        other = loaders.get(Recorder[int, int](abs, gate=gate)).load(-1)
        with anyio.CancelScope() as scope:
            load = loaders.get(fetch).load(1)
            await wait_all_tasks_blocked()
            scope.cancel()
            await load
        await wait_all_tasks_blocked()
        cleaned_up.set()
        await wait_all_tasks_blocked()
        gate.set()
        assert await other == 1
