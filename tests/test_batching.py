"""What a batch consists of: order, positions, size (contract 2.1 and 2.3)."""

from __future__ import annotations

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import (
    DataLoader,
    schedules,
)
from anyloader.hooks import BatchOpened
from support import Recorder, wait_all_tasks_blocked
from support.tasks import asyncio_group, needs_eager_tasks, run_with_eager_tasks

pytestmark = pytest.mark.anyio


def double(key: int) -> int:
    return key * 2


# --- 2.1 ---


async def test_keys_reach_the_batch_function_in_load_order() -> None:
    fetch = Recorder(double)
    async with DataLoader(fetch) as loader:
        last = loader.load(3)
        loader.load(1)
        loader.load_many([9, 5, 7])
        loader.load(2)
        await last
    assert fetch.calls == [[3, 1, 9, 5, 7, 2]]


async def test_keys_of_several_tasks_stand_in_the_order_in_which_they_were_loaded() -> None:
    fetch = Recorder(double)
    loaded: list[int] = []

    async def load(key: int, rounds_late: int) -> None:
        for _ in range(rounds_late):
            await checkpoint()
        loaded.append(key)
        await loader.load(key)

    async with DataLoader(fetch) as loader:
        async with anyio.create_task_group() as tg:
            for key in range(30):
                tg.start_soon(load, key, key % 3)
    assert fetch.calls == [loaded]


@pytest.mark.parametrize("cache", [True, False])
async def test_values_match_by_position(cache: bool) -> None:
    async def number(keys: list[str]) -> list[int]:
        return list(range(len(keys)))

    async with DataLoader(number, cache=cache) as loader:
        handles = [loader.load(key) for key in "cab"]
        assert await loader.load_many("fed") == [3, 4, 5]
        assert [await handle for handle in handles] == [0, 1, 2]


async def test_the_batch_function_may_do_to_its_list_what_it_likes() -> None:
    given: list[list[int]] = []

    async def consume(keys: list[int]) -> list[int]:
        assert type(keys) is list
        given.append(keys)
        values = []
        while keys:
            values.append(keys.pop(0) * 2)
            await checkpoint()
        keys.extend([-1, -2, -3])
        return values

    async with DataLoader(consume) as loader:
        assert await loader.load_many([1, 2]) == [2, 4]
        assert await loader.load_many([1, 3]) == [2, 6]
    assert given[0] is not given[1]


