"""A limiter bounds the batch functions that run at once (contract 2.5)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import DataLoader, LoadCancelledError, LoaderScope, schedules
from support import Recorder, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio


class Gauge:
    """A batch function that notes how many of its calls run at once, and ends when it may."""

    def __init__(self) -> None:
        self.running: list[list[int]] = []
        self.most = 0
        self.gate = anyio.Event()

    async def __call__(self, keys: list[int]) -> list[int]:
        self.running.append(keys)
        self.most = max(self.most, len(self.running))
        try:
            await self.gate.wait()
            await checkpoint()
        finally:
            self.running.remove(keys)
        return keys


@pytest.mark.parametrize("tokens", [1, 2, 3])
async def test_at_most_so_many_batch_functions_run_at_once(tokens: int) -> None:
    gauge = Gauge()
    limiter = anyio.CapacityLimiter(tokens)
    async with DataLoader(gauge, batch=False, limiter=limiter) as loader:
        many = loader.load_many(range(10))
        await wait_all_tasks_blocked()
        assert len(gauge.running) == limiter.borrowed_tokens == tokens
        gauge.gate.set()
        assert await many == [*range(10)]
    assert gauge.most == tokens
    assert limiter.borrowed_tokens == 0


async def test_a_limiter_can_be_shared_between_loaders() -> None:
    gauge = Gauge()
    limiter = anyio.CapacityLimiter(3)
    async with (
        DataLoader(gauge, batch=False, limiter=limiter) as first,
        DataLoader(gauge, batch=False, limiter=limiter) as second,
        DataLoader(gauge) as free,
    ):
        manys = [first.load_many(range(5)), second.load_many(range(5))]
        await wait_all_tasks_blocked()
        assert len(gauge.running) == 3

        free.load(100)
        await wait_all_tasks_blocked()
        assert [100] in gauge.running, "a loader without the limiter is not bound by it"

        gauge.gate.set()
        assert [await many for many in manys] == [[*range(5)]] * 2
    assert gauge.most == 4


async def test_a_limiter_bounds_streams_until_they_end() -> None:
    running: list[int] = []
    most = 0

    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, int], None]:
        nonlocal most
        running.append(keys[0])
        most = max(most, len(running))
        for key in keys:
            yield key, key
        await checkpoint()
        running.pop()

    limiter = anyio.CapacityLimiter(1)
    async with DataLoader(stream, batch=False, limiter=limiter) as loader:
        assert await loader.load_many(range(5)) == [*range(5)]
    assert most == 1


async def test_no_token_is_held_while_keys_are_collected() -> None:
    limiter = anyio.CapacityLimiter(1)
    fetch = Recorder[int, int](lambda key: key)
    async with (
        DataLoader(fetch, limiter=limiter, schedule=schedules.window(10_000)) as patient,
        DataLoader(fetch, limiter=limiter) as other,
    ):
        handle = patient.load(1)
        await wait_all_tasks_blocked()
        assert limiter.borrowed_tokens == 0
        assert await other.load(2) == 2
        patient.dispatch()
        assert await handle == 1


async def test_a_batch_waits_for_a_token_that_somebody_else_holds() -> None:
    limiter = anyio.CapacityLimiter(1)
    fetch = Recorder[int, int](lambda key: key)
    async with DataLoader(fetch, limiter=limiter) as loader:
        async with limiter:
            handle = loader.load(1)
            await wait_all_tasks_blocked()
            assert fetch.calls == []
        assert await handle == 1


async def test_a_batch_that_waits_for_a_token_holds_no_other_one() -> None:
    """Or who awaits a load that needs the other one might wait for that batch, and it for him."""
    both, one = anyio.CapacityLimiter(2), anyio.CapacityLimiter(1)
    goes_on, ends = anyio.Event(), anyio.Event()

    async def fetch(keys: list[int]) -> list[int]:
        if keys == [1]:
            await goes_on.wait()
            await below.load(1)
        return keys

    async with LoaderScope(limiter=both):
        blocking = DataLoader(Recorder[int, int](int, gate=ends))
        loader = DataLoader(fetch, limiter=one)
        below = DataLoader(Recorder[int, int](int))
        loads = [blocking.load(0)]
        await wait_all_tasks_blocked()
        for key in 1, 2:  # the second one waits for a token of each limiter
            loads.append(loader.load(key))
            await wait_all_tasks_blocked()
        goes_on.set()
        await wait_all_tasks_blocked()
        ends.set()
        assert [await load for load in loads] == [0, 1, 2]


# --- given back ---


@pytest.mark.parametrize("error", [OSError, None], ids=["error", "wrong result"])
async def test_a_token_is_given_back_after_a_failure(error: type[Exception] | None) -> None:
    failing = True

    async def fetch(keys: list[int]) -> list[int]:
        await checkpoint()
        if not failing:
            return keys
        if error is not None:
            raise error
        return []

    limiter = anyio.CapacityLimiter(1)
    async with DataLoader(fetch, batch=False, limiter=limiter) as loader:
        for outcome in await loader.load_many(range(3), return_exceptions=True):
            assert isinstance(outcome, Exception)
        assert limiter.borrowed_tokens == 0
        failing = False
        assert await loader.load_many(range(3)) == [0, 1, 2]


async def test_a_token_is_given_back_after_a_stray_cancellation() -> None:
    stray = True

    async def fetch(keys: list[int]) -> list[int]:
        await checkpoint()
        if stray:
            raise cancelled
        return keys

    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await checkpoint()
        except anyio.get_cancelled_exc_class() as exc:
            cancelled = exc

    limiter = anyio.CapacityLimiter(1)
    async with DataLoader(fetch, limiter=limiter) as loader:
        with pytest.raises(LoadCancelledError):
            await loader.load(1)
        await wait_all_tasks_blocked()
        assert limiter.borrowed_tokens == 0
        stray = False
        assert await loader.load(1) == 1


async def test_a_token_is_given_back_when_a_cancelled_function_has_cleaned_up() -> None:
    cleanup = anyio.Event()

    async def fetch(keys: list[int]) -> list[int]:
        if keys == [1]:
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await cleanup.wait()
        return keys

    limiter = anyio.CapacityLimiter(1)
    async with DataLoader(fetch, limiter=limiter) as loader, anyio.create_task_group() as tg:
        tg.start_soon(loader.load, 1)
        await wait_all_tasks_blocked()
        tg.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            next_one = loader.load(2)
            await wait_all_tasks_blocked()
            assert limiter.borrowed_tokens == 1, "it still runs"
            assert next_one.status is next_one.Status.PENDING
            cleanup.set()
            assert await next_one == 2
    assert limiter.borrowed_tokens == 0


async def test_tokens_are_given_back_when_a_scope_is_left() -> None:
    limiter = anyio.CapacityLimiter(2)
    async with DataLoader(Gauge(), batch=False, limiter=limiter) as loader:
        loader.load_many(range(5))
        await wait_all_tasks_blocked()
        assert limiter.borrowed_tokens == 2
        assert limiter.statistics().tasks_waiting == 3
    assert limiter.borrowed_tokens == 0
    assert limiter.statistics().tasks_waiting == 0


async def test_batches_that_wait_for_a_token_finish_if_somebody_awaits_them() -> None:
    limiter = anyio.CapacityLimiter(1)
    results: list[list[int]] = []
    fetch = Recorder[int, int](lambda key: key)

    async with anyio.create_task_group() as tg:

        async def load() -> None:
            results.append(await loader.load_many([1, 2, 3]))

        async with DataLoader(fetch, batch=False, limiter=limiter) as loader:
            tg.start_soon(load)
            await wait_all_tasks_blocked()
    assert results == [[1, 2, 3]]


@pytest.mark.only_on("asyncio")
@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.TaskGroup is new in Python 3.11")
@pytest.mark.parametrize("rounds", range(6))
async def test_tokens_are_given_back_whenever_an_asyncio_group_fails(rounds: int) -> None:
    """Also where two batches have just left: it cancels the task of the second before that has begun."""
    limiter = anyio.CapacityLimiter(2)

    async def fail() -> None:
        for _ in range(rounds):
            await checkpoint()
        raise ConnectionError

    with pytest.raises(Exception, match="unhandled errors in a TaskGroup"):
        async with asyncio.TaskGroup() as tg:  # type: ignore[attr-defined,unused-ignore]  # pyright: ignore
            group: Any = tg
            async with LoaderScope(group, limiter=limiter) as scope:
                for fetch in Gauge(), Gauge():
                    scope.get(fetch).load(1)
                group.create_task(fail())
                await anyio.sleep_forever()
    assert limiter.borrowed_tokens == 0


# --- given up while waiting for a token ---


async def test_a_batch_given_up_while_it_waits_for_a_token_is_not_called() -> None:
    limiter = anyio.CapacityLimiter(1)
    fetch = Recorder[int, int](lambda key: key)
    async with DataLoader(fetch, limiter=limiter) as loader:
        async with limiter:
            async with anyio.create_task_group() as tg:
                tg.start_soon(loader.load, 1)
                tg.start_soon(loader.load_many, [1, 2])
                await wait_all_tasks_blocked()
                assert limiter.statistics().tasks_waiting == 1
                tg.cancel_scope.cancel()
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()  # it gets its token, and gives it back
        assert limiter.statistics().tasks_waiting == limiter.borrowed_tokens == 0
        assert fetch.calls == []

        assert await loader.load_many([1, 2]) == [1, 2]
    assert limiter.borrowed_tokens == 0


async def test_a_batch_that_somebody_still_wants_goes_on_waiting_for_its_token() -> None:
    limiter = anyio.CapacityLimiter(1)
    fetch = Recorder[int, int](lambda key: key)
    async with DataLoader(fetch, limiter=limiter) as loader:
        async with limiter:
            wanted = loader.load(2)  # never awaited so far is not given up
            async with anyio.create_task_group() as tg:
                tg.start_soon(loader.load, 1)
                await wait_all_tasks_blocked()
                tg.cancel_scope.cancel()
            await wait_all_tasks_blocked()
            assert limiter.statistics().tasks_waiting == 1
        assert await wanted == 2


async def test_a_batch_given_up_as_it_gets_its_token_gives_it_back() -> None:
    """Whichever comes first in that round, the next batch runs."""
    for cancel_first in (True, False):
        limiter = anyio.CapacityLimiter(1)
        fetch = Recorder[int, int](lambda key: key)
        async with DataLoader(fetch, limiter=limiter) as loader, anyio.create_task_group() as tg:
            await limiter.acquire()
            tg.start_soon(loader.load, 1)
            await wait_all_tasks_blocked()
            if cancel_first:
                tg.cancel_scope.cancel()
                limiter.release()
            else:
                limiter.release()
                tg.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
                assert limiter.borrowed_tokens == 0
                assert await loader.load(2) == 2
