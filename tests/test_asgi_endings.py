"""How a request ends for the ASGI middleware: the client goes, or something cancels it (contract 7)."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import anyio
import pytest

from anyloader import batch_loader
from anyloader.integrations.asgi import LoaderScopeMiddleware
from support import Recorder, wait_all_tasks_blocked
from support.value_caches import Store

pytestmark = pytest.mark.anyio


async def call_middleware(app: Any, *messages: str) -> None:
    """Call an application in the middleware, by a client that says this and then no more."""
    said = [{"type": f"http.{message}"} for message in reversed(messages)]

    async def receive() -> Any:
        if not said:
            await anyio.sleep_forever()
        return said.pop()

    async def send(message: Any) -> None:
        raise AssertionError

    middleware = LoaderScopeMiddleware(app, cancel_on_disconnect=True)
    await middleware({"type": "http"}, receive, send)


async def test_a_request_whose_client_has_gone_ends_without_a_cancellation() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await anyio.sleep_forever()

    returned: list[bool] = []
    with anyio.CancelScope() as scope:
        await call_middleware(app, "request", "disconnect")
        returned.append(True)
    assert returned
    assert not scope.cancelled_caught


@pytest.mark.parametrize("how", ["its client goes", "it raises"])
async def test_what_a_request_has_cleared_is_deleted_however_it_ends(how: str) -> None:
    """It has changed the row, and the cache that all requests share has the old one."""
    store = Store({1: "old"})
    fetch = batch_loader(value_cache=store)(Recorder[int, str](str))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        fetch.clear(1)
        if how == "it raises":
            raise LookupError
        await anyio.sleep_forever()

    with suppress(LookupError):
        await call_middleware(app, "request", "disconnect")
    assert store.values == {}


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_what_ends_the_program_comes_out_as_it_is(kind: type[BaseException]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise kind

    with pytest.raises(kind):
        await call_middleware(app, "request")


async def test_what_cancels_a_request_from_outside_comes_out_of_it() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        around.cancel()
        await anyio.sleep_forever()

    with anyio.CancelScope() as around:
        await call_middleware(app, "request")
        pytest.fail("returned")
    assert around.cancelled_caught


@pytest.mark.only_on("asyncio")
async def test_a_native_cancellation_of_a_request_comes_out_of_it() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await anyio.sleep_forever()

    task = asyncio.create_task(call_middleware(app, "request"))
    await wait_all_tasks_blocked()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
