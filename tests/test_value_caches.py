"""The contract of a value cache (6.7), kept by each that comes with the package; the one in memory."""

from __future__ import annotations

import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import pytest

from anyloader import DataLoader, ValueCache
from anyloader.integrations.memory import MemoryValueCache
from support import Recorder
from support.redis_caches import Color, _options, in_redis, in_redis_py, unclosed
from support.redis_server import RedisServer, redis_sentinel

pytestmark = pytest.mark.anyio

pytest_plugins = ["support.redis_caches"]

Make = Callable[..., AbstractAsyncContextManager[ValueCache[Any, Any]]]


class InADict:
    """The least that is a value cache."""

    def __init__(self) -> None:
        self.values: dict[Any, Any] = {}

    async def get_many(self, keys: Sequence[Any]) -> Mapping[Any, Any]:
        return {key: self.values[key] for key in keys if key in self.values}

    async def set_many(self, items: Mapping[Any, Any]) -> None:
        self.values.update(items)

    async def delete_many(self, keys: Sequence[Any]) -> None:
        for key in keys:
            self.values.pop(key, None)


@asynccontextmanager
async def in_a_dict() -> AsyncIterator[ValueCache[Any, Any]]:
    yield InADict()


@asynccontextmanager
async def in_memory(ttl: float | None = None) -> AsyncIterator[ValueCache[Any, Any]]:
    yield MemoryValueCache(10_000, ttl)


@pytest.fixture(scope="session")
def sentinel(redis_folder: Path) -> Iterator[RedisServer]:
    with redis_sentinel(redis_folder) as server:
        yield server


@asynccontextmanager
async def in_a_cluster(server: RedisServer, **options: Any) -> AsyncIterator[Any]:
    coredis = pytest.importorskip("coredis")
    from anyloader.integrations.redis import RedisValueCache

    async with coredis.RedisCluster("127.0.0.1", server.port) as client:
        yield RedisValueCache(client, **_options(options))
    del client
    gc.collect()  # here, where what it has not closed may say so


@asynccontextmanager
async def behind_a_sentinel(server: RedisServer, **options: Any) -> AsyncIterator[Any]:
    coredis = pytest.importorskip("coredis")
    from anyloader.integrations.redis import RedisValueCache

    location = coredis.connection.TCPLocation("127.0.0.1", server.port)
    async with coredis.Sentinel([location]) as sentinel, sentinel.primary_for("main") as client:
        yield RedisValueCache(client, **_options(options))


KINDS = ["dict", "memory", "memory with ttl", "redis", "redis with ttl", "sentinel", "redis-py"]
CLUSTERS = [pytest.param("cluster", marks=unclosed), "redis-py cluster"]


@pytest.fixture(params=[*KINDS, *CLUSTERS])
def make(request: pytest.FixtureRequest, anyio_backend: tuple[str, Any]) -> Make:
    kind = request.param
    if kind == "dict":
        return in_a_dict
    if kind.startswith("memory"):
        return lambda: in_memory(60 if "ttl" in kind else None)
    if kind.startswith("redis-py"):
        if anyio_backend[0] == "trio":
            pytest.skip("redis-py runs on asyncio only")
        where = "cluster" if "cluster" in kind else "shared_redis"
        server = request.getfixturevalue(where)
        return lambda: in_redis_py(server, "cluster" in kind, cache_none=True)
    if kind == "cluster":
        server = request.getfixturevalue("cluster")
        return lambda: in_a_cluster(server, cache_none=True)
    if kind == "sentinel":
        server = request.getfixturevalue("sentinel")
        return lambda: behind_a_sentinel(server, cache_none=True)
    server = request.getfixturevalue("shared_redis")
    ttl = 60 if "ttl" in kind else None
    return lambda: in_redis(server, cache_none=True, ttl=ttl)


# --- the contract of a value cache ---


async def test_what_was_set_is_there_and_nothing_else(make: Make) -> None:
    async with make() as cache:
        assert await cache.get_many(["a", "b"]) == {}
        await cache.set_many({"a": 1, "b": [2, {"x": "y"}]})
        assert await cache.get_many(["b", "a", "c"]) == {"a": 1, "b": [2, {"x": "y"}]}


async def test_none_and_false_are_values(make: Make) -> None:
    async with make() as cache:
        values = {"none": None, "false": False, "zero": 0, "empty": ""}
        await cache.set_many(values)
        assert await cache.get_many([*values, "missing"]) == values


async def test_setting_again_replaces(make: Make) -> None:
    async with make() as cache:
        await cache.set_many({"a": 1, "b": 1})
        await cache.set_many({"a": 2})
        assert await cache.get_many(["a", "b"]) == {"a": 2, "b": 1}


async def test_what_was_deleted_is_gone(make: Make) -> None:
    async with make() as cache:
        await cache.set_many({"a": 1, "b": 2})
        await cache.delete_many(["a", "never there"])
        assert await cache.get_many(["a", "b"]) == {"b": 2}