async def test_a_list_that_was_emptied_does_not_hide_what_failed() -> None:
    calls = 0

    async def empty_and_fail(keys: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        if calls == 1:
            keys.clear()
            raise OSError
        return [key * 2 for key in keys]

    async with DataLoader(empty_and_fail) as loader:
        for handle in [loader.load(1), loader.load(2)]:
            with pytest.raises(OSError):
                await handle
        assert await loader.load_many([1, 2]) == [2, 4]


# --- 2.3: full batches ---


async def test_a_full_batch_leaves_without_waiting_further_and_the_next_key_opens_another() -> None:
    fetch = Recorder(double)
    async with DataLoader(fetch, max_batch_size=2, schedule=schedules.manual()) as loader:
        first, second, third = map(loader.load, [1, 2, 3])
        assert (await first, await second) == (2, 4)
        await wait_all_tasks_blocked()
        assert fetch.calls == [[1, 2]]

        loader.load(4)
        assert await third == 6
        assert fetch.calls == [[1, 2], [3, 4]]


async def test_a_full_batch_does_not_wait_for_quiet_rounds() -> None:
    """Keys come in every round, so only its size makes the batch leave."""
    fetch = Recorder(double)
    schedule = schedules.quiescent(max_rounds=1_000_000)
    async with DataLoader(fetch, max_batch_size=10, schedule=schedule) as loader:
        key = 0
        while len(fetch.calls) < 3:
            assert key < 100
            loader.load(key)
            key += 1
            await checkpoint()
    assert fetch.calls[:3] == [list(range(n, n + 10)) for n in (0, 10, 20)]


async def test_load_many_fills_one_batch_after_the_other() -> None:
    fetch = Recorder(double)
    async with DataLoader(fetch, max_batch_size=3) as loader:
        loader.load(0)
        assert await loader.load_many(range(1, 8)) == [2, 4, 6, 8, 10, 12, 14]
    assert sorted(fetch.calls) == [[0, 1, 2], [3, 4, 5], [6, 7]]


async def test_load_many_is_filled_up_by_later_loads() -> None:
    fetch = Recorder(double)
    async with DataLoader(fetch, max_batch_size=3) as loader:
        many = loader.load_many([1, 2, 3, 4, 5])
        loader.load(6)
        loader.load(7)
        await many
        await loader.load(7)
    assert sorted(fetch.calls) == [[1, 2, 3], [4, 5, 6], [7]]


@pytest.mark.parametrize("cache", [True, False])
async def test_uneven_multiples_of_the_size(cache: bool) -> None:
    for number in range(1, 8):
        fetch = Recorder(double)
        async with DataLoader(fetch, cache=cache, max_batch_size=3) as loader:
            await loader.load_many(range(number))
        expected = [list(range(n, min(n + 3, number))) for n in range(0, number, 3)]
        assert sorted(fetch.calls) == expected


async def test_without_max_batch_size_there_is_no_limit() -> None:
    fetch = Recorder(double)
    async with DataLoader(fetch) as loader:
        await loader.load_many(range(20_000))
    assert [len(keys) for keys in fetch.calls] == [20_000]


@pytest.mark.parametrize("cache", [True, False])
async def test_without_batching_every_batch_has_one_key(cache: bool) -> None:
    fetch = Recorder(double)
    async with DataLoader(fetch, batch=False, cache=cache, max_batch_size=100) as loader:
        handle = loader.load(1)
        assert await loader.load_many([2, 3, 4]) == [4, 6, 8]
        assert await handle == 2
    assert sorted(fetch.calls) == [[1], [2], [3], [4]]


async def test_without_batching_a_key_is_sent_at_once() -> None:
    fetch = Recorder(double)
    async with DataLoader(fetch, batch=False, schedule=schedules.manual()) as loader:
        assert await loader.load(1) == 2


# --- 2.3: batches run concurrently ---


async def test_batches_run_concurrently() -> None:
    gate = anyio.Event()
    fetch = Recorder(double, gate=gate)
    async with DataLoader(fetch, max_batch_size=2) as loader:
        many = loader.load_many(range(6))
        await wait_all_tasks_blocked()
        assert sorted(fetch.calls) == [[0, 1], [2, 3], [4, 5]]
        # One that the schedule sends joins those that were full.
        loader.load(6)
        await wait_all_tasks_blocked()
        assert sorted(fetch.calls) == [[0, 1], [2, 3], [4, 5], [6]]
        gate.set()
        assert await many == [0, 2, 4, 6, 8, 10]


async def test_a_later_batch_may_end_first() -> None:
    gates = {1: anyio.Event(), 2: anyio.Event()}

    async def fetch(keys: list[int]) -> list[int]:
        await gates[keys[0]].wait()
        return keys

    async with DataLoader(fetch, batch=False) as loader:
        first, second = loader.load(1), loader.load(2)
        gates[2].set()
        assert await second == 2
        assert first.status is first.Status.PENDING
        gates[1].set()
        assert await first == 1


# --- 2.3: what does not count towards the size ---


@pytest.mark.parametrize("defer_hits", [False, True])
async def test_hits_do_not_count_towards_the_size(defer_hits: bool) -> None:
    fetch = Recorder(double)
    async with DataLoader(
        fetch, max_batch_size=3, schedule=schedules.manual(), defer_hits=defer_hits
    ) as loader:
        loader.prime_many({10: 0, 11: 0, 12: 0, 13: 0})
        handle = loader.load(1)
        loader.load(10)
        loader.load(2)
        loader.load_many([11, 12, 13, 10])
        await wait_all_tasks_blocked()
        assert fetch.calls == []
        loader.load(3)
        await handle
    assert fetch.calls == [[1, 2, 3]]


@pytest.mark.parametrize("options", [{"cache": True}, {"cache": False, "deduplicate": True}])
async def test_deduplicated_loads_do_not_count_towards_the_size(options: dict[str, bool]) -> None:
    fetch = Recorder(double)
    async with DataLoader(
        fetch,
        max_batch_size=3,
        schedule=schedules.manual(),
        cache=options["cache"],
        deduplicate=options.get("deduplicate", False),
    ) as loader:
        handle = loader.load(1)
        loader.load(1)
        loader.load_many([1, 2, 2, 1])
        loader.load(2)
        await wait_all_tasks_blocked()
        assert fetch.calls == []
        loader.load(3)
        await handle
    assert fetch.calls == [[1, 2, 3]]


async def test_with_the_cache_off_duplicates_count_towards_the_size() -> None:
    fetch = Recorder(double)
    async with DataLoader(
        fetch, max_batch_size=3, schedule=schedules.manual(), cache=False
    ) as loader:
        assert await loader.load_many([1, 1, 2]) == [2, 2, 4]
    assert fetch.calls == [[1, 1, 2]]


async def test_a_key_taken_out_of_the_batch_makes_room() -> None:
    fetch = Recorder(double)
    async with DataLoader(fetch, max_batch_size=3, schedule=schedules.manual()) as loader:
        loader.load_many([1, 2])
        loader.prime(1, 0, force=True)
        handle = loader.load(3)
        await wait_all_tasks_blocked()
        assert fetch.calls == []
        loader.load_many([4, 5])
        await handle
    assert fetch.calls == [[2, 3, 4]]


async def test_an_illegal_move_of_a_batch_raises_and_changes_nothing() -> None:
    async with DataLoader(Recorder[int, int](abs)) as loader:
        handle = loader.load(1)
        batch = handle._batch
        assert batch is not None
        with pytest.raises(RuntimeError, match="cannot start while open"):
            batch.start()
        assert batch.is_open
        assert await handle == 1


@pytest.mark.only_on("asyncio")
async def test_a_full_batch_passes_no_more_rounds() -> None:
    async def rounds_until_called(schedule: schedules.Schedule) -> int:
        recorder = Recorder[int, int](abs)
        async with DataLoader(recorder, max_batch_size=2, schedule=schedule) as loader:
            loader.load(1)
            await anyio.lowlevel.checkpoint()
            loader.load(2)
            rounds = 0
            while not recorder.calls:
                await anyio.lowlevel.checkpoint()
                rounds += 1
        return rounds

    assert await rounds_until_called(schedules.quiescent()) == 1
    assert await rounds_until_called(schedules.rounds(50)) == 1


@needs_eager_tasks
def test_a_batch_does_not_leave_before_its_key_is_in() -> None:
    recorder = Recorder[int, int](abs)

    async def main() -> None:
        async with asyncio_group() as group:
            loader = DataLoader(recorder, task_group=group, schedule=schedules.rounds(0))
            with anyio.fail_after(5):
                assert await loader.load_many([1, 2]) == [1, 2]

    run_with_eager_tasks(main)
    assert recorder.calls == [[1, 2]]


async def test_a_key_joins_the_batch_that_a_hook_has_opened_last() -> None:
    once: list[object] = []

    def load_three(event: object) -> None:
        if isinstance(event, BatchOpened) and not once:
            once.append(event)
            for key in (-2, -3, -4):
                loader.load(key)

    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, max_batch_size=2, hooks=[load_three]) as loader:
        assert await loader.load(-1) == 1
        await wait_all_tasks_blocked()
    assert sorted(recorder.calls) == [[-4, -1], [-2, -3]]
