"""Contract 6.7: a second level of cache, which may fail in every way without failing a load."""

from __future__ import annotations

import traceback
from collections.abc import (
    AsyncIterator,
    Mapping,
    Sequence,
)
from contextlib import suppress
from typing import Any

import anyio
import pytest

from anyloader import (
    DataLoader,
    LoaderScope,
    LoadHandle,
    ValueCache,
    schedules,
)
from anyloader.hooks import (
    BatchCancelled,
    BatchFinished,
    BatchStarted,
    Event,
    ValueCacheHit,
    ValueCacheMiss,
)
from support import Recorder, wait_all_tasks_blocked
from support.value_caches import Boom, Store

pytestmark = pytest.mark.anyio

# --- asked once per batch, before the batch function ---


async def test_only_what_the_value_cache_does_not_have_reaches_the_batch_function() -> None:
    store, fetch = Store({1: "one", 3: "three"}), Recorder(str)
    async with DataLoader(fetch, value_cache=store) as loader:
        assert await loader.load_many([1, 2, 3, 4]) == ["one", "2", "three", "4"]
    assert fetch.calls == [[2, 4]]
    assert store.calls == [("get", [1, 2, 3, 4]), ("set", {2: "2", 4: "4"})]


async def test_it_is_asked_once_for_each_batch() -> None:
    store = Store()
    async with DataLoader(Recorder(str), max_batch_size=2, value_cache=store) as loader:
        await loader.load_many([1, 2, 3])
        await loader.load_many([1, 2, 3])
    assert [call for call in store.calls if call[0] == "get"] == [("get", [1, 2]), ("get", [3])]


async def test_a_batch_that_it_answers_whole_calls_no_batch_function() -> None:
    store, fetch = Store({1: "one"}), Recorder(str)
    async with DataLoader(fetch, value_cache=store) as loader:
        assert await loader.load(1) == "one"
        assert loader.statistics()[:5] == (1, 0, 0, 0, 0)  # loads, hits, shared, keys, batches
    assert fetch.calls == []
    assert store.calls == [("get", [1])]


async def test_none_is_a_value() -> None:
    store, fetch = Store({1: None}), Recorder[int, None](lambda key: None)
    async with DataLoader(fetch, value_cache=store) as loader:
        assert await loader.load_many([1, 2]) == [None, None]
    assert fetch.calls == [[2]]
    assert store.values == {1: None, 2: None}


async def test_a_second_loader_gets_what_the_first_one_has_loaded() -> None:
    store, fetch = Store(), Recorder(str)
    for _ in range(2):
        async with LoaderScope(), DataLoader(fetch, value_cache=store) as loader:
            assert await loader.load(1) == "1"
    assert fetch.calls == [[1]]


async def test_what_the_loader_has_itself_it_does_not_ask_for() -> None:
    store = Store({2: "stale"})
    async with DataLoader(Recorder(str), value_cache=store) as loader:
        await loader.load(1)
        loader.prime(2, "primed")
        assert await loader.load_many([1, 2]) == ["1", "primed"]
    assert store.calls == [("get", [1]), ("set", {1: "1"})]


async def test_its_keys_are_cache_keys_and_the_function_gets_the_keys() -> None:
    store, fetch = Store({"A": 0}), Recorder[str, int](lambda key: 1)
    async with DataLoader(fetch, get_cache_key=str.upper, value_cache=store) as loader:
        assert await loader.load_many(["a", "b", "B"]) == [0, 1, 1]
    assert fetch.calls == [["b"]]
    assert store.calls == [("get", ["A", "B"]), ("set", {"B": 1})]


async def test_with_the_cache_off_each_key_is_asked_for_once_and_every_load_is_answered() -> None:
    store, fetch = Store({1: "one"}), Recorder(str)
    async with DataLoader(fetch, cache=False, value_cache=store) as loader:
        assert await loader.load_many([1, 2, 1, 2]) == ["one", "2", "one", "2"]
        loads = [loader.load(1), loader.load(2)]
        assert [await load for load in loads] == ["one", "2"]
    assert fetch.calls == [[2, 2]]
    assert [call for call in store.calls if call[0] == "get"] == [("get", [1, 2])] * 2


