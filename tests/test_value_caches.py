"""One suite for every ``ValueCache`` there is, and what each of them adds."""

from __future__ import annotations

import gc
import json
import logging
import pickle
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import pytest

from anyloader import DataLoader, ValueCache, hooks
from support import Recorder
from support.redis_server import RedisServer

pytestmark = pytest.mark.anyio

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
    memory = pytest.importorskip("anyloader.integrations.memory", reason="needs cachetools")
    yield memory.MemoryValueCache(100, ttl)


@pytest.fixture(scope="session")
def redis_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("redis")


def _server(folder: Path) -> Iterator[RedisServer]:
    pytest.importorskip("coredis")
    if RedisServer.PROGRAM is None:
        pytest.skip("redis-server is not installed")
    server = RedisServer(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def shared_redis(redis_folder: Path) -> Iterator[RedisServer]:
    yield from _server(redis_folder)


@pytest.fixture
def redis_server(redis_folder: Path) -> Iterator[RedisServer]:
    """One that the test may kill."""
    # What coredis logs holds what it has not closed, until after the test.
    logger = logging.getLogger("coredis")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logger, "disabled", True)
        yield from _server(redis_folder)
        gc.collect()


@asynccontextmanager
async def in_redis(
    server: RedisServer, *, client_timeout: float = 20, **options: Any
) -> AsyncIterator[Any]:
    import coredis
    from coredis.retry import NoRetryPolicy

    from anyloader.integrations.redis import RedisValueCache

    # Whatever else the machine does: only tests of the timeout may meet it.
    options = {"timeout": 30, "pause": 0, "prefix": f"{time.monotonic_ns()}:", **options}
    client: coredis.Redis[bytes] = coredis.Redis(
        "127.0.0.1",
        server.port,
        max_connections=4,
        connect_timeout=client_timeout,
        stream_timeout=client_timeout,
        retry_policy=NoRetryPolicy(),
    )
    async with client:
        yield RedisValueCache(client, **options)


@pytest.fixture(params=["dict", "memory", "memory with ttl", "redis", "redis with ttl"])
def make(request: pytest.FixtureRequest) -> Make:
    if request.param.startswith("redis"):
        server = request.getfixturevalue("shared_redis")
        ttl = 60 if "ttl" in request.param else None
        return lambda: in_redis(server, cache_none=True, ttl=ttl)
    if request.param.startswith("memory"):
        pytest.importorskip("cachetools")
        return lambda: in_memory(60 if "ttl" in request.param else None)
    return in_a_dict


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
    async with make() as cache:
        await cache.set_many({key: str(i) for i, key in enumerate(keys)})
        assert await cache.get_many(keys) == {key: str(i) for i, key in enumerate(keys)}


async def test_no_keys_are_fine(make: Make) -> None:
    async with make() as cache:
        await cache.set_many({})
        await cache.delete_many([])
        assert await cache.get_many([]) == {}


async def test_many_keys_are_fine(make: Make) -> None:
    values = {key: "x" * key for key in range(100)}
    async with make() as cache:
        await cache.set_many(values)
        assert await cache.get_many(list(values)) == values


async def test_a_loader_uses_it(make: Make) -> None:
    fetch = Recorder[int, str](str)
    async with make() as cache:
        for _ in range(2):
            async with DataLoader(fetch, value_cache=cache) as loader:
                assert await loader.load_many([1, 2]) == ["1", "2"]
        async with DataLoader(fetch, value_cache=cache) as loader:
            assert await loader.clear(1).load_many([1, 2]) == ["1", "2"]
    assert fetch.calls == [[1, 2], [1]]


# --- in memory ---


async def test_memory_keeps_what_was_used_last() -> None:
    memory = pytest.importorskip("anyloader.integrations.memory", reason="needs cachetools")
    cache = memory.MemoryValueCache(2)
    await cache.set_many({1: 1, 2: 2})
    await cache.get_many([1])
    await cache.set_many({3: 3})
    assert await cache.get_many([1, 2, 3]) == {1: 1, 3: 3}
    assert repr(cache) == "<MemoryValueCache of 2 values>"


