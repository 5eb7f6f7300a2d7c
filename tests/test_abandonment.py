"""Contract 5.2: what happens to loads of which every await was cancelled."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import DataLoader, LoadCancelledError
from support import Recorder, run_seeds, wait_all_tasks_blocked
from support.abandonment import CANCELLED, MANUAL, PENDING, Endless, Waiters, give_up

pytestmark = pytest.mark.anyio

# --- a load is abandoned when it was awaited and every await of it was cancelled ---


@pytest.mark.parametrize("how", ["await", "wait()"])
async def test_abandoned_keys_leave_the_batch_when_it_is_sealed(how: str) -> None:
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, schedule=MANUAL) as loader:
        first, second = loader.load(1), loader.load(2)
        await give_up(first if how == "await" else first.wait())
        assert (first.status, loader.statistics().queued) == (PENDING, 2)
        loader.dispatch()
        assert (first.status, loader.statistics().queued) == (CANCELLED, 1)
        assert await second == 2
        with pytest.raises(LoadCancelledError):
            await first
        assert loader.peek(1) is None
        assert await loader.load_many([2]) == [2]
    assert recorder.calls == [[2]]


async def test_abandoned_keys_leave_under_the_default_schedule() -> None:
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder) as loader, anyio.create_task_group() as tg:
        scope = Waiters(tg)(loader.load(0))
        for key in range(1, 10):
            if key == 5:
                scope.cancel()
            loader.load(key)
            await checkpoint()
        await wait_all_tasks_blocked()
    assert recorder.calls == [list(range(1, 10))]


async def test_a_batch_of_abandoned_loads_is_never_sent() -> None:
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, schedule=MANUAL) as loader:
        await give_up(loader.load(1), loader.load_many([2, 3]))
        loader.dispatch()
        await wait_all_tasks_blocked()
        assert recorder.calls == []
        assert loader.statistics().cached == loader.statistics().queued == 0
        again = loader.load_many([1, 2])
        loader.dispatch()
        assert await again == [1, 2]
    assert recorder.calls == [[1, 2]]


async def test_a_load_never_awaited_is_not_abandoned() -> None:
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, schedule=MANUAL) as loader:
        loads = [loader.load(1), loader.load(3)]
        many = loader.load_many([2])
        await give_up(loads[1])
        loader.dispatch()
        await wait_all_tasks_blocked()
        assert recorder.calls == [[1, 2]]
        assert loads[0].return_value == 1
        assert await many == [2]


async def test_a_load_never_awaited_keeps_a_running_batch() -> None:
    recorder = Recorder[int, int](abs, gate=anyio.Event())
    async with DataLoader(recorder) as loader:
        handle = loader.load(1)
        many = loader.load_many([2])
        await wait_all_tasks_blocked()
        await give_up(loader.load(1), loader.load_many([2]))
        await give_up(many)
        assert recorder.gate
        recorder.gate.set()
        await wait_all_tasks_blocked()
        assert handle.return_value == 1
        assert await many == [2]


@pytest.mark.parametrize("when", ["queued", "running"])
async def test_every_await_must_be_cancelled(when: str) -> None:
    function = Endless()
    async with DataLoader(function, schedule=MANUAL) as loader, anyio.create_task_group() as tg:
        waiter, handle = Waiters(tg), loader.load(1)
        scopes = [waiter(handle), waiter(handle.wait()), waiter(handle)]
        if when == "running":
            loader.dispatch()
        await wait_all_tasks_blocked()
        for scope in scopes[:2]:
            scope.cancel()
            await wait_all_tasks_blocked()
        loader.dispatch()
        await wait_all_tasks_blocked()
        assert (function.calls, function.cancelled) == ([[1]], [])
        scopes[2].cancel()
        await wait_all_tasks_blocked()
        assert function.cancelled == [[1]]


# --- awaiting again before that revives them ---


@pytest.mark.parametrize("how", ["await", "wait()", "load_many", "other task"])
async def test_awaiting_again_revives_a_queued_load(how: str) -> None:
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, schedule=MANUAL) as loader, anyio.create_task_group() as tg:
        handle, many = loader.load(1), loader.load_many([2])
        load = many if how == "load_many" else handle
        waiter = Waiters(tg)
        for _ in range(3):
            await give_up(handle, many)
        waiter(handle.wait() if how == "wait()" else load)
        await wait_all_tasks_blocked()
        loader.dispatch()
        await wait_all_tasks_blocked()
        assert recorder.calls == ([[2]] if how == "load_many" else [[1]])
        assert waiter.outcomes == [{"wait()": None, "load_many": [2]}.get(how, 1)]


@pytest.mark.parametrize("many", [False, True])
async def test_awaiting_again_revives_a_load_of_a_running_batch(many: bool) -> None:
    function = Endless()
    async with DataLoader(function) as loader, anyio.create_task_group() as tg:
        waiter = Waiters(tg)
        loads: list[Awaitable[object]] = [
            loader.load_many([key]) if many else loader.load(key) for key in (1, 2)
        ]
        first, second = map(waiter, loads)
        await wait_all_tasks_blocked()
        first.cancel()
        await wait_all_tasks_blocked()
        again = waiter(loads[0])
        await wait_all_tasks_blocked()
        second.cancel()
        await wait_all_tasks_blocked()
        assert function.cancelled == []
        again.cancel()
        await wait_all_tasks_blocked()
        assert function.cancelled == [[1, 2]]


async def test_awaiting_again_after_the_seal_raises_and_wants_nothing() -> None:
    function = Endless()
    async with DataLoader(function, schedule=MANUAL) as loader:
        handle, many, other = loader.load(1), loader.load_many([2]), loader.load(3)
        await give_up(handle, many)
        loader.dispatch()
        await wait_all_tasks_blocked()
        for load in (handle, many):
            with pytest.raises(LoadCancelledError):
                await load
        await give_up(other)
        await wait_all_tasks_blocked()
        assert (function.calls, function.cancelled) == ([[3]], [[3]])


def test_a_waiter_that_comes_while_another_one_goes_counts_once(shuffled_backend: str) -> None:
    async def main() -> object:
        function = Endless()
        cancelled: list[list[int]] = []
        async with DataLoader(function) as loader, anyio.create_task_group() as tg:
            waiter, handle = Waiters(tg), loader.load(1)
            go = anyio.Event()

            async def later() -> None:
                await go.wait()
                await handle

            scopes = [waiter(handle), waiter(later())]
            await wait_all_tasks_blocked()
            scopes[0].cancel()
            go.set()
            await wait_all_tasks_blocked()
            scopes[1].cancel()
            await wait_all_tasks_blocked()
            cancelled += function.cancelled
        return cancelled

    assert run_seeds(shuffled_backend, range(20), main) == [[1]]


# --- load_many awaits all its loads ---


async def test_an_abandoned_load_many_abandons_all_its_loads() -> None:
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, schedule=MANUAL) as loader:
        many = loader.load_many([1, 2, 3])
        other = loader.load(4)
        await give_up(many)
        loader.dispatch()
        assert await other == 4
    assert recorder.calls == [[4]]


async def test_an_awaited_load_many_wants_all_its_loads() -> None:
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, schedule=MANUAL) as loader, anyio.create_task_group() as tg:
        waiter = Waiters(tg)
        first = loader.load(1)
        waiter(loader.load_many([1, 2, 3]))
        await give_up(first, loader.load(2), loader.load_many([3, 4]))
        loader.dispatch()
        await wait_all_tasks_blocked()
        assert waiter.outcomes == [[1, 2, 3]]
    assert recorder.calls == [[1, 2, 3]]


async def test_an_abandoned_load_many_gives_up_all_its_batches() -> None:
    function = Endless()
    async with DataLoader(function, max_batch_size=2) as loader:
        many = loader.load_many(range(6))
        other = loader.load(3)
        await wait_all_tasks_blocked()
        await give_up(many)
        await wait_all_tasks_blocked()
        assert sorted(function.cancelled) == [[0, 1], [4, 5]]
        await give_up(other)
        await wait_all_tasks_blocked()
        assert len(function.cancelled) == 3


async def test_leaving_finishes_all_batches_of_an_awaited_load_many() -> None:
    recorder = Recorder[int, int](abs, gate=anyio.Event())
    outcomes: list[object] = []
    async with anyio.create_task_group() as tg:
        waiter = Waiters(tg, outcomes)
        async with DataLoader(recorder, max_batch_size=1) as loader:
            waiter(loader.load_many([1, 2, 3]))
            await wait_all_tasks_blocked()
            assert recorder.gate
            recorder.gate.set()
    assert outcomes == [[1, 2, 3]]


async def test_leaving_finishes_a_load_many_that_one_of_its_keys_just_woke() -> None:
    recorder = Recorder[int, int](abs)
    outcomes: list[object] = []
    async with anyio.create_task_group() as tg:
        waiter = Waiters(tg, outcomes)
        async with DataLoader(recorder, schedule=MANUAL) as loader:
            waiter(loader.load_many([1, 2]))
            await wait_all_tasks_blocked()
            loader.prime(1, -1, force=True)
    assert outcomes == [[-1, 2]]


# --- two loads of one pending key are two loads ---


def _loads(loader: DataLoader[int, int], kinds: str) -> list[Any]:
    return [loader.load_many([1]) if kind == "many" else loader.load(1) for kind in kinds.split()]


@pytest.mark.parametrize("kinds", ["one one", "one many", "many one", "many many"])
@pytest.mark.parametrize("given_up", [0, 1])
@pytest.mark.parametrize("when", ["queued", "sealed", "running"])
async def test_one_of_two_loads_given_up_leaves_the_other_alone(
    kinds: str, given_up: int, when: str
) -> None:
    function = Endless()
    limiter = anyio.CapacityLimiter(1)
    await limiter.acquire()
    async with DataLoader(function, schedule=MANUAL, limiter=limiter) as loader:
        loads = _loads(loader, kinds)
        if when != "queued":
            loader.dispatch()
        if when == "running":
            limiter.release()
            await wait_all_tasks_blocked()
        await give_up(loads.pop(given_up))
        loader.dispatch()
        if when != "running":
            limiter.release()
        await wait_all_tasks_blocked()
        assert (function.calls, function.cancelled) == ([[1]], [])
        await give_up(*loads)
        await wait_all_tasks_blocked()
        assert function.cancelled == [[1]]


@pytest.mark.parametrize("kinds", ["one one", "one many", "many one", "many many"])
async def test_a_key_leaves_with_the_last_load_that_wants_it(kinds: str) -> None:
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, schedule=MANUAL) as loader:
        loads = _loads(loader, kinds)
        loader.load(2)
        await give_up(*loads)
        loader.dispatch()
        await wait_all_tasks_blocked()
    assert recorder.calls == [[2]]


async def test_a_new_load_of_an_abandoned_key_keeps_it_in_the_batch() -> None:
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, schedule=MANUAL) as loader:
        abandoned = loader.load(1)
        await give_up(abandoned)
        new = loader.load(1)
        loader.dispatch()
        assert await new == await abandoned == 1
    assert recorder.calls == [[1]]