@pytest.mark.parametrize("many", [False, True])
async def test_with_the_cache_off_a_key_that_can_be_no_cache_key_fails_alone(many: bool) -> None:
    store, fetch = Store(), Recorder[Any, str](str)
    async with DataLoader[Any, str](fetch, cache=False, value_cache=store) as loader:
        first: Any
        second: Any
        if many:
            first, second = await loader.load_many([1, [2]], return_exceptions=True)
        else:
            loads = [loader.load(1), loader.load([2])]
            first = await loads[0]
            await loads[1].wait()
            second = loads[1].exception
    assert first == "1"
    assert isinstance(second, TypeError)
    assert "value cache for the key [2]: unhashable type: 'list'; give get_cache_key" in str(second)
    assert fetch.calls == [[1]]
    assert store.values == {1: "1"}


async def test_with_the_cache_off_a_batch_of_such_keys_alone_asks_nobody() -> None:
    def refuse(key: int) -> int:
        raise LookupError(key)

    store, fetch = Store(), Recorder[int, str](str)
    async with DataLoader(fetch, cache=False, value_cache=store, get_cache_key=refuse) as loader:
        load = loader.load(1)
        await load.wait()
        assert isinstance(load.exception, LookupError)
        frames = [frame.name for frame in traceback.extract_tb(load.exception.__traceback__)]
        assert frames == ["refuse"]
        assert loader.statistics().running == 0
    assert (fetch.calls, store.calls) == ([], [])


async def mapped(keys: list[int]) -> dict[int, str]:
    return {key: str(key) for key in keys if key > 0}


async def streamed(keys: list[int]) -> AsyncIterator[tuple[int, str]]:
    for key in keys:
        if key > 0:
            yield key, str(key)


@pytest.mark.parametrize("function", [mapped, streamed])
async def test_mappings_and_streams_work_as_lists_do(function: Any) -> None:
    store = Store({1: "one"})
    async with DataLoader[int, Any](function, value_cache=store) as loader:
        loads = [loader.load(key) for key in (1, 2, 2, -3)]
        assert [await load for load in loads] == ["one", "2", "2", None]
    assert store.values == {1: "one", 2: "2", -3: None}


async def test_more_than_was_asked_for_is_not_taken() -> None:
    class Generous(Store):
        async def get_many(self, keys: Sequence[Any]) -> Mapping[Any, Any]:
            return {9: "nine", 1: "one"}

    fetch = Recorder(str)
    async with DataLoader(fetch, value_cache=Generous()) as loader:
        assert await loader.load_many([1, 2]) == ["one", "2"]
        assert loader.peek(9) is None
    assert fetch.calls == [[2]]


async def test_hits_are_there_before_the_batch_function_returns() -> None:
    gate = anyio.Event()
    store = Store({1: "one"})
    async with DataLoader(Recorder(str, gate=gate), value_cache=store) as loader:
        first, second = loader.load(1), loader.load(2)
        assert await first == "one"
        assert second.status is second.Status.PENDING
        gate.set()
        assert await second == "2"


# --- what is stored ---


async def test_errors_are_not_stored() -> None:
    async def mixed(keys: list[int]) -> list[Any]:
        if 9 in keys:
            raise Boom
        return [Boom() if key < 0 else key for key in keys]

    store = Store()
    async with DataLoader(mixed, value_cache=store) as loader:
        await loader.load_many([1, -1], return_exceptions=True)
        await loader.load_many([9, 2], return_exceptions=True)
        await loader.load(-2).wait()
    assert store.values == {1: 1}
    assert [items for what, items in store.calls if what == "set"] == [{1: 1}]


async def test_nobody_waits_until_values_are_stored_but_the_way_out() -> None:
    gate = anyio.Event()

    class Slow(Store):
        async def set_many(self, items: Mapping[Any, Any]) -> None:
            await gate.wait()
            await super().set_many(items)

    store = Slow()
    async with DataLoader(Recorder(str), value_cache=store) as loader:
        assert await loader.load(1) == "1"
        assert await loader.load(2) == "2"
        assert store.values == {}
        gate.set()
    assert store.values == {1: "1", 2: "2"}


