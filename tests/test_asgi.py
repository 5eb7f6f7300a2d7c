"""The ASGI middleware: against plain calls, and with real frameworks in real servers."""

from __future__ import annotations

import json
import socket
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from http.client import HTTPConnection
from importlib.util import find_spec
from typing import Any, NamedTuple

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import (
    LoadCancelledError,
    LoaderClosedError,
    LoaderNotOpenError,
    LoaderScope,
    batch_loader,
    current_scope,
)
from anyloader.integrations.asgi import App, LoaderScopeMiddleware, Message, Receive, Send
from support import SERVERS, Server, serve, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio

REQUEST: Message = {"type": "http.request", "body": b"", "more_body": False}
CHUNK: Message = {"type": "http.request", "body": b"x", "more_body": True}
START: Message = {"type": "http.response.start", "status": 200, "headers": []}
PART: Message = {"type": "http.response.body", "body": b"a", "more_body": True}
END: Message = {"type": "http.response.body", "body": b"b"}
PATHSEND: Message = {"type": "http.response.pathsend", "path": "/tmp/file"}
GONE: Message = {"type": "http.disconnect"}
CONNECT: Message = {"type": "websocket.connect"}
TEXT: Message = {"type": "websocket.receive", "text": "hello"}
ACCEPT: Message = {"type": "websocket.accept"}
CLOSE: Message = {"type": "websocket.close"}
REFUSED: Message = {"type": "websocket.http.response.body", "body": b""}
LEFT: Message = {"type": "websocket.disconnect", "code": 1006}


class Client:
    """The server's side of one request: what it has received, what it will send, what it was sent."""

    def __init__(self, kind: str = "http") -> None:
        self.kind = kind
        self.received = 0
        self.sent: list[Message] = []
        self._send, self._receive = anyio.create_memory_object_stream[Message](100)

    def says(self, *messages: Message) -> None:
        for message in messages:
            self._send.send_nowait(message)

    async def receive(self) -> Message:
        message = await self._receive.receive()
        self.received += 1
        return message

    async def send(self, message: Message) -> None:
        await checkpoint()
        self.sent.append(message)

    async def call(self, app: App) -> None:
        with self._send, self._receive:
            await app({"type": self.kind, "path": "/"}, self.receive, self.send)


@asynccontextmanager
async def request(
    app: App, *messages: Message, kind: str = "http", **options: Any
) -> AsyncIterator[Client]:
    """Call the application, and enter the block once nothing moves any more."""
    client = Client(kind)
    client.says(*messages)
    async with anyio.create_task_group() as tg:
        tg.start_soon(client.call, LoaderScopeMiddleware(app, **options))
        await wait_all_tasks_blocked()
        yield client


