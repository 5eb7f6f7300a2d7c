"""What is given up, primed or taken out before the seal is not sent (contract 2.5, 5.2, 6.3)."""

from __future__ import annotations

import anyio
import pytest

from anyloader import (
    DataLoader,
    LoadHandle,
)
from support import Recorder, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio


async def test_what_is_given_up_or_taken_out_after_the_seal_is_not_sent() -> None:
    limiter = anyio.CapacityLimiter(1)
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, limiter=limiter) as loader:
        await limiter.acquire_on_behalf_of(recorder)
        first, second, third = loader.load(1), loader.load(2), loader.load(3)
        loader.dispatch()
        await wait_all_tasks_blocked()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await first
        loader.prime(2, 20, force=True)
        limiter.release_on_behalf_of(recorder)
        assert [await second, await third] == [20, 3]
    assert recorder.calls == [[3]]


async def test_a_batch_that_nobody_wants_at_its_seal_asks_for_no_token() -> None:
    limiter = anyio.CapacityLimiter(1)
    async with DataLoader(Recorder[int, int](abs), limiter=limiter) as loader, limiter:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await loader.load(1)
        await wait_all_tasks_blocked()
        assert limiter.statistics().tasks_waiting == 0


async def test_a_batch_is_not_sent_if_what_was_wanted_of_it_is_primed() -> None:
    """The other key was given up while the batch waited for its token."""
    limiter = anyio.CapacityLimiter(1)
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, limiter=limiter) as loader:
        await limiter.acquire_on_behalf_of(recorder)
        first, second = loader.load(1), loader.load(2)
        loader.dispatch()
        await wait_all_tasks_blocked()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await first
        loader.prime(2, 20, force=True)
        assert first.status is LoadHandle.Status.CANCELLED
        limiter.release_on_behalf_of(recorder)
        assert await second == 20
        await wait_all_tasks_blocked()
    assert recorder.calls == []


@pytest.mark.parametrize("many", [False, True])
async def test_a_cancellation_around_a_scope_comes_out_as_such_whenever_it_comes(
    many: bool,
) -> None:
    """Also where it has reached the batch, and not yet who is about to await it."""

    async def fetch(keys: list[int]) -> list[int]:
        await anyio.lowlevel.checkpoint()
        return keys

    async def block(around: anyio.CancelScope) -> None:
        with around:
            async with DataLoader(fetch) as loader:
                for key in range(3):
                    await (loader.load_many([key, -key]) if many else loader.load(key))
        was_cancelled.append(around.cancelled_caught)

    was_cancelled: list[bool] = []
    for rounds in range(40):
        around = anyio.CancelScope()
        async with anyio.create_task_group() as tg:
            tg.start_soon(block, around)
            for _ in range(rounds):
                await anyio.lowlevel.checkpoint()
            around.cancel()
    assert was_cancelled[0]
    assert not was_cancelled[-1]