async def test_a_cancelled_batch_stores_nothing() -> None:
    store = Store()
    with pytest.raises(Boom):
        async with DataLoader(Recorder(str, gate=anyio.Event()), value_cache=store) as loader:
            loader.load(1)
            await wait_all_tasks_blocked()
            raise Boom
    assert store.calls == [("get", [1])]


# --- clear ---


async def test_clear_deletes_there_before_the_next_batch_asks() -> None:
    store, fetch = Store({1: "old", 2: "old", 3: "old"}), Recorder(str)
    async with DataLoader(fetch, value_cache=store) as loader:
        assert await loader.load_many([1, 2, 3]) == ["old"] * 3
        loader.clear(1).clear_many([2, 1])
        assert store.values == {1: "old", 2: "old", 3: "old"}
        assert await loader.load_many([1, 2, 3]) == ["1", "2", "old"]
    assert store.calls[1:3] == [("delete", [1, 2]), ("get", [1, 2])]


async def test_what_was_cleared_is_deleted_at_once() -> None:
    """The client may ask again before the scope of its first request is left."""
    store = Store({1: "stale", 2: "stale"})
    async with DataLoader(Recorder(str), value_cache=store) as loader:
        loader.clear(1)
        await wait_all_tasks_blocked()
        assert store.values == {2: "stale"}
        loader.prime(2, "new", force=True)
        await wait_all_tasks_blocked()
        assert store.values == {}


@pytest.mark.parametrize("how", ["raises", "is cancelled", "ends"])
async def test_what_was_cleared_is_deleted_again_on_the_way_out(how: str) -> None:
    """Another request may have read it before it was committed, or this one before it was rolled back."""
    store = Store({1: "stale", 2: "kept"})
    with anyio.CancelScope() as cancelling, suppress(Boom):
        async with DataLoader(Recorder(str), value_cache=store) as loader:
            assert await loader.clear(1).load(1) == "1"
            await wait_all_tasks_blocked()
            assert store.values == {1: "1", 2: "kept"}
            if how == "raises":
                raise Boom
            if how == "is cancelled":
                cancelling.cancel()
                await anyio.lowlevel.checkpoint()
    assert store.values == {2: "kept"}


async def test_of_what_a_long_scope_clears_it_deletes_again_the_last_ten_thousand() -> None:
    store = Store()
    async with DataLoader(Recorder(str), value_cache=store) as loader:
        for first in range(0, 12_000, 4000):
            loader.clear_many(range(first, first + 4000))
            await wait_all_tasks_blocked()
    assert store.calls[-1] == ("delete", list(range(2000, 12_000)))


async def test_what_is_cleared_last_is_deleted_on_the_way_out() -> None:
    store = Store({1: "stale", 2: "kept"})
    async with DataLoader(Recorder(str), value_cache=store) as loader:
        loader.clear(1)
    assert store.values == {2: "kept"}


async def test_what_was_cleared_is_deleted_though_the_body_raises() -> None:
    store = Store({1: "old"})
    with pytest.raises(Boom):
        async with DataLoader(Recorder(str), value_cache=store) as loader:
            loader.clear(1)
            raise Boom
    assert store.values == {}


async def test_clear_deletes_a_key_that_was_never_loaded_here() -> None:
    store = Store({1: "old"})
    async with DataLoader(Recorder(str), value_cache=store) as loader:
        assert await loader.clear(1).load(1) == "1"
        await wait_all_tasks_blocked()
        assert store.values == {1: "1"}


@pytest.mark.parametrize("cache", [False, "pending"])
async def test_a_loader_that_remembers_nothing_deletes_there_all_the_same(cache: Any) -> None:
    store = Store({1: "stale", 2: "stale", 3: "kept"})
    async with DataLoader(Recorder(str), cache=cache, value_cache=store) as loader:
        loader.clear(1).prime(2, "new", force=True).prime(3, "new")
    assert store.values == {3: "kept"}


