"""``max_queue_size`` bounds the keys that wait to be sent (contract 2.8)."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from anyloader import DataLoader, LoaderBusyError, LoaderError, schedules
from support import Recorder, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio


def same(key: int) -> int:
    return key


async def test_one_key_too_many_is_refused_at_once_and_leaves_no_trace() -> None:
    fetch = Recorder[int, int](same)
    async with DataLoader(fetch, max_queue_size=2) as loader:
        handles = [loader.load(1), loader.load(2)]
        with pytest.raises(LoaderBusyError):
            loader.load(3)
        assert loader.peek(3) is None
        assert (loader.statistics().queued, loader.statistics().loads) == (2, 2)
        assert [await handle for handle in handles] == [1, 2]
        assert await loader.load(3) == 3
    assert fetch.calls == [[1, 2], [3]]


async def test_a_load_many_is_enqueued_whole_or_not_at_all() -> None:
    fetch = Recorder[int, int](same)
    async with DataLoader(fetch, max_queue_size=3) as loader:
        first = loader.load(1)
        with pytest.raises(LoaderBusyError):
            loader.load_many([2, 3, 4])
        assert [loader.peek(key) for key in (2, 3, 4)] == [None] * 3
        assert loader.statistics().queued == 1
        many = loader.load_many([2, 3])
        assert [await first, await many] == [1, [2, 3]]
    assert fetch.calls == [[1, 2, 3]]


async def test_hits_and_shared_loads_do_not_count() -> None:
    async with DataLoader(Recorder[int, int](same), max_queue_size=2) as loader:
        loader.prime_many({8: 8, 9: 9})
        handles = [loader.load(1), loader.load(2), loader.load(1)]
        many = loader.load_many([1, 2, 8, 9, 1])
        assert [await handle for handle in handles] == [1, 2, 1]
        assert await many == [1, 2, 8, 9, 1]


async def test_a_key_that_comes_twice_in_a_load_many_counts_once() -> None:
    async with DataLoader(Recorder[int, int](same), max_queue_size=2) as loader:
        assert await loader.load_many([1, 1, 2, 2]) == [1, 1, 2, 2]


async def test_with_the_cache_off_every_load_counts() -> None:
    async with DataLoader(Recorder[int, int](same), cache=False, max_queue_size=2) as loader:
        many = loader.load_many([1, 1])
        with pytest.raises(LoaderBusyError):
            loader.load(1)
        assert await many == [1, 1]


async def test_keys_that_run_do_not_count() -> None:
    gate = anyio.Event()
    fetch = Recorder[int, int](same, gate=gate)
    async with DataLoader(fetch, max_queue_size=2) as loader:
        first = loader.load_many([1, 2])
        await wait_all_tasks_blocked()
        assert fetch.calls == [[1, 2]]
        second = loader.load_many([3, 4])
        gate.set()
        assert [await first, await second] == [[1, 2], [3, 4]]


async def test_keys_that_wait_for_a_token_count_in_all_batches_together() -> None:
    limiter = anyio.CapacityLimiter(1)
    fetch = Recorder[int, int](same)
    async with DataLoader(fetch, limiter=limiter, max_batch_size=2, max_queue_size=3) as loader:
        async with limiter:
            first = loader.load_many([1, 2])
            second = loader.load(3)
            await wait_all_tasks_blocked()
            with pytest.raises(LoaderBusyError):
                loader.load(4)
        assert [await first, await second, await loader.load(4)] == [[1, 2], 3, 4]


async def test_what_left_the_queue_makes_room() -> None:
    fetch = Recorder[int, int](same)
    manual = schedules.manual()
    async with DataLoader(fetch, schedule=manual, max_queue_size=1) as loader:
        handle = loader.load(1)
        loader.prime(1, 10, force=True)
        assert await handle == 10
        second = loader.load(2)
        with pytest.raises(LoaderBusyError):
            loader.load(3)
        loader.dispatch()
        assert await second == 2


async def test_a_full_batch_that_leaves_at_once_still_waits_to_be_sent() -> None:
    fetch = Recorder[int, int](same)
    async with DataLoader(fetch, batch=False, max_queue_size=2) as loader:
        handles = [loader.load(1), loader.load(2)]
        with pytest.raises(LoaderBusyError):
            loader.load(3)
        assert [await handle for handle in handles] == [1, 2]


async def test_without_it_there_is_no_bound() -> None:
    async with DataLoader(Recorder[int, int](same)) as loader:
        assert await loader.load_many(range(10_000)) == [*range(10_000)]


async def test_the_error_names_the_loader_and_the_bound_and_holds_no_key() -> None:
    assert issubclass(LoaderBusyError, LoaderError)
    fetch = Recorder[int, int](same)
    async with DataLoader(fetch, name="fetch_users", max_queue_size=7) as loader:
        many = loader.load_many(range(100, 107))
        with pytest.raises(LoaderBusyError, match="fetch_users") as caught:
            loader.load(424242)
        assert "7" in str(caught.value)
        assert "424242" not in str(caught.value)
        assert len(await many) == 7


@pytest.mark.parametrize("size", [0, -1, True, 1.5, "2"])
def test_it_is_an_int_of_at_least_one(size: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="max_queue_size"):
        DataLoader(Recorder[int, int](same), max_queue_size=size)


def test_a_subclass_can_set_it() -> None:
    class Users(DataLoader[int, int]):
        max_queue_size = 0

        async def batch_load_fn(self, keys: list[int]) -> list[int]:
            return keys

    with pytest.raises(ValueError, match="max_queue_size"):
        Users()


@pytest.mark.parametrize("cache", [True, False])
async def test_equal_keys_of_a_load_many_count_once_where_they_are_sent_once(cache: bool) -> None:
    options: Any = {"cache": cache, "deduplicate": True, "max_queue_size": 2}
    async with DataLoader(Recorder[int, str](str), **options) as loader:
        assert await loader.load_many([1, 1, 1, 2]) == ["1", "1", "1", "2"]
        queued = loader.load(3)
        more = loader.load_many([3, 4])
        with pytest.raises(LoaderBusyError, match="2 keys wait to be sent and 1 more cannot"):
            loader.load_many([5])
        assert [await queued, *await more] == ["3", "3", "4"]
