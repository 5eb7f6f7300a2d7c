"""Handles: what ``load`` and ``load_many`` return, who can await them, and what they tell."""

from __future__ import annotations

import asyncio
import gc
import inspect
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from anyloader import DataLoader, LoadCancelledError, LoadHandle, schedules
from support import Recorder, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio

Status = LoadHandle.Status


async def tens(keys: list[int]) -> list[int | Exception]:
    return [ValueError(key) if key < 0 else key * 10 for key in keys]


def load_one(loader: DataLoader[int, int], key: int) -> Coroutine[Any, Any, object]:
    return loader.load(key)


def load_two(loader: DataLoader[int, int], key: int) -> Coroutine[Any, Any, object]:
    return loader.load_many([key, key + 1])


#: Ask for something by key; the kinds of handle that there are, with what key 1 gives.
KINDS = pytest.mark.parametrize(
    ("ask", "value"), [(load_one, 10), (load_two, [10, 20])], ids=["load", "load_many"]
)
Ask = Callable[[DataLoader[int, int], int], Coroutine[Any, Any, object]]


# --- asking ---


@KINDS
async def test_key_is_queued_at_the_call_whether_or_not_it_is_awaited(
    ask: Ask, value: object
) -> None:
    batches = Recorder[int, int](abs)
    async with DataLoader(batches) as loader:
        _ = ask(loader, 1)
        queued = loader.statistics().queued
        await wait_all_tasks_blocked()
        assert queued == len(batches.calls[0])


async def test_load_many_takes_any_iterable_once() -> None:
    async with DataLoader(tens) as loader:
        assert await loader.load_many(key for key in (3, 1, 3, 2)) == [30, 10, 30, 20]
        assert await loader.load_many({5: "a", 4: "b"}) == [50, 40]
        assert await loader.load_many([]) == []


async def test_load_many_gives_results_in_the_order_of_its_keys() -> None:
    """Though some are hits, some pending, and some new, in several batches."""
    async with DataLoader(tens, max_batch_size=2) as loader:
        await loader.load(4)
        loader.load(2)
        assert await loader.load_many([5, 4, 3, 2, 1, 4]) == [50, 40, 30, 20, 10, 40]


async def test_load_many_raises_the_error_of_the_first_failing_key() -> None:
    """First in the order of the keys, though another key has failed long ago."""
    gates = {key: anyio.Event() for key in (1, -2, -3)}

    async def gated(keys: list[int]) -> list[int | Exception]:
        await gates[keys[0]].wait()
        return await tens(keys)

    async with DataLoader(gated, batch=False) as loader:
        many = loader.load_many([1, -2, -3])
        seen: list[str] = []

        async def wait_for_many() -> None:
            with pytest.raises(ValueError, match="-2"):
                await many
            seen.append("raised")

        async with anyio.create_task_group() as tg:
            tg.start_soon(wait_for_many)
            for key in (-3, 1, -2):
                await wait_all_tasks_blocked()
                seen.append(f"{key} may end")
                gates[key].set()
        assert seen == ["-3 may end", "1 may end", "-2 may end", "raised"]


async def test_load_many_of_settled_keys_raises_the_error_of_the_first_failing_key() -> None:
    async with DataLoader(tens) as loader:
        await loader.load_many([-3, -2, 1], return_exceptions=True)
        for _ in range(2):
            with pytest.raises(ValueError, match="-2"):
                await loader.load_many([1, -2, -3])


async def test_load_many_puts_errors_in_place() -> None:
    async with DataLoader(tens, max_batch_size=2) as loader:
        many = loader.load_many([-1, 2, 3, -4], return_exceptions=True)
        first, *values, last = await many
    assert values == [20, 30]
    assert isinstance(first, ValueError)
    assert isinstance(last, ValueError)
    assert (str(first), str(last)) == ("-1", "-4")


