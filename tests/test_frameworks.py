"""The programs of the pages on frameworks, each in the server that it is written for."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import anyio
import pytest

from anyloader import batch_loader
from support import SERVERS, serve

HOW_TO = Path(__file__).parents[1] / "docs" / "how-to"
NAMES = ["user 1", "user 2", "user 1"]
BATCH = "batch [1, 2]\n"

ON_ASYNCIO = [name for name in SERVERS if not name.endswith("trio")]


def get(url: str, **headers: str) -> Any:
    with urlopen(Request(f"http://{url}", headers=headers), timeout=10) as response:
        return json.loads(response.read())


def status(url: str) -> int:
    """That of an answer which is an error."""
    with pytest.raises(HTTPError) as caught:
        get(url)
    with caught.value as answer:  # on Python 3.14 it is a file that nobody else closes
        return answer.code


@pytest.mark.parametrize("server", SERVERS)
def test_fastapi_with_a_session_from_a_dependency(server: str) -> None:
    pytest.importorskip("fastapi")
    with serve(server, "web_fastapi_depends:app", folder=HOW_TO) as running:
        assert get(f"{running.url}/") == NAMES
        assert get(f"{running.url}/sync") == NAMES


@pytest.mark.parametrize("server", ON_ASYNCIO)
def test_fastapi_with_the_session_of_sqlalchemy(server: str) -> None:
    for needed in "fastapi", "aiosqlite", "sqlalchemy":
        pytest.importorskip(needed)

    def post(title: str) -> Any:
        url = f"http://{running.url}/authors/2/books?title={title}"
        with urlopen(Request(url, method="POST"), timeout=10) as response:
            return json.loads(response.read())

    with serve(server, "sqlalchemy_fastapi:app", folder=HOW_TO) as running:
        ada = f"{running.url}/authors/1"
        with ThreadPoolExecutor() as threads:
            assert list(threads.map(get, [ada] * 20)) == [["Ada", "Engines", "Notes"]] * 20
        assert post("Letters") == ["Grace", "Compilers", "Letters"]
        assert post("Memoirs") == ["Grace", "Compilers", "Letters", "Memoirs"]
        assert status(f"{running.url}/authors/9") == 404


@pytest.mark.parametrize("server", SERVERS)
def test_fastapi_with_what_a_dependency_sets(server: str) -> None:
    pytest.importorskip("fastapi")
    tenants = [f"tenant{number}" for number in range(20)]

    def ask(path: str, tenant: str) -> Any:
        return get(running.url + path, **{"X-Tenant": tenant})

    with serve(server, "web_fastapi_set:app", folder=HOW_TO) as running:
        for path in "/", "/sync":
            with ThreadPoolExecutor() as threads:
                answers = list(threads.map(partial(ask, path), tenants))
            assert answers == [[f"{tenant} 1", f"{tenant} 2", f"{tenant} 1"] for tenant in tenants]


@pytest.mark.parametrize("server", SERVERS)
def test_a_websocket_in_starlette(server: str) -> None:
    pytest.importorskip("starlette")
    client = pytest.importorskip("websockets.sync.client")
    with serve(server, "web_socket:app", folder=HOW_TO) as running:
        assert get(f"{running.url}/") == NAMES
        with client.connect(f"ws://{running.url}/chat") as socket:
            for _ in range(2):
                socket.send("[1, 2, 1]")
                assert json.loads(socket.recv(timeout=10)) == NAMES


@pytest.mark.parametrize("server", ON_ASYNCIO)
def test_quart(server: str) -> None:
    pytest.importorskip("quart")
    with serve(server, "web_quart:app", folder=HOW_TO) as running:
        assert get(f"{running.url}/") == NAMES


ADA = {"name": "Ada", "books": ["Letters", "Notes"]}
GRACE = {"name": "Grace", "books": ["Compilers"]}


@pytest.fixture
def django_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made by the program, as its page says; for all processes that the test starts."""
    pytest.importorskip("django")
    monkeypatch.setenv("DATABASE", str(tmp_path / "books.sqlite3"))
    paths = [str(HOW_TO), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    subprocess.run([sys.executable, str(HOW_TO / "web_django.py")], check=True, timeout=60)


#: To the application of the page this adds a view that does what the page says not to do, and one
#: that writes.
MORE_OF_DJANGO = """
from asgiref.sync import async_to_sync
from django.db import transaction
from django.http import JsonResponse
from django.urls import path
from web_django import Author, app, describe, describe_sync, urlpatterns

def wrong(request):
    return JsonResponse(async_to_sync(describe)(1))

def write(request):
    with transaction.atomic():
        id = Author.objects.create(name="New").id
        found = describe_sync([id])
        transaction.set_rollback(True)
    return JsonResponse(found, safe=False)

urlpatterns += [path("wrong", wrong), path("write", write)]
"""


@pytest.mark.usefixtures("django_database")
@pytest.mark.parametrize("server", ON_ASYNCIO)
def test_django(server: str, tmp_path: Path) -> None:
    (tmp_path / "more.py").write_text(MORE_OF_DJANGO)
    with serve(server, "more:app", folder=tmp_path) as running:
        for _ in range(3):
            assert get(f"{running.url}/") == [ADA, GRACE]
            assert get(f"{running.url}/sync") == [ADA, GRACE]
        assert running.log.count("books of [1, 2]\n") == 6
        assert get(f"{running.url}/2") == GRACE
        assert status(f"{running.url}/99") == 404
        assert get(f"{running.url}/write") == [{"name": "New", "books": []}]
        assert status(f"{running.url}/wrong") == 500
        assert get(f"{running.url}/") == [ADA, GRACE]


@pytest.mark.usefixtures("django_database")
def test_django_under_wsgi() -> None:
    command = "import web_django, django.test; print(django.test.Client().get('/sync').json())"
    run = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.stdout, run.stderr) == (f"books of [1, 2]\n{[ADA, GRACE]}\n", "")


