"""Contract 6.1, 6.2, 6.4 and 6.5: what is shared, remembered and forgotten."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, MutableMapping
from typing import Any

import anyio
import pytest

from anyloader import BatchResultError, DataLoader, LoadHandle, schedules
from support import Recorder, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio

MANUAL = schedules.manual()


class Versions:
    """A batch function that gives each key a new version at every call."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.gate = anyio.Event()
        self.gate.set()

    async def __call__(self, keys: list[int]) -> list[str]:
        self.calls.append(keys)
        version = len(self.calls)
        await self.gate.wait()
        return [f"{key}v{version}" for key in keys]


# --- 6.1: load shares what is cached or pending ---


async def test_a_load_many_sends_a_new_key_once() -> None:
    fetch = Recorder[int, int](abs)
    async with DataLoader(fetch) as loader:
        assert await loader.load_many([1, 2, 1]) == [1, 2, 1]
        now = loader.statistics()
    assert fetch.calls == [[1, 2]]
    assert (now.loads, now.hits, now.shared, now.keys) == (3, 0, 1, 2)


async def test_loads_share_a_key_queued_in_flight_and_settled() -> None:
    fetch = Versions()
    async with DataLoader(fetch) as loader:
        fetch.gate = anyio.Event()
        loads = [loader.load(1), loader.load(1)]
        many = [loader.load_many([1, 2, 1]), loader.load_many([2])]
        await wait_all_tasks_blocked()
        loads.append(loader.load(1))
        many.append(loader.load_many([1, 2]))
        fetch.gate.set()
        assert [await load for load in loads] == ["1v1"] * 3
        assert [await each for each in many] == [["1v1", "2v1", "1v1"], ["2v1"], ["1v1", "2v1"]]
        assert await loader.load(1) == "1v1"
        assert await loader.load_many([2, 1]) == ["2v1", "1v1"]
        now = loader.statistics()
        assert (now.loads, now.hits, now.shared, now.keys, now.batches, now.cached) == (
            *(12, 3, 7),
            *(2, 1, 2),
        )
    assert fetch.calls == [[1, 2]]


async def test_an_entry_comes_in_at_load() -> None:
    fetch = Versions()
    async with DataLoader(fetch, schedule=MANUAL) as loader:
        assert loader.peek(1) is None
        handle = loader.load(1)
        assert loader.peek(1) is handle
        assert loader.statistics().cached == 1
        loader.load_many([2])
        assert loader.statistics().cached == 2


async def test_loaders_share_nothing() -> None:
    fetch = Versions()
    async with DataLoader(fetch) as one, DataLoader(fetch) as other:
        assert (await one.load(1), await other.load(1)) == ("1v1", "1v2")
        one.clear_all()
        assert await other.load(1) == "1v2"


@pytest.mark.parametrize("how", ["clear", "clear_many", "clear_all"])
async def test_clear_during_a_flight_holds(how: str) -> None:
    fetch = Versions()
    async with DataLoader(fetch) as loader:
        fetch.gate = anyio.Event()
        old, old_many = loader.load(1), loader.load_many([1, 2])
        await wait_all_tasks_blocked()
        if how == "clear":
            loader.clear(1)
        elif how == "clear_many":
            loader.clear_many([1])
        else:
            loader.clear_all()
        assert loader.peek(1) is None
        new = loader.load(1)
        fetch.gate.set()
        assert (await old, await old_many) == ("1v1", ["1v1", "2v1"])
        assert await new == await loader.load(1) == "1v2"
        assert await loader.load(2) == ("2v3" if how == "clear_all" else "2v1")


async def test_a_key_cleared_in_flight_is_not_cached_when_the_batch_returns() -> None:
    fetch = Versions()
    async with DataLoader(fetch) as loader:
        fetch.gate = anyio.Event()
        old = loader.load(1)
        await wait_all_tasks_blocked()
        loader.clear(1)
        fetch.gate.set()
        assert await old == "1v1"
        assert loader.peek(1) is None
        assert await loader.load(1) == "1v2"


async def test_a_key_cleared_and_loaded_again_while_queued_is_sent_twice() -> None:
    calls: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[str]:
        calls.append(keys)
        return [f"{key} at {place}" for place, key in enumerate(keys)]

    async with DataLoader(fetch) as loader:
        old = loader.load(1)
        loader.load(2)
        new = loader.clear(1).load(1)
        assert (await old, await new) == ("1 at 0", "1 at 2")
        assert await loader.load(1) == "1 at 2"
    assert calls == [[1, 2, 1]]