async def test_load_many_puts_the_error_of_a_batch_in_place() -> None:
    error = OSError()

    async def fail_for_2(keys: list[int]) -> list[int]:
        if 2 in keys:
            raise error
        return keys

    async with DataLoader(fail_for_2, batch=False) as loader:
        assert await loader.load_many([1, 2, 3], return_exceptions=True) == [1, error, 3]
        with pytest.raises(OSError) as caught:
            await loader.load_many([1, 2, 3])
        assert caught.value is error


async def test_calls_on_the_cache_return_the_loader() -> None:
    async with DataLoader(tens) as loader:
        calls = [
            loader.clear(1),
            loader.clear_many([1, 2]),
            loader.clear_all(),
            loader.prime(1, 11),
            loader.prime(1, 12, force=True),
            loader.prime_many({2: 22, 3: 33}),
        ]
        assert all(returned is loader for returned in calls)
        assert await loader.load_many([1, 2, 3]) == [12, 22, 33]


async def test_peek_never_loads_and_never_counts() -> None:
    batches = Recorder[int, int](abs)
    async with DataLoader(batches) as loader:
        assert loader.peek(1) is None
        await wait_all_tasks_blocked()
        assert batches.calls == []
        handle = loader.load(1)
        before = loader.statistics()
        pending = loader.peek(1)
        assert pending is not None
        assert (pending.key, pending.status) == (1, Status.PENDING)
        assert loader.statistics() == before
        await handle
        before = loader.statistics()
        settled = loader.peek(1)
        assert settled is not None
        assert settled.return_value == 1
        assert loader.statistics() == before


async def test_dispatch_sends_what_is_queued() -> None:
    batches = Recorder[int, int](abs)
    async with DataLoader(batches, schedule=schedules.manual()) as loader:
        loader.dispatch()  # nothing to send
        loader.load_many([1, 2])
        await wait_all_tasks_blocked()
        assert batches.calls == []
        loader.dispatch()
        loader.load(3)
        await wait_all_tasks_blocked()
        assert batches.calls == [[1, 2]]


async def test_statistics_are_a_frozen_record() -> None:
    async with DataLoader(tens) as loader:
        before = loader.statistics()
        with pytest.raises(AttributeError):
            before.loads = 5  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
        loads = [loader.load(1), loader.load(1), loader.load(2)]
        await loads[0]
        await loader.load(1)
        now = loader.statistics()
    assert (before.loads, before.batches) == (0, 0)
    assert (now.loads, now.hits, now.shared, now.batches, now.keys) == (4, 1, 1, 1, 2)


async def test_repr_of_a_loader_is_live() -> None:
    gate = anyio.Event()
    loader = DataLoader(Recorder[int, int](abs, gate=gate), name="squares")
    seen = [repr(loader)]
    async with loader:
        seen.append(repr(loader))
        many = loader.load_many([1, 2])
        seen.append(repr(loader))
        await wait_all_tasks_blocked()
        seen.append(repr(loader))
        gate.set()
        await many
        seen.append(repr(loader))
    seen.append(repr(loader))
    assert seen == [
        "<DataLoader squares: not open, 0 keys queued, 0 batches running, 0 cached>",
        "<DataLoader squares: open, 0 keys queued, 0 batches running, 0 cached>",
        "<DataLoader squares: open, 2 keys queued, 0 batches running, 2 cached>",
        "<DataLoader squares: open, 0 keys queued, 1 batches running, 2 cached>",
        "<DataLoader squares: open, 0 keys queued, 0 batches running, 2 cached>",
        "<DataLoader squares: closed, 0 keys queued, 0 batches running, 0 cached>",
    ]


# --- awaiting ---


@KINDS
async def test_handle_can_be_awaited_again_and_again(ask: Ask, value: object) -> None:
    async with DataLoader(tens) as loader:
        handle = ask(loader, 1)
        assert [await handle, await handle, await handle] == [value] * 3
    assert await handle == value


