"""What ``test_model.py``, ``test_faults.py`` and ``mutate.py`` have found, shrunk to plain tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from anyloader import DataLoader, schedules
from support import run_seeds, wait_all_tasks_blocked

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]


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


def test_leaving_does_not_wait_for_what_a_failed_load_many_left(shuffled_backend: str) -> None:
    assert run_seeds(shuffled_backend, range(50), _many_that_fails_early) == ["cancelled", "failed"]


@pytest.mark.parametrize("keys", [[2, 3], [3]], ids=str)
async def test_a_load_many_that_the_cache_refused_wants_nothing(keys: list[int]) -> None:
    """What it has queued is taken back; the others of the batch can still be given up."""

    class Picky(dict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            if key == 3:
                raise ValueError("not this one")
            super().__setitem__(key, value)

    ended: list[list[int]] = []

    async def fetch(sent: list[int]) -> list[int]:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(sent)
        return sent

    async with DataLoader(fetch, cache_map=Picky()) as loader:
        load = loader.load(1)
        with pytest.raises(ValueError, match="not this one"):
            loader.load_many(keys)
        with anyio.move_on_after(1):
            await load
        await wait_all_tasks_blocked()
        assert ended == [[1]]


async def test_a_batch_of_which_only_a_deferred_hit_is_left_is_not_sent() -> None:
    calls: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        calls.append(keys)
        return keys

    async with DataLoader(fetch, defer_hits=True) as loader:
        loader.prime(1, 1)
        many = loader.load_many([2, 1])
        loader.dispatch()
        loader.prime(2, 2, force=True)
        assert await many == [2, 1]
        await wait_all_tasks_blocked()
    assert calls == []


async def test_a_load_that_joins_a_stream_by_a_key_sent_once_settles() -> None:
    """The key was cleared and loaded again while queued, so two entries of it are in the batch."""

    async def stream(keys: list[int]) -> AsyncIterator[tuple[int, int]]:
        await gate.wait()
        for key in keys:
            yield key, key * 10

    gate = anyio.Event()
    async with DataLoader(stream) as loader:
        loads = [loader.load(1), loader.clear(1).load(1)]
        loader.dispatch()
        await wait_all_tasks_blocked()
        loads.append(loader.load(1))
        gate.set()
        with anyio.fail_after(1):
            assert [await load for load in loads] == [10, 10, 10]


async def test_an_uncached_load_many_that_fills_a_batch_with_a_given_up_load_is_sent() -> None:
    calls: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        calls.append(keys)
        return keys

    manual = schedules.manual()
    async with DataLoader(fetch, cache=False, max_batch_size=2, schedule=manual) as loader:
        load = loader.load(1)
        with anyio.move_on_after(0):
            await load
        with anyio.fail_after(1):
            assert await loader.load_many([2]) == [2]
    assert calls == [[2]]


async def test_a_deferred_hit_of_a_load_many_keeps_no_batch_running() -> None:
    """It waits for the batch, but is no load of it."""
    ended: list[str] = []

    async def fetch(keys: list[int]) -> list[int]:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("cancelled")
        return keys

    async def wait_for(many: Any) -> None:
        assert await many == [2, 1]
        ended.append("settled")

    with anyio.fail_after(5):
        async with DataLoader(fetch, defer_hits=True) as loader, anyio.create_task_group() as tg:
            loader.prime(1, 1)
            many, load = loader.load_many([2, 1]), loader.load(3)
            tg.start_soon(wait_for, many)
            loader.prime(2, 2, force=True)
            with anyio.move_on_after(1):
                await load
            await wait_all_tasks_blocked()
            assert sorted(ended) == ["cancelled", "settled"]


async def test_a_key_that_was_primed_and_cleared_is_loaded_anew_where_keys_are_sent_once() -> None:
    calls: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        calls.append(keys)
        return keys

    async with DataLoader(fetch, deduplicate=True) as loader:
        loads = [loader.load(1), loader.load(2)]
        loader.prime(1, -1, force=True).clear(1)
        assert [await loader.load(1), await loads[0], await loads[1]] == [1, -1, 2]
    assert calls == [[2, 1]]


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


async def test_what_a_value_cache_has_is_forgotten_where_only_pending_loads_are_shared() -> None:
    class Values:
        async def get_many(self, keys: Any) -> dict[int, int]:
            return {key: -key for key in keys if key == 1}

        async def set_many(self, items: Any) -> None: ...

        async def delete_many(self, keys: Any) -> None: ...

    async def fetch(keys: list[int]) -> list[int]:
        return keys

    async with DataLoader(fetch, cache="pending", value_cache=Values()) as loader:
        assert await loader.load_many([1, 2]) == [-1, 2]
        assert loader.peek(1) is loader.peek(2) is None