@pytest.mark.parametrize("result", ["mapping", "stream", "async iterator"])
async def test_a_key_cleared_and_loaded_again_settles_all_its_loads(result: str) -> None:
    calls: list[list[int]] = []

    async def mapping(keys: list[int]) -> dict[int, int]:
        calls.append(keys)
        return {key: -key for key in keys}

    async def stream(keys: list[int]) -> AsyncIterator[tuple[int, int]]:
        calls.append(keys)
        for key in keys:
            yield key, -key

    def async_iterator(keys: list[int]) -> Any:
        return stream(keys)

    function: Any = {"mapping": mapping, "stream": stream}.get(result, async_iterator)
    with anyio.fail_after(2):
        async with DataLoader[int, int](function) as loader:
            loads: list[Any] = [loader.load(1), loader.load(1), loader.load_many([1])]
            loader.clear(1)
            loads += [loader.load(1), loader.load(1), loader.load_many([1])]
            assert [await load for load in loads] == [-1, -1, [-1]] * 2
    assert calls == ([[1, 1]] if result == "mapping" else [[1]])


async def test_clear_affects_that_key_alone_and_chains() -> None:
    fetch = Versions()
    async with DataLoader(fetch) as loader:
        await loader.load_many([1, 2, 3, 4])
        assert loader.clear(1).clear_many(iter([2, 5])) is loader
        assert await loader.load_many([1, 2, 3, 4]) == ["1v2", "2v2", "3v1", "4v1"]
        assert loader.clear_all() is loader
        assert await loader.load_many([1, 2, 3, 4]) == ["1v3", "2v3", "3v3", "4v3"]


async def test_a_newer_entry_survives_the_failure_of_the_batch_before() -> None:
    gate = anyio.Event()
    calls: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        calls.append(keys)
        if len(calls) == 1:
            await gate.wait()
            raise LookupError
        return keys

    async with DataLoader(fetch) as loader:
        old = loader.load_many([1, 2])
        await wait_all_tasks_blocked()
        new = loader.clear(1).load(1)
        gate.set()
        with pytest.raises(LookupError):
            await old
        assert loader.peek(1) is new
        assert loader.peek(2) is None


async def test_peek_neither_loads_nor_counts() -> None:
    fetch = Versions()
    async with DataLoader(fetch) as loader:
        assert loader.peek(1) is None
        await wait_all_tasks_blocked()
        assert fetch.calls == []
        handle = loader.load(1)
        assert loader.peek(1) is handle
        await handle
        peeked = loader.peek(1)
        assert peeked is not None
        assert peeked.return_value == "1v1"
        now = loader.statistics()
        assert (now.loads, now.hits, now.shared) == (1, 0, 0)


# --- 6.2: cache=False ---


async def test_without_a_cache_every_load_is_its_own_entry_in_load_order() -> None:
    fetch: list[list[int]] = []

    async def count(keys: list[int]) -> Iterator[str]:
        fetch.append(keys)
        return (f"{key} at {place}" for place, key in enumerate(keys))

    async with DataLoader(count, cache=False) as loader:
        handles = [loader.load(key) for key in (2, 1, 2)]
        many = loader.load_many([1, 1])
        assert len({*handles}) == 3
        assert [await handle for handle in handles] == ["2 at 0", "1 at 1", "2 at 2"]
        assert await many == ["1 at 3", "1 at 4"]
        assert await loader.load(1) == "1 at 0"
        now = loader.statistics()
        assert (now.loads, now.hits, now.shared, now.keys, now.cached) == (6, 0, 0, 6, 0)
    assert fetch == [[2, 1, 2, 1, 1], [1]]


async def test_without_a_cache_one_value_for_each_distinct_key_is_too_few() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        return sorted(set(keys))

    async with DataLoader(fetch, cache=False) as loader:
        with pytest.raises(BatchResultError):
            await loader.load_many([1, 2, 1])


async def test_without_a_cache_duplicates_count_towards_the_size() -> None:
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, cache=False, max_batch_size=2) as loader:
        await loader.load_many([1, 1, 1])
    assert sorted(recorder.calls) == [[1], [1, 1]]


async def test_without_a_cache_a_load_in_flight_is_not_shared() -> None:
    fetch = Versions()
    async with DataLoader(fetch, cache=False) as loader:
        fetch.gate = anyio.Event()
        first = loader.load(1)
        await wait_all_tasks_blocked()
        second = loader.load(1)
        fetch.gate.set()
        assert (await first, await second) == ("1v1", "1v2")