class Slow:
    """An endless batch function that records how it ended, as a loader of the ambient scope."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.go_on = anyio.Event()

    async def __call__(self, keys: list[int]) -> list[int]:
        self.log.append("started")
        try:
            await self.go_on.wait()
        except anyio.get_cancelled_exc_class():
            self.log.append("batch cancelled")
            raise
        self.log.append("finished")
        return keys

    async def load(self) -> None:
        try:
            await current_scope().get(self).load(1)
        except anyio.get_cancelled_exc_class():
            self.log.append("request cancelled")
            raise
        except LoadCancelledError:
            self.log.append("load cancelled")


@batch_loader
async def double(keys: list[int]) -> list[int]:
    return [key * 2 for key in keys]


# --- Plain calls ---


@pytest.mark.parametrize("watch", [True, False])
@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_each_request_has_a_scope_of_its_own(kind: str, watch: bool) -> None:
    scopes: list[LoaderScope] = []
    everybody = anyio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        scopes.append(current_scope())
        assert await double.load(1) == 2
        if len(scopes) == 3:
            everybody.set()
        await everybody.wait()
        assert current_scope().statistics().loads == 1
        assert current_scope().statistics().batches == 1

    async with anyio.create_task_group() as tg:
        for _ in range(3):
            tg.start_soon(Client(kind).call, LoaderScopeMiddleware(app, cancel_on_disconnect=watch))
    assert len(set(scopes)) == 3
    for scope in scopes:
        with pytest.raises(LoaderClosedError):
            scope.get(double)
    with pytest.raises(LoaderNotOpenError):
        current_scope()


async def test_other_than_requests_are_passed_through_untouched() -> None:
    client = Client("lifespan")
    given: list[object] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        with pytest.raises(LoaderNotOpenError):
            current_scope()
        given.extend([scope["type"], receive, send])

    await client.call(LoaderScopeMiddleware(app))
    assert given == ["lifespan", client.receive, client.send]


@pytest.mark.parametrize("watch", [True, False])
@pytest.mark.parametrize(
    ("kind", "received", "sent"),
    [
        ("http", [CHUNK, CHUNK, CHUNK, CHUNK, REQUEST], [START, PART, PART, END]),
        ("websocket", [CONNECT, TEXT, TEXT, TEXT, TEXT, LEFT], [ACCEPT, TEXT, TEXT]),
    ],
)
async def test_messages_pass_unchanged(
    kind: str, received: list[Message], sent: list[Message], watch: bool
) -> None:
    seen: list[Message] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        for _ in received:
            seen.append(await receive())
            await checkpoint()
        for message in sent:
            await send(message)

    async with request(app, *received, kind=kind, cancel_on_disconnect=watch) as client:
        pass
    assert [id(message) for message in seen] == [id(message) for message in received]
    assert [id(message) for message in client.sent] == [id(message) for message in sent]


async def test_a_disconnect_is_received_again_and_again() -> None:
    seen: list[Message] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(END)
        for _ in range(3):
            seen.append(await receive())

    async with request(app, REQUEST, GONE):
        pass
    assert seen == [REQUEST, GONE, GONE]


async def test_at_most_three_messages_are_received_ahead() -> None:
    go_on = anyio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await go_on.wait()
        for _ in range(9):
            await receive()

    async with request(app, *[CHUNK] * 10) as client:
        assert client.received == 1 + 3
        go_on.set()
    assert client.received == 10


async def test_an_application_need_not_receive_all_there_is() -> None:
    go_on = anyio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await go_on.wait()
        await send(END)

    async with request(app, *[CHUNK] * 10) as client:
        go_on.set()
    assert client.sent == [END]


async def test_a_message_that_is_there_is_received_in_a_cancelled_scope() -> None:
    """Frameworks ask for a disconnect in this way."""
    seen: list[Message] = []
    go_on = anyio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(END)
        await go_on.wait()
        for _ in range(3):
            with anyio.CancelScope() as at_once:
                at_once.cancel()
                seen.append(await receive())

    async with request(app, REQUEST, GONE):
        go_on.set()
    assert seen == [REQUEST, GONE, GONE]


@pytest.mark.parametrize("watch", [True, False])
@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_an_exception_of_the_application_comes_out_as_it_is(kind: str, watch: bool) -> None:
    class TeapotError(Exception):
        pass

    teapot, slow = TeapotError(418), Slow()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        current_scope().get(slow).load(1)
        await double.load(1)
        raise teapot

    client = Client(kind)
    client.says(REQUEST)
    with pytest.raises(TeapotError, check=lambda exc: exc is teapot):
        await client.call(LoaderScopeMiddleware(app, cancel_on_disconnect=watch))
    assert slow.log in ([], ["started", "batch cancelled"])


async def test_an_error_of_the_server_comes_out_as_it_is() -> None:
    slow = Slow()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await slow.load()

    async def receive() -> Message:
        await wait_all_tasks_blocked()
        raise OSError

    async def send(message: Message) -> None:
        raise AssertionError

    with pytest.raises(OSError):
        await LoaderScopeMiddleware(app)({"type": "http"}, receive, send)
    assert sorted(slow.log) == ["batch cancelled", "request cancelled", "started"]


@pytest.mark.parametrize("body", [[], [REQUEST], [CHUNK, REQUEST]])
@pytest.mark.parametrize("begun", [[], [START], [START, PART]])
async def test_a_disconnect_cancels_the_request_and_its_batches(
    body: list[Message], begun: list[Message]
) -> None:
    """Also where the application did not receive the request."""
    slow = Slow()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        for message in begun:
            await send(message)
        await slow.load()
        slow.log.append("not reached")

    async with request(app, *body) as client:
        assert slow.log == ["started"]
        client.says(GONE)
        await wait_all_tasks_blocked()
        assert sorted(slow.log) == ["batch cancelled", "request cancelled", "started"]


@pytest.mark.parametrize("end", [END, PATHSEND])
async def test_a_disconnect_after_the_response_cancels_nothing(end: Message) -> None:
    slow = Slow()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        await send(end)
        await slow.load()

    async with request(app, REQUEST) as client:
        client.says(GONE)
        await wait_all_tasks_blocked()
        assert slow.log == ["started"]
        slow.go_on.set()
    assert slow.log == ["started", "finished"]


async def test_a_disconnect_cancels_nothing_where_that_is_not_wanted() -> None:
    slow = Slow()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await slow.load()

    async with request(app, REQUEST, GONE, cancel_on_disconnect=False) as client:
        assert client.received == 0
        slow.go_on.set()
    assert slow.log == ["started", "finished"]


async def test_a_disconnected_websocket_application_goes_on_without_its_batches() -> None:
    slow = Slow()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        assert await receive() == CONNECT
        await send(ACCEPT)
        await slow.load()
        with pytest.raises(LoaderClosedError):
            await double.load(1)
        await checkpoint()
        assert await receive() == LEFT
        slow.log.append("went on")

    async with request(app, CONNECT, kind="websocket") as client:
        client.says(LEFT)
    assert sorted(slow.log[:3]) == ["batch cancelled", "load cancelled", "started"]
    assert slow.log[3:] == ["went on"]


@pytest.mark.parametrize("end", [CLOSE, REFUSED])
async def test_a_disconnect_of_a_websocket_that_was_closed_cancels_nothing(end: Message) -> None:
    """Servers say "disconnect" in answer to the application's own "close"."""
    slow = Slow()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(end)
        await slow.load()
        assert await double.load(1) == 2

    async with request(app, CONNECT, kind="websocket") as client:
        client.says(LEFT)
        await wait_all_tasks_blocked()
        slow.go_on.set()
    assert slow.log == ["started", "finished"]


