"""``anyloader.compat_strawberry``: Strawberry's signature, and its caches."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from anyloader import LoaderScope
from anyloader.compat import LoadFuture
from anyloader.compat_strawberry import AbstractCache, DataLoader
from support import Recorder

pytestmark = pytest.mark.anyio


def same(key: Any) -> Any:
    return key


class ByName:
    """A cache that makes its own keys of keys which cannot be hashed."""

    def __init__(self) -> None:
        self.kept: dict[Any, Any] = {}

    def get(self, key: Any) -> Any:
        return self.kept.get(str(key))

    def set(self, key: Any, value: Any) -> None:
        self.kept[str(key)] = value

    def delete(self, key: Any) -> None:
        del self.kept[str(key)]

    def clear(self) -> None:
        self.kept.clear()


async def test_arguments_by_name_and_by_position() -> None:
    fetch = Recorder[str, str](same)
    async with LoaderScope():
        loader = DataLoader(
            load_fn=fetch, max_batch_size=2, cache=True, loop=None, cache_key_fn=str.lower
        )
        assert await loader.load_many(["A", "a", "B", "C"]) == ["A", "A", "B", "C"]
        assert await DataLoader(fetch, 1, False).load_many("xx") == ["x", "x"]
    assert sorted(fetch.calls) == [["A", "B"], ["C"], ["x"], ["x"]]


async def test_other_options_and_a_name_as_a_plain_loader_has() -> None:
    async def fetch_users(keys: list[int]) -> dict[int, int]:
        return {1: 1}

    class Users(DataLoader[int, int]):
        pass

    async with LoaderScope():
        loader: Any = DataLoader(load_fn=fetch_users, on_missing=lambda key: -key)
        assert await loader.load_many([1, 2]) == [1, -2]
    assert loader.name.endswith("fetch_users")
    assert Users(Recorder[int, int](same)).name.endswith("Users")


async def test_no_limit_and_no_loop() -> None:
    fetch = Recorder[int, int](same)
    loop: Any = object()
    async with LoaderScope():
        with pytest.warns(DeprecationWarning, match="loop is ignored") as warnings:
            loader = DataLoader(fetch, 0, True, loop)
        assert await loader.load_many(range(5)) == [*range(5)]
    assert fetch.calls == [[*range(5)]]
    assert [warning.filename for warning in warnings] == [__file__]


async def test_prime_takes_force_by_position() -> None:
    fetch = Recorder[int, int](same)
    async with LoaderScope():
        loader = DataLoader(load_fn=fetch)
        loader.prime(1, 10)
        loader.prime(1, 11)
        assert await loader.load(1) == 10
        loader.prime(1, 12, True)
        loader.prime_many({1: 13, 2: 20}, True)
        loader.prime_many(data={2: 21})
        assert await loader.load_many([1, 2]) == [13, 20]
    assert fetch.calls == []


@pytest.mark.parametrize("key", [[1, 2], (1, 2)], ids=["unhashable", "hashable"])
async def test_a_cache_gets_the_keys_as_they_are_and_futures(key: Any) -> None:
    fetch = Recorder[Any, Any](str)
    cache = ByName()
    async with LoaderScope():
        loader = DataLoader(load_fn=fetch, cache_map=cache, cache_key_fn=lambda key: 1 / 0)
        loads = [loader.load(key), loader.load(key)]
        assert loads[0].done() is False
        assert [await load for load in loads] == [str(key)] * 2
        (kept,) = cache.kept.values()
        assert isinstance(kept, LoadFuture)
        assert kept.result() == await loader.load(key) == str(key)
        assert loader.peek(key) is not None
        loader.clear(key)
        loader.clear_many([key])
        assert (cache.kept, loader.peek(key)) == ({}, None)
        loader.prime(key, "primed")
        assert await loader.load(key) == "primed"
        loader.clear_all()
        assert cache.kept == {}
        assert "0 cached" in repr(loader)
        assert await loader.load_many([key, [3]]) == [str(key), "[3]"]
    assert fetch.calls == [[key], [key, [3]]]


async def test_keys_that_cannot_be_hashed_are_told_apart_where_the_library_has_to() -> None:
    fetch = Recorder[Any, Any](str)
    async with LoaderScope():
        loader = DataLoader(load_fn=fetch, cache_map=ByName(), deduplicate=True)
        first = loader.load([1])
        loader.clear([1])
        loads = [first, loader.load([1]), loader.load([2]), loader.load({3})]
        assert [await load for load in loads] == ["[1]", "[1]", "[2]", "{3}"]
    assert fetch.calls == [[[1], [2], {3}]]


async def test_the_errors_of_a_batch_leave_the_cache() -> None:
    def fail(key: int) -> int:
        raise ValueError(key)

    cache = ByName()
    async with LoaderScope():
        loader = DataLoader(load_fn=Recorder[int, int](fail), cache_map=cache)
        with pytest.raises(ValueError):
            await loader.load(1)
        assert cache.kept == {}


async def test_a_mapping_is_a_cache_too() -> None:
    cache: dict[Any, Any] = {}
    async with LoaderScope():
        loader = DataLoader(
            load_fn=Recorder[str, str](same), cache_map=cache, cache_key_fn=str.upper
        )
        assert await loader.load("a") == "a"
    assert list(cache) == ["A"]


def test_a_class_of_the_protocol_fits() -> None:
    class Cache(ByName, AbstractCache[Any, Any]):
        pass

    DataLoader(Recorder[int, int](same), cache_map=Cache())


def test_what_is_no_cache_is_refused_with_what_it_lacks() -> None:
    wrong: Any = {1}
    with pytest.raises(TypeError, match="a set has no get and no set and no delete"):
        DataLoader(Recorder[int, int](same), cache_map=wrong)
    with pytest.raises(ValueError, match="max_batch_size"):
        DataLoader(Recorder[int, int](same), -1)


async def test_futures_from_elsewhere_are_refused() -> None:
    class Shared(ByName):
        def get(self, key: Any) -> Any:
            return future

    future: Any = asyncio.Future
    async with LoaderScope():
        loader = DataLoader(load_fn=Recorder[int, int](same), cache_map=Shared())
        with pytest.raises(TypeError, match="value_cache"):
            loader.load(1)


async def test_the_mapping_that_stands_for_a_cache_is_one() -> None:
    loader = DataLoader(Recorder[int, int](same), cache_map=ByName())
    async with LoaderScope():
        mapping: Any = loader.__anyloader__.cache
        await loader.load(1)
        assert mapping[1] is loader.peek(1)
        with pytest.raises(KeyError):
            mapping[2]
        assert list(mapping) == []
