"""One suite for every ``ValueCache`` there is, and what each of them adds."""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import logging
import pickle
import re
import sys
import threading
import time
import weakref
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import anyio
import pytest

from anyloader import DataLoader, ValueCache, hooks
from anyloader.integrations.memory import MemoryValueCache
from support import Recorder, wait_all_tasks_blocked
from support.redis_server import RedisServer, redis_cluster, redis_sentinel

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
    yield MemoryValueCache(10_000, ttl)


# --- servers ---


@pytest.fixture(scope="session")
def redis_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if RedisServer.PROGRAM is None:
        pytest.skip("redis-server is not installed")
    return tmp_path_factory.mktemp("redis")


def _server(folder: Path) -> Iterator[RedisServer]:
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


@pytest.fixture(scope="session")
def cluster(redis_folder: Path) -> Iterator[RedisServer]:
    with redis_cluster(redis_folder) as server:
        yield server


@pytest.fixture(scope="session")
def sentinel(redis_folder: Path) -> Iterator[RedisServer]:
    with redis_sentinel(redis_folder) as server:
        yield server


def _options(options: dict[str, Any]) -> dict[str, Any]:
    # Whatever else the machine does: only tests of the timeout may meet it.
    prefix = f"test{time.monotonic_ns()}"
    return {"timeout": 30, "pause": 0, "prefix": prefix, "ttl": 60, **options}


def _client(port: int, timeout: float = 20) -> Any:
    coredis = pytest.importorskip("coredis")
    return coredis.Redis(
        "127.0.0.1",
        port,
        max_connections=4,
        connect_timeout=timeout,
        stream_timeout=timeout,
        retry_policy=coredis.retry.NoRetryPolicy(),
    )


@asynccontextmanager
async def in_redis(
    server: RedisServer, *, client_timeout: float = 20, **options: Any
) -> AsyncIterator[Any]:
    redis = pytest.importorskip("anyloader.integrations.redis")
    async with _client(server.port, client_timeout) as client:
        yield redis.RedisValueCache(client, **_options(options))


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


@asynccontextmanager
async def in_redis_py(server: RedisServer, cluster: bool, **options: Any) -> AsyncIterator[Any]:
    redis = pytest.importorskip("redis.asyncio")
    from anyloader.integrations.redis_py import RedisValueCache

    kind = redis.RedisCluster if cluster else redis.Redis
    async with kind(host="127.0.0.1", port=server.port, socket_timeout=20, retry=None) as client:
        yield RedisValueCache(client, **_options(options))