async def test_without_a_cache_get_cache_key_is_not_called() -> None:
    def get_cache_key(key: object) -> object:
        raise AssertionError("called")

    recorder = Recorder[Any, Any](str)
    async with DataLoader(recorder, cache=False, get_cache_key=get_cache_key) as loader:
        assert await loader.load([1]) == "[1]"
        assert await loader.load_many([{}, {}]) == ["{}", "{}"]
        loader.prime({}, "primed").clear({}).clear_many([{}]).clear_all()
        assert loader.peek({}) is None


@pytest.mark.parametrize("need", ["mapping", "stream", "deduplicate"])
async def test_without_a_cache_get_cache_key_serves_who_needs_it(need: str) -> None:
    calls: list[list[Any]] = []

    async def mapping(keys: list[Any]) -> dict[int, int]:
        calls.append(keys)
        return {key["id"]: -key["id"] for key in keys}

    async def stream(keys: list[Any]) -> AsyncIterator[tuple[Any, int]]:
        calls.append(keys)
        for key in keys:
            yield key["id"], -key["id"]

    async def listed(keys: list[Any]) -> list[int]:
        calls.append(keys)
        return [-key["id"] for key in keys]

    function: Any = {"mapping": mapping, "stream": stream, "deduplicate": listed}[need]
    async with DataLoader[Any, int](
        function,
        cache=False,
        deduplicate=need == "deduplicate",
        get_cache_key=lambda key: key["id"],
    ) as loader:
        assert await loader.load_many([{"id": 1}, {"id": 2}, {"id": 1, "x": 0}]) == [-1, -2, -1]
    distinct = [{"id": 1}, {"id": 2}]
    assert calls == [distinct + [{"id": 1, "x": 0}] * (need == "mapping")]


async def test_without_a_cache_prime_and_clear_change_nothing() -> None:
    fetch = Versions()
    async with DataLoader(fetch, cache=False, schedule=MANUAL) as loader:
        assert loader.prime(1, "primed").prime_many({2: "primed"}) is loader
        assert loader.peek(1) is None
        many = loader.load_many([1, 2])
        assert loader.prime(1, "primed", force=True) is loader
        assert loader.clear(1).clear_many([2]).clear_all() is loader
        loader.dispatch()
        assert await many == ["1v1", "2v1"]
        assert loader.peek(1) is None
    assert fetch.calls == [[1, 2]]


async def test_deduplicate_sends_equal_keys_of_one_batch_once() -> None:
    fetch = Versions()
    async with DataLoader(fetch, cache=False, deduplicate=True) as loader:
        fetch.gate = anyio.Event()
        loads = [loader.load(key) for key in (2, 1, 2)]
        many = loader.load_many([1, 3, 1])
        await wait_all_tasks_blocked()
        later = loader.load(1)
        fetch.gate.set()
        assert [await load for load in loads] == ["2v1", "1v1", "2v1"]
        assert await many == ["1v1", "3v1", "1v1"]
        assert await later == "1v2"
        now = loader.statistics()
        assert (now.loads, now.hits, now.shared, now.keys, now.cached) == (7, 0, 3, 4, 0)
    assert fetch.calls == [[2, 1, 3], [1]]


async def test_deduplicate_goes_by_the_cache_key_and_sends_the_first_key() -> None:
    recorder = Recorder[str, str](str)
    async with DataLoader(
        recorder, cache=False, deduplicate=True, get_cache_key=str.lower
    ) as loader:
        loads = [loader.load(key) for key in ("A", "a", "b")]
        assert [await load for load in loads] == ["A", "A", "b"]
        assert await loader.load_many(["B", "b"]) == ["B", "B"]
    assert recorder.calls == [["A", "b"], ["B"]]


async def test_deduplicated_loads_do_not_count_towards_the_size() -> None:
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, cache=False, deduplicate=True, max_batch_size=2) as loader:
        assert await loader.load_many([1, 1, 1, 2]) == [1, 1, 1, 2]
    assert recorder.calls == [[1, 2]]


# --- 6.4: get_cache_key ---


