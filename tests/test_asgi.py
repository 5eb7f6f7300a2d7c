"""The ASGI middleware, called as a server calls it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import DataLoader, LoaderClosedError, LoaderNotOpenError, LoaderScope, current_scope
from anyloader.integrations.asgi import LoaderScopeMiddleware, Message, Receive, Send, safe_methods
from support import wait_all_tasks_blocked
from support.asgi_calls import Client, chunks, double, request

pytestmark = pytest.mark.anyio

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

REQUEST: Message = {"type": "http.request", "body": b"", "more_body": False}
CHUNK: Message = {"type": "http.request", "body": b"x", "more_body": True}
START: Message = {"type": "http.response.start", "status": 200, "headers": []}
PART: Message = {"type": "http.response.body", "body": b"a", "more_body": True}
END: Message = {"type": "http.response.body", "body": b"b"}
PATHSEND: Message = {"type": "http.response.pathsend", "path": "/tmp/file"}
ZEROCOPY: Message = {"type": "http.response.zerocopysend", "file": 3, "more_body": False}
GONE: Message = {"type": "http.disconnect"}
TEXT: Message = {"type": "websocket.receive", "text": "hello"}
LEFT: Message = {"type": "websocket.disconnect", "code": 1006}


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


# --- Plain calls ---

WATCHING = pytest.mark.parametrize("watch", [True, False])


@WATCHING
async def test_each_request_has_a_scope_of_its_own(watch: bool) -> None:
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
            tg.start_soon(Client().call, LoaderScopeMiddleware(app, cancel_on_disconnect=watch))
    assert len(set(scopes)) == 3
    for scope in scopes:
        with pytest.raises(LoaderClosedError):
            scope.get(double)
    with pytest.raises(LoaderNotOpenError):
        current_scope()


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_other_than_requests_are_passed_through_untouched(kind: str) -> None:
    client = Client(kind)
    given: list[object] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        with pytest.raises(LoaderNotOpenError, match="LoaderScope"):
            await double.load(1)
        with pytest.raises(LoaderNotOpenError, match="LoaderScope"):
            DataLoader(double).load(1)
        given.extend([scope["type"], receive, send])

    await client.call(LoaderScopeMiddleware(app, cancel_on_disconnect=True))
    assert given == [kind, client.receive, client.send]


async def test_a_scope_for_each_message_of_a_websocket_loads_afresh() -> None:
    rows = {1: "old"}

    async def fetch(keys: list[int]) -> dict[int, str]:
        return {key: rows[key] for key in keys}

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        while (await receive())["type"] == "websocket.receive":
            async with LoaderScope() as loaders:
                await send({"type": "websocket.send", "text": await loaders.get(fetch).load(1)})

    async with request(app, TEXT, kind="websocket") as client:
        rows[1] = "new"
        client.says(TEXT, LEFT)
    assert [message["text"] for message in client.sent] == ["old", "new"]


@WATCHING
async def test_the_scope_comes_from_make_scope(watch: bool) -> None:
    class Scope(LoaderScope):
        pass

    starts: list[str] = []

    def hook(event: object) -> None:
        starts.append(type(event).__name__)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        assert type(current_scope()) is Scope
        await double.load(1)

    middleware = LoaderScopeMiddleware(
        app, make_scope=lambda: Scope(hooks=[hook]), cancel_on_disconnect=watch
    )
    await Client().call(middleware)
    await Client().call(middleware)
    assert starts.count("BatchStarted") == 2


@WATCHING
async def test_messages_pass_unchanged(watch: bool) -> None:
    received, sent = [CHUNK, CHUNK, CHUNK, CHUNK, REQUEST], [START, PART, PART, END]
    seen: list[Message] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        for _ in received:
            seen.append(await receive())
            await checkpoint()
        for message in sent:
            await send(message)

    async with request(app, *received, cancel_on_disconnect=watch) as client:
        pass
    assert [id(message) for message in seen] == [id(message) for message in received]
    assert [id(message) for message in client.sent] == [id(message) for message in sent]


@WATCHING
async def test_an_exception_of_the_application_comes_out_as_it_is(watch: bool) -> None:
    class TeapotError(Exception):
        pass

    cause, context, slow = KeyError(), LookupError(), Slow()
    teapot: BaseException

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        current_scope().get(slow).load(1)
        await double.load(1)
        try:
            raise context
        except LookupError:
            raise teapot from cause

    for teapot in TeapotError(418), ExceptionGroup("several", [TeapotError(418)]):
        client = Client()
        client.says(REQUEST)
        with pytest.raises(type(teapot), check=lambda exc, teapot=teapot: exc is teapot):
            await client.call(LoaderScopeMiddleware(app, cancel_on_disconnect=watch))
        assert teapot.__cause__ is cause
        assert teapot.__context__ is context
    assert slow.log in ([], ["started", "batch cancelled"] * 2)


@WATCHING
@pytest.mark.virtual_time
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


@WATCHING
@pytest.mark.virtual_time
async def test_a_timeout_in_the_application_cancels_what_it_loads_and_nothing_else(
    watch: bool,
) -> None:
    slow = Slow()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        with anyio.move_on_after(1) as timeout:
            await slow.load()
        assert timeout.cancelled_caught
        assert await double.load(1) == 2
        await send(END)

    async with request(app, REQUEST, cancel_on_disconnect=watch) as client:
        pass
    assert client.sent == [END]
    assert sorted(slow.log) == ["batch cancelled", "request cancelled", "started"]


# Bad input


def wsgi(environ: object, start_response: object) -> list[bytes]:
    return []


@pytest.mark.parametrize("app", [None, "module:app", wsgi, object(), current_scope])
def test_what_is_no_asgi_application_is_refused(app: Any) -> None:
    with pytest.raises(TypeError, match=r"takes an ASGI application, which is called with scope"):
        LoaderScopeMiddleware(app)


def test_what_has_no_signature_is_believed() -> None:
    no_signature: Any = type
    LoaderScopeMiddleware(no_signature)


@WATCHING
@pytest.mark.parametrize("app", [lambda scope, receive, send: None, lambda *arguments: 1])
async def test_an_application_that_is_not_async_fails_at_the_first_request(
    app: Any, watch: bool
) -> None:
    with pytest.raises(TypeError, match="await"):
        await Client().call(LoaderScopeMiddleware(app, cancel_on_disconnect=watch))


async def no_app(scope: Message, receive: Receive, send: Send) -> None:
    raise AssertionError


async def asks(scope: Message) -> bool:
    raise AssertionError


@pytest.mark.parametrize("make_scope", [None, LoaderScope(), no_app])
def test_make_scope_has_to_be_a_plain_callable(make_scope: Any) -> None:
    with pytest.raises(TypeError, match="must be a plain callable that returns a new LoaderScope"):
        LoaderScopeMiddleware(no_app, make_scope=make_scope)


@pytest.mark.parametrize("cancel", [None, "GET", ["GET"], asks])
def test_cancel_on_disconnect_has_to_be_a_bool_or_a_function(cancel: Any) -> None:
    with pytest.raises(TypeError, match="cancel_on_disconnect must be a bool or a plain function"):
        LoaderScopeMiddleware(no_app, cancel_on_disconnect=cancel)


@WATCHING
@pytest.mark.parametrize("returned", [None, LoaderScope, DataLoader(double)])
async def test_make_scope_that_returns_no_scope_fails_the_request(
    returned: Any, watch: bool
) -> None:
    middleware: Any = LoaderScopeMiddleware(
        no_app, make_scope=lambda: returned, cancel_on_disconnect=watch
    )
    of_type = type(returned).__name__
    with pytest.raises(TypeError, match=rf"must return a new LoaderScope .* of type {of_type}$"):
        await Client().call(middleware)


async def test_a_predicate_that_has_to_be_awaited_fails_the_request() -> None:
    """It would be true for every request."""

    class Asks:
        async def __call__(self, scope: Message) -> bool:
            raise AssertionError

    asked: Any = Asks()
    predicate: Any = lambda scope: made.setdefault("coroutine", asked(scope))  # noqa: E731
    made: dict[str, Any] = {}
    with pytest.raises(
        TypeError, match="a plain function of the ASGI scope; it returned an object"
    ):
        await Client().call(LoaderScopeMiddleware(no_app, cancel_on_disconnect=predicate))
    made["coroutine"].close()


@WATCHING
async def test_a_scope_cannot_serve_two_requests(watch: bool) -> None:
    """Neither one after the other nor both at once."""
    go_on = anyio.Event()
    calls: list[str] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        calls.append("called")
        await go_on.wait()

    only = LoaderScope()
    middleware = LoaderScopeMiddleware(app, make_scope=lambda: only, cancel_on_disconnect=watch)
    async with anyio.create_task_group() as tg:
        tg.start_soon(Client().call, middleware)
        await wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match="make a new one for each request"):
            await Client().call(middleware)
        go_on.set()
    with pytest.raises(RuntimeError, match="make a new one for each request"):
        await Client().call(middleware)
    assert calls == ["called"]


# Clients that leave


async def test_a_disconnect_cancels_nothing_by_default() -> None:
    slow = Slow()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await slow.load()
        slow.log.append("written")

    async with request(app, REQUEST, GONE) as client:
        assert client.received == 0
        slow.go_on.set()
    assert slow.log == ["started", "finished", "written"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"])
async def test_a_predicate_says_which_requests_a_disconnect_cancels(method: str) -> None:
    slow = Slow()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await slow.load()
        slow.log.append("written")

    async with request(app, GONE, method=method, cancel_on_disconnect=safe_methods):
        slow.go_on.set()
    reads = method in ("GET", "HEAD", "OPTIONS")
    assert ("written" in slow.log) is not reads
    assert ("request cancelled" in slow.log) is reads


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

    async with request(app, *body, cancel_on_disconnect=True) as client:
        assert slow.log == ["started"]
        client.says(GONE)
        await wait_all_tasks_blocked()
        assert sorted(slow.log) == ["batch cancelled", "request cancelled", "started"]


@pytest.mark.parametrize("end", [END, PATHSEND, ZEROCOPY])
async def test_a_disconnect_after_the_response_cancels_nothing(end: Message) -> None:
    slow = Slow()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        await send(end)
        await slow.load()

    async with request(app, REQUEST, cancel_on_disconnect=True) as client:
        client.says(GONE)
        await wait_all_tasks_blocked()
        assert slow.log == ["started"]
        slow.go_on.set()
    assert slow.log == ["started", "finished"]


async def test_a_disconnect_is_received_again_and_again() -> None:
    seen: list[Message] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(END)
        for _ in range(3):
            seen.append(await receive())

    async with request(app, REQUEST, GONE, cancel_on_disconnect=True):
        pass
    assert seen == [REQUEST, GONE, GONE]


async def test_at_most_three_messages_are_received_ahead() -> None:
    go_on = anyio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await go_on.wait()
        for _ in range(9):
            await receive()

    async with request(app, *[CHUNK] * 10, cancel_on_disconnect=True) as client:
        assert client.received == 1 + 3
        go_on.set()
    assert client.received == 10


async def test_an_application_need_not_receive_all_there_is() -> None:
    go_on = anyio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await go_on.wait()
        await send(END)

    async with request(app, *[CHUNK] * 10, cancel_on_disconnect=True) as client:
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

    async with request(app, REQUEST, GONE, cancel_on_disconnect=True):
        go_on.set()
    assert seen == [REQUEST, GONE, GONE]


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
        await LoaderScopeMiddleware(app, cancel_on_disconnect=True)({"type": "http"}, receive, send)
    assert sorted(slow.log) == ["batch cancelled", "request cancelled", "started"]


async def test_the_error_of_the_application_comes_before_that_of_the_server() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise KeyError

    async def receive() -> Message:
        raise OSError

    async def send(message: Message) -> None:
        raise AssertionError

    with pytest.raises(KeyError):
        await LoaderScopeMiddleware(app, cancel_on_disconnect=True)({"type": "http"}, receive, send)


@WATCHING
async def test_a_response_is_streamed_in_the_scope_of_its_request(watch: bool) -> None:
    log: list[str] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        async with aclosing(chunks(log)) as body:
            async for chunk in body:
                await send({**PART, "body": b"%d" % chunk})
        await send(END)

    async with request(app, REQUEST, cancel_on_disconnect=watch) as client:
        pass
    assert [message["body"] for message in client.sent] == [b"0", b"2", b"4", b"b"]
    assert log == ["closed"]


@pytest.mark.only_on("asyncio")  # trio has no such tasks
async def test_a_task_that_outlives_the_request_needs_a_scope_of_its_own() -> None:
    started: list[asyncio.Task[None]] = []
    gone = anyio.Event()

    async def later() -> None:
        await gone.wait()
        with pytest.raises(LoaderClosedError, match="LoaderScope"):
            await double.load(1)
        async with LoaderScope():
            assert await double.load(1) == 2

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        started.append(asyncio.create_task(later()))
        await send(END)

    await Client().call(LoaderScopeMiddleware(app))
    gone.set()
    await started[0]


@pytest.mark.only_on("asyncio")  # trio warns of every abandoned generator
async def test_a_generator_that_is_abandoned_between_its_scopes_leaves_nothing() -> None:
    async def generator() -> AsyncIterator[int]:
        for key in range(3):
            async with LoaderScope():
                value = await double.load(key)
            yield value

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        outer = current_scope()
        iterator = generator()
        assert await anext(iterator) == 0
        assert current_scope() is outer
        assert await double.load(2) == 4

    await Client().call(LoaderScopeMiddleware(app))


@WATCHING
async def test_a_scope_around_yield_is_left_by_who_closes_the_generator(watch: bool) -> None:
    async def generator() -> AsyncGenerator[int, None]:
        async with LoaderScope():
            for key in range(3):
                yield await double.load(key)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        outer = current_scope()
        async with aclosing(generator()) as values:
            async for value in values:
                assert value == 0
                break
        assert current_scope() is outer
        assert await double.load(2) == 4

    await Client().call(LoaderScopeMiddleware(app, cancel_on_disconnect=watch))
