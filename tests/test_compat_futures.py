"""Futures of ``compat`` are given up by ``cancel()``, and end as futures do (contract 5.2)."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

from anyloader import (
    LoadCancelledError,
    LoadDeadlockError,
    LoaderClosedError,
    LoaderScope,
    schedules,
)
from anyloader._dispatcher import ambient
from anyloader.compat import DataLoader
from support import Recorder, wait_all_tasks_blocked

pytestmark = [pytest.mark.anyio, pytest.mark.only_on("asyncio")]


def same(key: int) -> int:
    return key


@pytest.mark.parametrize("cache", [True, False])
async def test_futures_that_are_cancelled_at_once_call_nothing(cache: bool) -> None:
    fetch = Recorder[int, int](same)
    async with LoaderScope():
        loader = DataLoader(fetch, cache=cache)
        futures: list[Any] = [loader.load(1), loader.load(2), loader.load_many([3, 4])]
        assert [future.cancel() for future in futures] == [True] * 3
        await wait_all_tasks_blocked()
        assert fetch.calls == []
        assert [future.cancelled() for future in futures] == [True] * 3
        assert [future.cancel() for future in futures] == [False] * 3


async def test_only_what_was_given_up_leaves_the_batch() -> None:
    fetch = Recorder[int, int](same)
    async with LoaderScope():
        loader = DataLoader(fetch)
        first, second, third = map(loader.load, (1, 2, 3))
        second.cancel()
        assert [await first, await third] == [1, 3]
        assert fetch.calls == [[1, 3]]
        assert await loader.load(2) == 2


async def test_the_other_load_of_a_key_is_left_alone() -> None:
    fetch = Recorder[int, int](same)
    async with LoaderScope():
        loader = DataLoader(fetch)
        first, second = loader.load(1), loader.load(1)
        first.cancel()
        assert await second == 1
        with pytest.raises(asyncio.CancelledError):
            await first
    assert fetch.calls == [[1]]


@pytest.mark.parametrize("how", ["bare", "awaited", "callback", "many"])
async def test_a_batch_that_runs_for_cancelled_futures_is_cancelled(how: str) -> None:
    ends: list[str] = []

    async def fetch(keys: list[int]) -> list[int]:
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise
        return keys

    async def waits(future: Any) -> None:
        with pytest.raises(asyncio.CancelledError):
            await future
        ends.append("told")

    async with LoaderScope(), anyio.create_task_group() as tg:
        loader = DataLoader(fetch)
        future: Any = loader.load_many([1, 2]) if how == "many" else loader.load(1)
        if how == "awaited":
            tg.start_soon(waits, future)
        elif how == "callback":
            future.add_done_callback(lambda future: ends.append("told"))
        await wait_all_tasks_blocked()
        assert future.cancel()
        await wait_all_tasks_blocked()
        told = ["told"] if how in ("awaited", "callback") else []
        assert sorted(ends) == ["cancelled", *told]


# --- gather ---


@pytest.mark.parametrize("return_exceptions", [False, True])
async def test_a_cancelled_gather_ends(return_exceptions: bool) -> None:
    fetch = Recorder[int, int](same, gate=anyio.Event())
    async with LoaderScope():
        loader = DataLoader(fetch)
        gathered: Any = asyncio.gather(
            loader.load(1), loader.load(2), return_exceptions=return_exceptions
        )
        await wait_all_tasks_blocked()
        assert gathered.cancel()
        done, _ = await asyncio.wait([gathered], timeout=2)
        assert done
        assert type(gathered.exception()) is asyncio.CancelledError  # as with asyncio's own futures
        await wait_all_tasks_blocked()
        assert loader.statistics().running == 0, "nobody waits for the batch any more"


async def test_a_cancelled_gather_keeps_its_message() -> None:
    fetch = Recorder[int, int](same, gate=anyio.Event())
    async with LoaderScope():
        loader = DataLoader(fetch)
        gathered: Any = asyncio.gather(loader.load(1), return_exceptions=True)
        await wait_all_tasks_blocked()
        gathered.cancel("enough")
        done, _ = await asyncio.wait([gathered], timeout=2)
        assert done
        with pytest.raises(asyncio.CancelledError) as caught:
            await gathered
        assert caught.value.args in (("enough",), ())


async def test_a_gather_of_which_one_was_cancelled_alone() -> None:
    async with LoaderScope():
        loader = DataLoader(Recorder[int, int](same))
        first, second = loader.load(1), loader.load(2)
        gathered: Any = asyncio.gather(first, second, return_exceptions=True)
        first.cancel()
        one, two = await gathered
        assert isinstance(one, asyncio.CancelledError)
        assert two == 2


async def test_a_bare_gather_still_works() -> None:
    fetch = Recorder[int, int](same)
    async with LoaderScope():
        loader = DataLoader(fetch)
        assert await asyncio.gather(*map(loader.load, range(5))) == [*range(5)]
        assert await asyncio.gather(*map(loader.load, range(5))) == [*range(5)]
    assert fetch.calls == [[*range(5)]]


async def test_wait_for_and_wait_and_shield() -> None:
    gate = anyio.Event()
    fetch = Recorder[int, int](same, gate=gate)
    async with LoaderScope():
        loader = DataLoader(fetch)
        futures: list[Any] = [*map(loader.load, (1, 2, 3))]
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(futures[0]), 0.001)
        gate.set()
        done, pending = await asyncio.wait(futures, timeout=5)
        assert (len(done), len(pending)) == (3, 0)
        assert await asyncio.wait_for(futures[0], 5) == 1


@pytest.mark.parametrize("many", [False, True])
async def test_what_wait_waits_for_no_longer_is_wanted_but_not_awaited(many: bool) -> None:
    running: list[list[int]] = []
    futures: list[Any] = []

    async def fetch(keys: list[int]) -> list[int]:
        if 1 in keys:
            return keys
        running.append(keys)
        try:
            await anyio.sleep_forever()
        finally:
            running.remove(keys)
        return keys

    with anyio.fail_after(5):
        async with LoaderScope():
            loader = DataLoader(fetch, max_batch_size=1)
            first = loader.load(1)
            futures += [first, loader.load_many([2]) if many else loader.load(2)]
            for _ in range(3):  # as it may be asked again and again
                done, _ = await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
                assert done == {first}
                await wait_all_tasks_blocked()
                assert running == [[2]]
    assert running == []
    with pytest.raises(LoadCancelledError):
        await futures[1]


@pytest.mark.parametrize("end", ["wait", "cancel"])
async def test_while_a_scope_is_left_it_may_be_waited_for_again_and_again(end: str) -> None:
    gate = anyio.Event()
    fetch = Recorder[int, int](same, gate=gate)
    waits = 0
    futures: list[Any] = []

    async def poll(future: Any) -> None:
        nonlocal waits
        while not (await asyncio.wait([future], timeout=0))[0]:
            waits += 1
            if waits == 5 and end == "cancel":
                return
            if waits == 5:
                gate.set()

    async with anyio.create_task_group() as tg:
        async with LoaderScope():
            futures.append(DataLoader(fetch).load(1))
            tg.start_soon(poll, futures[0])
            await anyio.lowlevel.checkpoint()
    if end == "cancel":
        with pytest.raises(LoadCancelledError):
            await futures[0]
    else:
        assert await futures[0] == 1


async def test_where_it_cannot_be_waited_for_the_error_is_its_outcome() -> None:
    """Its own batch function gathers it, which can never end."""
    seen: list[Any] = []

    async def fetch(keys: list[int]) -> list[int]:
        future: Any = loader.load(keys[0])
        future.add_done_callback(seen.append)
        assert future.done()
        with pytest.raises(LoadDeadlockError):
            future.result()
        seen.append(future.exception())
        return keys

    async with LoaderScope():
        loader = DataLoader(fetch)
        assert await loader.load(1) == 1
        await wait_all_tasks_blocked()
    assert isinstance(seen[0], LoadDeadlockError)
    assert len(seen) == 2


async def test_one_of_two_tasks_that_await_it_can_be_cancelled() -> None:
    fetch = Recorder[int, int](same, gate=anyio.Event())
    async with LoaderScope():
        loader = DataLoader(fetch)
        future: Any = loader.load(1)
        done: list[int] = []

        async def waits() -> None:
            done.append(await future)

        async with anyio.create_task_group() as tg:
            tg.start_soon(waits)
            with anyio.move_on_after(0):
                await future
            await wait_all_tasks_blocked()
            assert fetch.gate
            fetch.gate.set()
    assert done == [1]


async def test_its_loop_is_the_one_that_runs_where_it_can_load() -> None:
    """Code that keeps a loader, and compares loops, makes a new one for each scope."""
    loader = DataLoader(Recorder[int, int](same))
    running = asyncio.get_running_loop()
    async with LoaderScope():
        assert loader.loop is running  # as it belongs nowhere yet
        await loader.load(1)
        assert loader.loop is running
        async with LoaderScope():
            assert loader.loop is running
        assert await anyio.to_thread.run_sync(lambda: loader.loop) is None
        async with anyio.create_task_group() as tg:
            tg.start_soon(in_another_scope, loader)
    assert loader.loop is None
    async with LoaderScope():
        assert loader.loop is None


async def in_another_scope(loader: Any) -> None:
    ambient.set(None)
    async with LoaderScope():
        assert loader.loop is None


def test_a_class_has_no_loop_and_can_be_copied() -> None:
    kept: Any = DataLoader.loop
    copied = type("Copied", (DataLoader,), {"loop": kept})
    assert copied(Recorder[int, int](same)).loop is None  # nothing runs here


async def test_tasks_that_are_cancelled_as_it_settles() -> None:
    fetch = Recorder[int, int](same)
    async with LoaderScope():
        future: Any = DataLoader(fetch).load(1)
        tasks = [asyncio.ensure_future(waits_for(future)) for _ in range(2)]
        await asyncio.sleep(0)
        future.add_done_callback(lambda _: tasks[1].cancel())
        tasks[0].cancel()
        future.cancel()
        await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)


async def test_futures_of_a_group_that_has_ended_unheard() -> None:
    async with anyio.create_task_group() as tg:
        awaited, cancelled = (
            DataLoader(Recorder(same), task_group=tg, schedule=schedules.manual()).load(1)
            for _ in range(2)
        )
    cancelled.cancel()  # pyright: ignore[reportPossiblyUnboundVariable]
    with pytest.raises(LoaderClosedError):
        await awaited  # pyright: ignore[reportGeneralTypeIssues, reportPossiblyUnboundVariable]


async def waits_for(future: Any) -> Any:
    return await future


async def test_a_batch_function_that_gave_up_a_future_does_not_wait_for_it() -> None:
    async def fetch_outer(keys: list[int]) -> list[int]:
        future: Any = inner.load(1)
        await wait_all_tasks_blocked()
        assert future.cancel()
        resumed.set()
        await wait_all_tasks_blocked()
        return keys

    async def fetch_inner(keys: list[int]) -> list[int]:
        await resumed.wait()
        return [await outer.load(key) for key in keys]  # which nobody waits for now

    async with LoaderScope():
        outer, inner = DataLoader(fetch_outer), DataLoader(fetch_inner)
        resumed = anyio.Event()
        wanted: Any = asyncio.gather(outer.load(1), inner.load(1))
        assert await wanted == [1, 1]


@pytest.mark.parametrize("many", [False, True])
async def test_a_batch_function_may_give_up_what_it_could_not_wait_for(many: bool) -> None:
    """As ``cancel()`` of any future, which never raises."""
    given_up: list[bool] = []

    async def fetch(keys: list[int]) -> list[int]:
        future: Any = loader.load_many(keys) if many else loader.load(keys[0])
        given_up.extend([future.cancel(), future.cancelled()])
        return keys

    async with LoaderScope():
        loader = DataLoader(fetch)
        assert await loader.load(1) == 1
    assert given_up == [True, True]


async def test_who_is_cancelled_can_ask_a_future_whose_load_was() -> None:
    """``result`` waits for nothing, not even for the cancellation of who asks."""
    async with LoaderScope() as scope:
        loader = DataLoader(Recorder(same))
        futures: list[Any] = [loader.load(1), loader.load_many([2, 3])]
        scope.cancel("the test ends")
        with anyio.CancelScope() as around:  # noqa: ASYNC100 - that nothing is awaited is the point
            around.cancel()
            for future in futures:
                with pytest.raises(LoadCancelledError):
                    future.result()
                assert isinstance(future.exception(), LoadCancelledError)
    assert not around.cancelled_caught