async def test_get_cache_key_serves_load_prime_clear_and_peek() -> None:
    recorder = Recorder[str, str](str)
    async with DataLoader(recorder, get_cache_key=str.lower) as loader:
        first, second, many = loader.load("A"), loader.load("a"), loader.load_many(["A", "B", "b"])
        assert (await first, await second, await many) == ("A", "A", ["A", "B", "B"])
        assert loader.peek("a") is loader.peek("A") is first

        loader.clear("a").prime("C", "primed").prime("c", "again")
        assert loader.peek("A") is None
        assert await loader.load_many(["c", "a", "A"]) == ["primed", "a", "a"]
        loader.clear_many(["A"]).prime_many({"B": "forced"}, force=True)
        assert await loader.load_many(["b", "A"]) == ["forced", "A"]
    assert recorder.calls == [["A", "B"], ["a"], ["A"]]


async def test_get_cache_key_makes_unhashable_keys_loadable() -> None:
    recorder = Recorder[dict[str, int], int](lambda key: key["id"])
    async with DataLoader(recorder, get_cache_key=lambda key: key["id"]) as loader:
        assert await loader.load_many([{"id": 1}, {"id": 2}, {"id": 1, "x": 2}]) == [1, 2, 1]
        loader.prime({"id": 3}, 33).clear({"id": 1})
        assert await loader.load({"id": 3}) == 33
        assert loader.peek({"id": 1}) is None
    assert recorder.calls == [[{"id": 1}, {"id": 2}]]


async def test_a_mapping_is_looked_up_by_cache_key() -> None:
    async def fetch(keys: list[str]) -> dict[str, str]:
        return {key.lower(): key for key in keys}

    async with DataLoader(fetch, get_cache_key=str.lower) as loader:
        assert await loader.load_many(["A", "a", "B"]) == ["A", "A", "B"]


async def test_entries_under_a_cache_key_are_evicted_when_their_batch_fails() -> None:
    async def fetch(keys: list[str]) -> list[str]:
        raise LookupError

    async with DataLoader(fetch, get_cache_key=str.lower) as loader:
        with pytest.raises(LookupError):
            await loader.load("A")
        assert loader.statistics().cached == 0


# --- 6.5: cache_map ---

Cache = MutableMapping[Any, LoadHandle[Any]]