async def test_memory_forgets_after_its_time() -> None:
    memory = pytest.importorskip("anyloader.integrations.memory", reason="needs cachetools")
    now = 0.0
    cache = memory.MemoryValueCache(10, 60, timer=lambda: now)
    await cache.set_many({1: 1})
    now = 59
    await cache.set_many({2: 2})
    assert await cache.get_many([1, 2]) == {1: 1, 2: 2}
    now = 61
    assert await cache.get_many([1, 2]) == {2: 2}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((0,), ValueError), ((True,), TypeError), (("1",), TypeError), ((1, 0), ValueError)],
)
def test_memory_refuses_wrong_arguments(arguments: Any, error: type[Exception]) -> None:
    memory = pytest.importorskip("anyloader.integrations.memory", reason="needs cachetools")
    with pytest.raises(error, match="must be"):
        memory.MemoryValueCache(*arguments)


# --- in Redis ---


class Failures:
    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def __call__(self, event: hooks.Event) -> None:
        if isinstance(event, hooks.ValueCacheFailed):
            self.told.append((event.operation, type(event.error).__name__))


async def commands(server: RedisServer, cache: Any, call: Any) -> list[str]:
    """Give the commands that the server got meanwhile."""
    await cache.get_many(["warm up"])
    await cache._client.config_resetstat()
    await call
    statistics = await cache._client.info("commandstats")
    calls = {name[8:]: each["calls"] for name, each in statistics.items()}
    return [f"{name} {n}" for name, n in sorted(calls.items()) if not name.startswith("config")]


async def test_redis_is_asked_once_for_a_batch(redis_server: RedisServer) -> None:
    async with in_redis(redis_server) as cache:
        keys = list(range(10))
        assert await commands(redis_server, cache, cache.get_many(keys)) == ["mget 1"]
        values = dict.fromkeys(keys, 1)
        assert await commands(redis_server, cache, cache.set_many(values)) == ["set 10"]
        assert await commands(redis_server, cache, cache.delete_many(keys)) == ["unlink 1"]


async def test_redis_keys_have_the_prefix_and_values_are_json(shared_redis: RedisServer) -> None:
    async with in_redis(shared_redis, prefix="users:1:") as cache:
        await cache.set_many({1: {"name": "Ada"}, "a": [1]})
        client = cache._client
        assert sorted(await client.keys("users:1:*")) == [b'users:1:"a"', b"users:1:1"]
        assert await client.get("users:1:1") == b'{"name":"Ada"}'
        assert await client.ttl("users:1:1") == -1
        assert repr(cache) == "<RedisValueCache 'users:1:'>"