async def test_keys_that_differ_never_meet(make: Make) -> None:
    keys = [1, "1", (1,), "(1,)", "[1]", ("a", 1), ("a", "1"), "", " ", "ä\n\x00"]
    keys += [b"1", UUID(int=1), date(2026, 1, 1), datetime(2026, 1, 1), 0.5, Color.RED, "RED"]
    async with make() as cache:
        await cache.set_many({key: str(i) for i, key in enumerate(keys)})
        assert await cache.get_many(keys) == {key: str(i) for i, key in enumerate(keys)}


async def test_no_keys_are_fine(make: Make) -> None:
    async with make() as cache:
        await cache.set_many({})
        await cache.delete_many([])
        assert await cache.get_many([]) == {}


async def test_many_keys_are_fine(make: Make) -> None:
    values = {key: "x" * (key % 100) for key in range(600)}
    async with make() as cache:
        await cache.set_many(values)
        assert await cache.get_many(list(values)) == values
        await cache.delete_many(list(values)[1:])
        assert await cache.get_many(list(values)) == {0: ""}


async def test_a_loader_uses_it(make: Make) -> None:
    fetch = Recorder[int, str](str)
    async with make() as cache:
        for _ in range(2):
            async with DataLoader(fetch, value_cache=cache) as loader:
                assert await loader.load_many([1, 2]) == ["1", "2"]
        async with DataLoader(fetch, value_cache=cache) as loader:
            assert await loader.clear(1).load_many([1, 2]) == ["1", "2"]
    assert fetch.calls == [[1, 2], [1]]


@pytest.mark.parametrize("how", ["ends", "raises", "is cancelled"])
async def test_what_is_cleared_last_is_gone_for_the_next_request(make: Make, how: str) -> None:
    rows: dict[int, str] = dict.fromkeys((1, 2), "old")
    fetch = Recorder[int, str](lambda key: rows[key])
    async with make() as cache:
        async with DataLoader(fetch, value_cache=cache) as loader:
            await loader.load_many([1, 2])
        with anyio.CancelScope() as cancelling, suppress(LookupError):
            async with DataLoader(fetch, value_cache=cache) as loader:
                rows = dict.fromkeys((1, 2), "new")
                loader.clear(1).prime(2, "new", force=True)
                if how == "raises":
                    raise LookupError
                if how == "is cancelled":
                    cancelling.cancel()
                    await anyio.lowlevel.checkpoint()
        async with DataLoader(fetch, value_cache=cache) as loader:
            assert await loader.load_many([1, 2]) == ["new", "new"]


# --- in memory ---


async def test_memory_keeps_what_was_used_last() -> None:
    cache = MemoryValueCache[int, int](2, None)
    await cache.set_many({1: 1, 2: 2})
    await cache.get_many([1])
    await cache.set_many({3: 3})
    assert await cache.get_many([1, 2, 3]) == {1: 1, 3: 3}
    assert repr(cache) == "<MemoryValueCache of 2 values>"


async def test_memory_is_bounded_whatever_comes_at_once() -> None:
    cache = MemoryValueCache[int, int](2, 60)
    await cache.set_many(dict.fromkeys(range(100), 0))
    assert await cache.get_many(range(100)) == {98: 0, 99: 0}


async def test_memory_forgets_after_its_time() -> None:
    now = 0.0
    cache = MemoryValueCache[int, int](10, 60, timer=lambda: now)
    await cache.set_many({1: 1})
    now = 59
    await cache.set_many({2: 2})
    assert await cache.get_many([1, 2]) == {1: 1, 2: 2}
    now = 60
    assert await cache.get_many([1, 2]) == {2: 2}
    assert repr(cache) == "<MemoryValueCache of 1 values>"
    await cache.set_many({2: 3})
    now = 119
    assert await cache.get_many([2]) == {2: 3}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((0, 1), ValueError),
        ((True, 1), TypeError),
        (("1", 1), TypeError),
        ((1, 0), ValueError),
        ((1, float("nan")), ValueError),
        ((1, "1"), TypeError),
        ((1, True), TypeError),
        ((1,), TypeError),
    ],
)
def test_memory_refuses_wrong_arguments(arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"must be|'ttl'"):
        MemoryValueCache(*arguments)


def test_memory_is_shared_by_threads() -> None:
    cache = MemoryValueCache[int, int](50, 60)
    wrong: list[object] = []

    async def use(seed: int) -> None:
        for n in range(300):
            key = (n * seed) % 100
            await cache.set_many({key: key})
            found = await cache.get_many(range(100))
            wrong.extend(item for item in found.items() if item[0] != item[1])
            await cache.delete_many([key + 1])

    threads = [threading.Thread(target=anyio.run, args=(use, seed)) for seed in (7, 11, 13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert 0 < int(repr(cache).split()[2]) <= 50