class Noting(dict[Any, Any]):
    """Notes the keys that are stored."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: list[object] = []

    def __setitem__(self, key: object, value: object) -> None:
        self.stored.append(key)
        super().__setitem__(key, value)


async def test_cache_map_is_where_the_entries_are() -> None:
    fetch, cache = Versions(), Noting()
    async with DataLoader(fetch, cache_map=cache) as loader:
        handle = loader.load(1)
        assert cache == {1: handle}
        loader.prime(2, "primed")
        assert await loader.load_many([1, 2, 3]) == ["1v1", "primed", "3v1"]
        assert cache.stored == [1, 2, 3]
        del cache[1]
        assert await loader.load(1) == "1v2"
        loader.clear(1)
        assert set(cache) == {2, 3}
        loader.clear_all()
        assert cache == {}


async def test_an_empty_cache_map_that_is_false_is_used() -> None:
    fetch, cache = Versions(), Noting()
    async with DataLoader(fetch, cache_map=cache) as loader:
        await loader.load(1)
        assert list(cache) == [1]


async def test_an_lru_cache_forgets_the_least_recently_used() -> None:
    cachetools = pytest.importorskip("cachetools")
    fetch, cache = Versions(), cachetools.LRUCache(maxsize=2)
    async with DataLoader(fetch, cache_map=cache) as loader:
        await loader.load_many([1, 2])
        assert await loader.load(1) == "1v1"
        assert await loader.load(3) == "3v2"
        assert await loader.load(1) == "1v1"
        assert await loader.load(2) == "2v3"
        assert loader.statistics().cached == 2


async def test_a_ttl_cache_forgets_after_its_time() -> None:
    cachetools = pytest.importorskip("cachetools")
    now = [0.0]
    fetch, cache = Versions(), cachetools.TTLCache(maxsize=9, ttl=10, timer=lambda: now[0])
    async with DataLoader(fetch, cache_map=cache) as loader:
        fetch.gate = anyio.Event()
        old = loader.load_many([1, 2])
        await wait_all_tasks_blocked()
        now[0] = 11
        new = loader.load(1)
        fetch.gate.set()
        assert (await old, await new) == (["1v1", "2v1"], "1v2")
        assert await loader.load_many([1, 2]) == ["1v2", "2v3"]
        now[0] = 22
        assert loader.peek(1) is None


@pytest.mark.parametrize("maxsize", [1, 2])
async def test_an_eviction_never_affects_waiters(maxsize: int) -> None:
    cachetools = pytest.importorskip("cachetools")
    fetch, cache = Versions(), cachetools.LRUCache(maxsize=maxsize)
    async with DataLoader(fetch, cache_map=cache) as loader:
        handles = [loader.load(key) for key in range(5)]
        many = loader.load_many(range(5, 10))
        outcomes: list[object] = []

        async def wait(handle: LoadHandle[str]) -> None:
            outcomes.append(await handle)

        async with anyio.create_task_group() as tg:
            for handle in handles:
                tg.start_soon(wait, handle)
        assert sorted(map(str, outcomes)) == [f"{key}v1" for key in range(5)]
        assert await many == [f"{key}v1" for key in range(5, 10)]
        assert len(cache) == maxsize
        assert await loader.load(9) == "9v1"
    assert fetch.calls == [list(range(10))]


async def test_evictions_and_failures_get_along() -> None:
    cachetools = pytest.importorskip("cachetools")

    async def fetch(keys: list[int]) -> list[int]:
        raise LookupError

    async with DataLoader(fetch, cache_map=cachetools.LRUCache(maxsize=1)) as loader:
        handles = [loader.load(key) for key in (1, 2, 1)]
        for handle in handles:
            with pytest.raises(LookupError):
                await handle
        assert loader.statistics().cached == 0


class Refusing(dict[Any, Any]):
    """Cannot store 2, or nothing at all, or not look up."""

    refuses = "2"

    def __setitem__(self, key: object, value: object) -> None:
        if self.refuses == "all" or str(key) == self.refuses:
            raise MemoryError("cannot store")
        super().__setitem__(key, value)

    def get(self, key: object, default: object = None) -> object:
        if self.refuses == "get":
            raise ConnectionError("cannot look up")
        return super().get(key, default)


async def test_what_cache_map_raises_comes_out_of_load_and_leaves_no_trace() -> None:
    recorder, cache = Recorder[int, int](abs), Refusing()
    async with DataLoader(recorder, cache_map=cache) as loader:
        with pytest.raises(MemoryError, match="cannot store"):
            loader.load(2)
        with pytest.raises(MemoryError, match="cannot store"):
            loader.prime(2, 2)
        assert loader.statistics().queued == 0
        await wait_all_tasks_blocked()
        assert recorder.calls == []
        with anyio.fail_after(2):
            assert await loader.load_many([1, 3]) == [1, 3]

        cache.refuses = "get"
        with pytest.raises(ConnectionError):
            loader.load(1)
        with pytest.raises(ConnectionError):
            loader.load_many([1])
        cache.refuses = "none"
        with anyio.fail_after(2):
            assert await loader.load_many([2]) == [2]
    assert recorder.calls == [[1, 3], [2]]


async def test_a_load_many_that_cache_map_refuses_lets_no_key_in() -> None:
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, cache_map=Refusing()) as loader:
        with pytest.raises(MemoryError, match="cannot store"):
            loader.load_many([1, 2, 3])
        assert loader.statistics().queued == loader.statistics().cached == 0
        with anyio.fail_after(2):
            assert await loader.load(4) == 4
    assert recorder.calls == [[4]]


async def test_a_cache_map_that_raises_at_an_eviction_leaves_nobody_waiting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Sticky(dict[Any, Any]):
        def pop(self, *_: object) -> Any:
            raise ConnectionError("cannot forget")

        __delitem__ = pop

    async def fetch(keys: list[int]) -> list[int]:
        raise LookupError

    async with DataLoader(fetch, cache_map=Sticky()) as loader:
        handles = [loader.load(1), loader.load(2), loader.load(2)]
        for handle in handles:
            with anyio.fail_after(2), pytest.raises(LookupError):
                await handle
    assert "cannot forget" in caplog.text


async def test_a_value_too_large_for_a_cachetools_cache_leaves_no_trace() -> None:
    cachetools = pytest.importorskip("cachetools")
    recorder = Recorder[int, int](abs)
    cache = cachetools.LRUCache(maxsize=1, getsizeof=lambda handle: handle.key)
    async with DataLoader(recorder, cache_map=cache) as loader:
        with pytest.raises(ValueError, match="too large"):
            loader.load(2)
        with anyio.fail_after(2):
            assert await loader.load(1) == 1
    assert recorder.calls == [[1]]
