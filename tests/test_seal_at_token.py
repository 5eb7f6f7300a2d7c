"""The seal comes with the limiter's token (contract 2.5).

A batch whose schedule has returned goes on taking keys until there is a token for it; then it is
sealed, sifted and called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from anyloader import DataLoader, LoadCancelledError, LoaderScope, LoadHandle, schedules
from support import Recorder, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio

Status = LoadHandle.Status


def same(key: int) -> int:
    return key


@pytest.mark.parametrize(
    "schedule",
    [schedules.quiescent(), schedules.rounds(0), schedules.rounds(3)],
    ids=repr,
)
async def test_a_batch_grows_while_it_waits_for_its_token(schedule: Any) -> None:
    fetch = Recorder[int, int](same)
    limiter = anyio.CapacityLimiter(1)
    async with DataLoader(fetch, limiter=limiter, schedule=schedule) as loader:
        async with limiter:
            loads: list[Any] = []
            for key in range(4):
                loads.append(loader.load(key))
                await wait_all_tasks_blocked()
            loads.append(loader.load_many([4, 5]))
            await wait_all_tasks_blocked()
            assert fetch.calls == []
            assert loader.statistics().queued == 6
        assert [await load for load in loads] == [0, 1, 2, 3, [4, 5]]
    assert fetch.calls == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.virtual_time
async def test_after_its_window_too() -> None:
    fetch = Recorder[int, int](same)
    limiter = anyio.CapacityLimiter(1)
    async with DataLoader(fetch, limiter=limiter, schedule=schedules.window(1)) as loader:
        async with limiter:
            first = loader.load(1)
            await anyio.sleep(5)
            second = loader.load(2)
            await anyio.sleep(5)
        assert [await first, await second] == [1, 2]
    assert fetch.calls == [[1, 2]]


@pytest.mark.virtual_time
async def test_callers_one_by_one_in_front_of_a_slow_backend_share_its_calls() -> None:
    calls: list[list[int]] = []

    async def model(keys: list[int]) -> list[int]:
        calls.append(keys)
        await anyio.sleep(20)
        return keys

    limiter = anyio.CapacityLimiter(1)
    async with DataLoader(model, cache=False, max_batch_size=64, limiter=limiter) as loader:
        async with anyio.create_task_group() as tg:
            for key in range(400):
                tg.start_soon(loader.load, key)
                await anyio.sleep(1)
    assert sorted(key for keys in calls for key in keys) == [*range(400)]
    assert len(calls) <= 25


@pytest.mark.virtual_time
async def test_what_was_given_up_meanwhile_is_not_sent() -> None:
    sent: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        sent.append(keys)
        await anyio.sleep(100)
        return keys

    async def impatient(key: int, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await loader.load(key)

    async with DataLoader(fetch, cache=False, limiter=anyio.CapacityLimiter(1)) as loader:
        async with anyio.create_task_group() as tg:
            tg.start_soon(loader.load, 0)
            await anyio.sleep(20)
            for key in (1, 2, 3):
                tg.start_soon(impatient, key, 30)
            tg.start_soon(impatient, 4, 1_000)
    assert sent == [[0], [4]]


async def test_a_batch_that_all_gave_up_meanwhile_is_not_called() -> None:
    fetch = Recorder[int, int](same)
    limiter = anyio.CapacityLimiter(1)
    async with DataLoader(fetch, limiter=limiter) as loader:
        async with limiter:
            async with anyio.create_task_group() as tg:
                handle = loader.load(1)
                tg.start_soon(handle.wait)
                await wait_all_tasks_blocked()
                tg.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        assert fetch.calls == []
        assert limiter.borrowed_tokens == 0
        with pytest.raises(LoadCancelledError):
            await handle  # pyright: ignore[reportGeneralTypeIssues, reportPossiblyUnboundVariable]
        assert await loader.load(1) == 1


async def test_who_awaits_again_before_the_token_comes_gets_the_value() -> None:
    fetch = Recorder[int, int](same)
    limiter = anyio.CapacityLimiter(1)
    async with DataLoader(fetch, limiter=limiter) as loader:
        async with limiter:
            handle = loader.load(1)
            await wait_all_tasks_blocked()
            with anyio.CancelScope() as scope:
                scope.cancel()
                await handle
            await wait_all_tasks_blocked()
            assert handle.status is Status.PENDING
            again = loader.load(1)
        assert [await handle, await again] == [1, 1]
    assert fetch.calls == [[1]]


async def test_a_full_batch_is_sealed_without_a_token() -> None:
    fetch = Recorder[int, int](same)
    limiter = anyio.CapacityLimiter(1)
    async with DataLoader(fetch, limiter=limiter, max_batch_size=2) as loader:
        async with limiter:
            many = loader.load_many([1, 2])
            last = loader.load(3)
            await wait_all_tasks_blocked()
            later = loader.load(4)
        assert [await many, await last, await later] == [[1, 2], 3, 4]
    assert fetch.calls == [[1, 2], [3, 4]]


async def test_dispatch_seals_without_a_token() -> None:
    fetch = Recorder[int, int](same)
    limiter = anyio.CapacityLimiter(1)
    async with DataLoader(fetch, limiter=limiter) as loader:
        async with limiter:
            first = loader.load(1)
            await wait_all_tasks_blocked()
            loader.dispatch()
            second = loader.load(2)
            await wait_all_tasks_blocked()
        assert [await first, await second] == [1, 2]
    assert fetch.calls == [[1], [2]]


async def test_a_key_that_is_cleared_and_loaded_again_meanwhile_is_sent_twice() -> None:
    """As any key that was queued, contract 6.1; once with deduplicate, contract 6.2."""
    fetch, once = Recorder[int, int](same), Recorder[int, int](same)
    limiter = anyio.CapacityLimiter(2)
    async with (
        DataLoader(fetch, limiter=limiter) as loader,
        DataLoader(once, limiter=limiter, deduplicate=True) as distinct,
    ):
        async with limiter:
            await limiter.acquire_on_behalf_of(loader)
            loads = []
            for each in (loader, distinct):
                loads.append(each.load(1))
                await wait_all_tasks_blocked()
                loads.append(each.clear(1).load(1))
            await wait_all_tasks_blocked()
            limiter.release_on_behalf_of(loader)
        assert [await load for load in loads] == [1] * 4
    assert fetch.calls == [[1, 1]]
    assert once.calls == [[1]]


async def test_a_value_forced_meanwhile_takes_its_key_out() -> None:
    fetch = Recorder[int, int](same)
    limiter = anyio.CapacityLimiter(1)
    async with DataLoader(fetch, limiter=limiter) as loader:
        async with limiter:
            first, second = loader.load(1), loader.load(2)
            await wait_all_tasks_blocked()
            loader.prime(1, 10, force=True)
            assert await first == 10
        assert await second == 2
    assert fetch.calls == [[2]]


async def test_deferred_hits_do_not_wait_for_a_token() -> None:
    fetch = Recorder[int, int](same)
    limiter = anyio.CapacityLimiter(1)
    async with DataLoader(fetch, limiter=limiter, defer_hits=True) as loader:
        loader.prime(1, 10)
        async with limiter:
            miss, before = loader.load(2), loader.load(1)
            assert before.status is Status.PENDING
            await wait_all_tasks_blocked()
            assert before.status is Status.FINISHED  # type: ignore[comparison-overlap]
            after = loader.load(1)
            await wait_all_tasks_blocked()
            assert after.status is Status.FINISHED
            assert miss.status is Status.PENDING
        assert [await before, await after, await miss] == [10, 10, 2]


async def test_an_awaited_batch_still_gets_its_token_when_the_block_is_left() -> None:
    fetch = Recorder[int, int](same)
    limiter = anyio.CapacityLimiter(1)
    values: list[int] = []

    async def user(handles: list[LoadHandle[int]]) -> None:
        values.extend([await handle for handle in handles])

    async def let_go() -> None:
        await wait_all_tasks_blocked()
        limiter.release_on_behalf_of(fetch)

    async with anyio.create_task_group() as tg:
        await limiter.acquire_on_behalf_of(fetch)
        async with DataLoader(fetch, limiter=limiter) as loader:
            tg.start_soon(user, [loader.load(1), loader.load(2)])
            await wait_all_tasks_blocked()
            tg.start_soon(let_go)
    assert values == [1, 2]
    assert fetch.calls == [[1, 2]]


async def test_loaders_that_share_a_limiter_both_grow() -> None:
    first, second = Recorder[int, int](same), Recorder[int, int](same)
    limiter = anyio.CapacityLimiter(1)
    async with LoaderScope():
        loaders = [DataLoader(fetch, limiter=limiter) for fetch in (first, second)]
        async with limiter:
            loads = []
            for key in range(3):
                loads += [loader.load(key) for loader in loaders]
                await wait_all_tasks_blocked()
        assert [await load for load in loads] == [0, 0, 1, 1, 2, 2]
    assert first.calls == second.calls == [[0, 1, 2]]


# --- a limiter without a token ---


def lowered() -> anyio.CapacityLimiter:
    limiter = anyio.CapacityLimiter(1)
    limiter.total_tokens = 0
    return limiter


@pytest.mark.parametrize("paused", [lambda: anyio.CapacityLimiter(0), lowered])
async def test_a_batch_function_can_wait_for_a_limiter_that_is_paused(
    paused: Callable[[], anyio.CapacityLimiter],
) -> None:
    limiter = paused()
    fetch = Recorder[int, int](same)

    async def middle(keys: list[int]) -> list[int]:
        return await inside.load_many(keys)

    # That one awaits the other is what makes the second await be looked into at all.
    async def outer(keys: list[int]) -> list[int]:
        return await between.load_many(keys)

    async def resume() -> None:
        await wait_all_tasks_blocked()
        assert fetch.calls == []
        limiter.total_tokens = 1

    async with LoaderScope(), anyio.create_task_group() as tg:
        inside, between = DataLoader(fetch, limiter=limiter), DataLoader(middle)
        tg.start_soon(resume)
        assert await DataLoader(outer).load_many([1, 2]) == [1, 2]
    assert fetch.calls == [[1, 2]]
