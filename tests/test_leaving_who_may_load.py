"""From the end of the body on only batch functions of the same scope may load (contract 1)."""

from __future__ import annotations

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import (
    DataLoader,
    LoaderClosedError,
    LoaderScope,
    schedules,
)
from support import Recorder, wait_all_tasks_blocked
from support.leaving import Batches, wait_for

pytestmark = pytest.mark.anyio

# --- who may load during leaving ---


async def test_batch_functions_of_the_scope_may_load_during_leaving() -> None:
    loader: DataLoader[int, int]
    gate = anyio.Event()
    calls: list[list[int]] = []

    async def count(keys: list[int]) -> list[int]:
        calls.append(keys)
        if keys == [5]:
            await gate.wait()
        lower = [key - 1 for key in keys if key]
        if keys == [4]:
            values = await loader.load_many(lower)
        elif keys == [3]:
            values = []

            async def load_in_task(key: int) -> None:
                values.append(await loader.load(key))

            async with anyio.create_task_group() as tg:
                for key in lower:
                    tg.start_soon(load_in_task, key)
        else:
            handles = [loader.load(key) for key in lower]
            await checkpoint()  # enqueued here and awaited later
            await checkpoint()
            values = [await handle for handle in handles]
        return [1 + value for value in values] if lower else [0]

    seen: list[object] = []
    async with anyio.create_task_group() as outside:
        async with DataLoader(count) as loader:
            outside.start_soon(wait_for, loader.load(5), seen)
            await wait_all_tasks_blocked()

            async def open_gate() -> None:
                await wait_all_tasks_blocked()
                with pytest.raises(LoaderClosedError):
                    loader.load(0)
                gate.set()

            outside.start_soon(open_gate)
    assert seen == [5]
    assert calls == [[5], [4], [3], [2], [1], [0]]


async def test_load_that_an_awaited_batch_function_is_going_to_await_is_finished() -> None:
    batches = Batches(1, 2)
    seen: list[object] = []
    loader: DataLoader[int, int]

    async def load_ahead(keys: list[int]) -> list[int]:
        if keys == [2]:
            return await batches(keys)
        ahead = loader.load(2)
        await batches(keys)
        return [await ahead]

    async with anyio.create_task_group() as outside:
        async with DataLoader(load_ahead) as loader:
            outside.start_soon(wait_for, loader.load(1), seen)
            await wait_all_tasks_blocked()
            outside.start_soon(batches.open_once_all_wait, 1)

            async def open_second() -> None:
                await batches.gates[1].wait()
                await batches.open_once_all_wait(2)

            outside.start_soon(open_second)
    assert batches.events == [[1], [2], "gate 1", "gate 2"]
    assert seen == [20]


@pytest.mark.parametrize("which", ["new", "pending", "cached"])
async def test_everybody_else_is_refused_during_leaving(which: str) -> None:
    batches = Batches(1)
    seen: list[object] = []
    key = {"new": 3, "pending": 1, "cached": 2}[which]
    async with anyio.create_task_group() as outside:
        async with DataLoader(batches) as loader:
            await loader.load(2)
            outside.start_soon(wait_for, loader.load(1), seen)
            await wait_all_tasks_blocked()

            async def load_late() -> None:
                await wait_all_tasks_blocked()
                for _ in range(2):
                    with pytest.raises(LoaderClosedError):
                        loader.load(key)
                    with pytest.raises(LoaderClosedError):
                        loader.load_many([key])
                batches.events.append("refused")
                batches.gates[1].set()

            outside.start_soon(load_late)
    assert batches.events == [[2], [1], "refused"]
    assert seen == [10]


async def test_batch_function_of_another_scope_is_refused_during_leaving() -> None:
    batches = Batches(1)
    seen: list[object] = []
    loader: DataLoader[int, int]

    async def load_from_it(keys: list[int]) -> list[int]:
        await wait_all_tasks_blocked()
        try:
            return await loader.load_many(keys)
        finally:
            batches.gates[1].set()

    async with DataLoader(load_from_it) as other, anyio.create_task_group() as outside:
        async with DataLoader(batches) as loader:
            outside.start_soon(wait_for, loader.load(1), seen)
            await wait_all_tasks_blocked()
            outside.start_soon(wait_for, other.load(5), seen)
    assert sorted(map(repr, seen)) == sorted(map(repr, [LoaderClosedError, 10]))


