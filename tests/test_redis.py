"""Value caches in Redis, against real servers."""

from __future__ import annotations

import gc
import importlib
import json
import pickle
import sys
import weakref
from collections import Counter, OrderedDict
from contextvars import ContextVar
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import pytest

from anyloader import DataLoader
from support import Recorder
from support.redis_caches import (
    Failures,
    Kept,
    Point,
    Size,
    Status,
    Text,
    end_the_pause,
    in_redis,
    in_redis_py,
    logged,
)
from support.redis_server import RedisServer

pytestmark = pytest.mark.anyio

pytest_plugins = ["support.redis_caches"]


async def commands(cache: Any, call: Any) -> list[str]:
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
        assert await commands(cache, cache.get_many(keys)) == ["mget 1"]
        values = dict.fromkeys(keys, 1)
        assert await commands(cache, cache.set_many(values)) == ["set 10"]
        assert await commands(cache, cache.delete_many(keys)) == ["unlink 1"]


async def test_redis_is_asked_piece_by_piece_for_many_keys(redis_server: RedisServer) -> None:
    async with in_redis(redis_server) as cache:
        keys = list(range(600))
        assert await commands(cache, cache.get_many(keys)) == ["mget 3"]
        assert await commands(cache, cache.delete_many(keys)) == ["unlink 3"]


async def test_redis_keys_have_the_prefix_and_values_are_json(shared_redis: RedisServer) -> None:
    async with in_redis(shared_redis, prefix="users:1", ttl=None) as cache:
        await cache.set_many({1: {"name": "Adä"}, "a": [1]})
        client = cache._client
        assert sorted(await client.keys("users:1|*")) == [b'users:1|"a"', b"users:1|1"]
        assert await client.get("users:1|1") == '{"name":"Adä"}'.encode()
        assert await client.ttl("users:1|1") == -1
        assert repr(cache) == "<RedisValueCache 'users:1'>"


async def test_a_prefix_that_ends_as_another_begins_is_another(shared_redis: RedisServer) -> None:
    async with in_redis(shared_redis, prefix="tenant1") as one:
        async with in_redis(shared_redis, prefix="tenant11") as eleven:
            await one.set_many({12: "of tenant 1"})
            assert await eleven.get_many([2]) == {}


async def test_what_is_stored_by_one_key_is_found_and_deleted_by_an_equal_one(
    shared_redis: RedisServer,
) -> None:
    async with in_redis(shared_redis) as cache:
        await cache.set_many({1.0: "one"})
        assert await cache.get_many([True]) == {1: "one"}
        await cache.delete_many([Decimal(1)])
        assert await cache.get_many([1]) == {}


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
    async with in_redis(shared_redis, prefix="t", ttl=60) as cache:
        await cache.set_many({1: 1})
        assert 50_000 < await cache._client.pttl("t|1") <= 60_000


async def test_redis_stores_none_only_if_asked_to(shared_redis: RedisServer) -> None:
    async with in_redis(shared_redis, prefix="n") as cache:
        await cache.set_many({1: None, 2: 2})
        assert await cache.get_many([1, 2]) == {2: 2}
        await cache._client.set("n|1", "null")
        assert await cache.get_many([1]) == {}
    async with in_redis(shared_redis, prefix="n", cache_none=True) as cache:
        assert await cache.get_many([1]) == {1: None}


class Row(dict[str, Any]):
    pass


#: JSON would give all of these back as something else, or cannot hold them.
CHANGED: list[Any] = [
    (1, 2),
    Point(1, 2),
    {1: 1},
    {Text("a"): 1},
    Row(a=1),
    Counter("a"),
    OrderedDict(a=1),
    Text("a"),
    Status.ACTIVE,
    Size.SMALL,
    b"1",
    {1},
    Decimal(1),
    float("nan"),
    "\ud83d",
    object(),
]
KEPT: list[Any] = [None, True, 1, 1 << 70, -0.0, 1e300, "ä\n\U0001f600", [], {}, [{"a": [1, None]}]]


@pytest.mark.parametrize("depth", [0, 1, 2])
async def test_json_gives_back_what_it_got_or_does_not_store_it(
    shared_redis: RedisServer, depth: int
) -> None:
    def inside(value: Any) -> Any:
        return [value, [value], {"row": [value]}][depth]

    values = dict(enumerate(map(inside, [*CHANGED, *KEPT])))
    async with in_redis(shared_redis, cache_none=True) as cache:
        with pytest.raises(TypeError, match="not stored in Redis"):
            await cache.set_many(values)
        found = await cache.get_many(list(values))
    assert list(found) == list(values)[len(CHANGED) :]
    assert repr(found) == repr({key: values[key] for key in found})


