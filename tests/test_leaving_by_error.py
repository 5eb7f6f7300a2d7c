"""Leaving by an error or a cancellation: what ends, and what comes out (contract 1)."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import (
    Awaitable,
    Callable,
    Coroutine,
)
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import (
    DataLoader,
    LoadCancelledError,
    LoadHandle,
)
from support import BACKENDS, backend_options, wait_all_tasks_blocked
from support.leaving import Batches, statuses, wait_for

pytestmark = pytest.mark.anyio


class Stop(BaseException):
    """Neither an ``Exception`` nor known to any event loop."""


def tasks() -> int:
    return len(anyio.get_running_tasks())


# --- the body raised, or was cancelled ---


class Boom(Exception):
    pass


ERRORS = pytest.mark.parametrize("kind", [Boom, Stop])


@ERRORS
async def test_exception_of_the_body_comes_out_bare(kind: type[BaseException]) -> None:
    """Whatever the batches do that are cancelled then."""
    error = kind()

    async def fail_in_cleanup(keys: list[int]) -> list[int]:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("cleanup failed")
        return keys

    for function in (Batches(), Batches(1), fail_in_cleanup):
        with pytest.raises(BaseException) as caught:
            async with DataLoader(function, batch=False) as loader:
                loader.load_many([1, 2])
                await wait_all_tasks_blocked()
                loader.load(3)
                raise error
        assert caught.value is error
        assert error.__cause__ is None


async def test_group_of_exceptions_comes_out_as_it_is() -> None:
    errors: list[BaseException] = []
    with pytest.raises(BaseException) as caught:
        async with DataLoader(Batches()):
            try:
                async with anyio.create_task_group():
                    raise Boom
            except BaseException as exc:
                errors.append(exc)
                raise
    assert [caught.value] == errors


@ERRORS
async def test_all_batches_are_cancelled_if_the_body_raised(
    kind: type[BaseException],
) -> None:
    batches = Batches(1)
    seen: list[object] = []
    error = kind()
    handles: list[LoadHandle[int]] = []
    async with anyio.create_task_group() as outside:
        with pytest.raises(kind):
            async with DataLoader(batches) as loader:
                handles.append(loader.load(1))
                outside.start_soon(wait_for, handles[0], seen)
                await wait_all_tasks_blocked()
                outside.start_soon(wait_for, loader.load(2), seen)
                raise error
        batches.events.append("left")
        with pytest.raises(LoadCancelledError) as caught:
            await handles[0]
        assert caught.value.__cause__ is error
    assert batches.events == [[1], (1, "cancelled"), (1, "cleaned"), "left"]
    assert seen == [LoadCancelledError] * 2


async def test_all_batches_are_cancelled_if_the_body_was_cancelled() -> None:
    batches = Batches(1)
    seen: list[object] = []
    async with anyio.create_task_group() as outside:
        with anyio.CancelScope() as scope:
            async with DataLoader(batches) as loader:
                outside.start_soon(wait_for, loader.load(1), seen)
                await wait_all_tasks_blocked()
                outside.start_soon(wait_for, loader.load(2), seen)
                scope.cancel()
                await anyio.sleep_forever()
        batches.events.append("left")
        assert scope.cancelled_caught
    assert batches.events == [[1], (1, "cancelled"), (1, "cleaned"), "left"]
    assert seen == [LoadCancelledError] * 2


# --- nothing outlives the block ---


@pytest.mark.parametrize("end", ["normally", "by error", "by cancellation"])
async def test_nothing_outlives_the_block(end: str) -> None:
    """Neither tasks that idle, nor those that clean up or refuse to be cancelled."""
    events: list[object] = []

    async def stubborn(keys: list[int]) -> list[int]:
        if keys == [1]:
            return keys
        try:
            async with anyio.create_task_group() as tg:
                tg.start_soon(anyio.sleep_forever)
        except anyio.get_cancelled_exc_class():
            pass
        with anyio.CancelScope(shield=True):
            for _ in range(20):
                await checkpoint()
        events.append(keys)
        return keys

    before = tasks()
    loader = DataLoader(stubborn, name="stubborn")
    handles: list[LoadHandle[int]] = []
    with suppress(Boom), anyio.CancelScope() as scope:
        async with loader:
            await loader.load(1)
            handles += [loader.load(key) for key in (2, 3)]
            await wait_all_tasks_blocked()
            handles += [loader.load(4)]
            if end == "by error":
                raise Boom
            if end == "by cancellation":
                scope.cancel()
                await checkpoint()
    events.append("left")
    assert tasks() == before
    assert events == [[2, 3], "left"]
    assert statuses(handles) == ["CANCELLED"] * 3
    assert repr(loader).startswith("<DataLoader stubborn: closed, 0 keys queued, 0 batches running")


# --- what batch functions raise ---


async def test_failing_batch_function_never_reaches_the_block() -> None:
    """Whether its loads are awaited or not, and whether it fails before the end or at the end."""

    async def fail(keys: list[int]) -> list[int]:
        if keys == [3]:
            try:
                await anyio.sleep_forever()
            finally:
                raise ValueError("cleanup failed")
        raise ValueError

    async with DataLoader(fail, batch=False) as loader:
        loader.load(1)
        await wait_all_tasks_blocked()
        with pytest.raises(ValueError):
            await loader.load(2)
        loader.load(3)
        await wait_all_tasks_blocked()


@pytest.mark.parametrize("when", ["in the body", "while leaving", "in cleanup"])
async def test_base_exception_goes_through_after_all_waiters_are_settled(when: str) -> None:
    error = Stop()
    gate = anyio.Event()

    async def stop(keys: list[int]) -> list[int]:
        if keys == [1]:
            try:
                await gate.wait()
            finally:
                raise error
        await anyio.sleep_forever()
        return keys

    causes: dict[int, BaseException | None] = {}

    async def wait_for_cause(handle: LoadHandle[int]) -> None:
        with pytest.raises(LoadCancelledError) as caught:
            await handle
        causes[handle.key] = caught.value.__cause__

    async def open_gate() -> None:
        await wait_all_tasks_blocked()
        gate.set()

    handles: list[LoadHandle[int]] = []
    async with anyio.create_task_group() as outside:
        with pytest.raises(BaseException) as caught:
            async with DataLoader(stop, batch=False) as loader:
                handles = [loader.load(1), loader.load(2)]
                if when != "in cleanup":
                    for handle in handles:
                        outside.start_soon(wait_for_cause, handle)
                await wait_all_tasks_blocked()
                if when != "in cleanup":
                    outside.start_soon(open_gate)
                if when == "in the body":
                    await anyio.sleep_forever()
        assert caught.value is error
        assert statuses(handles) == ["CANCELLED"] * 2
    if when != "in cleanup":
        assert causes[1] is error
        assert set(causes) == {1, 2}


@pytest.mark.parametrize("foreign", [False, True], ids=["own block", "foreign group"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, Stop])
@pytest.mark.parametrize("backend", BACKENDS)
def test_exit_of_the_program_goes_through_after_all_waiters_are_settled(
    backend: str, kind: type[BaseException], foreign: bool, leftovers: list[str]
) -> None:
    check_exit(backend, kind(), foreign)
    if backend != "trio" and kind is not Stop:
        # asyncio leaves its loop at once where a task raises one of these, and then asks no task
        # how it ended. It complains once they go: so let them go now.
        gc.collect()
        leftovers.clear()


def check_exit(backend: str, error: BaseException, foreign: bool) -> None:
    handles: list[LoadHandle[int]] = []

    async def stop(keys: list[int]) -> list[int]:
        if 1 in keys:
            await wait_all_tasks_blocked()
            raise error
        await anyio.sleep_forever()
        return keys

    async def use(loader: DataLoader[int, int]) -> None:
        handles.extend(map(loader.load, (1, 2, 3)))
        async with anyio.create_task_group() as outside:
            for handle in handles:
                outside.start_soon(wait_for, handle, [])

    async def main() -> None:
        if foreign:
            async with anyio.create_task_group() as group:
                await use(DataLoader(stop, max_batch_size=2, task_group=group))
        else:
            async with DataLoader(stop, max_batch_size=2) as loader:
                await use(loader)

    name, options = backend_options(backend)
    with pytest.raises(BaseException) as caught:
        anyio.run(main, backend=name, backend_options=options)
    assert error in (caught.value, *getattr(caught.value, "exceptions", ()))
    assert statuses(handles) == ["CANCELLED"] * 3
    for handle in handles[:2]:
        with pytest.raises(anyio.TaskCancelled) as cancelled:
            _ = handle.return_value
        assert cancelled.value.__cause__ is not None
        assert cancelled.value.__cause__.__cause__ is error


# --- leaving that is cancelled from outside ---


async def leave(batches: Batches, outside: Any, seen: list[object], handles: list[Any]) -> None:
    """Leave a block while another task awaits a batch of it that never ends."""
    async with DataLoader(batches, batch=False) as loader:
        handles += [loader.load(1), loader.load(2)]
        outside.start_soon(wait_for, handles[0], seen)
        await wait_all_tasks_blocked()
        batches.events.append("leaving")
    batches.events.append("left alive")


CANCELLED_LEAVING: list[object] = [[1], "leaving", (1, "cancelled"), (1, "cleaned"), "out"]


@pytest.mark.virtual_time
async def test_cancelled_leaving_cancels_all_batches() -> None:
    batches = Batches(1)
    seen: list[object] = []
    handles: list[Any] = []
    async with anyio.create_task_group() as outside:
        with anyio.move_on_after(1) as scope:
            await leave(batches, outside, seen, handles)
        batches.events.append("out")
        assert scope.cancelled_caught
        assert statuses(handles) == ["CANCELLED", "FINISHED"]
    assert [event for event in batches.events if event != [2]] == CANCELLED_LEAVING
    assert seen == [LoadCancelledError]


async def by_cancel(leaving: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(leaving)
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_wait_for(leaving: Coroutine[Any, Any, None]) -> None:
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(leaving, 1)


async def by_timeout(leaving: Coroutine[Any, Any, None]) -> None:
    if sys.version_info >= (3, 11):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await leaving


@pytest.mark.virtual_time
@pytest.mark.only_on("asyncio")
@pytest.mark.parametrize(
    "cancel", [by_cancel, by_wait_for, *([by_timeout] if sys.version_info >= (3, 11) else [])]
)
async def test_leaving_that_asyncio_cancels_cancels_all_batches(
    cancel: Callable[[Coroutine[Any, Any, None]], Awaitable[None]],
) -> None:
    batches = Batches(1)
    seen: list[object] = []
    handles: list[Any] = []
    async with anyio.create_task_group() as outside:
        await cancel(leave(batches, outside, seen, handles))
        batches.events.append("out")
        assert statuses(handles) == ["CANCELLED", "FINISHED"]
    assert [event for event in batches.events if event != [2]] == CANCELLED_LEAVING
    assert seen == [LoadCancelledError]


@pytest.mark.virtual_time
@pytest.mark.only_on("trio")
async def test_leaving_that_trio_cancels_cancels_all_batches() -> None:
    import trio

    batches = Batches(1)
    seen: list[object] = []
    handles: list[Any] = []
    async with trio.open_nursery() as outside:
        with trio.move_on_after(1) as scope:
            await leave(batches, outside, seen, handles)
        batches.events.append("out")
        assert scope.cancelled_caught
    assert [event for event in batches.events if event != [2]] == CANCELLED_LEAVING
    assert seen == [LoadCancelledError]


@pytest.mark.virtual_time
async def test_leaving_that_is_cancelled_while_batches_clean_up_waits_for_them() -> None:
    events: list[str] = []

    async def clean_up(keys: list[int]) -> list[int]:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(10)
                events.append("cleaned")
        return keys

    handles: list[LoadHandle[int]] = []
    with anyio.move_on_after(1) as scope:
        async with DataLoader(clean_up) as loader:
            handles.append(loader.load(1))
            await wait_all_tasks_blocked()
        events.append("left alive")
    events.append("out")
    assert events == ["cleaned", "out"]
    assert scope.cancelled_caught
    assert anyio.current_time() == 10
    assert statuses(handles) == ["CANCELLED"]


async def test_leaving_in_a_cancelled_scope_cancels_all_batches() -> None:
    batches = Batches(1)
    seen: list[object] = []
    async with anyio.create_task_group() as outside:
        with anyio.CancelScope() as scope:
            async with DataLoader(batches) as loader:
                outside.start_soon(wait_for, loader.load(1), seen)
                await wait_all_tasks_blocked()
                scope.cancel()
        batches.events.append("out")
    assert batches.events == [[1], (1, "cancelled"), (1, "cleaned"), "out"]
    assert seen == [LoadCancelledError]


class Exit(BaseException):
    pass


async def test_two_functions_that_end_by_no_exception_come_out_in_a_group() -> None:
    gate = anyio.Event()

    async def fetch(keys: list[int]) -> list[int]:
        with anyio.CancelScope(shield=True):
            await gate.wait()
        raise Exit

    loads: list[LoadHandle[int]] = []
    with pytest.raises(BaseException) as caught:
        async with DataLoader(fetch, max_batch_size=1) as loader:
            loads += loader.load(1), loader.load(2)
            await wait_all_tasks_blocked()
            gate.set()
            await anyio.sleep_forever()  # the first of the two ends the body
    assert [type(exc) for exc in getattr(caught.value, "exceptions", ())] == [Exit, Exit]
    assert [load.status for load in loads] == [LoadHandle.Status.CANCELLED] * 2


@pytest.mark.only_on("asyncio")
@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 does not count cancellations")
async def test_a_task_whose_block_was_ended_by_a_batch_function_is_not_cancelled_any_more() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        raise Exit

    with pytest.raises(Exit):
        async with DataLoader(fetch) as loader:
            loader.load(1)
            await anyio.sleep_forever()
    task: Any = asyncio.current_task()
    assert task.cancelling() == 0


@pytest.mark.only_on("asyncio")
@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 does not count cancellations")
@pytest.mark.parametrize("first", ["scope", "task"])
async def test_a_native_cancellation_comes_out_whatever_else_is_cancelled_in_its_step(
    first: str,
) -> None:
    """As where a time limit ends just when a client leaves, or in the same step as ``wait_for``."""
    began = asyncio.Event()

    async def fetch(keys: list[int]) -> list[int]:
        began.set()
        await anyio.sleep_forever()
        return keys

    async def request() -> None:
        async with DataLoader(fetch) as loader:
            loader.load(1)
            with limit:
                await anyio.sleep_forever()

    limit = anyio.CancelScope()
    task: Any = asyncio.ensure_future(request())
    await began.wait()
    for cancel in (limit.cancel, task.cancel) if first == "scope" else (task.cancel, limit.cancel):
        cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert task.cancelling() == 1, "or who cancelled it could not tell"
