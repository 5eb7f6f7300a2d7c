"""The programs of the pages on frameworks, each in the server that it is written for."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import anyio
import pytest

from anyloader import (
    LoaderClosedError,
    LoaderNotOpenError,
    LoaderScope,
    batch_loader,
    current_scope,
)
from anyloader.testing import max_batches
from support import SERVERS, Server, serve

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


@pytest.fixture(scope="module", params=SERVERS)
def pages(request: pytest.FixtureRequest) -> Iterator[Server]:
    """One server for all applications that have no lifespan."""
    with serve(request.param, "pages:app") as server:
        yield server


def test_fastapi_with_a_session_from_a_dependency(pages: Server) -> None:
    pytest.importorskip("fastapi")
    url = f"{pages.url}/web_fastapi_depends"
    assert get(f"{url}/") == NAMES
    assert get(f"{url}/sync") == NAMES


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


def each_tenant_gets_its_own(url: str) -> None:
    tenants = [f"tenant{number}" for number in range(20)]

    def ask(path: str, tenant: str) -> Any:
        return get(f"{url}{path}", **{"X-Tenant": tenant})

    for path in "/", "/sync":
        with ThreadPoolExecutor() as threads:
            answers = list(threads.map(partial(ask, path), tenants))
        assert answers == [[f"{tenant} 1", f"{tenant} 2", f"{tenant} 1"] for tenant in tenants]


def test_fastapi_with_what_a_dependency_sets(pages: Server) -> None:
    pytest.importorskip("fastapi")
    each_tenant_gets_its_own(f"{pages.url}/web_fastapi_set")


def test_litestar_with_a_handler_in_a_thread(pages: Server) -> None:
    pytest.importorskip("litestar")
    assert get(f"{pages.url}/web_litestar/") == NAMES
    assert get(f"{pages.url}/web_litestar/sync") == NAMES


def test_a_websocket_in_starlette(pages: Server) -> None:
    pytest.importorskip("starlette")
    client = pytest.importorskip("websockets.sync.client")
    url = f"{pages.url}/web_socket"
    assert get(f"{url}/") == NAMES
    with client.connect(f"ws://{url}/chat") as socket:
        for _ in range(2):
            socket.send("[1, 2, 1]")
            assert json.loads(socket.recv(timeout=10)) == NAMES


@pytest.mark.parametrize("server", ON_ASYNCIO)
def test_quart(server: str) -> None:
    pytest.importorskip("quart")
    with serve(server, "web_quart:app", folder=HOW_TO) as running:
        assert get(f"{running.url}/") == NAMES
        each_tenant_gets_its_own(running.url)


ADA = {"name": "Ada", "books": ["Letters", "Notes"]}
GRACE = {"name": "Grace", "books": ["Compilers"]}


@pytest.fixture(scope="module")
def made_by_django(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that the program has made, as its page says."""
    pytest.importorskip("django")
    path = tmp_path_factory.mktemp("django") / "books.sqlite3"
    environment = {**os.environ, "DATABASE": str(path)}
    command = [sys.executable, str(HOW_TO / "web_django.py")]
    subprocess.run(command, env=environment, check=True, timeout=60)
    return path