async def test_another_serializer_is_held_to_the_same(shared_redis: RedisServer) -> None:
    values = dict(
        enumerate([(1, Text("a")), {1: Status.ACTIVE}, float("nan"), {Size.SMALL}, Row(a=1)])
    )
    async with in_redis(shared_redis, serializer=pickle) as cache:
        await cache.set_many(values)
        assert repr(await cache.get_many(list(values))) == repr(values)

    class Loose:
        """As many others: a tuple becomes a list, unlike ``dict``, which goes."""

        dumps, loads = staticmethod(json.dumps), staticmethod(json.loads)

    async with in_redis(shared_redis, serializer=Loose) as cache:
        for value in [{"a": (1,)}, {"a": Text("a")}, [Row()], {1: 1}, Size.SMALL]:
            with pytest.raises(TypeError, match="come back with other types"):
                await cache.set_many({1: value})
        assert await cache.get_many([1]) == {}


async def test_a_value_that_cannot_be_stored_is_told_and_alone_not_stored(
    shared_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    failures = Failures()
    values = {1: 1, 2: object(), 3: (1, 2), 4: "x"}
    fetch = Recorder(values.__getitem__)
    async with in_redis(shared_redis, prefix="users") as cache:
        await cache.delete_many(list(values))
        for _ in range(2):
            async with DataLoader(fetch, value_cache=cache, hooks=[failures]) as loader:
                assert await loader.load_many(list(values)) == list(values.values())
    assert fetch.calls == [[1, 2, 3, 4], [2, 3]]
    assert failures.told == [("set_many", "TypeError")] * 2
    (line,) = logged(caplog)
    assert "failed in set_many(): TypeError" in line
    assert line.endswith(
        "a value of type object is not stored in Redis, as its serializer raised TypeError: make the "
        "batch function return plain values, or give RedisValueCache a serializer= for these"
    )


async def test_what_is_no_string_is_no_name(shared_redis: RedisServer) -> None:
    """A function without a `return` would give all keys one name, and all the value of one."""
    failures = Failures()
    nothing: Any = {1: None, 2: None, 3: 3, 4: "4"}.get
    fetch = Recorder[int, str](str)
    async with in_redis(shared_redis, key=nothing) as cache:
        for _ in range(2):
            async with DataLoader(fetch, value_cache=cache, hooks=[failures]) as loader:
                assert await loader.load_many([1, 2, 3, 4]) == ["1", "2", "3", "4"]
    assert fetch.calls == [[1, 2, 3, 4], [1, 2, 3]]
    assert failures.told == [("set_many", "TypeError")] * 2
    assert "a function that makes a str of it" in str(failures.errors[0])


async def test_a_key_that_makes_no_name_is_told_and_alone_not_stored(
    shared_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    failures = Failures()
    strange = object()
    fetch = Recorder[Any, str](lambda key: "x")
    async with in_redis(shared_redis) as cache:
        for _ in range(2):
            async with DataLoader(fetch, value_cache=cache, hooks=[failures]) as loader:
                assert await loader.clear(strange).load_many([1, strange]) == ["x", "x"]
        async with DataLoader(fetch, value_cache=cache) as loader:
            await loader.load(strange)
    assert fetch.calls == [[1, strange], [strange], [strange]]
    assert failures.told == [("set_many", "TypeError")] * 2
    assert "a key of type object has no name in Redis" in str(failures.errors[0])
    (line,) = logged(caplog)
    assert "get_cache_key=" in line


SECRET = "123-45-6789"


class Talkative:
    """A serializer whose errors say what they were given."""

    @staticmethod
    def dumps(value: Any) -> bytes:
        if SECRET in str(value):
            raise ValueError(value)
        return pickle.dumps(value)

    loads = staticmethod(pickle.loads)


@pytest.mark.parametrize("library", ["coredis", "redis-py"])
async def test_no_error_and_no_repr_holds_a_value(
    redis_server: RedisServer,
    caplog: pytest.LogCaptureFixture,
    anyio_backend: tuple[str, Any],
    library: str,
) -> None:
    if library == "redis-py" and anyio_backend[0] == "trio":
        pytest.skip("redis-py runs on asyncio only")
    kind = in_redis_py(redis_server, False) if library == "redis-py" else in_redis(redis_server)
    long, errors = {"ssn": SECRET * 10_000}, list[BaseException]()
    async with kind as cache:
        redis_server.command("CONFIG SET maxmemory 1")
        with pytest.raises(Exception, match="maxmemory") as full:
            await cache.set_many({SECRET: long})
        cache._serializer = Talkative
        with pytest.raises(TypeError, match="its serializer raised ValueError") as unstored:
            await cache.set_many({1: long})
        cache._key = lambda key: 1 / 0
        with pytest.raises(TypeError, match="a key of type str has no name") as unnamed:
            await cache.set_many({SECRET: 1})
        errors += [full.value, unstored.value, unnamed.value]
        said = [repr(cache), *logged(caplog)]
    while errors:
        error = errors.pop()
        errors += [other for other in (error.__cause__, error.__context__) if other is not None]
        said += [str(error), repr(error)]
    assert [text for text in said if SECRET in text or len(text) > 500] == []


async def test_a_value_that_cannot_be_read_is_fetched_and_stored_anew(
    shared_redis: RedisServer,
) -> None:
    fetch = Recorder[int, str](str)
    async with in_redis(shared_redis, prefix="b") as cache:
        await cache._client.set("b|1", b"\xff{")
        async with DataLoader(fetch, value_cache=cache) as loader:
            assert await loader.load(1) == "1"
        assert await cache.get_many([1]) == {1: "1"}


async def test_serializer_and_names_of_keys_can_be_ones_own(shared_redis: RedisServer) -> None:
    async with in_redis(shared_redis, prefix="p", serializer=pickle, key=str) as cache:
        await cache.set_many({1: (1, {2: 3})})
        assert await cache.get_many([1]) == {1: (1, {2: 3})}
        assert await cache._client.exists(["p|1"]) == 1


async def test_json_is_the_default_and_never_runs_what_it_reads(shared_redis: RedisServer) -> None:
    async with in_redis(shared_redis, prefix="j") as cache:
        await cache._client.set("j|1", pickle.dumps("a pickle"))
        await cache._client.set("j|2", json.dumps("JSON"))
        assert await cache.get_many([1, 2]) == {2: "JSON"}


async def test_a_connection_keeps_nothing_of_the_request_that_made_it(
    shared_redis: RedisServer,
) -> None:
    variable: ContextVar[Kept] = ContextVar("variable")
    seen: list[object] = []

    async def request() -> weakref.ref[Kept]:
        kept = Kept()
        variable.set(kept)
        await cache.set_many({1: 1})
        seen.append(variable.get() is kept)
        return weakref.ref(kept)

    def key(key: int) -> str:
        seen.append(variable.get(None))
        return str(key)

    async with in_redis(shared_redis, key=key) as cache:
        refs: list[weakref.ref[Kept]] = []

        async def requests() -> None:
            refs.append(await request())

        async with anyio.create_task_group() as group:
            group.start_soon(requests)
        assert [type(each) for each in seen] == [
            Kept,
            bool,
        ]  # what is the user's runs in his context
        seen.clear()
        gc.collect()
        assert [ref() for ref in refs] == [None]
        assert await cache.get_many([1]) == {1: 1}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"prefix": 1}, TypeError),
        ({"prefix": ""}, ValueError),
        ({"prefix": "a|b"}, ValueError),
        ({"ttl": 0}, ValueError),
        ({"ttl": float("inf")}, ValueError),
        ({"ttl": "60"}, TypeError),
        ({"ttl": timedelta(1)}, TypeError),
        ({"timeout": 0}, ValueError),
        ({"timeout": None}, TypeError),
        ({"timeout": float("nan")}, ValueError),
        ({"pause": -1}, ValueError),
        ({"pause": True}, TypeError),
    ],
    ids=repr,
)
def test_redis_refuses_wrong_arguments(options: Any, error: type[Exception]) -> None:
    redis: Any = pytest.importorskip("anyloader.integrations.redis")
    with pytest.raises(error, match=f"{next(iter(options))} must (not )?be"):
        redis.RedisValueCache(None, **{"prefix": "a", "ttl": None, **options})


