"""Handles: what ``load`` and ``load_many`` return, who can await them, and what they tell."""

from __future__ import annotations

import gc
from collections.abc import Awaitable
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from anyloader import DataLoader, LoadCancelledError, LoadHandle, schedules
from support import Recorder, wait_all_tasks_blocked
from support.handles import KINDS, Ask, tens

pytestmark = pytest.mark.anyio

Status = LoadHandle.Status

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
        "<DataLoader squares: open, 0 keys queued, 1 batch running, 2 cached>",
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