async def test_task_that_outlives_its_batch_function_is_refused_during_leaving() -> None:
    seen: list[object] = []
    loader: DataLoader[int, int]
    batches = Batches(1)

    async with anyio.create_task_group() as outside:

        async def load_later() -> None:
            await wait_all_tasks_blocked()
            await wait_for(asking(), seen)
            batches.gates[1].set()

        async def asking() -> int:
            return await loader.load(3)

        async def start_task(keys: list[int]) -> list[int]:
            if keys == [2]:
                outside.start_soon(load_later)
            return await batches(keys)

        async with DataLoader(start_task, batch=False) as loader:
            one, two = loader.load(1), loader.load(2)
            outside.start_soon(wait_for, one, seen)
            await two
    assert seen == [LoaderClosedError, 10]


async def test_after_the_end_every_load_is_refused() -> None:
    async with DataLoader(Batches()) as loader:
        handles = [loader.load(key) for key in (1, 2)]
        many = loader.load_many([1, 2])
        await many
    before = loader.statistics()
    for key in (1, 3):
        with pytest.raises(LoaderClosedError) as caught:
            loader.load(key)
        assert isinstance(caught.value, anyio.ClosedResourceError)
        with pytest.raises(LoaderClosedError):
            loader.load_many([key])
    assert loader.statistics() == before
    assert loader.peek(3) is None

    assert [await handle for handle in handles] == await many == [10, 20]
    assert loader.peek(1) is None  # what nobody holds a handle of is gone


async def wait_until_queued(scope: LoaderScope) -> None:
    """Let the tasks that were just started make their first step, but no batch go."""
    while not scope.statistics().running:
        await anyio.lowlevel.checkpoint()


@pytest.mark.virtual_time
async def test_a_batch_opened_while_leaving_waits_for_no_window() -> None:
    begun = anyio.Event()

    async def slow(keys: list[int]) -> list[int]:
        begun.set()
        await anyio.sleep(1)
        return await late.load_many(keys)

    async with anyio.create_task_group() as tg:
        async with LoaderScope():
            late = DataLoader(Recorder[int, int](abs), schedule=schedules.window(1_000))
            tg.start_soon(DataLoader(slow).load, -1)
            await begun.wait()
        assert anyio.current_time() == 1


async def test_a_batch_opened_while_leaving_keeps_a_schedule_that_counts_rounds() -> None:
    begun, gate = anyio.Event(), anyio.Event()
    recorder = Recorder[int, int](abs)

    async def outer(keys: list[int]) -> list[int]:
        begun.set()
        await gate.wait()
        first = inner.load(-1)
        for _ in range(2):
            await anyio.lowlevel.checkpoint()
        second = inner.load(-2)
        return [await first + await second]

    async with anyio.create_task_group() as tg:
        async with LoaderScope() as scope:
            inner = DataLoader(recorder, schedule=schedules.rounds(0))
            inner.load_many([])
            tg.start_soon(scope.get(outer).load(1).wait)
            await begun.wait()
            gate.set()
    assert sorted(recorder.calls) == [[-2], [-1]]


async def test_a_task_of_a_failed_batch_cannot_load_in_a_scope_that_is_being_left() -> None:
    failed, refused = anyio.Event(), anyio.Event()

    async def outlives_its_batch() -> None:
        await failed.wait()
        with pytest.raises(LoaderClosedError):
            scope.get(Recorder[int, int](abs))
        refused.set()

    async def fails(keys: list[int]) -> list[int]:
        tg.start_soon(outlives_its_batch)
        raise ValueError

    async def awaited(keys: list[int]) -> list[int]:
        failing = scope.get(fails).load(1)
        await failing.wait()
        failed.set()
        await refused.wait()
        return keys

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tg:
            async with LoaderScope() as scope:
                tg.start_soon(scope.get(awaited).load(1).wait)
                await wait_until_queued(scope)
    assert refused.is_set()