@pytest.mark.parametrize("module", ["redis", "redis_py"])
def test_ttl_has_no_default(module: str) -> None:
    redis: Any = pytest.importorskip(f"anyloader.integrations.{module}")
    with pytest.raises(TypeError, match="'ttl'"):
        redis.RedisValueCache(None, prefix="a")


@pytest.mark.parametrize(
    ("module", "needs", "extra"), [("redis", "coredis", "redis"), ("redis_py", "redis", "redis-py")]
)
def test_without_its_client_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, module: str, needs: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, needs, None)
    monkeypatch.delitem(sys.modules, f"anyloader.integrations.{module}", raising=False)
    with pytest.raises(ImportError, match=rf"pip install 'anyloader\[{extra}\]'"):
        importlib.import_module(f"anyloader.integrations.{module}")


# --- and from redis-py ---


@pytest.mark.only_on("asyncio")
async def test_redis_py_reads_what_coredis_stored_and_the_other_way_round(
    shared_redis: RedisServer,
) -> None:
    async with in_redis(shared_redis, prefix="both") as one:
        async with in_redis_py(shared_redis, False, prefix="both") as other:
            await one.set_many({("a", 1): 1})
            await other.set_many({("a", 2): [2]})
            for cache in one, other:
                assert await cache.get_many([("a", 1), ("a", 2)]) == {("a", 1): 1, ("a", 2): [2]}


@pytest.mark.only_on("asyncio")
async def test_redis_py_that_goes_away_and_comes_back(redis_server: RedisServer) -> None:
    async with in_redis_py(redis_server, False, pause=1000) as cache:
        await cache.set_many({1: 1})
        redis_server.command("CONFIG SET maxmemory 1")
        with pytest.raises(Exception, match="maxmemory"):
            await cache.set_many({1: 1})
        assert await cache.get_many([1]) == {1: 1}
        redis_server.kill()
        for error in "closed by server|connecting", "left alone":
            with pytest.raises(Exception, match=error):
                await cache.get_many([1])
        redis_server.start()
        end_the_pause(cache)
        await cache.set_many({1: 1})
        assert await cache.get_many([1]) == {1: 1}
