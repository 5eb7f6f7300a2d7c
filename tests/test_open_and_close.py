"""``LoaderScope.open()`` and ``aclose()``: opened in one task, closed in another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest

from anyloader import (
    DataLoader,
    LoadCancelledError,
    LoaderClosedError,
    LoaderNotOpenError,
    LoaderScope,
    batch_loader,
    current_scope,
)
from anyloader.testing import RecordingBatchFn
from support import wait_all_tasks_blocked
from support.tasks import CleansUp, cancel_natively_again_and_again

pytestmark = pytest.mark.anyio


async def echo(keys: list[int]) -> list[int]:
    return keys


@batch_loader
async def stated(keys: list[int]) -> list[int]:
    return keys


async def in_another_task(work: Callable[[], Coroutine[Any, Any, object]]) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(work)


async def test_it_is_opened_in_one_task_and_closed_in_another() -> None:
    scope = LoaderScope()
    await in_another_task(scope.open)
    loader = scope.get(echo)
    assert await loader.load(1) == 1
    await in_another_task(scope.aclose)
    with pytest.raises(LoaderClosedError):
        loader.load(1)
    await scope.aclose()


async def test_it_is_ambient_for_the_caller_until_it_is_closed() -> None:
    async with LoaderScope() as outer:
        scope = await LoaderScope().open()
        assert current_scope() is scope
        assert await stated.load(1) == 1
        assert await DataLoader(echo).load(2) == 2
        await scope.aclose()
        assert current_scope() is outer


async def test_what_nobody_awaits_is_cancelled_and_what_somebody_awaits_is_finished() -> None:
    gate = anyio.Event()
    scope = await LoaderScope().open()
    slow = scope.get(RecordingBatchFn[int, int](gate=gate))
    wanted = slow.load(1)
    unwanted = scope.get(RecordingBatchFn[int, int](gate=anyio.Event())).load(1)
    async with anyio.create_task_group() as group:
        group.start_soon(wanted.wait)
        await wait_all_tasks_blocked()
        group.start_soon(scope.aclose)
        await wait_all_tasks_blocked()
        gate.set()
    assert wanted.return_value == 1
    with pytest.raises(LoadCancelledError):
        await unwanted


async def test_a_closer_that_is_cancelled_cancels_and_waits() -> None:
    scope = await LoaderScope().open()
    handle = scope.get(RecordingBatchFn[int, int](gate=anyio.Event())).load(1)

    async def waits() -> None:
        with pytest.raises(LoadCancelledError):
            await handle

    async with anyio.create_task_group() as group:
        group.start_soon(waits)
        await wait_all_tasks_blocked()
        with anyio.CancelScope() as closing:
            closing.cancel()
            await scope.aclose()
        assert closing.cancelled_caught
        assert "closed" in repr(scope)


@pytest.mark.only_on("asyncio")
async def test_a_closer_waits_however_often_it_is_cancelled_natively() -> None:
    fetch = CleansUp()
    scope = await LoaderScope().open()
    handle = scope.get(fetch).load(1)
    await wait_all_tasks_blocked()
    await cancel_natively_again_and_again(scope.aclose(), fetch, "closed")
    assert fetch.events == ["cleaned up", "closed"]
    with pytest.raises(LoadCancelledError):
        await handle


async def test_it_opens_whole_though_the_caller_is_being_cancelled() -> None:
    scope = LoaderScope()
    with anyio.CancelScope() as cancelled:
        cancelled.cancel()
        await scope.open()
    assert await scope.get(echo).load(1) == 1
    await scope.aclose()


@pytest.mark.only_on("asyncio")
async def test_one_whose_opening_is_cancelled_natively_ends() -> None:
    scope = LoaderScope()
    opening = asyncio.create_task(scope.open())
    if (
        asyncio.get_running_loop().get_task_factory() is None
    ):  # an eager one has made its first step
        await asyncio.sleep(0)
    opening.cancel()
    await asyncio.wait([opening])
    await wait_all_tasks_blocked()
    assert opening.cancelled()
    assert "closed" in repr(scope)


async def test_opening_twice_and_closing_what_was_not_opened_are_errors() -> None:
    scope = LoaderScope()
    with pytest.raises(LoaderNotOpenError, match="not opened"):
        await scope.aclose()
    await scope.open()
    with pytest.raises(RuntimeError, match="once"):
        await scope.open()
    with pytest.raises(RuntimeError, match="once"):
        await scope.__aenter__()
    await scope.aclose()
    async with LoaderScope() as entered:
        with pytest.raises(LoaderNotOpenError, match="not opened"):
            await entered.aclose()


async def test_what_it_cannot_be_entered_for_comes_out_of_open() -> None:
    scope = LoaderScope(inside=LoaderScope())
    with pytest.raises(LoaderNotOpenError, match="not entered"):
        await scope.open()


async def test_of_two_tasks_that_open_it_at_once_one_does() -> None:
    scope = LoaderScope()
    ends: list[str] = []

    async def opens() -> None:
        try:
            await scope.open()
        except RuntimeError as exc:
            ends.append(str(exc)[:42])
        else:
            ends.append("opened")

    async with anyio.create_task_group() as group:
        group.start_soon(opens)
        group.start_soon(opens)
    assert sorted(ends) == ["a LoaderScope can be entered once; make a ", "opened"]
    assert await scope.get(echo).load(1) == 1
    await scope.aclose()
    with pytest.raises(LoaderClosedError):
        scope.get(echo)


async def test_what_goes_through_a_group_comes_out_of_aclose() -> None:
    class Stop(BaseException):
        pass

    async def stops(keys: list[int]) -> list[int]:
        raise Stop

    scope = await LoaderScope().open()
    with pytest.raises(LoadCancelledError):
        await scope.get(stops).load(1)
    with pytest.raises(Stop):
        await scope.aclose()


async def test_a_batch_function_cannot_wait_for_its_own_end() -> None:
    async def closes(keys: list[int]) -> list[int]:
        with pytest.raises(RuntimeError, match="end of the scope that it runs in"):
            await scope.aclose()
        return keys

    scope = await LoaderScope().open()
    assert await scope.get(closes).load(1) == 1
    await scope.aclose()


async def test_it_is_not_closed_from_another_event_loop() -> None:
    scope = await LoaderScope().open()
    with pytest.raises(RuntimeError, match="event loop"):
        await anyio.to_thread.run_sync(anyio.run, scope.aclose)
    assert await scope.get(echo).load(1) == 1
    await scope.aclose()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_one_that_is_never_closed_ends_with_its_event_loop(
    backend: str, leftovers: list[str]
) -> None:
    pytest.importorskip(backend)

    async def main() -> LoaderScope:
        scope = await LoaderScope().open()
        assert await scope.get(echo).load(1) == 1
        return scope

    assert "closed" in repr(anyio.run(main, backend=backend))
    # The task that held it, and a worker's: pending still when the loop had nothing else to do.
    assert bool(leftovers) == (backend == "asyncio")
    leftovers.clear()


async def test_closing_it_inside_of_another_scope_leaves_that_one_alone() -> None:
    scope = await LoaderScope().open()
    async with LoaderScope() as inner:
        await scope.aclose()
        assert current_scope() is inner
        assert await stated.load(1) == 1