@pytest.mark.virtual_time
@pytest.mark.parametrize("watch", [True, False])
async def test_what_cancels_the_request_cancels_its_batches(watch: bool) -> None:
    slow = Slow()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await slow.load()

    client = Client()
    client.says(REQUEST)
    with anyio.move_on_after(1) as timeout:
        await client.call(LoaderScopeMiddleware(app, cancel_on_disconnect=watch))
    assert timeout.cancelled_caught
    assert sorted(slow.log) == ["batch cancelled", "request cancelled", "started"]


@pytest.mark.virtual_time
async def test_a_timeout_in_the_application_cancels_what_it_loads_and_nothing_else() -> None:
    slow = Slow()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        with anyio.move_on_after(1) as timeout:
            await slow.load()
        assert timeout.cancelled_caught
        assert await double.load(1) == 2
        await send(END)

    async with request(app, REQUEST) as client:
        pass
    assert client.sent == [END]
    assert sorted(slow.log) == ["batch cancelled", "request cancelled", "started"]


# --- Real servers and frameworks. The applications are in tests/apps. ---

WATCHED = ["starlette", "fastapi", "litestar"]
FRAMEWORKS = [*WATCHED, "fastapi-dependency"]
WAIT = 10  # seconds; only what fails takes so long


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serve(request.param, "all_frameworks:app") as server:
        yield server


