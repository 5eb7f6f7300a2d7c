"""What the page on databases says of asyncpg, with a PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import DataLoader, LoaderScope
from support import SERVERS, serve
from support.postgres_server import PostgresServer

asyncpg: Any = pytest.importorskip("asyncpg")
sqlalchemy: Any = pytest.importorskip("sqlalchemy")
sqlalchemy_asyncio: Any = pytest.importorskip("sqlalchemy.ext.asyncio")

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(PostgresServer.POSTGRES is None, reason="there is no postgres here"),
    pytest.mark.only_on("asyncio"),
]

SNIPPET = Path(__file__).parents[1] / "docs" / "how-to" / "sqlalchemy_asyncpg.py"
MAX_SIZE = 3

#: So many others are connected, and so many of them are at the query that takes long.
CONNECTIONS = """
    SELECT count(*), count(*) FILTER (WHERE state = 'active' AND query = 'SELECT pg_sleep(60)')
    FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


@pytest.fixture(scope="module")
def dsn() -> Iterator[str]:
    server = PostgresServer()
    server.start()
    yield server.url()
    server.stop()


Fetch = Callable[[list[int]], Awaitable[list[int]]]


@pytest.fixture
def cancelled_once(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[Fetch], Fetch]:
    """The remedy, from the page."""
    monkeypatch.setenv("DATABASE", url(dsn))
    remedy: Callable[[Fetch], Fetch] = runpy.run_path(str(SNIPPET))["cancelled_once"]
    return remedy


def url(dsn: str) -> str:
    return dsn.replace("postgresql:", "postgresql+asyncpg:")


async def connections(watcher: Any) -> tuple[int, int]:
    found, active = await watcher.fetchrow(CONNECTIONS)
    return found, active


async def cancel_when_running(watcher: Any, fetch: Any, running: int) -> None:
    """Give batches up that hold all connections of a pool, each in a scope of its own."""

    async def one(key: int) -> None:
        async with LoaderScope() as loaders:
            await loaders.get(fetch).load(key)

    async with anyio.create_task_group() as tasks:
        for key in range(running):
            tasks.start_soon(one, key)
        with anyio.fail_after(30):
            while (await connections(watcher))[1] < running:
                await checkpoint()
        tasks.cancel_scope.cancel()


async def test_cancelled_batches_do_not_outgrow_the_pool(
    dsn: str, cancelled_once: Callable[[Fetch], Fetch]
) -> None:
    engine = sqlalchemy_asyncio.create_async_engine(url(dsn), pool_size=MAX_SIZE, max_overflow=0)
    watcher = await asyncpg.connect(dsn)

    @cancelled_once
    async def fetch(keys: list[int]) -> list[int]:
        async with engine.connect() as connection:
            await connection.execute(sqlalchemy.text("SELECT pg_sleep(60)"))
        return keys

    for _ in range(8):
        await cancel_when_running(watcher, fetch, MAX_SIZE)
        # The batch functions have ended with their scopes, and with them their queries.
        found, active = await connections(watcher)
        assert found <= MAX_SIZE
        assert active == 0
    await engine.dispose()
    await watcher.close()


@pytest.mark.parametrize("server", [name for name in SERVERS if not name.endswith("trio")])
def test_clients_that_leave_do_not_outgrow_the_pool(
    dsn: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE", url(dsn))
    monkeypatch.setenv("POOL_SIZE", str(MAX_SIZE))

    async def until_running(number: int) -> int:
        """Wait until so many queries run, and return how many connections there are."""
        watcher = await asyncpg.connect(dsn)
        try:
            with anyio.fail_after(20):
                while (await connections(watcher))[1] != number:
                    await checkpoint()
            return (await connections(watcher))[0]
        finally:
            watcher.terminate()

    with serve(server, "with_postgres:app") as site:
        for _ in range(8):
            with ExitStack() as clients:
                for _ in range(MAX_SIZE):
                    client = clients.enter_context(
                        socket.create_connection(("127.0.0.1", site.port))
                    )
                    client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                asyncio.run(until_running(MAX_SIZE))
            assert asyncio.run(until_running(0)) <= MAX_SIZE  # they would take a minute each


async def test_the_pool_of_asyncpg_itself_needs_no_remedy(dsn: str) -> None:
    watcher = await asyncpg.connect(dsn)
    async with asyncpg.create_pool(dsn, min_size=0, max_size=MAX_SIZE) as pool:

        async def fetch(keys: list[int]) -> list[int]:
            async with pool.acquire() as connection:
                await connection.fetch("SELECT pg_sleep(60)")
            return keys

        for _ in range(8):
            await cancel_when_running(watcher, fetch, MAX_SIZE)
            assert (await connections(watcher))[0] <= MAX_SIZE
    await watcher.close()


async def test_results_and_errors_come_through_the_remedy(
    cancelled_once: Callable[[Fetch], Fetch],
) -> None:
    @cancelled_once
    async def fetch(keys: list[int]) -> list[int]:
        await checkpoint()
        return [10 // key for key in keys]

    async with DataLoader(fetch) as loader:
        assert await loader.load_many([1, 2]) == [10, 5]
        with pytest.raises(ZeroDivisionError):
            await loader.load(0)


async def test_what_cleaning_up_awaits_ends_before_the_scope(
    cancelled_once: Callable[[Fetch], Fetch],
) -> None:
    log: list[str] = []

    @cancelled_once
    async def fetch(keys: list[int]) -> list[int]:
        try:
            await asyncio.sleep(1000)
        finally:
            log.append("cancelled")
            for _ in range(5):
                await asyncio.sleep(0)
            log.append("cleaned up")
        return keys

    with anyio.move_on_after(0.01):
        async with DataLoader(fetch) as loader:
            await loader.load(1)
    assert log == ["cancelled", "cleaned up"]


def test_the_program_prints_what_the_page_says(dsn: str) -> None:
    run = subprocess.run(
        [sys.executable, str(SNIPPET)],
        env={**os.environ, "DATABASE": url(dsn)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.stderr, run.stdout) == ("", SNIPPET.with_suffix(".out").read_text())