async def test_the_program_in_the_documentation_prints_what_the_page_says(
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    redis = pytest.importorskip("anyloader.integrations.redis")
    path = Path(__file__).parents[1] / "docs" / "how-to" / "value_cache_redis.py"
    program = ModuleType("program")
    # Whatever else the machine does, as above.
    monkeypatch.setitem(redis.RedisValueCache.__init__.__kwdefaults__, "timeout", 30)
    exec(compile(path.read_text().replace("=0.2,", "=20,"), path, "exec"), vars(program))
    monkeypatch.setenv("REDIS_PORT", str(redis_server.port))
    await program.main()
    assert capsys.readouterr().out == path.with_suffix(".out").read_text()


async def test_redis_forgets_after_its_time(shared_redis: RedisServer) -> None:
    async with in_redis(shared_redis, prefix="t:", ttl=60) as cache:
        await cache.set_many({1: 1})
        assert 50_000 < await cache._client.pttl("t:1") <= 60_000


async def test_redis_stores_none_only_if_asked_to(shared_redis: RedisServer) -> None:
    async with in_redis(shared_redis, prefix="n:") as cache:
        await cache.set_many({1: None, 2: 2})
        assert await cache.get_many([1, 2]) == {2: 2}
        await cache._client.set("n:1", "null")
        assert await cache.get_many([1]) == {}
    async with in_redis(shared_redis, prefix="n:", cache_none=True) as cache:
        assert await cache.get_many([1]) == {1: None}


async def test_a_value_that_cannot_be_stored_is_told_and_alone_not_stored(
    shared_redis: RedisServer,
) -> None:
    failures = Failures()
    values = {1: 1, 2: object(), 3: (1, 2), 4: {1: 1}, 5: float("nan"), 6: "x"}
    fetch = Recorder(values.__getitem__)
    async with in_redis(shared_redis) as cache:
        for _ in range(2):
            async with DataLoader(fetch, value_cache=cache, hooks=[failures]) as loader:
                assert await loader.load_many([1, 2, 3, 4, 5, 6]) == list(values.values())
    assert fetch.calls == [[1, 2, 3, 4, 5, 6], [2, 3, 4, 5]]
    assert failures.told == [("set_many", "TypeError")] * 2


async def test_a_key_that_makes_no_name_is_told_and_alone_not_stored(
    shared_redis: RedisServer,
) -> None:
    failures = Failures()
    strange = object()
    fetch = Recorder[Any, str](lambda key: "x")
    async with in_redis(shared_redis) as cache:
        for _ in range(2):
            async with DataLoader(fetch, value_cache=cache, hooks=[failures]) as loader:
                assert await loader.clear(strange).load_many([1, strange]) == ["x", "x"]
    assert fetch.calls == [[1, strange], [strange]]
    assert failures.told == [("set_many", "TypeError")] * 2


async def test_a_value_that_cannot_be_read_is_fetched_and_stored_anew(
    shared_redis: RedisServer,
) -> None:
    fetch = Recorder[int, str](str)
    async with in_redis(shared_redis, prefix="b:") as cache:
        await cache._client.set("b:1", b"\xff{")
        async with DataLoader(fetch, value_cache=cache) as loader:
            assert await loader.load(1) == "1"
        assert await cache.get_many([1]) == {1: "1"}


async def test_serializer_and_names_of_keys_can_be_ones_own(shared_redis: RedisServer) -> None:
    async with in_redis(shared_redis, prefix="p:", serializer=pickle, key=str) as cache:
        await cache.set_many({1: (1, {2: 3})})
        assert await cache.get_many([1]) == {1: (1, {2: 3})}
        assert await cache._client.exists(["p:1"]) == 1


async def test_json_is_the_default_and_never_runs_what_it_reads(shared_redis: RedisServer) -> None:
    async with in_redis(shared_redis, prefix="j:") as cache:
        await cache._client.set("j:1", pickle.dumps("a pickle"))
        await cache._client.set("j:2", json.dumps("JSON"))
        assert await cache.get_many([1, 2]) == {2: "JSON"}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"prefix": 1}, TypeError),
        ({"ttl": 0}, ValueError),
        ({"ttl": float("inf")}, ValueError),
        ({"timeout": 0}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"pause": -1}, ValueError),
    ],
    ids=repr,
)
def test_redis_refuses_wrong_arguments(options: Any, error: type[Exception]) -> None:
    redis: Any = pytest.importorskip("anyloader.integrations.redis", reason="needs coredis")
    with pytest.raises(error, match=f"{next(iter(options))} must be"):
        redis.RedisValueCache(None, **{"prefix": "", **options})


# --- Redis that goes away, in real time ---