@pytest.mark.parametrize("server", ON_ASYNCIO)
def test_strawberrys_router_in_fastapi(server: str) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("strawberry")
    client = pytest.importorskip("websockets.sync.client")
    with serve(server, "strawberry_fastapi:app", folder=HOW_TO) as running:
        url = f"{running.url}/graphql"
        with client.connect(
            f"ws://{url}",
            subprotocols=["graphql-transport-ws"],
            additional_headers={"X-Tenant": "ada"},
        ) as socket:
            socket.send(json.dumps({"type": "connection_init"}))
            query = {"query": "subscription {counts(id: 1) {number}}"}
            socket.send(json.dumps({"type": "subscribe", "id": "1", "payload": query}))
            messages = [json.loads(socket.recv(timeout=10)) for _ in range(5)]
        for tenant, number in ("ada", 3), ("grace", 0):
            answer = get(
                f"{url}?query={quote('{counter(id: 1) {number}}')}", **{"X-Tenant": tenant}
            )
            assert answer["data"] == {"counter": {"number": number}}
    assert [message["type"] for message in messages] == [
        "connection_ack", "next", "next", "next", "complete",
    ]  # fmt: skip
    assert [message["payload"]["data"] for message in messages[1:4]] == [
        {"counts": {"number": number}} for number in (1, 2, 3)
    ]


@pytest.mark.anyio
@pytest.mark.only_on("asyncio")
async def test_aiohttp(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("aiohttp")
    utils: Any = import_module("aiohttp.test_utils")
    app = runpy.run_path(str(HOW_TO / "aiohttp_app.py"))["app"]
    async with utils.TestClient(utils.TestServer(app)) as client:
        for _ in range(2):
            async with client.get("/") as response:
                assert await response.json() == NAMES
    assert capsys.readouterr().out == BATCH * 2


# --- Django's threads ---


@pytest.mark.anyio
@pytest.mark.only_on("asyncio")
async def test_a_load_that_would_wait_for_its_own_thread_is_refused() -> None:
    pytest.importorskip("asgiref")
    from asgiref.sync import async_to_sync, sync_to_async

    from anyloader.integrations.django import DjangoScope

    @batch_loader
    @sync_to_async
    def double(keys: list[int]) -> list[int]:
        return [key * 2 for key in keys]

    async def load() -> int:
        return await double.load(7)

    async def load_in_a_scope() -> int:
        async with DjangoScope():
            return await double.load(7)

    with anyio.fail_after(10):
        async with DjangoScope():
            assert await double.load(7) == 14
            with pytest.raises(
                RuntimeError, match="within the coroutine that is given to async_to"
            ):
                await sync_to_async(async_to_sync(load))()
            assert await sync_to_async(async_to_sync(load_in_a_scope))() == 14
            assert await double.load(8) == 16


def test_sync_code_without_a_server_loads_in_a_scope_of_its_own() -> None:
    """As Django's views do under WSGI."""
    pytest.importorskip("asgiref")
    from asgiref.sync import async_to_sync, sync_to_async

    from anyloader.integrations.django import DjangoScope

    @batch_loader
    @sync_to_async
    def double(keys: list[int]) -> list[int]:
        return [key * 2 for key in keys]

    @async_to_sync
    async def load() -> int:
        async with DjangoScope():
            return await double.load(7)

    assert load() == 14
