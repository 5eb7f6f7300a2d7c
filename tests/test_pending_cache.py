"""``cache="pending"``: an entry is shared until it settles, then forgotten (contract 6.2)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from anyloader import DataLoader
from support import Recorder, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio


def same(key: int) -> int:
    return key


async def test_loads_of_a_pending_key_share_it_and_later_ones_fetch_anew() -> None:
    fetch = Recorder[int, int](same)
    async with DataLoader(fetch, cache="pending") as loader:
        first, second = loader.load(1), loader.load(1)
        many = loader.load_many([1, 2, 1])
        assert [await first, await second, await many] == [1, 1, [1, 2, 1]]
        assert fetch.calls == [[1, 2]]
        assert loader.peek(1) is None
        assert loader.statistics().cached == 0
        assert await loader.load(1) == 1
    assert fetch.calls == [[1, 2], [1]]


async def test_a_key_whose_batch_runs_is_shared_too() -> None:
    gate = anyio.Event()
    fetch = Recorder[int, int](same, gate=gate)
    async with DataLoader(fetch, cache="pending") as loader:
        first = loader.load(1)
        await wait_all_tasks_blocked()
        second = loader.load(1)
        assert loader.peek(1) is not None
        assert loader.statistics().shared == 1
        gate.set()
        assert [await first, await second] == [1, 1]
        assert loader.peek(1) is None
    assert fetch.calls == [[1]]


@pytest.mark.parametrize("whole_batch", [True, False])
async def test_an_error_is_forgotten_like_a_value(whole_batch: bool) -> None:
    async def fetch(keys: list[int]) -> list[Any]:
        calls.append(keys)
        if whole_batch:
            raise LookupError
        return [LookupError() for _ in keys]

    calls: list[list[int]] = []
    async with DataLoader(fetch, cache="pending") as loader:
        first, second = loader.load(1), loader.load(1)
        for handle in (first, second, loader.load(1)):
            with pytest.raises(LookupError):
                await handle
        with pytest.raises(LookupError):
            await loader.load(1)
    assert calls == [[1], [1]]


async def test_each_key_of_a_stream_is_forgotten_when_its_pair_comes() -> None:
    gate = anyio.Event()
    calls: list[list[int]] = []

    async def stream(keys: list[int]) -> AsyncIterator[tuple[int, int]]:
        calls.append(keys)
        for key in keys:
            yield key, key
            if len(keys) > 1:
                await gate.wait()

    async with DataLoader(stream, cache="pending") as loader:
        first, second = loader.load(1), loader.load(2)
        assert await first == 1
        assert loader.peek(1) is None
        assert loader.peek(2) is not None
        again, shared = loader.load(1), loader.load(2)
        assert await again == 1
        gate.set()
        assert [await second, await shared] == [2, 2]
    assert calls == [[1, 2], [1]]


async def test_what_was_cleared_in_flight_is_fetched_anew() -> None:
    gate = anyio.Event()
    fetch = Recorder[int, int](same, gate=gate)
    async with DataLoader(fetch, cache="pending") as loader:
        first = loader.load(1)
        await wait_all_tasks_blocked()
        second = loader.clear(1).load(1)
        await wait_all_tasks_blocked()
        assert fetch.calls == [[1], [1]]
        gate.set()
        assert [await first, await second] == [1, 1]
        assert loader.peek(1) is None


async def test_a_settled_batch_does_not_forget_what_was_loaded_since() -> None:
    gates = [anyio.Event(), anyio.Event()]
    calls: list[int] = []

    async def fetch(keys: list[int]) -> list[int]:
        calls.append(len(calls))
        number = calls[-1]
        await gates[number].wait()
        return [number] * len(keys)

    async with DataLoader(fetch, cache="pending") as loader:
        first = loader.load(1)
        await wait_all_tasks_blocked()
        second = loader.clear(1).load(1)
        await wait_all_tasks_blocked()
        gates[0].set()
        assert await first == 0
        third = loader.load(1)
        gates[1].set()
        assert [await second, await third] == [1, 1]


async def test_one_that_gives_up_leaves_the_others_alone() -> None:
    gate = anyio.Event()
    fetch = Recorder[int, int](same, gate=gate)
    async with DataLoader(fetch, cache="pending") as loader:
        first, second = loader.load(1), loader.load(1)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await first
        gate.set()
        assert await second == 1
    assert fetch.calls == [[1]]


async def test_by_cache_key() -> None:
    fetch = Recorder[str, str](str)
    async with DataLoader(fetch, cache="pending", get_cache_key=str.lower) as loader:
        assert await loader.load_many(["A", "a"]) == ["A", "A"]
    assert fetch.calls == [["A"]]


async def test_as_a_class_attribute() -> None:
    class Users(DataLoader[int, int]):
        cache = "pending"

        async def batch_load_fn(self, keys: list[int]) -> list[int]:
            calls.append(keys)
            return keys

    calls: list[list[int]] = []
    async with Users() as loader:
        assert [await loader.load_many([1, 1]), await loader.load(1)] == [[1, 1], 1]
    assert calls == [[1], [1]]


@pytest.mark.parametrize("cache", ["", "Pending", "always", 1, None])
def test_another_word_is_refused(cache: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="cache"):
        DataLoader(Recorder[int, int](same), cache=cache)


async def test_a_forced_prime_answers_who_waits_and_is_forgotten() -> None:
    fetch = Recorder[int, int](int)
    async with DataLoader(fetch, cache="pending") as loader:
        load = loader.load(1)
        loader.prime(1, 10, force=True)
        assert await load == 10
        assert loader.peek(1) is None
        assert await loader.load(1) == 1
    assert fetch.calls == [[1]]


async def test_a_value_forced_while_a_batch_runs_ends_the_sharing_of_what_that_has_read() -> None:
    gate = anyio.Event()
    fetch = Recorder[int, int](same, gate=gate)
    async with DataLoader(fetch, cache="pending") as loader:
        old = loader.load(1)
        await wait_all_tasks_blocked()
        loader.prime(1, 2, force=True)
        new = loader.load(1)
        gate.set()
        assert [await old, await new] == [1, 1]
    assert fetch.calls == [[1], [1]]


@pytest.mark.virtual_time
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