# coredis does not close what it made to find the nodes of a cluster, or for a connection that is refused.
unclosed = pytest.mark.filterwarnings(
    "ignore:Unclosed <Memory:ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)

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


class Color(Enum):
    RED = "RED"
    ROSE = "RED"


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


# --- names of keys in Redis ---


@pytest.fixture
def name_of() -> Callable[[object], str]:
    module = importlib.import_module("anyloader.integrations._redis")
    name_of: Callable[[object], str] = module.name_of
    return name_of


class Size(IntEnum):
    SMALL = 1


class Text(str):
    pass


class Status(str, Enum):
    ACTIVE = "active"


class Access(Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    y: int


class DriverUUID(UUID):
    """As the one of asyncpg: a subclass with methods of its own for the same."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UUID) and self.int == other.int

    def __hash__(self) -> int:
        return hash(self.int)


UTC, EAST = timezone.utc, timezone(timedelta(hours=2))

#: Keys of one line are equal, keys of two lines are not.
KEYS: list[tuple[Any, ...]] = [
    (1, 1.0, True, Decimal(1), Decimal("1.00"), Size.SMALL),
    (0, False, -0.0, Decimal("-0")),
    ("1", Text("1")),
    (b"1",),
    (0.5, Decimal("0.5")),
    (0.1,),
    (Decimal("0.1"),),
    (10**20, 1e20),
    ("active", Status.ACTIVE),
    (Color.RED, Color.ROSE),
    ("RED",),
    (Access.READ,),
    (Access.READ | Access.WRITE,),
    (UUID(int=1), DriverUUID(int=1)),
    (str(UUID(int=1)),),
    (date(2026, 1, 1),),
    (datetime(2026, 1, 1), datetime(2026, 1, 1, fold=1)),
    (datetime(2026, 1, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 3, tzinfo=EAST)),
    ("2026-01-01",),
    ((1, 2), Point(1, 2), (1.0, 2)),
    ((12,),),
    (((1,), 2),),
    ((1, (2,)),),
    ((),),
    ("(1,2)",),
    (("1,2",),),
    (('1","2',),),
    (("1", "2"),),
    ((None,),),
    (("null",),),
]


def test_equal_keys_have_one_name_and_others_have_others(name_of: Any) -> None:
    assert len({key for keys in KEYS for key in keys}) == len(KEYS)  # Python agrees
    names = [{name_of(key) for key in keys} for keys in KEYS]
    assert [len(each) for each in names] == [1] * len(KEYS)
    assert len(set().union(*names)) == len(KEYS)


def test_names_are_what_they_were(name_of: Any) -> None:
    """Else what older versions have stored would not be found, nor deleted."""
    uuid = UUID("12345678123456781234567812345678")
    assert [name_of(key) for key in (42, "ada", (1, "b", None), 0.5, b"\x00a", uuid)] == [
        "42",
        '"ada"',
        '(1,"b",null)',
        "1/2",
        "bytes(0061)",
        "uuid(12345678-1234-5678-1234-567812345678)",
    ]
    noon = datetime(2026, 1, 2, 12, tzinfo=EAST)
    assert name_of(noon) == "datetime(2026-01-02T10:00:00+00:00)"
    assert name_of(noon.date()) == "date(2026-01-02)"
    assert name_of(Color.RED) == f'enum("{__name__}.Color","RED")'


class OwnText(str):
    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self.lower() == other.lower()

    def __hash__(self) -> int:
        return hash(self.lower())


class OwnEnum(Enum):
    ONE = 1

    def __eq__(self, other: object) -> bool:
        return other == "one"

    __hash__ = Enum.__hash__


def nested(depth: int) -> Any:
    key: Any = ()
    for _ in range(depth):
        key = (key,)
    return key


UNNAMED = [
    object(),
    frozenset({1}),
    Fraction(1, 2),
    1j,
    memoryview(b"1"),
    float("nan"),
    float("inf"),
    Decimal("Infinity"),
    Decimal("1e999999999"),
    Decimal("1e-999999999"),
    1 << 5000,
    OwnText("Ab"),
    OwnEnum.ONE,
    (1, object()),
    nested(100_000),
    datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")),  # comes twice
    datetime.min.replace(tzinfo=EAST),  # not in UTC
]


def test_keys_without_a_name_are_refused_at_once(name_of: Any) -> None:
    for key in UNNAMED:
        with pytest.raises((TypeError, ValueError, ArithmeticError, RecursionError)):
            name_of(key)


# --- in Redis ---


class Failures:
    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.errors: list[Exception] = []

    def __call__(self, event: hooks.Event) -> None:
        if isinstance(event, hooks.ValueCacheFailed):
            self.told.append((event.operation, type(event.error).__name__))
            self.errors.append(event.error)


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was said of each failure, and why."""
    lines = []
    for record in caplog.records:
        if record.name == "anyloader" and record.exc_info:
            lines.append(f"{record.getMessage()} because of {record.exc_info[1]}")
    return lines


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


class Kept:
    pass


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


def test_ttl_has_no_default() -> None:
    redis: Any = pytest.importorskip("anyloader.integrations.redis")
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


# --- Redis that answers with an error ---


@pytest.mark.parametrize("trouble", ["full", "read-only"])
async def test_a_redis_that_cannot_be_written_to_is_read_on(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    fetch, failures = Recorder[int, str](str), Failures()
    async with in_redis(redis_server, pause=1000, ttl=600) as cache:
        await cache.set_many({key: str(key) for key in range(100)})
        if trouble == "full":
            redis_server.command("CONFIG SET maxmemory 1")
        else:
            # A replica of what is not there keeps what it has.
            redis_server.command("REPLICAOF 127.0.0.1 1")
        for key in range(10):
            async with DataLoader(fetch, value_cache=cache, hooks=[failures]) as loader:
                keys = [key, key + 1, 1000 + key]
                assert await loader.load_many(keys) == list(map(str, keys))
        assert fetch.calls == [[1000 + key] for key in range(10)]
        assert {operation for operation, _ in failures.told} == {"set_many"}
        assert len(failures.told) == 10
        (line,) = logged(caplog)
        assert {"full": "maxmemory", "read-only": "read only"}[trouble] in line
        assert "the last call failed" not in repr(cache)

        redis_server.command("CONFIG SET maxmemory 0")
        redis_server.command("REPLICAOF NO ONE")
        for memory in ("0", "1"):
            redis_server.command(f"CONFIG SET maxmemory {memory}")
            async with DataLoader(fetch, value_cache=cache) as loader:
                await loader.load(2000 + int(memory))
        assert len(logged(caplog)) == 2  # another row


# --- Redis that goes away, in real time ---


@unclosed
async def test_killed_and_started_again_in_mid_flight_no_load_fails(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
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
        assert [re.findall(r"failed in (\w+)\(\)", line) for line in logged(caplog)] == [
            ["get_many"],
            ["set_many"],
        ]
        redis_server.start()
        failures.told.clear()
        assert [await load(1), await load(1)] == ["1", "1"]
        assert len(logged(caplog)) == 2
    assert fetch.calls == [[1], [1], [2], [1]]
    assert failures.told == []
    caplog.clear()  # the errors in it hold what the client left unclosed
    failures.errors.clear()
    gc.collect()


TIMEOUT = 0.2


def end_the_pause(cache: Any) -> None:
    for door in cache._reads, cache._writes:
        door._until = 0


async def test_paused_it_costs_a_batch_no_more_than_the_timeout(redis_server: RedisServer) -> None:
    fetch, failures = Recorder[int, str](str), Failures()
    async with in_redis(redis_server, pause=1000) as cache:
        await cache.set_many({1: "from Redis"})
        cache._timeout = TIMEOUT
        async with DataLoader(fetch, value_cache=cache, hooks=[failures]) as loader:
            redis_server.pause()
            start = anyio.current_time()
            assert await loader.load_many([1, 2]) == ["1", "2"]
            first = anyio.current_time() - start
            for key in range(3, 20):
                assert await loader.clear(1).load(key) == str(key)
            others = anyio.current_time() - start - first
        assert TIMEOUT * 0.9 < first < TIMEOUT + 5  # a busy machine is slow, a hang is for ever
        assert failures.told[0] == ("get_many", "TimeoutError")
        assert {error for _, error in failures.told[1:]} == {"ConnectionError"}
        assert others < 17 * TIMEOUT
        assert "the last call failed: TimeoutError" in repr(cache)
        redis_server.resume()
        end_the_pause(cache)
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


async def test_one_call_at_a_time_looks_whether_it_is_back(redis_server: RedisServer) -> None:
    waited: list[str] = []

    async def ask() -> None:
        try:
            await cache.get_many([1])
        except Exception as exc:
            waited.append(type(exc).__name__)

    async with in_redis(redis_server, pause=0) as cache:
        await cache.get_many([1])
        cache._timeout = TIMEOUT
        redis_server.pause()
        for expected in (["TimeoutError"] * 8, ["ConnectionError"] * 7 + ["TimeoutError"]):
            waited.clear()
            async with anyio.create_task_group() as group:
                for _ in range(8):
                    group.start_soon(ask)
            assert waited == expected
        redis_server.resume()
        cache._timeout = 30
        assert await cache.get_many([1]) == {}


async def test_writes_without_an_answer_stop_no_reads(redis_server: RedisServer) -> None:
    async with in_redis(redis_server, pause=1000) as cache:
        await cache.set_many({1: 1})
        redis_server.command("CLIENT PAUSE 100000 WRITE")
        cache._timeout = TIMEOUT
        with pytest.raises(TimeoutError):
            await cache.set_many({2: 2})
        assert "the last call failed: TimeoutError" in repr(cache)
        cache._timeout = 30
        assert await cache.get_many([1, 2]) == {1: 1}
        with pytest.raises(ConnectionError, match="left alone"):
            await cache.delete_many([1])
        redis_server.command("CLIENT UNPAUSE")


@unclosed
async def test_an_error_is_kept_in_words_only(redis_server: RedisServer) -> None:
    async with in_redis(redis_server, pause=1000) as cache:
        redis_server.kill()
        value = Kept()
        ref = weakref.ref(value)
        cache._serializer = pickle

        async def fail(value: object) -> None:
            with pytest.raises(Exception, match="connect"):
                await cache.set_many({1: value})

        await fail(value)
        del value
        await anyio.wait_all_tasks_blocked()
        gc.collect()
        assert ref() is None


@pytest.mark.only_on("asyncio")
@pytest.mark.parametrize("who", ["the caller", "the call", "the call that runs"])
async def test_native_cancellation_of_either_side_hangs_nobody(
    redis_server: RedisServer, who: str
) -> None:
    """What goes on is told apart: the call of a caller that is gone takes nobody's place."""
    module = importlib.import_module("anyloader.integrations._redis")
    async with in_redis(redis_server) as cache:
        await cache.set_many({1: 1})
        await wait_all_tasks_blocked()
        redis_server.pause()
        caller = asyncio.ensure_future(cache.get_many([1]))
        await asyncio.sleep(0)  # its first step, which makes the call but does not let it run
        (call,) = module._tasks
        if who == "the call that runs":
            await asyncio.sleep(0)
        (caller if who == "the caller" else call).cancel()
        with pytest.raises((asyncio.CancelledError, ConnectionError), match=r"^$|was cancelled"):
            await caller
        redis_server.resume()
        end_the_pause(cache)
        assert await cache.get_many([1]) == {1: 1}
        await wait_all_tasks_blocked()
        assert not module._tasks


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
    for _ in range(500):  # on a busy machine a connection may take longer than these timeouts
        try:
            await cache.set_many({key: key})
        except (ConnectionError, coredis_errors()):
            await anyio.sleep(0.01)
            continue
        return


async def _fail(cache: Any) -> None:
    with pytest.raises((OSError, coredis_errors())):
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
