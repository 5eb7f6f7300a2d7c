"""A loader in somebody else's task group, once that has been cancelled or ended (contract 1, 4.4).

In a process of its own, as what goes wrong there takes the event loop for ever.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import (
    DataLoader,
    LoadCancelledError,
    LoaderClosedError,
    LoaderScope,
    LoadHandle,
    schedules,
)
from support import (
    BACKENDS,
    Recorder,
    run_shuffled,
    wait_all_tasks_blocked,
)
from support.programs import run_program
from support.tasks import (
    CleansUp,
    asyncio_group,
    cancel_natively_again_and_again,
    needs_eager_tasks,
    run_with_eager_tasks,
)

pytestmark = pytest.mark.anyio

RETRYING = """
from anyloader import DataLoader, LoaderScope, LoadCancelledError, LoaderClosedError

MAKE = {
    "plain": lambda: {},
    "limiter": lambda: {"limiter": anyio.CapacityLimiter(1)},
    "no cache": lambda: {"cache": False},
    "batches of one": lambda: {"max_batch_size": 1},
}

async def main():
    for name, options in MAKE.items():
        await retry(name, options())
    print("done")

async def retry(name, options):
    late = []

    async def fetch(keys):
        if cancelled:
            late.append(keys)
        runs.set()
        await anyio.sleep(0.5)
        return keys

    cancelled, errors, runs = False, [], anyio.Event()
    async with anyio.create_task_group() as users:

        async def user():  # outside the group; it goes on after an error, as a retry does
            for key in range(5):
                try:
                    await loader.load(key)
                except (LoadCancelledError, LoaderClosedError) as exc:
                    errors.append(exc)

        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                loader = DataLoader(fetch, task_group=group, **options)
                users.start_soon(user)
                await runs.wait()
                cancelled = True
                group.cancel_scope.cancel()
    assert len(errors) == 5, (name, errors)
    assert not late, (name, late)
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_loads_after_a_foreign_group_was_cancelled_are_refused(backend: str) -> None:
    assert run_program(RETRYING, backend, seconds=8) == "done\n"


# --- in this process ---


@pytest.mark.parametrize("outside", ["awaits", "loads"])
def test_who_is_outside_is_told_when_the_group_is_cancelled(
    shuffled_backend: str, outside: str
) -> None:
    async def main() -> list[Any]:
        seen: list[Any] = []

        async def slow(keys: list[int]) -> list[int]:
            await anyio.sleep(10)
            return keys

        async def user(handle: Any) -> None:
            try:
                seen.append(await (handle if outside == "awaits" else loader.load(2)))
            except (LoadCancelledError, LoaderClosedError) as exc:
                seen.append(type(exc))

        async with anyio.create_task_group() as users:
            async with anyio.create_task_group() as group:
                loader = DataLoader(slow, task_group=group)
                users.start_soon(user, loader.load(1))
                await anyio.sleep(1)
                group.cancel_scope.cancel()
        return seen

    for seed in range(20):
        assert run_shuffled(shuffled_backend, seed, main) == [LoadCancelledError]


async def test_a_block_that_raises_waits_for_tasks_that_have_not_begun() -> None:
    """On trio they make their first steps before or after that of the task that waits for them."""

    async def never(batch: object) -> None:
        await anyio.sleep_forever()

    fetch = Recorder[int, int](abs)
    for _ in range(30):
        loads: list[Any] = []
        async with anyio.create_task_group() as group:
            with pytest.raises(ZeroDivisionError):
                async with LoaderScope(task_group=group) as scope:
                    loads.append(scope.get(fetch).load(1))
                    loads.append(DataLoader(fetch, schedule=never).load(2))
                    raise ZeroDivisionError
            for load in loads:
                with pytest.raises(LoadCancelledError):
                    await load
    assert fetch.calls == []


async def test_a_load_after_the_end_of_a_group_that_ended_in_peace() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        return keys

    async with anyio.create_task_group() as group:
        loader = DataLoader(fetch, task_group=group)
        assert await loader.load(1) == 1
    with pytest.raises(LoaderClosedError):
        loader.load(2)  # pyright: ignore[reportPossiblyUnboundVariable]
    with pytest.raises(LoaderClosedError):
        loader.load_many([2, 3])  # pyright: ignore[reportPossiblyUnboundVariable]
    assert loader.peek(2) is None  # pyright: ignore[reportPossiblyUnboundVariable]


async def test_a_load_in_a_group_that_was_cancelled_and_still_has_a_task() -> None:
    """Refused or answered by a cancellation, but no function runs on in there."""
    calls: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        calls.append(keys)
        await anyio.sleep_forever()
        return keys

    async def cleanup() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(5):
                    await checkpoint()
                try:
                    await loader.load(1)
                except (LoadCancelledError, LoaderClosedError):
                    refused.append(1)

    refused: list[int] = []
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            loader = DataLoader(fetch, task_group=group)
            group.start_soon(cleanup)
            await checkpoint()
            await checkpoint()
            group.cancel_scope.cancel()
    assert refused == [1]


async def test_the_same_loader_scope_in_a_foreign_group() -> None:
    async def slow(keys: list[int]) -> list[int]:
        await anyio.sleep_forever()
        return keys

    async def user() -> None:
        for key in range(3):
            try:
                await loader.load(key)
            except (LoadCancelledError, LoaderClosedError) as exc:
                seen.append(type(exc))

    seen: list[type[Exception]] = []
    with anyio.fail_after(5):
        async with anyio.create_task_group() as users:
            async with anyio.create_task_group() as group:
                async with LoaderScope(task_group=group) as scope:
                    loader = scope.get(slow)
                    handle = loader.load(0)
                    users.start_soon(user)
                    for _ in range(5):
                        await checkpoint()
                    group.cancel_scope.cancel()
                    try:
                        await handle
                    except LoadCancelledError:
                        pass
    assert len(seen) == 3


