"""Value caches in Redis, with servers of their own, and others to compare."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from anyloader import hooks
from support.redis_server import RedisServer, redis_cluster

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


class Color(Enum):
    RED = "RED"
    ROSE = "RED"


class Size(IntEnum):
    SMALL = 1


class Text(str):
    pass


class Status(str, Enum):
    ACTIVE = "active"


class Point(NamedTuple):
    x: int
    y: int


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


class Kept:
    pass


def end_the_pause(cache: Any) -> None:
    for door in cache._reads, cache._writes:
        door._until = 0