async def test_clear_all_deletes_what_the_loader_has_cached() -> None:
    store = Store({1: "old", 2: "old"})
    async with LoaderScope() as scope:
        loader = DataLoader(Recorder(str), value_cache=store)
        await loader.load(1)
        scope.clear_all()
        assert await loader.load_many([1, 2]) == ["1", "old"]
        loader.clear_all()
        assert await loader.load_many([1, 2]) == ["1", "2"]


async def test_clear_deletes_by_cache_key() -> None:
    store = Store({"A": "old"})
    async with DataLoader(
        Recorder[str, str](str), get_cache_key=str.upper, value_cache=store
    ) as loader:
        assert await loader.clear("a").load("a") == "a"
    assert store.calls[0] == ("delete", ["A"])


async def test_what_is_cleared_in_flight_is_not_stored() -> None:
    gate = anyio.Event()
    store = Store()
    async with DataLoader(Recorder(str, gate=gate), value_cache=store) as loader:
        old = loader.load_many([1, 2])
        await wait_all_tasks_blocked()
        loader.clear(1)
        gate.set()
        assert await old == ["1", "2"]
    assert store.values == {2: "2"}


async def test_a_key_cleared_and_loaded_again_in_flight_is_fetched_and_stored_anew() -> None:
    gate = anyio.Event()
    store = Store({1: "old"})
    versions = iter(("first", "second"))

    async def fetch(keys: list[int]) -> list[str]:
        version = next(versions)
        if version == "first":
            await gate.wait()
        return [version] * len(keys)

    async with DataLoader(fetch, value_cache=store) as loader:
        old = loader.clear(1).load(1)
        await wait_all_tasks_blocked()
        new = loader.clear(1).load(1)
        assert await new == "second"
        gate.set()
        assert await old == "first"
        await wait_all_tasks_blocked()
        assert store.values == {1: "second"}


async def test_clear_while_queued_deletes_before_this_batch_asks() -> None:
    store, fetch = Store({1: "old"}), Recorder(str)
    async with DataLoader(fetch, value_cache=store) as loader:
        first = loader.load(1)
        second = loader.clear(1).load(1)
        assert [await first, await second] == ["1", "1"]
    assert fetch.calls == [[1, 1]]
    assert store.calls[0] == ("delete", [1])


# --- what the hooks hear ---


async def test_the_hooks_hear_of_hits_and_misses() -> None:
    events: list[Event] = []
    store = Store({1: "one", 3: "three"})
    async with DataLoader(
        Recorder(str), name="it", value_cache=store, hooks=[events.append]
    ) as loader:
        await loader.load_many([1, 2, 3, 4])
        await loader.load_many([1, 2])
    number = next(event.batch for event in events if isinstance(event, BatchStarted))
    started = next(i for i, event in enumerate(events) if isinstance(event, BatchStarted))
    assert events[started : started + 4] == [
        BatchStarted("it", number, (1, 2, 3, 4)),
        ValueCacheHit("it", number, (1, 3)),
        ValueCacheMiss("it", number, (2, 4)),
        BatchFinished("it", number, 0),
    ]


async def test_a_batch_that_is_answered_whole_finishes() -> None:
    events: list[Event] = []
    async with DataLoader(
        Recorder(str), name="it", value_cache=Store({1: "one"}), hooks=[events.append]
    ) as loader:
        await loader.load(1)
    number = next(event.batch for event in events if isinstance(event, BatchStarted))
    assert events[-2:] == [ValueCacheHit("it", number, (1,)), BatchFinished("it", number, 0)]


async def test_a_batch_whose_last_wanted_keys_it_answers_is_cancelled() -> None:
    """What remains has been given up, so the batch function is not called for it."""
    events: list[Event] = []
    gate = anyio.Event()

    class Gated(Store):
        async def get_many(self, keys: Sequence[Any]) -> Mapping[Any, Any]:
            await gate.wait()
            return await super().get_many(keys)

    fetch = Recorder(str)
    async with DataLoader(fetch, value_cache=Gated({1: "one"}), hooks=[events.append]) as loader:
        wanted = loader.load(1)
        async with anyio.create_task_group() as group:
            group.start_soon(loader.load(2).wait)
            await wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        gate.set()
        assert await wanted == "one"
    assert fetch.calls == []
    assert isinstance(events[-1], BatchCancelled)


