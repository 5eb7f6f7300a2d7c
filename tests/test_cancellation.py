"""Contract 5.1 and 5.3: a waiter that is cancelled, by whatever means, affects nobody else."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import pytest

import anyloader
from anyloader import (
    DataLoader,
    LoadHandle,
    schedules,
)
from support import Recorder, run_seeds, wait_all_tasks_blocked
from support.loads import cancel_once_blocked

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

pytestmark = pytest.mark.anyio

Way = Callable[[Coroutine[Any, Any, Any]], Awaitable[None]]


class Failed(Exception):
    pass


async def _await(awaitable: Awaitable[object]) -> None:
    await awaitable


# --- the ways in which an await can end early; each returns once it has ---


async def scope(load: Coroutine[Any, Any, Any]) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(_await, load)
        await wait_all_tasks_blocked()
        tg.cancel_scope.cancel()


async def cancelled_scope(load: Coroutine[Any, Any, Any]) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await load
    assert scope.cancelled_caught


async def deadline(load: Coroutine[Any, Any, Any]) -> None:
    with pytest.raises(TimeoutError), anyio.fail_after(0):
        await load


async def sibling_fails(load: Coroutine[Any, Any, Any]) -> None:
    with pytest.raises(ExceptionGroup):
        async with anyio.create_task_group() as tg:
            tg.start_soon(_await, load)
            await wait_all_tasks_blocked()
            raise Failed


async def trio_scope(load: Coroutine[Any, Any, Any]) -> None:
    import trio.testing

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_await, load)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def trio_deadline(load: Coroutine[Any, Any, Any]) -> None:
    import trio.testing

    with trio.move_on_after(0) as scope:
        await load
    assert scope.cancelled_caught


async def trio_sibling_fails(load: Coroutine[Any, Any, Any]) -> None:
    import trio.testing

    with pytest.raises(ExceptionGroup):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_await, load)
            await trio.testing.wait_all_tasks_blocked()
            raise Failed


async def task_cancel(load: Coroutine[Any, Any, Any]) -> None:
    await _cancel_when_blocked(asyncio.create_task(_await(load)))


async def task_of_the_load_cancel(load: Coroutine[Any, Any, Any]) -> None:
    await _cancel_when_blocked(asyncio.create_task(load))


async def gather_cancel(load: Coroutine[Any, Any, Any]) -> None:
    async def gather() -> None:
        await asyncio.gather(load, asyncio.Event().wait())

    await _cancel_when_blocked(asyncio.create_task(gather()))


async def _cancel_when_blocked(task: asyncio.Task[Any]) -> None:
    await wait_all_tasks_blocked()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def wait_for(load: Coroutine[Any, Any, Any]) -> None:
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(load, 1e-6)


async def wait_for_is_cancelled(load: Coroutine[Any, Any, Any]) -> None:
    await _cancel_when_blocked(asyncio.create_task(asyncio.wait_for(load, 3600)))


ANYIO_WAYS: list[Way] = [scope, cancelled_scope, deadline, sibling_fails]

TRIO_WAYS: list[Way] = [trio_scope, trio_deadline, trio_sibling_fails]

ASYNCIO_WAYS: list[Way] = [
    task_cancel,
    task_of_the_load_cancel,
    gather_cancel,
    wait_for,
    wait_for_is_cancelled,
]

if sys.version_info >= (3, 11):

    async def timeout(load: Coroutine[Any, Any, Any]) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await load

    async def asyncio_sibling_fails(load: Coroutine[Any, Any, Any]) -> None:
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as tg:
                tg.create_task(load)
                await wait_all_tasks_blocked()
                raise Failed

    ASYNCIO_WAYS += [timeout, asyncio_sibling_fails]

# --- 5.1: no other waiter, handle, load or later load ---


async def others_go_on(way: Way, when: str, of: str) -> None:
    recorder = Recorder[int, int](lambda key: -key, gate=anyio.Event())
    outcomes: dict[str, object] = {}

    async def note(who: str, awaitable: Awaitable[object]) -> None:
        outcomes[who] = await awaitable

    async with DataLoader(recorder, schedule=schedules.manual()) as loader:
        handle = loader.load(1)
        many = loader.load_many([1, 2])
        unawaited = loader.load(1)
        async with anyio.create_task_group() as tg:
            tg.start_soon(note, "same handle", handle)
            tg.start_soon(note, "same load_many", many)
            tg.start_soon(note, "other handle", loader.load(1))
            tg.start_soon(note, "other load_many", loader.load_many([1, 2]))
            tg.start_soon(note, "other key", loader.load(3))
            tg.start_soon(note, "wait", handle.wait())
            if when == "running":
                loader.dispatch()
            await wait_all_tasks_blocked()

            await way(handle.wait() if of == "wait" else many if of == "load_many" else handle)
            tg.start_soon(note, "later load", loader.load(1))
            loader.dispatch()
            await wait_all_tasks_blocked()
            assert outcomes == {}
            assert recorder.gate
            recorder.gate.set()

        assert outcomes == {
            "same handle": -1,
            "same load_many": [-1, -2],
            "other handle": -1,
            "other load_many": [-1, -2],
            "other key": -3,
            "wait": None,
            "later load": -1,
        }
        assert await unawaited == await loader.load(1) == -1
    assert recorder.calls == [[1, 2, 3]]


async def later_load_is_served(way: Way, when: str) -> None:
    """Whoever was cancelled was alone with the key."""
    recorder = Recorder[int, int](lambda key: -key, gate=anyio.Event())
    async with DataLoader(recorder) as loader:
        for key in (1, 2):
            handle = loader.load(key)
            if when == "running":
                await wait_all_tasks_blocked()
            await way(handle)
        assert recorder.gate
        recorder.gate.set()
        assert await loader.load_many([1, 2]) == [-1, -2]
        assert await loader.load(1) == -1


@pytest.mark.parametrize("of", ["handle", "load_many", "wait"])
@pytest.mark.parametrize("when", ["queued", "running"])
@pytest.mark.parametrize("way", ANYIO_WAYS)
async def test_a_cancelled_waiter_affects_nobody_else(way: Way, when: str, of: str) -> None:
    await others_go_on(way, when, of)


@pytest.mark.only_on("trio")
@pytest.mark.parametrize("when", ["queued", "running"])
@pytest.mark.parametrize("way", TRIO_WAYS)
async def test_a_waiter_cancelled_by_trio_affects_nobody_else(way: Way, when: str) -> None:
    await others_go_on(way, when, "handle")


@pytest.mark.only_on("asyncio")
@pytest.mark.parametrize("of", ["handle", "load_many", "wait"])
@pytest.mark.parametrize("when", ["queued", "running"])
@pytest.mark.parametrize("way", ASYNCIO_WAYS)
async def test_a_waiter_cancelled_by_asyncio_affects_nobody_else(
    way: Way, when: str, of: str
) -> None:
    await others_go_on(way, when, of)


@pytest.mark.parametrize("when", ["queued", "running"])
@pytest.mark.parametrize("way", ANYIO_WAYS)
async def test_a_cancelled_waiter_does_not_spoil_later_loads(way: Way, when: str) -> None:
    await later_load_is_served(way, when)


@pytest.mark.only_on("trio")
@pytest.mark.parametrize("when", ["queued", "running"])
@pytest.mark.parametrize("way", TRIO_WAYS)
async def test_a_waiter_cancelled_by_trio_does_not_spoil_later_loads(way: Way, when: str) -> None:
    await later_load_is_served(way, when)


@pytest.mark.only_on("asyncio")
@pytest.mark.parametrize("when", ["queued", "running"])
@pytest.mark.parametrize("way", ASYNCIO_WAYS)
async def test_a_waiter_cancelled_by_asyncio_does_not_spoil_later_loads(
    way: Way, when: str
) -> None:
    await later_load_is_served(way, when)


async def test_cancelling_the_task_that_loaded_first_affects_nobody_else() -> None:
    recorder = Recorder[int, int](lambda key: -key)
    outcomes: list[int] = []

    async def load() -> None:
        outcomes.append(await loader.load(1))

    async with DataLoader(recorder, schedule=schedules.manual()) as loader:
        async with anyio.create_task_group() as others:
            async with anyio.create_task_group() as first:
                first.start_soon(load)
                await wait_all_tasks_blocked()
                others.start_soon(load)
                others.start_soon(load)
                await wait_all_tasks_blocked()
                first.cancel_scope.cancel()
            loader.dispatch()
    assert outcomes == [-1, -1]
    assert recorder.calls == [[1]]


@pytest.mark.only_on("asyncio")
async def test_gather_that_is_cancelled_takes_no_load_of_another_gather_with_it() -> None:
    recorder = Recorder[int, int](lambda key: -key, gate=anyio.Event())
    async with DataLoader(recorder) as loader:
        one = asyncio.gather(*map(loader.load, [1, 2]))
        other = asyncio.gather(*map(loader.load, [2, 3]))
        await wait_all_tasks_blocked()
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        assert recorder.gate
        recorder.gate.set()
        assert await other == [-2, -3]
    assert recorder.calls == [[1, 2, 3]]


# --- a waiter cancelled in the very step in which its load settles ---


@pytest.mark.parametrize("fails", [False, True])
def test_cancelled_in_the_step_in_which_the_load_settles(
    shuffled_backend: str, fails: bool
) -> None:
    async def main() -> object:
        victims = [anyio.CancelScope(), anyio.CancelScope()]
        outcomes: list[object] = []
        calls: list[list[int]] = []

        async def fetch(keys: list[int]) -> list[int]:
            calls.append(keys)
            await wait_all_tasks_blocked()
            for victim in victims:
                victim.cancel()
            if fails:
                raise Failed
            return keys

        async def be_cancelled(load: Awaitable[object], victim: anyio.CancelScope) -> None:
            with victim:
                await load

        async def note(load: Awaitable[object]) -> None:
            try:
                outcomes.append(await load)
            except Failed:
                outcomes.append("failed")

        async with DataLoader(fetch) as loader:
            handle, many = loader.load(1), loader.load_many([1, 2])
            async with anyio.create_task_group() as tg:
                for load, victim in zip((handle, many), victims):
                    tg.start_soon(be_cancelled, load, victim)
                    tg.start_soon(note, load)
            outcomes.sort(key=str)
            if not fails:
                outcomes.append(await loader.load(1))
        return outcomes, calls, handle.status

    outcomes: list[object] = ["failed", "failed"] if fails else [1, [1, 2], 1]
    status = LoadHandle.Status.FAILED if fails else LoadHandle.Status.FINISHED
    assert run_seeds(shuffled_backend, range(20), main) == (outcomes, [[1, 2]], status)


def test_cancelled_by_a_sibling_that_the_same_batch_woke(shuffled_backend: str) -> None:
    async def main() -> object:
        recorder = Recorder[int, int](lambda key: -key)
        victim = anyio.CancelScope()
        outcomes: list[int] = []

        async def cancel_the_victim() -> None:
            await loader.load(2)
            victim.cancel()

        async def be_cancelled() -> None:
            with victim:
                await handle

        async def note() -> None:
            outcomes.append(await handle)

        async with DataLoader(recorder) as loader:
            handle = loader.load(1)
            async with anyio.create_task_group() as tg:
                tg.start_soon(be_cancelled)
                tg.start_soon(cancel_the_victim)
                tg.start_soon(note)
            return outcomes, await loader.load(1), recorder.calls[0].count(1), len(recorder.calls)

    assert run_seeds(shuffled_backend, range(20), main) == ([-1], -1, 1, 1)


@pytest.mark.only_on("asyncio")
async def test_task_cancel_in_the_step_in_which_the_load_settles() -> None:
    tasks: list[asyncio.Task[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        await wait_all_tasks_blocked()
        tasks[0].cancel()
        return keys

    async with DataLoader(fetch) as loader:
        handle = loader.load(1)
        tasks += [asyncio.create_task(handle) for _ in range(3)]
        await asyncio.wait(tasks)
        assert tasks[0].cancelled()
        assert [task.result() for task in tasks[1:]] == [1, 1]
        assert await loader.load(1) == 1


# --- 5.3: n waiters for O(n) ---


@contextmanager
def counting_calls(within: str = "") -> Iterator[list[int]]:
    """Count the calls of functions whose file starts so, and those of C functions made there."""
    count = [0]

    def profile(frame: FrameType, event: str, _arg: object) -> None:
        if event in ("call", "c_call") and frame.f_code.co_filename.startswith(within):
            count[0] += 1

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield count
    finally:
        sys.setprofile(before)


Loads = Callable[[DataLoader[int, int], int], list[Coroutine[Any, Any, Any]]]


def one_handle(loader: DataLoader[int, int], n: int) -> list[Coroutine[Any, Any, Any]]:
    return [loader.load(0)] * n


def one_key(loader: DataLoader[int, int], n: int) -> list[Coroutine[Any, Any, Any]]:
    return [loader.load(0) for _ in range(n)]


def a_key_each(loader: DataLoader[int, int], n: int) -> list[Coroutine[Any, Any, Any]]:
    return [loader.load(key) for key in range(n)]


def one_load_many(loader: DataLoader[int, int], n: int) -> list[Coroutine[Any, Any, Any]]:
    return [loader.load_many([0, 1])] * n


def a_load_many_each(loader: DataLoader[int, int], n: int) -> list[Coroutine[Any, Any, Any]]:
    return [loader.load_many([key, -1]) for key in range(n)]


@pytest.mark.parametrize("when", ["queued", "running"])
@pytest.mark.parametrize(
    "loads", [one_handle, one_key, a_key_each, one_load_many, a_load_many_each]
)
@pytest.mark.parametrize("others", ["alone", "with others"])
async def test_cancelling_n_waiters_costs_o_n(loads: Loads, when: str, others: str) -> None:
    async def crowd(loads: list[Coroutine[Any, Any, Any]], scope: anyio.CancelScope) -> None:
        with scope:
            async with anyio.create_task_group() as tg:
                for load in loads:
                    tg.start_soon(_await, load)
        ended.set()

    async def cost(n: int) -> int:
        count = [0]
        async with (
            DataLoader(
                Recorder[int, int](abs, gate=anyio.Event()), schedule=schedules.manual()
            ) as loader,
            anyio.create_task_group() as tg,
        ):
            if others == "with others":
                loader.load_many(range(n))
            scope = anyio.CancelScope()
            tg.start_soon(crowd, loads(loader, n), scope)
            await wait_all_tasks_blocked()
            if when == "running":
                loader.dispatch()
                await wait_all_tasks_blocked()
            with counting_calls() as count:
                scope.cancel()
                await ended.wait()
                loader.dispatch()
                await wait_all_tasks_blocked()
        return count[0]

    costs = []
    for n in (10, 50, 200):
        ended = anyio.Event()
        costs.append(await cost(n))
    assert costs[2] < 6 * costs[1], costs


async def test_loads_given_up_one_by_one_cost_o_n_under_max_batch_size() -> None:
    async def cost(n: int) -> int:
        recorder = Recorder[int, int](abs)
        async with DataLoader(
            recorder, schedule=schedules.manual(), max_batch_size=2 * n
        ) as loader:
            with counting_calls(str(Path(anyloader.__file__).parent)) as count:
                for key in range(n):
                    await cancelled_scope(loader.load(key))
        return count[0]

    assert await cost(200) < 6 * await cost(50)


@asynccontextmanager
async def native_group(backend: str) -> AsyncIterator[Any]:
    """A task group of the event loop's own library, as its users would write it."""
    if backend == "trio":
        import trio

        async with trio.open_nursery() as nursery:
            yield nursery.start_soon
    elif sys.version_info < (3, 11):
        pytest.skip("asyncio.TaskGroup is new in Python 3.11")
    else:
        async with asyncio.TaskGroup() as tg:
            yield lambda fn, *args: tg.create_task(fn(*args))


