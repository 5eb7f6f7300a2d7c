"""A handle passes for a coroutine, however it is driven (contract 1)."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import coroutine
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from anyloader import DataLoader, LoadCancelledError, LoaderScope, schedules
from support import Recorder, wait_all_tasks_blocked
from support.handles import KINDS, Ask, tens
from support.loads import double

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

pytestmark = pytest.mark.anyio

# --- checkpoints ---


async def count_rounds(rounds: list[int]) -> None:
    while True:
        rounds[0] += 1
        await checkpoint()


async def outcome(awaitable: Awaitable[object]) -> object:
    try:
        return await awaitable
    except Exception as exc:
        return type(exc)


SETTLED: dict[str, tuple[Callable[[DataLoader[int, int]], Awaitable[object]], object]] = {
    "value": (lambda loader: loader.load(1), 10),
    "error": (lambda loader: loader.load(-1), ValueError),
    "wait": (lambda loader: loader.load(1).wait(), None),
    "wait for error": (lambda loader: loader.load(-1).wait(), None),
    "load_many": (lambda loader: loader.load_many([1, 2]), [10, 20]),
    "load_many of nothing": (lambda loader: loader.load_many([]), []),
    "error of load_many": (lambda loader: loader.load_many([1, -1]), ValueError),
}

WHAT = pytest.mark.parametrize(("ask", "result"), SETTLED.values(), ids=SETTLED)


@WHAT
@pytest.mark.parametrize("when", ["hit", "settled after the load"])
async def test_awaiting_what_is_settled_is_no_checkpoint(
    ask: Callable[[DataLoader[int, int]], Awaitable[object]], result: object, when: str
) -> None:
    async with DataLoader(tens) as loader, anyio.create_task_group() as tg:
        if when == "hit":
            await loader.load_many([1, 2, -1], return_exceptions=True)
            awaitable = ask(loader)
        else:
            awaitable = ask(loader)
            await wait_all_tasks_blocked()
            loader.load_many([1, 2, -1])  # keys that were not asked for are queued still
        rounds = [0]
        tg.start_soon(count_rounds, rounds)
        await checkpoint()
        before = rounds[0]
        assert await outcome(awaitable) == result
        assert rounds[0] == before
        tg.cancel_scope.cancel()


@WHAT
async def test_awaiting_what_is_settled_is_not_cancelled(
    ask: Callable[[DataLoader[int, int]], Awaitable[object]], result: object
) -> None:
    async with DataLoader(tens) as loader:
        await loader.load_many([1, 2, -1], return_exceptions=True)
        with anyio.CancelScope() as scope:
            scope.cancel()
            assert await outcome(ask(loader)) == result
        assert not scope.cancelled_caught


PENDING = {name: what for name, what in SETTLED.items() if name != "load_many of nothing"}


@pytest.mark.parametrize(("ask", "result"), PENDING.values(), ids=PENDING)
async def test_awaiting_what_is_pending_is_a_checkpoint(
    ask: Callable[[DataLoader[int, int]], Awaitable[object]], result: object
) -> None:
    async with DataLoader(tens) as loader, anyio.create_task_group() as tg:
        rounds = [0]
        tg.start_soon(count_rounds, rounds)
        await checkpoint()
        before = rounds[0]
        assert await outcome(ask(loader)) == result
        assert rounds[0] > before
        tg.cancel_scope.cancel()
        loader.clear_all()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await ask(loader)
        assert scope.cancelled_caught


# --- passing for a coroutine ---


@KINDS
async def test_handle_is_a_coroutine_to_those_who_ask(ask: Ask, value: object) -> None:
    async with DataLoader(tens) as loader:
        handle = ask(loader, 1)
        assert isinstance(handle, Coroutine)
        assert inspect.isawaitable(handle)
        assert asyncio.iscoroutine(handle)


async def drive_in_anyio_group(loader: DataLoader[int, int]) -> object:
    async with anyio.create_task_group() as tg:
        tg.start_soon(loader.load, 1)
        tg.start_soon(loader.load_many, [2, 3])
    return [10, 20, 30]


async def drive_by_anyio_handle(loader: DataLoader[int, int]) -> object:
    values: list[object] = []
    async with anyio.create_task_group() as tg:
        task = tg.start_soon(loader.load, 1)
        many = tg.start_soon(loader.load_many, [2, 3])
        values += [await task, *await many]
    return values


async def drive_by_anyio_create_task(loader: DataLoader[int, int]) -> object:
    values: list[object] = []
    async with anyio.create_task_group() as tg:
        task = tg.create_task(loader.load(1))
        many = tg.create_task(loader.load_many([2, 3]))
        values += [await task, *await many]
    return values


async def drive_by_amap(loader: DataLoader[int, int]) -> object:
    if not hasattr(anyio, "amap"):
        pytest.skip("this anyio has no amap()")
    return await anyio.amap(loader.load, [1, 2, 3])


async def drive_by_gather(loader: DataLoader[int, int]) -> object:
    if not hasattr(anyio, "gather"):
        pytest.skip("this anyio has no gather()")
    value, values = await anyio.gather(loader.load(1), loader.load_many([2, 3]))
    return [value, *values]


async def drive_from_threads(loader: DataLoader[int, int]) -> object:
    values: list[Any] = [None, None]

    def work(place: int, *call: Any) -> None:
        values[place] = anyio.from_thread.run(*call)

    async with anyio.create_task_group() as tg:
        tg.start_soon(anyio.to_thread.run_sync, work, 0, loader.load, 1)
        tg.start_soon(anyio.to_thread.run_sync, work, 1, loader.load_many, [2, 3])
        # A batch that threads join cannot be sent at the right moment by anybody here.
        while loader.statistics().queued < 3:
            await checkpoint()
        loader.dispatch()
    return [values[0], *values[1]]


async def drive_in_asyncio_gather(loader: DataLoader[int, int]) -> object:
    handle = loader.load(1)
    value, again, values = await asyncio.gather(handle, handle, loader.load_many([2, 3]))
    assert again == value
    return [value, *values]


async def drive_in_asyncio_tasks(loader: DataLoader[int, int]) -> object:
    task = asyncio.create_task(loader.load(1))
    future = asyncio.ensure_future(loader.load_many([2, 3]))
    assert "Task" in repr(task)  # asyncio looks into the coroutine for it
    return [await task, *await future]


async def drive_in_asyncio_wait_for(loader: DataLoader[int, int]) -> object:
    value = await asyncio.wait_for(loader.load(1), 1_000)
    values = await asyncio.wait_for(loader.load_many([2, 3]), 1_000)
    return [value, *values]


async def drive_in_asyncio_wait(loader: DataLoader[int, int]) -> object:
    tasks = [asyncio.ensure_future(handle) for handle in map(loader.load, [1, 2, 3])]
    await asyncio.wait(tasks)
    return [task.result() for task in tasks]


async def drive_in_asyncio_group(loader: DataLoader[int, int]) -> object:
    if sys.version_info < (3, 11):
        pytest.skip("this Python has no asyncio.TaskGroup")
    async with asyncio.TaskGroup() as tg:
        task = tg.create_task(loader.load(1))
        many = tg.create_task(loader.load_many([2, 3]))
    return [task.result(), *many.result()]


async def drive_in_trio_nursery(loader: DataLoader[int, int]) -> object:
    import trio

    async with trio.open_nursery() as nursery:
        nursery.start_soon(loader.load, 1)
        nursery.start_soon(loader.load_many, [2, 3])
    return [10, 20, 30]


Drive = Callable[[DataLoader[int, int]], Awaitable[object]]


@pytest.mark.parametrize(
    "drive",
    [
        drive_in_anyio_group,
        drive_by_anyio_handle,
        drive_by_anyio_create_task,
        drive_by_amap,
        drive_by_gather,
    ],
)
async def test_handle_can_be_given_to_anyio(drive: Drive) -> None:
    await check(drive)


async def test_handle_can_be_made_from_a_thread() -> None:
    await check(drive_from_threads, schedule=schedules.manual())


@pytest.mark.only_on("asyncio")
@pytest.mark.parametrize(
    "drive",
    [
        drive_in_asyncio_gather,
        drive_in_asyncio_tasks,
        drive_in_asyncio_wait_for,
        drive_in_asyncio_wait,
        drive_in_asyncio_group,
    ],
)
async def test_handle_can_be_given_to_asyncio(drive: Drive) -> None:
    await check(drive)


@pytest.mark.only_on("trio")
async def test_handle_can_be_given_to_trio() -> None:
    await check(drive_in_trio_nursery)


async def check(drive: Drive, **options: Any) -> None:
    """Drive handles of the keys 1 to 3: pending, and then settled."""
    batches = Recorder[int, int](lambda key: key * 10)
    async with DataLoader(batches, **options) as loader:
        assert await drive(loader) == [10, 20, 30]
        # All that asks before it waits is in one batch.
        if drive is not drive_in_asyncio_wait_for:
            assert [sorted(keys) for keys in batches.calls] == [[1, 2, 3]]
        calls = len(batches.calls)
        if drive is not drive_from_threads:
            assert await drive(loader) == [10, 20, 30]
            assert len(batches.calls) == calls


@KINDS
async def test_handle_that_is_given_away_raises_its_error_there(ask: Ask, value: object) -> None:
    async with DataLoader(tens) as loader:
        handle = ask(loader, -1)
        for _ in range(2):
            with pytest.raises(BaseException) as caught:
                async with anyio.create_task_group() as tg:
                    tg.start_soon(lambda: handle)
            errors = getattr(caught.value, "exceptions", ())
            assert list(map(repr, errors)) == ["ValueError(-1)"]


@KINDS
async def test_one_handle_can_be_driven_by_many_tasks(ask: Ask, value: object) -> None:
    async with DataLoader(tens) as loader:
        handle = ask(loader, 1)
        async with anyio.create_task_group() as tg:
            tasks = [tg.start_soon(lambda: handle) for _ in range(3)]
            assert await handle == value
            assert [await task for task in tasks] == [value] * 3


@KINDS
async def test_of_many_tasks_that_drive_one_handle_some_can_be_cancelled(
    ask: Ask, value: object
) -> None:
    gate = anyio.Event()
    batches = Recorder[int, int](lambda key: key * 10, gate=gate)
    async with DataLoader(batches) as loader:
        handle = ask(loader, 1)
        async with anyio.create_task_group() as tg:
            tasks = [tg.start_soon(lambda: handle) for _ in range(4)]
            await wait_all_tasks_blocked()
            tasks[0].cancel()
            tasks[2].cancel()
            await wait_all_tasks_blocked()
            assert [task.status.name for task in tasks] == ["CANCELLED", "PENDING"] * 2
            gate.set()
            assert [await tasks[1], await tasks[3]] == [value] * 2


@pytest.mark.only_on("asyncio")
@pytest.mark.parametrize("cancelled", [0, 1])
@KINDS
async def test_of_two_asyncio_tasks_with_one_handle_one_can_be_cancelled(
    ask: Ask, value: object, cancelled: int
) -> None:
    gate = anyio.Event()
    async with DataLoader(Recorder[int, int](lambda key: key * 10, gate=gate)) as loader:
        handle = ask(loader, 1)
        tasks = [asyncio.create_task(handle), asyncio.create_task(handle)]
        await wait_all_tasks_blocked()
        lost, kept = tasks[cancelled], tasks[1 - cancelled]
        lost.cancel()
        await wait_all_tasks_blocked()
        assert lost.cancelled()
        assert not kept.done()
        gate.set()
        assert await kept == value
        assert await handle == value


@pytest.mark.only_on("asyncio")
@KINDS
async def test_task_that_is_cancelled_before_its_first_step_changes_nothing(
    ask: Ask, value: object
) -> None:
    async with DataLoader(tens) as loader:
        handle = ask(loader, 1)
        tasks = [asyncio.create_task(handle), asyncio.create_task(handle)]
        tasks[0].cancel()
        assert await tasks[1] == value
        assert tasks[0].cancelled()


@pytest.mark.only_on("asyncio")
@pytest.mark.virtual_time
@KINDS
async def test_wait_for_that_times_out_changes_nothing_for_others(ask: Ask, value: object) -> None:
    gate = anyio.Event()
    async with DataLoader(Recorder[int, int](lambda key: key * 10, gate=gate)) as loader:
        handle = ask(loader, 1)
        other = asyncio.create_task(handle)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(handle, 1)
        gate.set()
        assert await other == value
        assert await asyncio.wait_for(handle, 1) == value


@KINDS
async def test_closing_a_handle_as_a_coroutine_does_nothing_to_the_load(
    ask: Ask, value: object
) -> None:
    async with DataLoader(tens) as loader:
        handle = ask(loader, 1)
        handle.close()
        assert await handle == value
        handle.close()
        assert await handle == value


@KINDS
async def test_closing_a_handle_gives_up_what_the_task_drove(ask: Ask, value: object) -> None:
    """The load goes on for others, and can be driven anew."""
    seen: list[object] = []

    async def wait_for(handle: Awaitable[object]) -> None:
        seen.append(await handle)

    gate = anyio.Event()
    batches = Recorder[int, int](lambda key: key * 10, gate=gate)
    async with DataLoader(batches) as loader, anyio.create_task_group() as tg:
        handle = ask(loader, 1)
        tg.start_soon(wait_for, handle)
        await wait_all_tasks_blocked()
        handle.send(None)
        handle.close()
        gate.set()
        seen.append(await handle)
    assert seen == [value, value]


@coroutine
def step_by_step(steps: Any) -> Generator[Any, Any, Any]:
    """Await a coroutine as a task does: by its methods."""
    method, argument = steps.send, None
    while True:
        try:
            yielded = method(argument)
        except StopIteration as stop:
            return stop.value
        try:
            method, argument = steps.send, (yield yielded)
        except BaseException as exc:
            method, argument = steps.throw, exc


async def test_throw_takes_a_class_or_an_instance() -> None:
    async with DataLoader(Recorder[int, int](abs)) as loader:
        await loader.load(1)
        for arguments in (ValueError,), (ValueError("x"),), (ValueError, ValueError("x")):
            with pytest.raises(ValueError) as caught:
                loader.load(1).throw(*arguments)
            assert str(caught.value) == ("" if arguments == (ValueError,) else "x")
        with pytest.raises(ValueError, match="x"):
            loader.load(1).throw(ValueError, ValueError("x"), None)


@pytest.mark.only_on("asyncio")
async def test_closing_a_handle_that_another_task_drives_leaves_that_alone() -> None:
    async with DataLoader(Recorder[int, int](abs)) as loader, anyio.create_task_group() as tg:
        handle = loader.load(1)
        handle.send(None)  # as a task would that was made of the handle

        async def close() -> None:
            handle.close()

        tg.start_soon(close)
        await wait_all_tasks_blocked()
        with pytest.raises(StopIteration) as stop:
            handle.send(None)
        assert stop.value.value == 1


async def test_throw_keeps_the_traceback_that_it_is_given() -> None:
    try:
        raise ValueError
    except ValueError as exc:
        given = exc.__traceback__
    async with DataLoader(Recorder[int, int](abs)) as loader:
        await loader.load(1)
        for arguments in (ValueError, ValueError(), given), (ValueError().with_traceback(given),):
            with pytest.raises(ValueError) as caught:
                loader.load(1).throw(*arguments)
            traceback = caught.tb
            while traceback.tb_next is not None:
                traceback = traceback.tb_next
            assert traceback is given


@pytest.mark.only_on("asyncio")
async def test_a_task_can_drive_a_handle_once_more_after_an_error() -> None:
    async with DataLoader(Recorder[int, int](abs)) as loader:
        handle = loader.load(-1)
        handle.send(None)
        with pytest.raises(ValueError):
            handle.throw(ValueError())
        handle.send(None)
        await wait_all_tasks_blocked()
        with pytest.raises(StopIteration) as stop:
            handle.send(None)
        assert stop.value.value == 1


@pytest.mark.only_on("trio")
async def test_several_tasks_of_a_nursery_can_drive_one_handle() -> None:
    import trio

    gate = anyio.Event()
    async with DataLoader(Recorder[int, int](abs, gate=gate)) as loader:
        handle: Any = loader.load(1)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(lambda: handle)
            await wait_all_tasks_blocked()
            gate.set()
        assert await handle == 1


async def test_several_tasks_can_take_the_steps_of_one_handle() -> None:
    gate = anyio.Event()
    got: list[int] = []

    async def wait_for(handle: Any) -> None:
        got.append(await step_by_step(handle))

    async with DataLoader(Recorder[int, int](abs, gate=gate)) as loader:
        async with anyio.create_task_group() as tg:
            handle = loader.load(-1)
            for _ in range(3):
                tg.start_soon(wait_for, handle)
            await wait_all_tasks_blocked()
            gate.set()
    assert got == [1, 1, 1]


@pytest.mark.virtual_time
@pytest.mark.only_on("asyncio")
async def test_a_handle_that_is_resumed_too_early_says_so() -> None:
    async with DataLoader(double) as loader:
        load = loader.load(1)
        load.send(None)
        with pytest.raises(RuntimeError, match="resumed before it settled"):
            load.send(None)
        assert await load == 2


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_task_made_of_a_load_that_was_cancelled(many: bool, is_cancelled: bool) -> None:
    """It looks whether it is cancelled itself, which takes a step more than its error does."""
    async with LoaderScope() as scope:
        loader = scope.get(double)
        load: Any = loader.load_many([1, 2]) if many else loader.load(1)
        scope.cancel("the test ends")
        errors: list[BaseException] = []
        try:
            async with anyio.create_task_group() as tg:
                nursery: Any = getattr(
                    tg, "_nursery", tg
                )  # trio's takes what it steps through itself
                nursery.start_soon(lambda: load)
                if is_cancelled:
                    tg.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            errors.extend(group.exceptions)
    assert [type(error) for error in errors] == ([] if is_cancelled else [LoadCancelledError])


def test_what_has_settled_can_be_driven_where_no_event_loop_runs() -> None:
    loads: list[Any] = []

    async def main() -> None:
        async with LoaderScope() as scope:
            loads.append(scope.get(double).load(1))
            await loads[0]
            loads.append(scope.get(double).load(2))
            scope.cancel("the test ends")

    anyio.run(main)
    with pytest.raises(StopIteration) as stop:
        loads[0].send(None)
    assert stop.value.value == 2
    with pytest.raises(LoadCancelledError):
        loads[1].send(None)
