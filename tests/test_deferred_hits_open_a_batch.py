"""With ``defer_hits`` a hit opens a batch where there is none (contract 6.6)."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import DataLoader, LoaderScope, LoadHandle, schedules
from anyloader.hooks import BatchOpened
from support import Recorder, all_orders, run_seeds, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio

Status = LoadHandle.Status


def same(key: int) -> int:
    return key


async def dependent_loads(order: tuple[int, ...], place: str) -> list[list[int]]:
    calls: list[list[int]] = []

    async def users(keys: list[int]) -> list[int]:
        await checkpoint()
        return keys

    async def friends(keys: list[int]) -> list[int]:
        calls.append(sorted(keys))
        return keys

    async def work(key: int) -> None:
        await user.load(key)
        await friend.load(key)

    async with LoaderScope():
        user, friend = DataLoader(users, defer_hits=True), DataLoader(friends)
        if place == "primed":
            user.prime(1, 1)
        else:
            await user.load(1)
        async with anyio.create_task_group() as tg:
            for key in order:
                tg.start_soon(work, key)
    return calls


@pytest.mark.parametrize("place", ["primed", "loaded"])
@pytest.mark.parametrize("order", [(1, 2), (2, 1), (1, 1, 2), (1, 2, 1, 3)])
def test_dependent_loads_of_hits_and_misses_meet_whichever_comes_first(
    shuffled_backend: str, order: tuple[int, ...], place: str
) -> None:
    expected = [sorted(set(order))]
    assert run_seeds(shuffled_backend, range(40), dependent_loads, order, place) == expected


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_in_every_order(shuffled_backend: str, order: tuple[int, ...]) -> None:
    results = list(all_orders(shuffled_backend, dependent_loads, order, "primed"))
    assert results == [[[1, 2]]] * len(results)


async def test_a_hit_alone_settles_at_the_seal_and_calls_nothing() -> None:
    fetch = Recorder[int, int](same)
    async with DataLoader(fetch, defer_hits=True) as loader:
        loader.prime(1, 10)
        hit = loader.load(1)
        assert hit.status is Status.PENDING
        assert await hit == 10
        assert fetch.calls == []
        assert (loader.statistics().batches, loader.statistics().hits) == (0, 1)
        assert loader.statistics().queued == 0


async def test_a_hit_that_nobody_awaits_settles_too() -> None:
    async with DataLoader(Recorder[int, int](same), defer_hits=True) as loader:
        hit, many = loader.prime(1, 10).load(1), loader.load_many([1, 1])
        await wait_all_tasks_blocked()
        assert hit.return_value == 10
        assert await many == [10, 10]


async def test_a_miss_that_comes_after_a_hit_settles_with_it() -> None:
    gate = anyio.Event()
    fetch = Recorder[int, int](same, gate=gate)
    async with DataLoader(fetch, defer_hits=True) as loader:
        hit, miss = loader.prime(1, 10).load(1), loader.load(2)
        await wait_all_tasks_blocked()
        assert fetch.calls == [[2]]
        assert (hit.status, miss.status) == (Status.PENDING, Status.PENDING)
        gate.set()
        assert [await hit, await miss] == [10, 2]


async def test_a_failed_hit_is_deferred_like_any_other() -> None:
    async with DataLoader(Recorder[int, int](same), defer_hits=True) as loader:
        hit = loader.prime(1, LookupError("no such row")).load(1)
        assert hit.status is Status.PENDING
        with pytest.raises(LookupError):
            await hit


async def test_under_a_manual_schedule_a_hit_waits_for_dispatch() -> None:
    fetch = Recorder[int, int](same)
    options: Any = {"defer_hits": True, "schedule": schedules.manual()}
    async with DataLoader(fetch, **options) as loader:
        hit = loader.prime(1, 10).load(1)
        await wait_all_tasks_blocked()
        assert hit.status is Status.PENDING
        loader.dispatch()
        with anyio.fail_after(5):
            assert await hit == 10
    assert fetch.calls == []


async def test_with_rounds_of_zero_it_settles_at_once_or_in_the_next_round() -> None:
    options: Any = {"defer_hits": True, "schedule": schedules.rounds(0)}
    async with DataLoader(Recorder[int, int](same), **options) as loader:
        assert await loader.prime(1, 10).load(1) == 10


async def test_hits_do_not_fill_a_batch() -> None:
    fetch = Recorder[int, int](same)
    async with DataLoader(fetch, defer_hits=True, max_batch_size=2) as loader:
        loader.prime_many({1: 10, 2: 20, 3: 30})
        assert await loader.load_many([1, 2, 3, 4, 5]) == [10, 20, 30, 4, 5]
    assert fetch.calls == [[4, 5]]


async def test_one_that_is_given_up_leaves_the_others_alone() -> None:
    async with DataLoader(Recorder[int, int](same), defer_hits=True) as loader:
        loader.prime(1, 10)
        first, second = loader.load(1), loader.load(1)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await first
        assert await second == 10
        assert await loader.load(1) == 10


async def test_an_awaited_hit_settles_when_the_block_is_left() -> None:
    values: list[int] = []

    async def waits(handle: LoadHandle[int]) -> None:
        values.append(await handle)

    options: Any = {"defer_hits": True, "schedule": schedules.manual()}
    async with anyio.create_task_group() as tg:
        async with DataLoader(Recorder[int, int](same), **options) as loader:
            tg.start_soon(waits, loader.prime(1, 10).load(1))
            await wait_all_tasks_blocked()
    assert values == [10]


async def test_a_hit_in_a_foreign_group_settles_and_does_not_hold_it_open() -> None:
    async with anyio.create_task_group() as tg:
        loader = DataLoader(Recorder[int, int](same), task_group=tg, defer_hits=True)
        hit = loader.prime(1, 10).load(1)
    assert await hit == 10  # pyright: ignore[reportGeneralTypeIssues, reportPossiblyUnboundVariable]


async def test_without_the_option_a_hit_settles_at_once() -> None:
    async with DataLoader(Recorder[int, int](same)) as loader:
        assert loader.prime(1, 10).load(1).return_value == 10


async def test_hits_beside_a_batch_that_waits_for_a_token_share_one_that_needs_none() -> None:
    opened: list[int] = []

    def note(event: object) -> None:
        if isinstance(event, BatchOpened):
            opened.append(event.batch)

    limiter = anyio.CapacityLimiter(1)
    await limiter.acquire()
    recorder = Recorder[int, int](same)
    async with DataLoader(recorder, defer_hits=True, limiter=limiter, hooks=[note]) as loader:
        loader.prime(5, 50).prime(6, 60)
        first = loader.load(1)
        await wait_all_tasks_blocked()
        hits = [loader.load(key) for key in (5, 6, 5)]
        second = loader.load(2)
        assert [await hit for hit in hits] == [50, 60, 50]
        assert len(opened) == 2
        limiter.release()
        assert (await first, await second) == (1, 2)
    assert recorder.calls == [[1, 2]]
