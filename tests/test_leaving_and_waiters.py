"""Who awaits when a block is left, on both backends alike (contract 1, 5.2)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import DataLoader, LoadCancelledError, LoaderScope, LoadHandle
from support import run_seeds, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio

SEEDS = range(60)


async def slow(keys: list[int]) -> list[int]:
    await anyio.sleep(1)
    return keys


async def stream(keys: list[int]) -> AsyncIterator[tuple[int, int]]:
    for key in keys:
        await anyio.sleep(1)
        yield key, key


class Waiter:
    """Awaits loads one after the other, and notes what came."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def __call__(self, *handles: Any) -> None:
        for handle in handles:
            try:
                self.seen.append(await handle)
            except LoadCancelledError:
                self.seen.append("cancelled")


# --- a task that was started just before has had its first step ---


@pytest.mark.parametrize("checkpoints", [0, 1, 2])
@pytest.mark.parametrize("place", ["own", "scope"])
@pytest.mark.parametrize("many", [False, True])
def test_a_task_that_was_started_just_before_gets_its_value(
    shuffled_backend: str, checkpoints: int, place: str, many: bool
) -> None:
    async def main() -> list[Any]:
        waiter = Waiter()
        async with anyio.create_task_group() as tg:
            loader = DataLoader(slow)
            async with loader if place == "own" else LoaderScope():
                tg.start_soon(waiter, loader.load_many([1]) if many else loader.load(1))
                for _ in range(checkpoints):
                    await checkpoint()
        return waiter.seen

    assert run_seeds(shuffled_backend, SEEDS, main) == [[1] if many else 1]


def test_a_task_that_runs_the_load_itself(shuffled_backend: str) -> None:
    async def main() -> list[int]:
        done: list[int] = []

        async def fetch(keys: list[int]) -> list[int]:
            await anyio.sleep(1)
            done.extend(keys)
            return keys

        async with anyio.create_task_group() as tg:
            async with DataLoader(fetch) as loader:
                tg.start_soon(loader.load, 1)
        return done

    assert run_seeds(shuffled_backend, SEEDS, main) == [1]


def test_what_nobody_awaits_is_still_cancelled(shuffled_backend: str) -> None:
    async def main() -> tuple[Any, float]:
        start = anyio.current_time()
        async with DataLoader(slow) as loader:
            handle = loader.load(1)
            await wait_all_tasks_blocked()
        return handle.status, anyio.current_time() - start

    assert run_seeds(shuffled_backend, SEEDS, main) == (LoadHandle.Status.CANCELLED, 0)


# --- a batch that is awaited when the body ends is finished ---


class HasOne:
    """A value cache that knows one of the keys."""

    async def get_many(self, keys: Sequence[int]) -> Mapping[int, int]:
        return {key: key for key in keys if key == 1}

    async def set_many(self, items: Mapping[int, int]) -> None:
        pass

    async def delete_many(self, keys: Sequence[int]) -> None:
        pass


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(stream),
        lambda: DataLoader(slow, value_cache=HasOne()),
        lambda: DataLoader(stream, value_cache=HasOne()),
    ],
    ids=["stream", "value cache", "both"],
)
@pytest.mark.parametrize("last", [2, 3, 5])
def test_a_stream_whose_loads_are_awaited_one_after_the_other(
    shuffled_backend: str, make: Callable[[], DataLoader[int, int]], last: int
) -> None:
    """In between nobody awaits; what was wanted stays wanted until it is given up."""

    async def main() -> list[Any]:
        waiter = Waiter()
        async with anyio.create_task_group() as tg:
            async with make() as loader:
                tg.start_soon(waiter, *[loader.load(key) for key in range(1, last + 1)])
                await anyio.sleep(0.5)
        return waiter.seen

    assert run_seeds(shuffled_backend, SEEDS, main) == [*range(1, last + 1)]


def test_what_is_given_up_after_the_body_ended_is_cancelled(shuffled_backend: str) -> None:
    async def main() -> float:
        async def forever(keys: list[int]) -> list[int]:
            await anyio.sleep(1_000)
            return keys

        async def impatient(handle: Any) -> None:
            with anyio.move_on_after(5):
                await handle

        start = anyio.current_time()
        async with anyio.create_task_group() as tg:
            async with DataLoader(forever) as loader:
                tg.start_soon(impatient, loader.load(1))
        return anyio.current_time() - start

    assert run_seeds(shuffled_backend, SEEDS, main) == 5


