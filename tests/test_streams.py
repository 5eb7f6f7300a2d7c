"""Batch functions that give pairs as they come (contract 3)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import (
    BatchResultError,
    DataLoader,
    schedules,
)
from anyloader.hooks import (
    BatchFinished,
)
from support import wait_all_tasks_blocked
from support.loads import outcomes

pytestmark = pytest.mark.anyio

# --- streams ---


async def settled(loader: DataLoader[Any, Any], handles: list[Any]) -> list[str]:
    await wait_all_tasks_blocked()
    return [handle.status.name.lower() for handle in handles]


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("hidden", [False, True], ids=["generator function", "lambda"])
async def test_a_stream_is_given_each_distinct_key_once(cache: bool, hidden: bool) -> None:
    given: list[list[int]] = []

    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, str], None]:
        given.append(list(keys))
        for key in keys:
            yield key, f"value {key}"

    fn: Any = (lambda keys: stream(keys)) if hidden else stream
    async with DataLoader[int, str](fn, cache=cache) as loader:
        handles = [loader.load(key) for key in (2, 1, 2, 1)]
        many = loader.load_many([2, 3, 2])
        assert [await handle for handle in handles] == ["value 2", "value 1"] * 2
        assert await many == ["value 2", "value 3", "value 2"]
    assert given == [[2, 1, 3]]


async def test_a_stream_gets_a_key_cleared_and_loaded_again_once() -> None:
    given: list[list[int]] = []

    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, str], None]:
        given.append(list(keys))
        for key in keys:
            yield key, f"value {key}"

    async with DataLoader(stream) as loader:
        first = loader.load(1)
        second = loader.clear(1).load(1)
        assert (await first, await second) == ("value 1", "value 1")
        assert loader.peek(1) is second
    assert given == [[1]]


async def test_a_failing_stream_fails_a_key_cleared_and_loaded_again_once() -> None:
    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, str], None]:
        raise ValueError("no stream")
        yield 1, ""

    async with DataLoader(stream) as loader:
        loads = [loader.load(1), loader.clear(1).load(1), loader.load(2)]
        for load in loads:
            with pytest.raises(ValueError, match="no stream"):
                await load
        assert loader.peek(1) is None


async def test_a_stream_gives_the_cache_keys_or_the_keys() -> None:
    given: list[list[str]] = []

    async def stream(keys: list[str]) -> AsyncGenerator[tuple[str, str], None]:
        given.append(list(keys))
        yield "a", "by cache key"
        yield "B", "by key"

    for cache in True, False:
        async with DataLoader(stream, get_cache_key=str.lower, cache=cache) as loader:
            assert await loader.load_many(["A", "B", "a"]) == [
                "by cache key",
                "by key",
                "by cache key",
            ]
    assert given == [["A", "B"]] * 2


async def test_a_stream_may_give_the_keys_where_only_cache_keys_are_hashable() -> None:
    async def stream(keys: list[list[int]]) -> AsyncGenerator[tuple[Any, int], None]:
        for key in keys:
            yield key, sum(key)

    async with DataLoader(stream, get_cache_key=tuple) as loader:
        assert await loader.load_many([[1, 2], [3, 4]]) == [3, 7]


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
async def test_a_pair_settles_all_loads_of_its_key_at_once(cache: bool) -> None:
    """The others stay pending, and all of this is seen before the generator ends."""
    more = anyio.Event()
    events: list[str] = []

    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, str], None]:
        yield 2, "b"
        await more.wait()
        events.append("goes on")
        yield 1, "a"

    async def wait_for(name: str, handle: Any) -> None:
        events.append(f"{name} {await handle}")

    async with DataLoader(stream, cache=cache) as loader:
        async with anyio.create_task_group() as tg:
            handles = [loader.load(key) for key in (1, 2, 2)]
            for name, handle in zip(("one", "two", "two"), handles):
                tg.start_soon(wait_for, name, handle)
            tg.start_soon(wait_for, "many", loader.load_many([2, 2]))
            tg.start_soon(wait_for, "all", loader.load_many([1, 2]))
            assert await settled(loader, handles) == ["pending", "finished", "finished"]
            assert sorted(events) == ["many ['b', 'b']", "two b", "two b"]
            events.clear()
            more.set()
    assert events[0] == "goes on"
    assert sorted(events[1:]) == ["all ['a', 'b']", "one a"]


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
async def test_absent_keys_of_a_stream_are_missing_once_it_ends(cache: bool) -> None:
    end = anyio.Event()
    asked: list[int] = []

    def missing(key: int) -> Any:
        asked.append(key)
        return KeyError(key) if key == 3 else f"no {key}"

    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, str], None]:
        yield 1, "a"
        await end.wait()

    async with DataLoader(stream, on_missing=missing, cache=cache) as loader:
        handles = [loader.load(key) for key in (1, 2, 3, 2)]
        assert (await settled(loader, handles))[1:] == ["pending"] * 3
        assert asked == []
        end.set()
        assert [await handles[0], await handles[1], await handles[3]] == ["a", "no 2", "no 2"]
        with pytest.raises(KeyError):
            await handles[2]
    assert sorted(asked) == [2, 3]


async def test_an_absent_key_of_a_stream_is_none_by_default() -> None:
    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, Any], None]:
        yield 1, "a"

    async with DataLoader(stream) as loader:
        assert await loader.load_many([1, 2]) == ["a", None]


async def test_an_error_in_a_stream_fails_its_key_alone() -> None:
    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, Any], None]:
        yield 1, LookupError(1)
        yield 2, "b"

    async with DataLoader(stream, cache_errors=False) as loader:
        one, two = loader.load(1), loader.load(2)
        assert await two == "b"
        with pytest.raises(LookupError):
            await one
        assert loader.peek(1) is None
        assert loader.peek(2) is not None


BAD_PAIRS: dict[str, tuple[Any, str]] = {
    "unknown key": ((9, "x"), "not asked for"),
    "unhashable key": (([], "x"), "not asked for"),
    "key given twice": ((1, "again"), "twice"),
    "no tuple": (None, "no pair"),
    "str of length two": ("ab", "no pair"),
    "triple": ((2, "b", "c"), "no pair"),
}


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("kind", BAD_PAIRS)
async def test_a_bad_pair_fails_what_is_not_settled(kind: str, cache: bool) -> None:
    pair, message = BAD_PAIRS[kind]
    closed: list[bool] = []

    async def stream(keys: list[int]) -> AsyncGenerator[Any, None]:
        try:
            yield 1, "a"
            yield pair
            yield 2, "never"
        finally:
            await checkpoint()
            closed.append(True)

    async with DataLoader(stream, cache=cache) as loader:
        one, two, three = loader.load(1), loader.load(2), loader.load(3)
        for handle in two, three:
            with pytest.raises(BatchResultError, match=message):
                await handle
        assert await one == "a"
        assert (loader.peek(1) is one) == cache
        assert loader.peek(2) is None
        await wait_all_tasks_blocked()
        assert closed == [True]


async def test_a_stream_that_raises_fails_what_is_not_settled() -> None:
    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, str], None]:
        yield 1, "a"
        raise ConnectionError("lost")

    async with DataLoader(stream) as loader:
        one, two = loader.load(1), loader.load(2)
        with pytest.raises(ConnectionError, match="lost"):
            await two
        assert await one == "a"
        assert loader.peek(1) is one
        assert loader.peek(2) is None


async def test_what_a_cancelled_stream_still_gives_is_dropped() -> None:
    given: list[int] = []

    class Stream:
        """Has no ``aclose``, and takes its time to notice that nobody wants it any more."""

        def __init__(self, keys: list[int]) -> None:
            self._keys = iter(keys)

        def __aiter__(self) -> AsyncIterator[tuple[int, int]]:
            return self

        async def __anext__(self) -> tuple[int, int]:
            for key in self._keys:
                with anyio.CancelScope(shield=True):
                    await gate.wait()
                given.append(key)
                return key, key
            raise StopAsyncIteration

    gate = anyio.Event()
    function: Any = Stream
    loader = DataLoader[int, int](function)
    async with anyio.create_task_group() as tg, loader:
        tg.start_soon(loader.load_many, [1, 2])
        await wait_all_tasks_blocked()
        tg.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await wait_all_tasks_blocked()  # until the load_many has been given up
        gate.set()
    assert given == [1, 2]
    assert loader.statistics().cached == 0


async def test_a_stream_need_not_have_an_aclose() -> None:
    class Stream:
        def __init__(self, keys: list[int]) -> None:
            self._keys = iter(keys[:1])

        def __aiter__(self) -> AsyncIterator[tuple[int, int]]:
            return self

        async def __anext__(self) -> tuple[int, int]:
            for key in self._keys:
                return key, abs(key)
            raise StopAsyncIteration

    function: Any = Stream
    async with DataLoader[int, int](function) as loader:
        assert await loader.load_many([-1, -2]) == [1, None]


async def test_hooks_hear_how_many_keys_of_a_stream_failed() -> None:
    told: list[Any] = []

    async def stream(keys: list[int]) -> AsyncIterator[tuple[int, int | Exception]]:
        for key in keys:
            yield key, ValueError() if key == 1 else key

    async with DataLoader(stream, hooks=[told.append]) as loader:
        await loader.load_many([1, 2, 3], return_exceptions=True)
        await wait_all_tasks_blocked()
    assert [event.errors for event in told if isinstance(event, BatchFinished)] == [1]


async def test_each_stream_that_a_function_makes_is_closed() -> None:
    """Though it makes one too many, as only its result shows that it should get each key once."""
    closed: list[list[int]] = []

    class Stream:
        def __init__(self, keys: list[int]) -> None:
            self._keys = keys
            self._left = iter(keys)

        def __aiter__(self) -> AsyncIterator[tuple[int, int]]:
            return self

        async def __anext__(self) -> tuple[int, int]:
            for key in self._left:
                return key, abs(key)
            raise StopAsyncIteration

        async def aclose(self) -> None:
            closed.append(self._keys)

    function: Any = Stream
    async with DataLoader[int, int](function, cache=False) as loader:
        assert await loader.load_many([-1, -1]) == [1, 1]
        await wait_all_tasks_blocked()
    assert closed == [[-1, -1], [-1]]


@pytest.mark.virtual_time
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


@pytest.mark.virtual_time
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


@pytest.mark.virtual_time
async def test_a_cache_key_that_fails_at_the_end_of_a_stream_leaves_nobody_waiting() -> None:
    ended = False

    def cache_key(key: int) -> int:
        if ended:
            raise LookupError("no cache key now")
        return key

    async def fetch(keys: list[int]) -> Any:
        nonlocal ended
        yield 1, 1
        ended = True

    async with DataLoader(fetch, get_cache_key=cache_key) as loader:
        await outcomes(loader.load(1), loader.load(2))  # raises where one of them hangs


@pytest.mark.virtual_time
async def test_a_stream_that_has_given_all_cleans_up_in_peace() -> None:
    events: list[str] = []

    async def stream(keys: list[int]) -> Any:
        for key in keys:
            yield key, key
        await anyio.sleep(0.01)
        events.append("cleaned up")

    async with DataLoader(stream) as loader:
        assert [await loader.load(1), await loader.load(2)] == [1, 2]
        await anyio.sleep(0.05)
    assert events == ["cleaned up", "cleaned up"]


async def test_a_deferred_hit_that_is_given_up_ends_no_stream_that_has_given_all() -> None:
    ends: list[str] = []
    gate = anyio.Event()

    async def stream(keys: list[int]) -> AsyncIterator[tuple[int, str]]:
        try:
            for key in keys:
                yield key, str(key)
            await gate.wait()
            ends.append("by itself")
        except BaseException:
            ends.append("cancelled")
            raise

    schedule = schedules.manual()
    async with DataLoader(stream, defer_hits=True, schedule=schedule) as loader:
        hit, load = loader.prime(0, "0").load(0), loader.load(1)
        async with anyio.create_task_group() as tg:
            tg.start_soon(hit.wait)
            tg.start_soon(load.wait)
            await wait_all_tasks_blocked()
            loader.dispatch()
            await wait_all_tasks_blocked()
            tg.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        assert ends == []
        gate.set()
        await wait_all_tasks_blocked()
        assert ends == ["by itself"]
