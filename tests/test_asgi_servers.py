"""The ASGI middleware with real frameworks in real servers. The applications are in tests/apps."""

from __future__ import annotations

import json
import socket
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse
from importlib.util import find_spec
from typing import Any, NamedTuple

import pytest

from support import SERVERS, Server, serve

pytestmark = pytest.mark.anyio


# --- Real servers and frameworks. The applications are in tests/apps. ---

#: Their middleware cancels what only reads; that of the others cancels nothing.
WATCHED = ["starlette", "litestar"]
FRAMEWORKS = [*WATCHED, "fastapi", "fastapi-dependency"]
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


def test_a_websocket_opens_a_scope_for_each_message(site: Site) -> None:
    client = pytest.importorskip("websockets.sync.client")
    url = f"ws://{site.server.url}/{site.framework}/chat/{site.name}"
    with client.connect(url, open_timeout=WAIT, close_timeout=WAIT) as websocket:

        def ask(text: str) -> str:
            websocket.send(text)
            answer: str = websocket.recv(timeout=WAIT)
            return answer

        assert [ask(str(number)) for number in range(20)] == [str(n * n) for n in range(20)]
        assert ask("serial") != ask("serial")
        if site.framework != "fastapi-dependency":
            assert "LoaderScope" in ask("outside")
    site.wait_for("disconnected")


def test_a_client_that_leaves_cancels_what_only_reads_where_that_is_wanted(watched: Site) -> None:
    with watched.connect(f"GET /slow/{watched.name}"):
        watched.wait_for("started")
    watched.wait_for("started", "cancelled")


def test_a_client_that_leaves_during_the_response_cancels_its_batches(watched: Site) -> None:
    with watched.connect(f"GET /stream/{watched.name}") as connection:
        watched.wait_for("started")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    watched.wait_for("started", "cancelled")


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_a_client_that_leaves_has_begun_is_not_left_half_done(site: Site, method: str) -> None:
    if method == "GET" and site.framework in WATCHED:
        return  # cancelled, as it was asked for
    with site.connect(f"{method} /order/{site.name}\nnobody reads this"):
        site.wait_for("charged")
    for _ in range(20):  # meanwhile the server hears of it
        site.log("nothing")
    site.log(f"{site.name}-left")
    site.wait_for("charged", "ordered 9")


def test_a_client_that_closes_its_sending_half_gets_its_response(site: Site) -> None:
    if site.server.name == "uvicorn" or site.framework in WATCHED:
        return  # where such a client has left
    with site.connect(f"GET /order/{site.name}") as connection:
        site.wait_for("charged")
        connection.shutdown(socket.SHUT_WR)
        for _ in range(20):  # meanwhile the server hears of it
            site.log("nothing")
        site.log(f"{site.name}-left")
        with closing(HTTPResponse(connection)) as response:
            response.begin()
            assert response.read() == b"ordered"


def test_other_requests_go_on_when_one_is_cancelled(watched: Site) -> None:
    with watched.connect(f"GET /slow/{watched.name}"):
        watched.wait_for("started")
        with ThreadPoolExecutor(5) as pool:
            responses = pool.map(watched.get, ["/squares/5"] * 10)
            assert [response.json()["batches"] for response in responses] == [1] * 10
    watched.wait_for("started", "cancelled")
    assert watched.get("/squares/3").json()["squares"] == [0, 1, 4]


@pytest.mark.skipif("uvicorn" not in SERVERS, reason="uvicorn is not installed")
def test_a_server_that_stops_cancels_what_is_under_way() -> None:
    """Hypercorn waits for its requests, on asyncio, or just ends."""
    with serve("uvicorn", "all_frameworks:app") as server:
        site, other = Site(server, "starlette"), Site(server, "fastapi")
        paths = [f"GET /slow/{site.name}", f"POST /slow/{site.name}-2"]
        connections = [each.connect(path) for each in (site, other) for path in paths]
        for name in site.name, f"{site.name}-2":
            site.name = name
            site.wait_for("started", "started")
    for connection in connections:
        connection.close()
    log = "".join(server.log)
    assert "Cancel 4 running task(s)" in log
    assert "Finished server process" in log
    assert not [word for word in ("never", "destroyed", "ExceptionGroup") if word in log]