async def cancel_later(scope: anyio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


needs_task_group = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="asyncio.TaskGroup is new in Python 3.11"
)


@pytest.mark.only_on("asyncio")
async def test_a_native_cancellation_never_met_does_not_reach_a_foreign_group() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return keys

    cancelled: list[bool] = []
    async with anyio.create_task_group() as tg:
        loader = DataLoader(fetch, task_group=tg)
        assert await loader.load(1) == 1
        await wait_all_tasks_blocked()
        cancelled.append(tg.cancel_scope.cancel_called)
    assert cancelled == [False]  # and the body came so far


async def test_leaving_a_scope_in_a_given_group_can_be_cancelled() -> None:
    async with anyio.create_task_group() as tg, anyio.create_task_group() as waiters:
        with anyio.CancelScope() as scope:
            async with LoaderScope(tg) as loaders:
                loader = loaders.get(Recorder[int, int](abs, gate=anyio.Event()))
                waiters.start_soon(loader.load(1).wait)
                await wait_all_tasks_blocked()
                waiters.start_soon(cancel_later, scope)
        assert scope.cancelled_caught


@pytest.mark.virtual_time
async def test_leaving_a_scope_in_a_given_group_waits_for_cleanup_though_it_is_cancelled() -> None:
    ended: list[str] = []

    async def fetch(keys: list[int]) -> list[int]:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(2)
            ended.append("cleaned up")
        return keys

    async with anyio.create_task_group() as tg, anyio.create_task_group() as waiters:
        with anyio.move_on_after(1):
            async with LoaderScope(tg) as scope:
                waiters.start_soon(scope.get(fetch).load(1).wait)
                await wait_all_tasks_blocked()
        assert ended == ["cleaned up"]


@pytest.mark.only_on("asyncio")
async def test_leaving_a_scope_in_a_given_group_waits_however_often_it_is_cancelled() -> None:
    fetch = CleansUp()

    async def leave(tg: anyio.abc.TaskGroup) -> None:
        async with LoaderScope(tg) as scope:
            await scope.get(fetch).load(1)

    async with anyio.create_task_group() as tg:
        await cancel_natively_again_and_again(leave(tg), fetch, "left")
    assert fetch.events == ["cleaned up", "left"]


async def test_a_load_refused_as_the_group_has_ended_ends_those_that_are_queued() -> None:
    loader: Any = None
    queued: Any = None
    async with anyio.create_task_group() as tg:
        loader = DataLoader(
            Recorder[int, int](abs), task_group=tg, schedule=schedules.manual(), cache=False
        )
        queued = loader.load(1)
    assert queued.status.name == "PENDING"
    with pytest.raises(LoaderClosedError):
        loader.load(2)
    assert queued.status.name == "FAILED"


@needs_eager_tasks
def test_a_batch_that_a_failing_group_cancels_adds_no_error_of_its_own() -> None:
    loads: list[LoadHandle[int]] = []

    async def main() -> None:
        async with asyncio_group() as group:
            loads.append(DataLoader(Recorder[int, int](abs), task_group=group).load(1))
            raise ValueError

    with pytest.raises(BaseException) as caught:
        run_with_eager_tasks(main)
    assert [type(exc) for exc in getattr(caught.value, "exceptions", ())] == [ValueError]
    assert loads[0].status is LoadHandle.Status.CANCELLED


@pytest.mark.only_on("asyncio")
@needs_task_group
async def test_a_group_that_fails_takes_no_loads_but_lets_a_batch_finish() -> None:
    gate, cleaned_up = anyio.Event(), anyio.Event()

    async def fetch(keys: list[int]) -> list[int]:
        try:
            await gate.wait()
        except asyncio.CancelledError:
            await cleaned_up.wait()
        return keys

    async def fail() -> None:
        raise ValueError

    handles: list[LoadHandle[int]] = []
    with pytest.raises(BaseException) as caught:
        async with asyncio_group() as group:
            loader = DataLoader(fetch, task_group=group, schedule=schedules.manual())
            handles.append(loader.load(1))
            loader.dispatch()
            await wait_all_tasks_blocked()
            group.create_task(fail())
            try:
                await anyio.sleep_forever()
            finally:
                with pytest.raises(LoaderClosedError):
                    loader.load(2)
                cleaned_up.set()
    assert [type(exc) for exc in getattr(caught.value, "exceptions", ())] == [ValueError]
    assert handles[0].return_value == 1


@pytest.mark.only_on("asyncio")
@pytest.mark.filterwarnings("ignore:coroutine 'Dispatcher._work' was never awaited")  # by anyio
async def test_a_scope_in_a_given_group_can_be_left_though_a_task_never_began() -> None:
    """It was cancelled natively in the round that it was made in, as asyncio.run() does at its end."""

    async def job() -> None:
        async with anyio.create_task_group() as tg:
            async with LoaderScope(tg) as scope:
                load = scope.get(Recorder[int, int](abs)).load(1)
                for task in asyncio.all_tasks():
                    if task.get_name().startswith("anyloader"):
                        task.cancel()
                await load

    with anyio.fail_after(5):
        await asyncio.create_task(job())


@pytest.mark.virtual_time
async def test_a_batch_dropped_while_it_waits_for_a_token_holds_no_group_open() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        return keys

    limiter = anyio.CapacityLimiter(1)
    async with limiter:
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tg:
                loader = DataLoader(fetch, task_group=tg, limiter=limiter)
                with anyio.move_on_after(1):
                    await loader.load(1)
                assert limiter.statistics().tasks_waiting == 1
                loader.dispatch()