# coredis does not close what it made for a connection that is refused.
unclosed = pytest.mark.filterwarnings(
    "ignore:Unclosed <Memory:ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


@unclosed
async def test_killed_and_started_again_in_mid_flight_no_load_fails(
    redis_server: RedisServer,
) -> None:
    fetch, failures = Recorder[int, str](str), Failures()
    async with in_redis(redis_server) as cache:

        async def load(key: int) -> str:
            async with DataLoader(fetch, value_cache=cache, hooks=[failures]) as loader:
                return await loader.load(key)

        assert [await load(1), await load(1)] == ["1", "1"]
        redis_server.kill()
        assert [await load(1), await load(2)] == ["1", "2"]
        assert [told[0] for told in failures.told] == ["get_many", "set_many"] * 2
        redis_server.start()
        failures.told.clear()
        assert [await load(1), await load(1)] == ["1", "1"]
    assert fetch.calls == [[1], [1], [2], [1]]
    assert failures.told == []


TIMEOUT = 0.2


async def test_paused_it_costs_a_batch_no_more_than_the_timeout(redis_server: RedisServer) -> None:
    fetch, failures = Recorder[int, str](str), Failures()
    async with in_redis(redis_server, pause=1000) as cache:
        await cache.set_many({1: "from Redis"})
        cache._timeout = TIMEOUT
        async with DataLoader(fetch, value_cache=cache, hooks=[failures]) as loader:
            redis_server.pause()
            start = anyio.current_time()
            assert await loader.clear(2).load_many([1, 2]) == ["1", "2"]
            first = anyio.current_time() - start
            for key in range(3, 20):
                assert await loader.load(key) == str(key)
            others = anyio.current_time() - start - first
        assert TIMEOUT * 0.9 < first < TIMEOUT + 5  # a busy machine is slow, a hang is for ever
        assert failures.told[0] == ("delete_many", "TimeoutError")
        assert {error for _, error in failures.told[1:]} == {"ConnectionError"}
        assert others < 17 * TIMEOUT
        assert "the last call failed: TimeoutError" in repr(cache)
        redis_server.resume()
        cache._until = 0
        assert await cache.get_many([1, 2]) == {1: "from Redis"}


async def test_after_a_pause_in_which_it_was_left_alone_it_is_used_again(
    redis_server: RedisServer,
) -> None:
    async with in_redis(redis_server, pause=TIMEOUT) as cache:
        await cache.get_many([1])
        cache._timeout = TIMEOUT
        redis_server.pause()
        with pytest.raises(TimeoutError):
            await cache.get_many([1])
        with pytest.raises(ConnectionError, match="left alone"):
            await cache.set_many({1: 1})
        redis_server.resume()
        cache._timeout = 30
        await anyio.sleep(TIMEOUT)
        await cache.set_many({1: 1})
        assert await cache.get_many([1]) == {1: 1}
        assert "failed" not in repr(cache)


@unclosed
async def test_cancelling_uses_up_no_connections(redis_server: RedisServer) -> None:
    async with in_redis(redis_server, client_timeout=TIMEOUT) as cache:
        redis_server.pause()
        for _ in range(3):
            async with anyio.create_task_group() as group:
                for _ in range(4):
                    group.start_soon(_fail, cache)
                await anyio.sleep(TIMEOUT / 4)
                group.cancel_scope.cancel()
        redis_server.resume()
        cache._timeout = 10
        await cache.set_many({1: 1})
        assert await cache.get_many([1]) == {1: 1}


@unclosed
@pytest.mark.parametrize("what", ["connect", "call"])
async def test_timeouts_use_up_no_connections(redis_server: RedisServer, what: str) -> None:
    timeouts = {"connect": (0.05, 20), "call": (20, 0.05)}
    async with in_redis(
        redis_server, client_timeout=timeouts[what][0], timeout=timeouts[what][1]
    ) as cache:
        if what == "call":
            cache._timeout = 30
            await cache.get_many([1])
            cache._timeout = 0.05
        redis_server.pause()
        for _ in range(3):
            async with anyio.create_task_group() as group:
                for _ in range(4):
                    group.start_soon(_fail, cache)
        redis_server.resume()
        cache._timeout = 10
        async with anyio.create_task_group() as group:
            for key in range(8):
                group.start_soon(_set, cache, key)
        assert await cache.get_many(range(8)) == {key: key for key in range(8)}


async def _set(cache: Any, key: int) -> None:
    for _ in range(5):  # on a busy machine a connection may take longer than these timeouts
        try:
            await cache.set_many({key: key})
        except coredis_errors():
            continue
        return


async def _fail(cache: Any) -> None:
    with pytest.raises((TimeoutError, coredis_errors())):
        await cache.get_many([1])


def coredis_errors() -> type[Exception]:
    from coredis.exceptions import RedisError

    return RedisError


async def test_who_gives_up_while_it_is_paused_waits_no_longer(redis_server: RedisServer) -> None:
    fetch = Recorder[int, str](str)
    async with in_redis(redis_server) as cache:
        await cache.get_many([1])
        cache._timeout = 5 * TIMEOUT
        redis_server.pause()
        async with DataLoader(fetch, value_cache=cache) as loader:
            start = anyio.current_time()
            with anyio.move_on_after(TIMEOUT) as scope:
                await loader.load(1)
            assert scope.cancelled_caught
            assert anyio.current_time() - start < 4 * TIMEOUT
        redis_server.resume()
    assert fetch.calls == []
