"""Leaving waits for what somebody awaits, however far down, and for nothing else (contract 1, 5.2)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from anyloader import (
    DataLoader,
    LoaderScope,
    LoadHandle,
)
from support import Recorder, run_seeds, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio


@pytest.mark.virtual_time
@pytest.mark.parametrize("many", [False, True], ids=["load", "load_many"])
async def test_a_shared_load_that_a_batch_function_awaits_later_keeps_its_batch(many: bool) -> None:
    """The scope is left meanwhile, and nobody awaits that batch right then."""

    async def slow(keys: list[int]) -> list[int]:
        await anyio.sleep(3)
        return keys

    async def outer(keys: list[int]) -> list[int]:
        load: Any = inner.load_many([1]) if many else inner.load(1)
        shared.set()
        await anyio.sleep(1)
        await load
        return [1]

    shared = anyio.Event()
    results: list[int] = []

    async def wait_for(load: LoadHandle[int]) -> None:
        results.append(await load)

    async with anyio.create_task_group() as tg:
        async with LoaderScope() as scope:
            inner = scope.get(slow)
            inner.load(1)
            await wait_all_tasks_blocked()
            tg.start_soon(wait_for, scope.get(outer).load(2))
            await shared.wait()
    assert results == [1]


class Gated:
    """A value cache that has the key 1, and tells so when the gate is open."""

    def __init__(self) -> None:
        self.gate = anyio.Event()
        self.asked: list[list[int]] = []

    async def get_many(self, keys: Any) -> Any:
        self.asked.append(list(keys))
        await self.gate.wait()
        return {key: 100 for key in keys if key == 1}

    async def set_many(self, items: Any) -> None:
        pass

    async def delete_many(self, keys: Any) -> None:
        pass


async def test_leaving_does_not_wait_for_a_batch_when_the_value_cache_gave_what_was_awaited() -> (
    None
):
    values = Gated()
    got: list[int] = []

    async def wait_for(load: LoadHandle[int]) -> None:
        got.append(await load)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tg:
            recorder = Recorder[int, int](abs, gate=anyio.Event())
            async with DataLoader(recorder, value_cache=values) as loader:
                tg.start_soon(wait_for, loader.load(1))
                loader.load(2)
                await wait_all_tasks_blocked()
                tg.start_soon(set_later, values.gate)
    assert got == [100]


async def set_later(event: anyio.Event) -> None:
    await wait_all_tasks_blocked()
    event.set()


async def test_leaving_hears_of_a_key_that_is_primed_meanwhile() -> None:
    limiter = anyio.CapacityLimiter(1)
    recorder = Recorder[int, int](abs)
    got: list[int] = []

    async def wait_for(load: LoadHandle[int]) -> None:
        got.append(await load)

    async def prime_later(loader: DataLoader[int, int]) -> None:
        await wait_all_tasks_blocked()
        loader.prime(1, 10, force=True)

    with anyio.fail_after(5):
        async with limiter, anyio.create_task_group() as tg:
            async with DataLoader(recorder, limiter=limiter) as loader:
                tg.start_soon(wait_for, loader.load(1))
                loader.load(2)
                await wait_all_tasks_blocked()
                tg.start_soon(prime_later, loader)
    assert got == [10]
    assert recorder.calls == []


@pytest.mark.virtual_time
async def test_a_batch_is_kept_for_the_sake_of_one_that_is_kept_for_another() -> None:
    """The last of the three was opened first."""

    async def fetch_c(keys: list[int]) -> list[int]:
        await anyio.sleep(3)
        return keys

    async def fetch_b(keys: list[int]) -> list[int]:
        load = c.load(1)
        await anyio.sleep(2)
        return [await load]

    async def fetch_a(keys: list[int]) -> list[int]:
        load = b.load(1)
        await anyio.sleep(1)
        return [await load]

    got: list[int] = []

    async def wait_for(load: LoadHandle[int]) -> None:
        got.append(await load)

    async with anyio.create_task_group() as tg:
        async with LoaderScope() as scope:
            a, b, c = scope.get(fetch_a), scope.get(fetch_b), scope.get(fetch_c)
            c.load(1)
            b.load(1)
            tg.start_soon(wait_for, a.load(1))
            await wait_all_tasks_blocked()
    assert got == [1]


@pytest.mark.virtual_time
async def test_a_batch_remembers_all_that_it_is_wanted_for() -> None:
    """Two functions have loaded from it, and the first of them is awaited."""

    async def fetch(keys: list[int]) -> list[int]:
        await anyio.sleep(3)
        return keys

    async def awaited(keys: list[int]) -> list[int]:
        load = inner.load(1)
        await anyio.sleep(1)
        return [await load]

    async def other(keys: list[int]) -> list[int]:
        await anyio.sleep(0.1)
        inner.load(1)
        return keys

    got: list[int] = []

    async def wait_for(load: LoadHandle[int]) -> None:
        got.append(await load)

    async with anyio.create_task_group() as tg:
        async with LoaderScope() as scope:
            inner = scope.get(fetch)
            tg.start_soon(wait_for, scope.get(awaited).load(1))
            scope.get(other).load(1)
            await anyio.sleep(0.5)
    assert got == [1]


@pytest.mark.virtual_time
async def test_leaving_waits_for_a_batch_of_which_a_deferred_hit_is_awaited() -> None:
    ended: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        await anyio.sleep(1)
        ended.append(keys)
        return keys

    async with anyio.create_task_group() as tg:
        async with DataLoader(fetch, defer_hits=True) as loader:
            loader.prime(1, 1)
            loader.load(2)
            tg.start_soon(loader.load(1).wait)
            await wait_all_tasks_blocked()
    assert ended == [[2]]


async def _set_later(event: anyio.Event) -> None:
    await anyio.sleep(0.1)
    event.set()


async def _many_that_fails_early() -> list[str]:
    """A load_many raises its first error while another of its batches still runs."""
    events: list[str] = []

    async def fetch(keys: list[int]) -> list[int]:
        if keys == [1]:
            await anyio.sleep(0.1)
            raise ValueError
        try:
            await anyio.sleep_forever()
        except BaseException:
            events.append("cancelled")
            raise
        return keys

    async def wait_for(load: Any) -> None:
        with pytest.raises(ValueError):
            await load
        events.append("failed")

    with anyio.move_on_after(1) as scope:
        async with anyio.create_task_group() as tg:
            async with DataLoader(fetch, max_batch_size=1) as loader:
                tg.start_soon(wait_for, loader.load_many([1, 2]))
                await wait_all_tasks_blocked()
    if scope.cancelled_caught:
        events.append("hung")
    return sorted(events)


@pytest.mark.virtual_time
async def test_leaving_does_not_wait_for_a_stream_that_gave_all_that_was_awaited() -> None:
    ended: list[str] = []

    async def endless(keys: list[int]) -> AsyncIterator[tuple[int, int]]:
        try:
            await gate.wait()
            yield keys[0], 1
            await anyio.sleep_forever()
        finally:
            ended.append("cancelled")

    async def wait_for(load: Any) -> None:
        assert await load == 1
        ended.append("got it")

    gate = anyio.Event()
    with anyio.fail_after(1):
        async with anyio.create_task_group() as tg:
            async with DataLoader(endless) as loader:
                tg.start_soon(wait_for, loader.load(1))
                loader.load(2)
                await wait_all_tasks_blocked()
                tg.start_soon(_set_later, gate)
    assert sorted(ended) == ["cancelled", "got it"]


def test_leaving_does_not_wait_for_what_a_failed_load_many_left(shuffled_backend: str) -> None:
    assert run_seeds(shuffled_backend, range(50), _many_that_fails_early) == ["cancelled", "failed"]


@pytest.mark.virtual_time
async def test_leaving_does_not_wait_for_what_only_a_deferred_hit_was_awaited_of() -> None:
    calls: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        calls.append(keys)
        return keys

    async def wait_for(load: Any) -> None:
        assert await load == 1

    loads: list[Any] = []
    limiter = anyio.CapacityLimiter(1)
    async with limiter:
        with anyio.fail_after(1):
            async with anyio.create_task_group() as tg:
                async with DataLoader(fetch, limiter=limiter, defer_hits=True) as loader:
                    loader.prime(1, 1)
                    loads.append(loader.load(2))
                    tg.start_soon(wait_for, loader.load(1))
    assert calls == []
    assert loads[0].status is loads[0].Status.CANCELLED
