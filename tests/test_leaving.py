"""The end of ``async with loader``: what finishes, what is cancelled, what comes out."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import DataLoader, LoadCancelledError, LoaderClosedError, LoadHandle, schedules
from support import BACKENDS, backend_options, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio

Status = LoadHandle.Status


class Stop(BaseException):
    """Neither an ``Exception`` nor known to any event loop."""


class Batches:
    """A batch function; a call waits for the gate of its first key, if that key has one.

    ``events`` tells what happened: keys come in, and keys with "cancelled", and with "cleaned" once
    a cleanup of several rounds, shielded against cancellation, is through.
    """

    def __init__(self, *gated: int) -> None:
        self.gates = {key: anyio.Event() for key in gated}
        self.events: list[object] = []

    async def __call__(self, keys: list[int]) -> list[int]:
        self.events.append(keys)
        if keys[0] in self.gates:
            try:
                await self.gates[keys[0]].wait()
            except anyio.get_cancelled_exc_class():
                self.events.append((*keys, "cancelled"))
                with anyio.CancelScope(shield=True):
                    for _ in range(10):
                        await checkpoint()
                self.events.append((*keys, "cleaned"))
                raise
        return [key * 10 for key in keys]

    async def open_once_all_wait(self, key: int) -> None:
        await wait_all_tasks_blocked()
        self.events.append(f"gate {key}")
        self.gates[key].set()


async def wait_for(awaitable: Awaitable[object], seen: list[object]) -> None:
    try:
        seen.append(await awaitable)
    except Exception as exc:
        seen.append(type(exc))


def tasks() -> int:
    return len(anyio.get_running_tasks())


def statuses(handles: Sequence[LoadHandle[Any]]) -> list[str]:
    return [handle.status.name for handle in handles]


# --- batches that some task awaits ---

AWAITS: dict[str, Callable[[DataLoader[int, int]], Coroutine[Any, Any, object]]] = {
    "load": lambda loader: loader.load(1),
    "second load": lambda loader: (loader.load(1), loader.load(1))[1],
    "load_many": lambda loader: loader.load_many([1, 2]),
    "wait": lambda loader: loader.load(1).wait(),
}
AWAITED = pytest.mark.parametrize("ask", AWAITS.values(), ids=AWAITS)


@AWAITED
async def test_awaited_batch_that_runs_is_finished(
    ask: Callable[[DataLoader[int, int]], Coroutine[Any, Any, object]],
) -> None:
    batches = Batches(1)
    seen: list[object] = []
    async with anyio.create_task_group() as outside:
        async with DataLoader(batches) as loader:
            outside.start_soon(wait_for, ask(loader), seen)
            await wait_all_tasks_blocked()
            outside.start_soon(batches.open_once_all_wait, 1)
        batches.events.append("left")
    assert batches.events[1:] == ["gate 1", "left"]
    assert seen in ([10], [[10, 20]], [None])


async def never(batch: schedules.BatchView) -> None:
    await anyio.sleep_forever()


@pytest.mark.virtual_time
@AWAITED
@pytest.mark.parametrize(
    "schedule",
    [schedules.manual(), schedules.window(1_000), never],
    ids=["manual", "window", "own"],
)
async def test_awaited_batch_that_is_not_yet_sent_goes_at_once(
    schedule: schedules.Schedule,
    ask: Callable[[DataLoader[int, int]], Coroutine[Any, Any, object]],
) -> None:
    batches = Batches()
    seen: list[object] = []
    async with anyio.create_task_group() as outside:
        async with DataLoader(batches, schedule=schedule) as loader:
            outside.start_soon(wait_for, ask(loader), seen)
            await wait_all_tasks_blocked()
            assert batches.events == []
            before = anyio.current_time()
        assert len(batches.events) == 1
        assert anyio.current_time() == before
    assert seen in ([10], [[10, 20]], [None])


async def test_awaited_batch_is_finished_for_all_its_loads() -> None:
    batches = Batches(1)
    seen: list[object] = []
    async with anyio.create_task_group() as outside:
        async with DataLoader(batches) as loader:
            handles = [loader.load(key) for key in (1, 2, 3)]
            outside.start_soon(wait_for, handles[1], seen)
            await wait_all_tasks_blocked()
            outside.start_soon(batches.open_once_all_wait, 1)
        assert statuses(handles) == ["FINISHED"] * 3
    assert seen == [20]


async def test_error_of_a_batch_that_is_awaited_at_the_end_goes_to_its_waiters() -> None:
    gate = anyio.Event()

    async def fail(keys: list[int]) -> list[int]:
        await gate.wait()
        raise ValueError

    seen: list[object] = []
    async with anyio.create_task_group() as outside:
        async with DataLoader(fail) as loader:
            outside.start_soon(wait_for, loader.load(1), seen)
            await wait_all_tasks_blocked()
            gate.set()
    assert seen == [ValueError]


# --- batches that nobody awaits ---


async def test_batch_that_nobody_awaits_is_cancelled() -> None:
    batches = Batches(1)
    async with DataLoader(batches) as loader:
        handle, many = loader.load(1), loader.load_many([1, 2])
        await wait_all_tasks_blocked()
    batches.events.append("left")
    assert batches.events == [[1, 2], (1, 2, "cancelled"), (1, 2, "cleaned"), "left"]
    assert handle.status is Status.CANCELLED
    for awaitable in (handle, many):
        with pytest.raises(LoadCancelledError, match="Batches"):
            await awaitable


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    "schedule",
    [schedules.quiescent(), schedules.manual(), schedules.window(1_000), never],
    ids=["quiescent", "manual", "window", "own"],
)
async def test_batch_that_nobody_awaits_is_never_sent(schedule: schedules.Schedule) -> None:
    batches = Batches()
    async with DataLoader(batches, schedule=schedule) as loader:
        handle = loader.load(1)
    assert anyio.current_time() == 0
    assert handle.status is Status.CANCELLED
    assert batches.events == []


async def test_batch_that_was_awaited_but_is_not_any_more_is_cancelled() -> None:
    batches = Batches(2)
    seen: list[object] = []
    async with DataLoader(batches) as loader:
        loader.load(2)
        async with anyio.create_task_group() as tg:
            tg.start_soon(wait_for, loader.load(1), seen)
            await wait_all_tasks_blocked()
            tg.cancel_scope.cancel()
        batches.events.append("leaving")
    assert batches.events == [[2, 1], "leaving", (2, 1, "cancelled"), (2, 1, "cleaned")]
    assert seen == []


async def test_batch_that_nobody_awaits_is_cancelled_before_others_have_finished() -> None:
    batches = Batches(1, 2)
    seen: list[object] = []
    async with anyio.create_task_group() as outside:
        async with DataLoader(batches, batch=False) as loader:
            handles = [loader.load(1), loader.load(2)]
            outside.start_soon(wait_for, handles[0], seen)
            await wait_all_tasks_blocked()
            outside.start_soon(batches.open_once_all_wait, 1)
        assert statuses(handles) == ["FINISHED", "CANCELLED"]
    assert batches.events[2:] == [(2, "cancelled"), (2, "cleaned"), "gate 1"]


@pytest.mark.parametrize("rest", [[], [2]], ids=["alone", "with a load never awaited"])
async def test_batch_that_is_given_up_during_leaving_is_cancelled(rest: list[int]) -> None:
    batches = Batches(1)
    waiter = anyio.CancelScope()

    async def wait_in_scope(handle: LoadHandle[int]) -> None:
        with waiter:
            await handle

    async def give_up() -> None:
        await wait_all_tasks_blocked()
        batches.events.append("given up")
        waiter.cancel()

    async with anyio.create_task_group() as outside:
        async with DataLoader(batches) as loader:
            outside.start_soon(wait_in_scope, loader.load(1))
            loader.load_many(rest)
            await wait_all_tasks_blocked()
            outside.start_soon(give_up)
        batches.events.append("left")
    keys = [1, *rest]
    assert batches.events == [keys, "given up", (*keys, "cancelled"), (*keys, "cleaned"), "left"]


async def test_batch_that_only_an_unwanted_batch_awaits_is_cancelled() -> None:
    loader: DataLoader[int, int]
    events: list[object] = []

    async def load_next(keys: list[int]) -> list[int]:
        events.append(keys)
        try:
            if keys == [3]:
                await anyio.sleep_forever()
            return await loader.load_many([key + 1 for key in keys])
        except BaseException as exc:
            events.append((*keys, isinstance(exc, anyio.get_cancelled_exc_class())))
            raise

    async with DataLoader(load_next) as loader:
        loader.load(1)
        await wait_all_tasks_blocked()
        assert events == [[1], [2], [3]]
    assert sorted(map(repr, events[3:])) == ["(1, True)", "(2, True)", "(3, True)"]


# --- who may load during leaving ---


async def test_batch_functions_of_the_scope_may_load_during_leaving() -> None:
    loader: DataLoader[int, int]
    gate = anyio.Event()
    calls: list[list[int]] = []

    async def count(keys: list[int]) -> list[int]:
        calls.append(keys)
        if keys == [5]:
            await gate.wait()
        lower = [key - 1 for key in keys if key]
        if keys == [4]:
            values = await loader.load_many(lower)
        elif keys == [3]:
            values = []

            async def load_in_task(key: int) -> None:
                values.append(await loader.load(key))

            async with anyio.create_task_group() as tg:
                for key in lower:
                    tg.start_soon(load_in_task, key)
        else:
            handles = [loader.load(key) for key in lower]
            await checkpoint()  # enqueued here and awaited later
            await checkpoint()
            values = [await handle for handle in handles]
        return [1 + value for value in values] if lower else [0]

    seen: list[object] = []
    async with anyio.create_task_group() as outside:
        async with DataLoader(count) as loader:
            outside.start_soon(wait_for, loader.load(5), seen)
            await wait_all_tasks_blocked()

            async def open_gate() -> None:
                await wait_all_tasks_blocked()
                with pytest.raises(LoaderClosedError):
                    loader.load(0)
                gate.set()

            outside.start_soon(open_gate)
    assert seen == [5]
    assert calls == [[5], [4], [3], [2], [1], [0]]


async def test_load_that_an_awaited_batch_function_is_going_to_await_is_finished() -> None:
    batches = Batches(1, 2)
    seen: list[object] = []
    loader: DataLoader[int, int]

    async def load_ahead(keys: list[int]) -> list[int]:
        if keys == [2]:
            return await batches(keys)
        ahead = loader.load(2)
        await batches(keys)
        return [await ahead]

    async with anyio.create_task_group() as outside:
        async with DataLoader(load_ahead) as loader:
            outside.start_soon(wait_for, loader.load(1), seen)
            await wait_all_tasks_blocked()
            outside.start_soon(batches.open_once_all_wait, 1)

            async def open_second() -> None:
                await batches.gates[1].wait()
                await batches.open_once_all_wait(2)

            outside.start_soon(open_second)
    assert batches.events == [[1], [2], "gate 1", "gate 2"]
    assert seen == [20]


@pytest.mark.parametrize("which", ["new", "pending", "cached"])
async def test_everybody_else_is_refused_during_leaving(which: str) -> None:
    batches = Batches(1)
    seen: list[object] = []
    key = {"new": 3, "pending": 1, "cached": 2}[which]
    async with anyio.create_task_group() as outside:
        async with DataLoader(batches) as loader:
            await loader.load(2)
            outside.start_soon(wait_for, loader.load(1), seen)
            await wait_all_tasks_blocked()

            async def load_late() -> None:
                await wait_all_tasks_blocked()
                for _ in range(2):
                    with pytest.raises(LoaderClosedError):
                        loader.load(key)
                    with pytest.raises(LoaderClosedError):
                        loader.load_many([key])
                batches.events.append("refused")
                batches.gates[1].set()

            outside.start_soon(load_late)
    assert batches.events == [[2], [1], "refused"]
    assert seen == [10]


async def test_batch_function_of_another_scope_is_refused_during_leaving() -> None:
    batches = Batches(1)
    seen: list[object] = []
    loader: DataLoader[int, int]

    async def load_from_it(keys: list[int]) -> list[int]:
        await wait_all_tasks_blocked()
        try:
            return await loader.load_many(keys)
        finally:
            batches.gates[1].set()

    async with DataLoader(load_from_it) as other, anyio.create_task_group() as outside:
        async with DataLoader(batches) as loader:
            outside.start_soon(wait_for, loader.load(1), seen)
            await wait_all_tasks_blocked()
            outside.start_soon(wait_for, other.load(5), seen)
    assert sorted(map(repr, seen)) == sorted(map(repr, [LoaderClosedError, 10]))


async def test_task_that_outlives_its_batch_function_is_refused_during_leaving() -> None:
    seen: list[object] = []
    loader: DataLoader[int, int]
    batches = Batches(1)

    async with anyio.create_task_group() as outside:

        async def load_later() -> None:
            await wait_all_tasks_blocked()
            await wait_for(asking(), seen)
            batches.gates[1].set()

        async def asking() -> int:
            return await loader.load(3)

        async def start_task(keys: list[int]) -> list[int]:
            if keys == [2]:
                outside.start_soon(load_later)
            return await batches(keys)

        async with DataLoader(start_task, batch=False) as loader:
            one, two = loader.load(1), loader.load(2)
            outside.start_soon(wait_for, one, seen)
            await two
    assert seen == [LoaderClosedError, 10]


async def test_after_the_end_every_load_is_refused() -> None:
    async with DataLoader(Batches()) as loader:
        handles = [loader.load(key) for key in (1, 2)]
        many = loader.load_many([1, 2])
        await many
    before = loader.statistics()
    for key in (1, 3):
        with pytest.raises(LoaderClosedError) as caught:
            loader.load(key)
        assert isinstance(caught.value, anyio.ClosedResourceError)
        with pytest.raises(LoaderClosedError):
            loader.load_many([key])
    assert loader.statistics() == before
    assert loader.peek(3) is None

    assert [await handle for handle in handles] == await many == [10, 20]
    assert loader.peek(1) is None  # what nobody holds a handle of is gone


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
