"""``gather`` awaits several at the same time, and raises the first error as it is."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

from anyloader import DataLoader, KeyNotFoundError, gather
from anyloader.testing import RecordingBatchFn
from support import wait_all_tasks_blocked

pytestmark = pytest.mark.anyio


async def test_values_come_in_the_order_of_the_arguments_and_loads_share_batches() -> None:
    fetch = RecordingBatchFn[int, int](lambda key: key * 10)

    async def twice(key: int) -> int:
        return await loader.load(await loader.load(key))

    async with DataLoader(fetch) as loader:
        assert await gather(*map(twice, (3, 1, 2))) == (300, 100, 200)
        assert await gather(loader.load(1), twice(1)) == (10, 100)
    assert [sorted(keys) for keys in fetch.batches] == [[1, 2, 3], [10, 20, 30]]


async def test_nothing_to_await() -> None:
    assert await gather() == ()


async def test_the_first_error_comes_out_bare_after_the_others_have_ended() -> None:
    ended: list[str] = []

    async def waits() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            ended.append("waits")

    async def fetch(keys: list[int]) -> dict[int, int]:
        return {}

    async with DataLoader(fetch) as loader:
        with pytest.raises(KeyNotFoundError) as caught:
            await gather(waits(), loader.load_required(1), waits())
    assert ended == ["waits", "waits"]
    assert caught.value.__context__ is None


async def test_errors_after_the_first_are_dropped() -> None:
    async def fails_when_cancelled() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise KeyError("second")

    async def fails() -> None:
        raise LookupError("first")

    with pytest.raises(LookupError, match="first"):
        await gather(fails_when_cancelled(), fails())


async def test_a_cancelled_caller_cancels_all_and_waits_for_them() -> None:
    ended: list[int] = []

    async def waits(number: int) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(number)

    async with anyio.create_task_group() as group:

        async def gathers() -> None:
            with anyio.CancelScope() as inner:
                scopes.append(inner)
                await gather(waits(1), waits(2))
            assert inner.cancelled_caught
            assert sorted(ended) == [1, 2]

        scopes: list[anyio.CancelScope] = []
        group.start_soon(gathers)
        await wait_all_tasks_blocked()
        scopes[0].cancel()


@pytest.mark.only_on("asyncio")
async def test_a_future_that_was_cancelled_is_no_value() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    future.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gather(future, anyio.lowlevel.checkpoint())


async def test_what_cannot_be_awaited_is_refused_before_anything_runs() -> None:
    async def runs() -> None:
        pytest.fail("this was awaited")

    wrong: Any = 3
    with pytest.raises(TypeError, match="not int"):
        await gather(runs(), wrong)