@KINDS
async def test_handle_can_be_awaited_by_many_tasks(ask: Ask, value: object) -> None:
    seen: list[object] = []

    async def wait_for(handle: Awaitable[object]) -> None:
        for _ in range(2):
            seen.append(await handle)

    batches = Recorder[int, int](lambda key: key * 10)
    async with DataLoader(batches) as loader, anyio.create_task_group() as tg:
        handle = ask(loader, 1)
        for _ in range(5):
            tg.start_soon(wait_for, handle)
    assert seen == [value] * 10
    assert len(batches.calls) == 1


@KINDS
async def test_error_is_raised_to_all_who_await(ask: Ask, value: object) -> None:
    seen: list[str] = []

    async def wait_for(handle: Awaitable[object]) -> None:
        for _ in range(2):
            with pytest.raises(ValueError) as caught:
                await handle
            seen.append(str(caught.value))

    async with DataLoader(tens) as loader, anyio.create_task_group() as tg:
        handle = ask(loader, -1)
        for _ in range(3):
            tg.start_soon(wait_for, handle)
    assert seen == ["-1"] * 6


async def test_each_load_is_a_handle_with_the_key_as_it_was_given() -> None:
    async with DataLoader(tens) as loader:
        first, second = loader.load(1), loader.load(True)
        assert first is not second
        assert (first.key, second.key) == (1, 1)
        assert await first == await second == 10
        hit = loader.load(1)
        assert (type(hit), hit.key, await hit) == (LoadHandle, 1, 10)


def test_handles_are_not_made_by_hand() -> None:
    with pytest.raises(TypeError, match="load"):
        LoadHandle()


# --- what it tells, as anyio's TaskHandle ---


async def test_pending_handle_has_no_outcome() -> None:
    async with DataLoader(tens) as loader:
        handle = loader.load(1)
        assert handle.status is Status.PENDING
        with pytest.raises(anyio.TaskNotFinished):
            _ = handle.return_value
        with pytest.raises(anyio.TaskNotFinished):
            _ = handle.exception


async def test_finished_handle_has_a_value() -> None:
    async with DataLoader(tens) as loader:
        handle = loader.load(1)
        await handle
        assert (handle.status, handle.return_value) == (Status.FINISHED, 10)
        assert handle.exception is None


async def test_failed_handle_has_an_exception() -> None:
    async with DataLoader(tens) as loader:
        handle = loader.load(-1)
        with pytest.raises(ValueError) as caught:
            await handle
        assert handle.status is Status.FAILED
        assert handle.exception is caught.value
        with pytest.raises(anyio.TaskFailed) as failed:
            _ = handle.return_value
        assert type(failed.value) is anyio.TaskFailed
        assert failed.value.__cause__ is caught.value


async def test_cancelled_handle_has_no_outcome() -> None:
    async with DataLoader(tens) as loader:
        handle = loader.load(1)  # cancelled with its batch, as nobody awaits it at the end
    assert handle.status is Status.CANCELLED
    for ask in (lambda: handle.return_value, lambda: handle.exception):
        with pytest.raises(anyio.TaskCancelled) as cancelled:
            ask()
        assert isinstance(cancelled.value.__cause__, LoadCancelledError)
    with pytest.raises(LoadCancelledError):
        await handle


async def test_handle_tells_the_same_as_a_task_of_anyio() -> None:
    """For each status and each question, the answers of the two are compared."""

    def ask(handle: Any) -> list[object]:
        answers: list[object] = [handle.status.name]
        for question in ("return_value", "exception"):
            try:
                answers.append(getattr(handle, question))
            except Exception as exc:
                answers.append(type(exc))
        return answers

    error = ValueError()

    async def task(fate: str) -> str:
        if fate == "fails":
            raise error
        if fate == "hangs":
            await anyio.sleep_forever()
        return fate

    async def batch_function(keys: list[str]) -> list[str]:
        return [await task(keys[0])]

    fates = ("ends", "fails", "hangs")
    tasks: list[object] = []
    of_tasks: list[list[object]] = []
    with pytest.raises(BaseException) as group:
        async with anyio.create_task_group() as tg:
            tasks += [tg.start_soon(task, fate) for fate in fates]
            of_tasks += map(ask, tasks)
    assert getattr(group.value, "exceptions", None) == (error,)
    of_tasks += map(ask, tasks)

    async with DataLoader(batch_function, batch=False) as loader:
        loads = [loader.load(fate) for fate in fates]
        of_loads = list(map(ask, loads))
        await wait_all_tasks_blocked()
    of_loads += map(ask, loads)
    assert of_loads == of_tasks


