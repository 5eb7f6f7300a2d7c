"""Redis that answers with an error, hangs or goes away, in real time."""

from __future__ import annotations

import asyncio
import gc
import importlib
import pickle
import re
import weakref
from functools import partial
from typing import Any

import anyio
import pytest

from anyloader import DataLoader
from support import Recorder, wait_all_tasks_blocked
from support.redis_caches import Failures, Kept, end_the_pause, in_redis, logged, unclosed
from support.redis_server import RedisServer

pytestmark = pytest.mark.anyio

pytest_plugins = ["support.redis_caches"]


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


async def test_a_redis_that_lets_nobody_in_fails_no_load_and_is_logged(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    redis_server.command("CONFIG SET requirepass secret")
    fetch = Recorder[int, str](str)
    async with in_redis(redis_server) as cache:
        for _ in range(3):
            async with DataLoader(fetch, value_cache=cache) as loader:
                assert await loader.load(1) == "1"
    assert [re.findall(r"failed in (\w+)\(\): Auth", line) for line in logged(caplog)] == [
        ["get_many"],
        ["set_many"],
    ]


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


async def test_what_is_said_of_an_error_is_short(shared_redis: RedisServer) -> None:
    async with in_redis(shared_redis, prefix="p", pause=1000) as cache:

        async def fail(names: object) -> None:
            raise ConnectionError("x" * 10_000)

        cache._get = fail
        for most in 10_000, 300:
            with pytest.raises(ConnectionError, match="xxx") as raised:
                await cache.get_many([1])
            assert len(str(raised.value)) <= most
            assert 100 < len(repr(cache)) < 200


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


@pytest.mark.parametrize("operation", ["get_many", "set_many", "delete_many"])
async def test_who_gives_up_does_not_wait_for_the_rest_of_many_keys(
    redis_server: RedisServer, operation: str
) -> None:
    async with in_redis(redis_server) as cache:
        calls = 0

        async def call_and_give_up(command: Any, argument: Any) -> Any:
            nonlocal calls
            calls += 1
            scope.cancel()
            return await command(argument)

        for name in "_get", "_set", "_delete":
            setattr(cache, name, partial(call_and_give_up, getattr(cache, name)))
        with anyio.CancelScope() as scope:
            items = {key: key for key in range(1000)}
            await getattr(cache, operation)(items if operation == "set_many" else list(items))
        assert scope.cancelled_caught
        assert calls == 1


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