# --- arguments ---


def test_a_value_cache_has_three_methods() -> None:
    class Half:
        async def get_many(self, keys: Sequence[Any]) -> Mapping[Any, Any]:
            return {}

    wrong: Any
    for wrong in (Half(), {}, 1):
        with pytest.raises(TypeError, match=r"value_cache of .* get_many, set_many, delete_many"):
            DataLoader(Recorder(str), value_cache=wrong)


def test_a_class_attribute_is_the_default() -> None:
    store: ValueCache[int, str] = Store()

    class Cached(DataLoader[int, str]):
        value_cache = store

        async def batch_load_fn(self, keys: list[int]) -> list[str]:
            return [str(key) for key in keys]

    assert Cached().value_cache is store
    assert Cached(value_cache=None).value_cache is None


async def test_a_manual_schedule_and_a_limiter_change_nothing() -> None:
    store, fetch = Store({1: "one"}), Recorder(str)
    async with DataLoader(
        fetch, schedule=schedules.manual(), limiter=anyio.CapacityLimiter(1), value_cache=store
    ) as loader:
        loads = loader.load_many([1, 2])
        loader.dispatch()
        assert await loads == ["one", "2"]
    assert fetch.calls == [[2]]


async def test_what_was_cleared_before_the_opening_is_deleted_by_the_first_batch() -> None:
    class Values:
        def __init__(self) -> None:
            self.items = {1: 100}

        async def get_many(self, keys: Any) -> Any:
            return {key: self.items[key] for key in keys if key in self.items}

        async def set_many(self, items: Any) -> None:
            self.items.update(items)

        async def delete_many(self, keys: Any) -> None:
            for key in keys:
                self.items.pop(key, None)

    loader = DataLoader(Recorder[int, int](abs), value_cache=Values()).clear(1)
    async with loader:
        assert await loader.load(1) == 1


@pytest.mark.virtual_time
async def test_what_a_value_cache_finds_too_late_settles_nothing_and_is_not_told() -> None:
    class Values:
        async def get_many(self, keys: Any) -> Any:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(2)
            return dict.fromkeys(keys, 0)

        async def set_many(self, items: Any) -> None:
            pass

        async def delete_many(self, keys: Any) -> None:
            pass

    recorder, events = Recorder[int, int](abs), list[Event]()
    async with DataLoader(recorder, value_cache=Values(), hooks=[events.append]) as loader:
        load = loader.load(1)
        with anyio.move_on_after(1):
            await load
        assert load.status is LoadHandle.Status.CANCELLED
        await anyio.sleep(2)
        assert load.status is LoadHandle.Status.CANCELLED
        assert loader.peek(1) is None
        assert loader.statistics().value_cache_hits == 0
    assert recorder.calls == []
    assert isinstance(events[-1], BatchCancelled)


async def test_what_a_stream_gave_before_it_was_cancelled_is_stored() -> None:
    class Values:
        def __init__(self) -> None:
            self.stored: dict[int, int] = {}

        async def get_many(self, keys: Any) -> Any:
            return {}

        async def set_many(self, items: Any) -> None:
            self.stored.update(items)

        async def delete_many(self, keys: Any) -> None:
            pass

    gate, values = anyio.Event(), Values()

    async def stream(keys: list[int]) -> AsyncIterator[tuple[int, int]]:
        yield 1, 10
        with anyio.CancelScope(shield=True):
            await gate.wait()
        yield 2, 20

    async with LoaderScope() as scope:
        loader = DataLoader(stream, value_cache=values)
        first, second = loader.load(1), loader.load(2)
        assert await first == 10
        scope.cancel("enough")
        gate.set()
    assert second.status is LoadHandle.Status.CANCELLED
    assert values.stored == {1: 10}