@pytest.fixture
def django_database(made_by_django: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of it, for all processes that the test starts."""
    path = tmp_path / "books.sqlite3"
    shutil.copy(made_by_django, path)
    monkeypatch.setenv("DATABASE", str(path))
    paths = [str(HOW_TO), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


#: The application of the page with more views, with middleware that is not async in it, and within that
#: of ASGI.
MORE_OF_DJANGO = """
import threading
from asgiref.sync import async_to_sync, sync_to_async
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.db import transaction
from django.http import JsonResponse, StreamingHttpResponse
from django.urls import path
from django.utils import translation
from anyloader import LoaderScope, batch_loader
from anyloader.integrations.asgi import LoaderScopeMiddleware
from anyloader.integrations.django import DjangoScope
import web_django
from web_django import Author, books_of, describe, describe_all, urlpatterns

batches = []
web_django.print = lambda *line, flush: batches.append(line[1])  # what it would print

async def tell(request):
    told = batches.copy()
    batches.clear()
    return JsonResponse(told, safe=False)

def describe_sync(ids):
    return async_to_sync(describe_all)(ids)

def sync_only(get_response):
    return lambda request: get_response(request)

both = threading.Barrier(2)

@batch_loader
@sync_to_async
def thread(keys):
    both.wait(10)  # the other request's, at the same time
    return [threading.get_ident() for _ in keys]

async def threads(request):
    return JsonResponse(await thread.load(0) == await sync_to_async(threading.get_ident)(), safe=False)

def write(request):
    with transaction.atomic():
        id = Author.objects.create(name="New").id
        found = describe_sync([id])
        transaction.set_rollback(True)
    return JsonResponse(found, safe=False)

@batch_loader
async def language(keys):
    return [translation.get_language()] * len(keys)

async def load_language(request):
    return JsonResponse(await language.load(1), safe=False)

def twice(request):
    return JsonResponse([async_to_sync(describe)(1), async_to_sync(describe)(1)], safe=False)

async def too_late(request):
    books = books_of.load(1)
    try:
        await sync_to_async(describe_sync)([2])
    except RuntimeError as exc:
        return JsonResponse([str(exc), len(await books), await sync_to_async(describe_sync)([2])], safe=False)

def streamed(scope):
    async def view(request):
        async def names():
            async with scope():
                title = (await books_of.load(1))[0].title
            yield f'"{title}"'
        return StreamingHttpResponse(names())
    return view

urlpatterns += [
    path("threads", threads), path("write", write), path("twice", twice), path("too-late", too_late),
    path("batches", tell), path("language", load_language),
    path("streamed", streamed(LoaderScope)),
]
apps = {"own": get_asgi_application()}
settings.MIDDLEWARE.insert(0, "django.middleware.locale.LocaleMiddleware")
apps["translated"] = get_asgi_application()
del settings.MIDDLEWARE[0]
settings.MIDDLEWARE.insert(0, "more.sync_only")
apps["behind-sync"] = get_asgi_application()
settings.MIDDLEWARE.append("more.sync_only")
apps["before-sync"] = get_asgi_application()
settings.MIDDLEWARE = ["more.sync_only"]
apps["around"] = LoaderScopeMiddleware(get_asgi_application(), make_scope=DjangoScope)

async def app(scope, receive, send):
    if scope["type"] == "http":
        _, first, rest = scope["path"].split("/", 2)
        await apps[first]({**scope, "path": f"/{rest}"}, receive, send)
"""


@pytest.mark.usefixtures("django_database")
@pytest.mark.parametrize("server", ON_ASYNCIO)
def test_django(server: str, tmp_path: Path) -> None:
    (tmp_path / "more.py").write_text(MORE_OF_DJANGO)
    with serve(server, "more:app", folder=tmp_path) as running:
        for app in "own", "behind-sync", "before-sync", "around":
            site = f"{running.url}/{app}"
            for _ in range(3):
                assert get(f"{site}/") == [ADA, GRACE]
                assert get(f"{site}/sync") == [ADA, GRACE]
            assert get(f"{site}/batches") == [[1, 2]] * 6
            assert get(f"{site}/2") == GRACE
            assert get(f"{site}/twice") == [ADA, ADA]
            assert get(f"{site}/batches") == [[2], [1]]
            assert get(f"{site}/write") == [{"name": "New", "books": []}]
            assert get(f"{site}/streamed") == "Letters"
            refused, books, grace = get(f"{site}/too-late")
            assert "await their loads before it" in refused
            assert (books, grace) == (2, [GRACE])
            with ThreadPoolExecutor() as threads:  # in the thread of each request, at the same time
                assert list(threads.map(get, [f"{site}/threads"] * 2)) == [True, True]
            assert status(f"{site}/99") == 404
            get(f"{site}/batches")
        for language in "de", "fr":
            url = f"{running.url}/translated/language"
            assert get(url, **{"Accept-Language": language}) == language


@pytest.mark.usefixtures("django_database")
def test_django_in_its_test_clients() -> None:
    """By WSGI and by ASGI; in a test case everything is on the connection that has its transaction."""
    command = """if True:
        import unittest, web_django
        from django.test import TestCase

        class Views(TestCase):
            def test_sync(self):
                web_django.Author.objects.create(name="New")
                for path in "/", "/sync":
                    print(len(self.client.get(path).json()))

            async def test_async(self):
                await web_django.Author.objects.acreate(name="New")
                for path in "/", "/sync":
                    response = await self.async_client.get(path)
                    print(len(response.json()))

        unittest.main()
    """
    run = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["books of [1, 2, 3]", "3"] * 4


def test_strawberrys_router_in_fastapi(pages: Server) -> None:
    if pages.name.endswith("trio"):
        pytest.skip("the router is for asyncio")
    pytest.importorskip("fastapi")
    pytest.importorskip("strawberry")
    client = pytest.importorskip("websockets.sync.client")
    url = f"{pages.url}/strawberry_fastapi/graphql"
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
        answer = get(f"{url}?query={quote('{counter(id: 1) {number}}')}", **{"X-Tenant": tenant})
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
    with pytest.raises(AssertionError, match="at most 1 batch, got 2"), max_batches(1):
        async with utils.TestClient(utils.TestServer(app)) as client:
            for _ in range(2):
                async with client.get("/") as response:
                    assert await response.json() == NAMES
    assert capsys.readouterr().out == BATCH * 2


@pytest.mark.anyio
@pytest.mark.only_on("asyncio")
async def test_a_websocket_in_aiohttp() -> None:
    pytest.importorskip("aiohttp")
    web: Any = import_module("aiohttp.web")
    utils: Any = import_module("aiohttp.test_utils")
    program = runpy.run_path(str(HOW_TO / "aiohttp_app.py"))
    batches: list[list[int]] = []

    @batch_loader
    async def note(ids: list[int]) -> list[int]:
        batches.append(ids)
        return ids

    async def chat(request: Any) -> Any:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        with pytest.raises(LoaderNotOpenError):
            note.load(1)
        async for message in socket:
            async with LoaderScope():
                await socket.send_json(await note.load_many(message.json()))
        return socket

    program["app"].add_routes([web.get("/chat", chat)])
    async with utils.TestClient(utils.TestServer(program["app"])) as client:
        async with client.ws_connect("/chat") as socket:
            for _ in range(2):
                await socket.send_json([1, 2, 1])
                assert await socket.receive_json() == [1, 2, 1]
    assert batches == [[1, 2]] * 2


# --- Django's threads ---


@batch_loader
async def double(keys: list[int]) -> list[int]:
    """As over the ORM."""
    sync: Any = import_module("asgiref.sync")
    doubled: list[int] = await sync.sync_to_async(lambda: [key * 2 for key in keys])()
    return doubled


@pytest.mark.anyio
@pytest.mark.only_on("asyncio")
async def test_a_load_that_would_wait_for_its_own_thread_is_refused() -> None:
    pytest.importorskip("asgiref")
    from asgiref.sync import async_to_sync, sync_to_async

    from anyloader.integrations.django import DjangoScope

    async def load(key: int) -> int:
        return await double.load(key)

    async def load_in_a_scope(key: int) -> int:
        async with DjangoScope():
            return await double.load(key)

    async def begin(key: int) -> None:
        double.load(key)

    in_thread = sync_to_async(lambda function, key: async_to_sync(function)(key))
    with anyio.fail_after(10):
        async with DjangoScope() as scope:
            assert await in_thread(load, 7) == 14
            begun = double.load(8)
            with pytest.raises(RuntimeError, match="await their loads before it, or open a"):
                await in_thread(load, 8)
            assert await in_thread(load_in_a_scope, 8) == 16
            assert await begun == 16
            assert await in_thread(load, 8) == 16
            # What nobody awaits there fails at worst, and is loaded again.
            await in_thread(begin, 9)
            with suppress(RuntimeError):
                await double.load(9)
            assert await double.load(9) == 18
            assert await in_thread(load, 10) == 20
        with pytest.raises(LoaderClosedError):
            scope.get(double)


@pytest.mark.anyio
@pytest.mark.only_on("asyncio")
async def test_a_scope_outside_of_a_request_uses_its_thread() -> None:
    pytest.importorskip("asgiref")
    from asgiref.sync import ThreadSensitiveContext, sync_to_async

    from anyloader.integrations.django import DjangoScope

    @batch_loader(cache=False)
    @sync_to_async
    def thread(keys: list[int]) -> list[int]:
        return [threading.get_ident()] * len(keys)

    with anyio.fail_after(10):
        async with DjangoScope():
            for _ in range(2):
                async with ThreadSensitiveContext():
                    here = await sync_to_async(threading.get_ident)()
                    assert await thread.load(1) == here


@pytest.mark.anyio
async def test_djangos_middleware_refuses_what_is_not_async() -> None:
    pytest.importorskip("asgiref")
    from anyloader.integrations.django import LoaderScopeMiddleware

    with pytest.raises(TypeError, match="one of Django's MIDDLEWARE"):
        LoaderScopeMiddleware(lambda request: request)


@pytest.mark.anyio
async def test_the_scopes_of_djangos_middleware_can_be_made_by_the_user() -> None:
    pytest.importorskip("asgiref")
    from anyloader.integrations.django import LoaderScopeMiddleware

    scopes: list[LoaderScope] = []

    class WithHooks(LoaderScopeMiddleware):
        def make_scope(self) -> LoaderScope:
            scopes.append(LoaderScope(hooks=[]))
            return scopes[-1]

    async def respond(request: str) -> tuple[str, LoaderScope]:
        return request, current_scope()

    middleware = WithHooks(respond)
    assert await middleware("a") == ("a", scopes[0])
    assert await middleware("b") == ("b", scopes[1])

    class WithNone(LoaderScopeMiddleware):
        def make_scope(self) -> Any:
            return None

    with pytest.raises(
        TypeError, match="make_scope must return a new LoaderScope for each request"
    ):
        await WithNone(respond)("c")


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