# --- a stream does not go on for nobody ---


@pytest.mark.parametrize("way", ["stream", "value cache"])
@pytest.mark.virtual_time
async def test_when_the_rest_is_given_up_the_function_is_cancelled(way: str) -> None:
    ends: list[str] = []

    async def endless() -> None:
        try:
            await anyio.sleep(1_000)
        except anyio.get_cancelled_exc_class():
            ends.append("cancelled")
            raise
        ends.append("worked on for nobody")

    async def first_only(keys: list[int]) -> AsyncIterator[tuple[int, int]]:
        yield 1, 1
        await endless()
        yield 2, 2

    async def rest(keys: list[int]) -> list[int]:
        await endless()
        return keys

    loader: DataLoader[int, Any] = (
        DataLoader(first_only) if way == "stream" else DataLoader(rest, value_cache=HasOne())
    )
    async with loader:
        first, second = loader.load(1), loader.load(2)
        assert await first == 1
        with anyio.move_on_after(1):
            await second
        await wait_all_tasks_blocked()
        assert ends == ["cancelled"]
        assert loader.peek(2) is None
        assert loader.peek(1) is not None


async def test_a_load_never_awaited_keeps_a_stream_going() -> None:
    gate = anyio.Event()

    async def gated(keys: list[int]) -> AsyncIterator[tuple[int, int]]:
        yield 1, 1
        await gate.wait()
        for key in (2, 3):
            yield key, key

    async with DataLoader(gated) as loader:
        first, second, third = map(loader.load, (1, 2, 3))
        assert await first == 1
        with anyio.CancelScope() as scope:
            scope.cancel()
            await second
        await wait_all_tasks_blocked()
        gate.set()
        assert await third == 3


# --- a worker that is cancelled natively before its first step ---


async def load_and_cancel_what_it_started(loader: DataLoader[int, int]) -> LoadHandle[int]:
    before = asyncio.all_tasks()
    handle = loader.load(1)
    started = asyncio.all_tasks() - before
    for task in started:
        task.cancel()
    return handle


@pytest.mark.only_on("asyncio")
async def test_a_waiter_outside_of_an_anyio_group_hears_of_it() -> None:
    waiter = Waiter()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as outside:
            try:
                async with anyio.create_task_group() as group:
                    loader = DataLoader(slow, task_group=group)
                    handle = await load_and_cancel_what_it_started(loader)
                    outside.start_soon(waiter, handle)
            except asyncio.CancelledError:
                pass  # anyio's group passes a stray cancellation on
    assert waiter.seen in (["cancelled"], [1])


@pytest.mark.only_on("asyncio")
async def test_the_block_of_a_loader_ends_by_an_error_and_not_by_a_bare_cancellation() -> None:
    task: Any = asyncio.current_task()
    with anyio.fail_after(5), pytest.raises(LoadCancelledError):
        async with DataLoader(slow) as loader:
            await (await load_and_cancel_what_it_started(loader))
    if sys.version_info >= (3, 11):
        assert not task.cancelling()


async def test_a_stream_is_not_waited_for_when_all_has_come_that_was_awaited() -> None:
    """The load_many goes on waiting, but for another batch."""
    events: list[str] = []
    other = anyio.Event()

    async def stream_on(keys: list[int]) -> AsyncIterator[tuple[int, int]]:
        if keys == [1]:
            await other.wait()
        yield keys[0], keys[0]
        try:
            await anyio.sleep_forever()
        finally:
            events.append(f"{keys[0]} was cancelled")
            other.set()

    async def wait() -> None:
        assert await many == [1, 2]
        events.append("got both")

    async with anyio.create_task_group() as tg:
        async with DataLoader(stream_on, max_batch_size=1) as loader:
            many = loader.load_many([1, 2])
            tg.start_soon(wait)
            await wait_all_tasks_blocked()
    assert sorted(events) == ["1 was cancelled", "2 was cancelled", "got both"]
    assert events[0] == "2 was cancelled"