@pytest.mark.parametrize("handles", ["one handle", "two handles"])
async def test_a_cancelled_waiter_does_not_cancel_another_one_of_its_key(handles: str) -> None:
    gate = anyio.Event()
    got: list[int] = []
    scope = anyio.CancelScope()

    async def first(load: Awaitable[int]) -> None:
        with scope:
            await load
            got.append(0)

    async def second(load: Awaitable[int]) -> None:
        got.append(await load)

    async with DataLoader(Recorder[int, int](abs, gate=gate)) as loader:
        async with anyio.create_task_group() as tg:
            load = loader.load(-1)
            tg.start_soon(first, load)
            tg.start_soon(second, load if handles == "one handle" else loader.load(-1))
            await cancel_once_blocked(scope)
            gate.set()
        assert got == [1]
        assert await loader.load(-1) == 1


@pytest.mark.virtual_time
async def test_a_waiter_that_times_out_does_not_cancel_another_one_of_its_key() -> None:
    got: list[Any] = []

    async def fetch(keys: list[int]) -> list[int]:
        await anyio.sleep(10)
        return keys

    async def impatient() -> None:
        with anyio.move_on_after(1) as scope:
            await loader.load(1)
        got.append(scope.cancelled_caught)

    async def patient() -> None:
        got.append(await loader.load(1))

    async with DataLoader(fetch) as loader, anyio.create_task_group() as tg:
        tg.start_soon(impatient)
        tg.start_soon(patient)
    assert got == [True, 1]


async def test_a_task_group_does_not_end_with_a_waiter_silently_cancelled(
    anyio_backend_name: str,
) -> None:
    gate = anyio.Event()
    got: list[int] = []
    scope = anyio.CancelScope()

    async def cancelled() -> None:
        with scope:
            await loader.load(-1)

    async def waiter() -> None:
        got.append(await loader.load(-1))

    async with DataLoader(Recorder[int, int](abs, gate=gate)) as loader:
        async with native_group(anyio_backend_name) as start:
            start(cancelled)
            start(waiter)
            await cancel_once_blocked(scope)
            gate.set()
        assert got == [1]