async def test_wait_returns_however_the_load_ended() -> None:
    gate = anyio.Event()

    async def end_as_asked(keys: list[str]) -> list[str | Exception]:
        if keys == ["hangs"]:
            await anyio.sleep_forever()
        await gate.wait()
        return [ValueError() if key == "fails" else key for key in keys]

    ended: dict[str, str] = {}

    async def wait_for(handle: LoadHandle[str]) -> None:
        await handle.wait()
        ended[handle.key] = handle.status.name

    async with anyio.create_task_group() as tg:
        with anyio.CancelScope() as scope:
            async with DataLoader(end_as_asked, batch=False) as loader:
                for fate in ("ends", "fails", "hangs"):
                    tg.start_soon(wait_for, loader.load(fate))
                await wait_all_tasks_blocked()
                assert ended == {}
                gate.set()
                await wait_all_tasks_blocked()
                assert ended == {"ends": "FINISHED", "fails": "FAILED"}
                scope.cancel()
    assert ended == {"ends": "FINISHED", "fails": "FAILED", "hangs": "CANCELLED"}


async def test_wait_counts_as_awaiting() -> None:
    """The batch of a load that somebody waits for finishes while its scope is left."""
    seen: list[str] = []
    async with anyio.create_task_group() as tg:
        async with DataLoader(tens, schedule=schedules.manual()) as loader:
            handle = loader.load(1)
            tg.start_soon(handle.wait)
            await wait_all_tasks_blocked()
        seen.append(handle.status.name)
    assert seen == ["FINISHED"]


async def test_repr_of_handles_is_live() -> None:
    async with DataLoader(tens) as loader:
        loads = [loader.load(1), loader.load(-2)]
        many = loader.load_many([1, 3])
        seen = [*map(repr, loads), repr(many)]
        await many
        seen += [*map(repr, loads), repr(many)]
        lost = loader.load(4)
    seen.append(repr(lost))
    assert seen == [
        "<LoadHandle pending key=1 of <Batch open of tens, 3 keys>>",
        "<LoadHandle pending key=-2 of <Batch open of tens, 3 keys>>",
        "<LoadManyHandle of 2 keys, 2 pending>",
        "<LoadHandle finished key=1>",
        "<LoadHandle failed key=-2>",
        "<LoadManyHandle of 2 keys, 0 pending>",
        "<LoadHandle cancelled key=4>",
    ]


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


def held_by(thing: object) -> set[str]:
    """The names of the types of all that ``thing`` leads to, but for what classes lead to."""
    found: dict[int, object] = {}
    unseen = [thing]
    while unseen:
        one = unseen.pop()
        if id(one) not in found and not isinstance(one, type):
            found[id(one)] = one
            unseen += gc.get_referents(one)
    return {type(one).__name__ for one in found.values()}


async def test_a_settled_handle_holds_its_key_and_its_value_only() -> None:
    gate = anyio.Event()
    async with DataLoader(Recorder[str, bytes](str.encode, gate=gate), max_batch_size=2) as loader:
        one, many = loader.load("key"), loader.load_many(["a", "b", "c"])
        async with anyio.create_task_group() as tg:
            for _ in range(2):
                tg.start_soon(lambda: one)
                tg.start_soon(lambda: many)
            await wait_all_tasks_blocked()
            gate.set()
        assert one.return_value == b"key"
        assert held_by(one) == {"LoadHandle", "str", "bytes", "NoneType"}
        assert held_by(many) == held_by(one) | {"LoadManyHandle", "list", "dict", "int", "bool"}