class Response(NamedTuple):
    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Site:
    """One application on one server."""

    def __init__(self, server: Server, framework: str) -> None:
        if find_spec(framework.split("-")[0]) is None:
            pytest.skip(f"{framework} is not installed")
        self.server = server
        self.framework = framework
        #: A name for what a test does there, under which the application keeps its log.
        self.name = uuid.uuid4().hex

    def request(self, method: str, path: str, body: bytes | Iterator[bytes] = b"") -> Response:
        return self._request(method, f"/{self.framework}{path}", body)

    def get(self, path: str) -> Response:
        return self.request("GET", path)

    def log(self, name: str) -> list[str]:
        events: list[str] = self._request("GET", f"/log/{name}").json()
        return events

    def _request(self, method: str, path: str, body: bytes | Iterator[bytes] = b"") -> Response:
        # Over a connection of its own: servers close those on which an application failed.
        connection = HTTPConnection("127.0.0.1", self.server.port, timeout=WAIT)
        with closing(connection):
            connection.request(method, path, body)
            response = connection.getresponse()
            return Response(response.status, response.read())

    def wait_for(self, *events: str) -> None:
        """Wait until these events are what is logged. They come from several tasks, in any order."""
        deadline = time.monotonic() + WAIT
        while len(self.log(self.name)) < len(events) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert sorted(self.log(self.name)) == sorted(events)

    def connect(self, request: str) -> socket.socket:
        """Send a request, and leave it to the caller to wait for the response."""
        connection = socket.create_connection(("127.0.0.1", self.server.port), timeout=WAIT)
        head, _, body = request.partition("\n")
        method, path = head.split()
        connection.sendall(
            f"{method} /{self.framework}{path} HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        return connection


@pytest.fixture(params=FRAMEWORKS)
def site(server: Server, request: pytest.FixtureRequest) -> Site:
    return Site(server, request.param)


@pytest.fixture(params=WATCHED)
def watched(server: Server, request: pytest.FixtureRequest) -> Site:
    return Site(server, request.param)


def test_the_loads_of_a_request_are_one_batch(site: Site) -> None:
    response = site.get("/squares/20")
    assert response.status == 200
    assert response.json() == {"squares": [n * n for n in range(20)], "batches": 1}


def test_concurrent_requests_have_separate_loaders(site: Site) -> None:
    with ThreadPoolExecutor(10) as pool:
        responses = [response.json() for response in pool.map(site.get, ["/session"] * 30)]
    assert all(response["first"] == response["again"] for response in responses)
    assert len({response["first"] for response in responses}) == 30


def test_a_418_stays_a_418(site: Site) -> None:
    assert site.get("/teapot").status == 418
    assert site.log(f"/{site.framework}/teapot") == []


def test_an_error_comes_out_bare(site: Site) -> None:
    assert site.get("/crash").status == 500
    if site.framework != "litestar":  # which lets nothing out
        assert set(site.log(f"/{site.framework}/crash")) == {"ZeroDivisionError"}


def test_a_timeout_of_the_endpoint_cancels_the_batch(site: Site) -> None:
    response = site.get(f"/timeout/{site.name}")
    assert response == (504, b"timeout")
    site.wait_for("started", "cancelled")


def test_a_streaming_upload_is_read_as_it_comes(site: Site) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(10):
            yield b"x" * 40_000
            time.sleep(0.005)

    response = site.request("POST", "/upload", chunks())
    assert response.json() == {"total": 400_000, "check": 400_000}


def test_a_large_upload_passes(site: Site) -> None:
    response = site.request("POST", "/upload", b"x" * 3_000_000)
    assert response.json() == {"total": 3_000_000, "check": 3_000_000}


def test_a_streaming_response_can_load(site: Site) -> None:
    assert site.get("/stream/all").body == b"0\n1\n4\n"


def test_background_tasks_load_after_the_client_has_gone(site: Site) -> None:
    assert site.get(f"/background/{site.name}").body == b"done"
    site.wait_for("response sent", "loaded 9")


def test_websockets_have_a_scope(site: Site) -> None:
    client = pytest.importorskip("websockets.sync.client")
    url = f"ws://{site.server.url}/{site.framework}/chat/{site.name}"
    with client.connect(url, open_timeout=WAIT, close_timeout=WAIT) as websocket:
        for number in range(20):
            websocket.send(str(number))
        answers = [websocket.recv(timeout=WAIT) for _ in range(20)]
    assert answers == [str(number * number) for number in range(20)]
    site.wait_for("disconnected")


@pytest.mark.parametrize("what", ["GET /slow/{}", "POST /slow/{}\nnobody reads this"])
def test_a_client_that_leaves_cancels_the_batches_of_its_request(watched: Site, what: str) -> None:
    with watched.connect(what.format(watched.name)):
        watched.wait_for("started")
    watched.wait_for("started", "cancelled")


def test_a_client_that_leaves_during_the_response_cancels_its_batches(watched: Site) -> None:
    with watched.connect(f"GET /stream/{watched.name}") as connection:
        watched.wait_for("started")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    watched.wait_for("started", "cancelled")


@pytest.mark.parametrize("politely", [True, False])
def test_a_websocket_client_that_leaves_cancels_the_batches(watched: Site, politely: bool) -> None:
    client = pytest.importorskip("websockets.sync.client")
    url = f"ws://{watched.server.url}/{watched.framework}/chat/{watched.name}"
    with client.connect(url, open_timeout=WAIT, close_timeout=WAIT) as websocket:
        websocket.send("slow")
        watched.wait_for("started")
        if not politely:
            websocket.socket.shutdown(socket.SHUT_RDWR)
    watched.wait_for("cancelled", "disconnected", "load cancelled", "started")


def test_other_requests_go_on_when_one_is_cancelled(watched: Site) -> None:
    with watched.connect(f"GET /slow/{watched.name}"):
        watched.wait_for("started")
        with ThreadPoolExecutor(5) as pool:
            responses = pool.map(watched.get, ["/squares/5"] * 10)
            assert [response.json()["batches"] for response in responses] == [1] * 10
    watched.wait_for("started", "cancelled")
    assert watched.get("/squares/3").json()["squares"] == [0, 1, 4]
