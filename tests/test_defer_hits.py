"""Contract 6.6: a hit settles together with the open batch."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import anyio
import pytest

from anyloader import DataLoader, LoadHandle, schedules
from support import Recorder, run_seeds, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio

MANUAL = schedules.manual()

PENDING, FINISHED = LoadHandle.Status.PENDING, LoadHandle.Status.FINISHED


async def give_up(load: Awaitable[object]) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await load
    assert scope.cancelled_caught


class Failed(Exception):
    pass


@pytest.mark.parametrize("how", ["load", "load_many"])
async def test_a_hit_settles_together_with_the_open_batch(how: str) -> None:
    recorder = Recorder[int, int](lambda key: -key, gate=anyio.Event())
    settled: list[object] = []

    async def note(load: Awaitable[object]) -> None:
        settled.append(await load)

    async with DataLoader(recorder, schedule=MANUAL, defer_hits=True) as loader:
        async with anyio.create_task_group() as tg:
            loader.prime(1, 11)
            miss = loader.load(2)
            hit = loader.load(1)
            tg.start_soon(note, hit if how == "load" else loader.load_many([1]))
            await wait_all_tasks_blocked()
            assert (hit.status, settled) == (PENDING, [])
            loader.dispatch()
            await wait_all_tasks_blocked()
            assert (hit.status, settled) == (PENDING, [])
            assert recorder.gate
            recorder.gate.set()
            assert await miss == -2
            assert hit.return_value == 11
        assert settled == [11 if how == "load" else [11]]
        now = loader.statistics()
        assert now.hits == (1 if how == "load" else 2)
    assert recorder.calls == [[2]]


@pytest.mark.parametrize("defer_hits", [False, True])
def test_dependent_loads_of_hits_and_misses_meet_in_one_batch(
    shuffled_backend: str, defer_hits: bool
) -> None:
    """Each task loads a user, every second one a hit, and then what depends on it."""

    async def main() -> list[list[int]]:
        users = Recorder[int, int](lambda key: -key, gate=anyio.Event())
        posts = Recorder[int, int](lambda key: key)
        async with (
            DataLoader(users, defer_hits=defer_hits) as user,
            DataLoader(posts) as post,
        ):
            user.prime_many({2: -2, 4: -4})

            async def load(key: int) -> None:
                await post.load(await user.load(key))

            handle = user.load(0)
            async with anyio.create_task_group() as tg:
                for key in range(1, 5):
                    tg.start_soon(load, key)
                await wait_all_tasks_blocked()
                assert users.gate
                users.gate.set()
            await handle
        assert [sorted(keys) for keys in users.calls] == [[0, 1, 3]]
        return [sorted(keys) for keys in posts.calls]

    expected = [[-4, -3, -2, -1]] if defer_hits else [[-4, -2], [-3, -1]]
    assert run_seeds(shuffled_backend, range(20), main) == expected


async def test_with_no_batch_open_a_hit_opens_one() -> None:
    recorder = Recorder[int, int](lambda key: -key, gate=anyio.Event())
    async with DataLoader(recorder, schedule=MANUAL, defer_hits=True) as loader:
        loader.prime(1, 11)
        hit = loader.load(1)
        assert hit.status is PENDING
        miss = loader.load(2)
        loader.dispatch()
        await wait_all_tasks_blocked()
        assert (hit.status, miss.status) == (PENDING, PENDING)  # one batch for both, and it runs
        hits = loader.load(1), loader.load_many([1, 1])
        loader.dispatch()
        assert (await hits[0], await hits[1]) == (11, [11, 11])  # no key, so nothing is called
        assert miss.status is PENDING
    assert recorder.calls == [[2]]


async def test_without_defer_hits_a_hit_settles_at_once() -> None:
    recorder = Recorder[int, int](lambda key: -key)
    async with DataLoader(recorder, schedule=MANUAL) as loader:
        loader.prime(1, 11).load(2)
        assert loader.load(1).status is FINISHED
        assert await loader.load_many([1]) == [11]


async def test_the_open_batch_of_another_loader_defers_nothing() -> None:
    recorder = Recorder[int, int](lambda key: -key)
    async with (
        DataLoader(recorder, schedule=MANUAL) as other,
        DataLoader(recorder, defer_hits=True) as loader,
    ):
        other.load(2)
        assert await loader.prime(1, 11).load(1) == 11


async def test_a_load_many_of_hits_and_misses() -> None:
    recorder = Recorder[int, int](lambda key: -key)
    async with DataLoader(recorder, defer_hits=True) as loader:
        loader.prime(1, 11).prime(3, 33)
        assert await loader.load_many([1, 2, 3, 2, 1]) == [11, -2, 33, -2, 11]
        loader.load(4)
        assert await loader.load_many([1, 3]) == [11, 33]
    assert recorder.calls == [[2], [4]]


async def test_a_deferred_error_is_raised_and_a_failing_batch_harms_no_hit() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        raise LookupError

    error = Failed()
    async with DataLoader(fetch, defer_hits=True) as loader:
        loader.prime(1, error).prime(2, 22)
        miss = loader.load(3)
        bad, good, many = loader.load(1), loader.load(2), loader.load_many([2])
        with pytest.raises(LookupError):
            await miss
        with pytest.raises(Failed) as caught:
            await bad
        assert caught.value is error
        assert (await good, await many) == (22, [22])
        assert loader.statistics().cached == 2


@pytest.mark.parametrize("when", ["queued", "sealed"])
@pytest.mark.parametrize("how", ["abandoned", "primed"])
async def test_a_batch_left_empty_does_not_strand_deferred_hits(how: str, when: str) -> None:
    recorder = Recorder[int, int](lambda key: -key)
    limiter = anyio.CapacityLimiter(1)
    await limiter.acquire()
    async with DataLoader(recorder, schedule=MANUAL, defer_hits=True, limiter=limiter) as loader:
        loader.prime(1, 11)
        miss = loader.load(2)
        hit, many = loader.load(1), loader.load_many([1])
        if when == "sealed":
            loader.dispatch()
        if how == "abandoned":
            await give_up(miss)
        else:
            loader.prime(2, 22, force=True)
        loader.dispatch()
        limiter.release()
        with anyio.fail_after(2):
            assert (await hit, await many) == (11, [11])
        assert recorder.calls == []


@pytest.mark.parametrize("how", ["abandoned", "primed"])
async def test_a_batch_left_empty_needs_no_token_to_settle_deferred_hits(how: str) -> None:
    recorder = Recorder[int, int](lambda key: -key)
    limiter = anyio.CapacityLimiter(1)
    await limiter.acquire()
    async with DataLoader(recorder, defer_hits=True, limiter=limiter) as loader:
        loader.prime(1, 11)
        miss, hit = loader.load(2), loader.load(1)
        if how == "abandoned":
            await give_up(miss)
        else:
            loader.prime(2, 22, force=True)
        await wait_all_tasks_blocked()
        assert hit.status is FINISHED


async def test_a_running_batch_that_is_abandoned_settles_deferred_hits() -> None:
    recorder = Recorder[int, int](lambda key: -key, gate=anyio.Event())
    async with DataLoader(recorder, defer_hits=True) as loader:
        loader.prime(1, 11)
        miss, hit = loader.load(2), loader.load(1)
        await wait_all_tasks_blocked()
        await give_up(miss)
        assert await hit == 11


@pytest.mark.parametrize("how", ["load", "load_many"])
async def test_an_abandoned_deferred_hit_affects_nothing(how: str) -> None:
    recorder = Recorder[int, int](lambda key: -key, gate=anyio.Event())
    async with DataLoader(recorder, schedule=MANUAL, defer_hits=True) as loader:
        loader.prime(1, 11)
        miss = loader.load(2)
        hits = [loader.load_many([1]) if how == "load_many" else loader.load(1) for _ in range(3)]
        await give_up(hits[0])
        await give_up(hits[0])
        loader.dispatch()
        await wait_all_tasks_blocked()
        await give_up(hits[1])
        assert loader.statistics().running == 1
        assert recorder.gate
        recorder.gate.set()
        expected = [11] if how == "load_many" else 11
        assert (await miss, [await hit for hit in hits]) == (-2, [expected] * 3)
        hit = loader.load(1)
        loader.dispatch()
        assert await hit == 11


async def test_a_deferred_hit_does_not_keep_a_batch_that_is_abandoned() -> None:
    cancelled: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append(keys)
        return keys

    async with DataLoader(fetch, defer_hits=True) as loader:
        loader.prime(1, 11)
        miss, hit = loader.load(2), loader.load(1)
        await wait_all_tasks_blocked()
        await give_up(miss)
        await wait_all_tasks_blocked()
        assert cancelled == [[2]]
        assert await hit == 11


async def test_leaving_settles_deferred_hits_that_are_awaited() -> None:
    recorder = Recorder[int, int](lambda key: -key)
    outcomes: list[object] = []

    async def note(load: Awaitable[object]) -> None:
        outcomes.append(await load)

    async with anyio.create_task_group() as tg:
        async with DataLoader(recorder, schedule=MANUAL, defer_hits=True) as loader:
            loader.prime(1, 11).load(2)
            tg.start_soon(note, loader.load(1))
            tg.start_soon(note, loader.load_many([1]))
            await wait_all_tasks_blocked()
    assert sorted(map(str, outcomes)) == ["11", "[11]"]


@pytest.mark.virtual_time
async def test_a_batch_of_which_only_a_deferred_hit_is_left_is_not_sent() -> None:
    calls: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        calls.append(keys)
        return keys

    async with DataLoader(fetch, defer_hits=True) as loader:
        loader.prime(1, 1)
        many = loader.load_many([2, 1])
        loader.dispatch()
        loader.prime(2, 2, force=True)
        assert await many == [2, 1]
        await wait_all_tasks_blocked()
    assert calls == []


@pytest.mark.virtual_time
async def test_a_deferred_hit_of_a_load_many_keeps_no_batch_running() -> None:
    """It waits for the batch, but is no load of it."""
    ended: list[str] = []

    async def fetch(keys: list[int]) -> list[int]:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("cancelled")
        return keys

    async def wait_for(many: Any) -> None:
        assert await many == [2, 1]
        ended.append("settled")

    with anyio.fail_after(5):
        async with DataLoader(fetch, defer_hits=True) as loader, anyio.create_task_group() as tg:
            loader.prime(1, 1)
            many, load = loader.load_many([2, 1]), loader.load(3)
            tg.start_soon(wait_for, many)
            loader.prime(2, 2, force=True)
            with anyio.move_on_after(1):
                await load
            await wait_all_tasks_blocked()
            assert sorted(ended) == ["cancelled", "settled"]
