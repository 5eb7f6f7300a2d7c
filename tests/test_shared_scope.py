"""A shared scope of the lifespan serves requests, whose context is another one."""

from __future__ import annotations

from contextlib import closing
from contextvars import Context
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import pytest

from anyloader import DataLoader, LoaderNotOpenError, LoaderScope, batch_loader, current_scope
from anyloader._dispatcher import ambient
from anyloader.integrations.asgi import LoaderScopeMiddleware, Message, Receive, Send
from support import SERVERS, backend_options, serve

pytestmark = pytest.mark.anyio

PAGES = Path(__file__).parents[1] / "docs" / "how-to"


@batch_loader(shared=True, cache=False)
async def double(keys: list[int]) -> list[int]:
    return [key * 2 for key in keys]


async def triple(keys: list[int]) -> list[int]:
    return [key * 3 for key in keys]


async def call(app: Any, state: Any) -> None:
    async def nothing(*_: Any) -> Any:
        raise AssertionError

    await app({"type": "http", "method": "GET", "state": state}, nothing, nothing)


async def loads(scope: Message, receive: Receive, send: Send) -> None:
    assert await double.load(2) == 4


async def test_a_request_finds_the_shared_scope_in_the_state_of_the_lifespan() -> None:
    async with LoaderScope(shared=True) as shared:
        token = ambient.set(None)  # as in the context of a request
        with pytest.raises(LoaderNotOpenError, match="there is no shared scope here"):
            await call(LoaderScopeMiddleware(loads), {})
        await call(LoaderScopeMiddleware(loads), {"anyloader": shared})
        await call(
            LoaderScopeMiddleware(loads, make_scope=lambda: LoaderScope(inside=shared)), None
        )
        assert ambient.get() is None
        assert shared.statistics().loads == 2
        ambient.reset(token)
    with pytest.raises(LoaderNotOpenError, match="there is no shared scope here"):
        await call(LoaderScopeMiddleware(loads), {"anyloader": shared})


async def test_what_is_no_entered_scope_is_refused_at_the_first_request() -> None:
    with pytest.raises(TypeError, match="'anyloader'; it has an object of type str"):
        await call(LoaderScopeMiddleware(loads), {"anyloader": "scope"})
    with pytest.raises(LoaderNotOpenError, match="was not entered"):
        await call(LoaderScopeMiddleware(loads), {"anyloader": LoaderScope(shared=True)})


async def test_a_scope_that_is_not_shared_is_refused_at_the_first_request() -> None:
    async with LoaderScope() as own:
        with pytest.raises(
            TypeError, match=r"shared=True.* of type LoaderScope that is not shared"
        ):
            await call(LoaderScopeMiddleware(loads), {"anyloader": own})


async def test_after_the_lifespan_only_what_is_not_shared_loads() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        assert await current_scope().get(triple).load(2) == 6
        await loads(scope, receive, send)

    async with LoaderScope(shared=True) as shared:
        pass
    with pytest.raises(LoaderNotOpenError, match="there is no shared scope here"):
        await call(LoaderScopeMiddleware(app), {"anyloader": shared})


def test_a_shared_scope_of_another_event_loop_is_refused_and_nothing_hangs(
    shuffled_backend: str,
) -> None:
    backend, options = backend_options(shuffled_backend)

    async def ask() -> None:
        with anyio.fail_after(10):
            await call(LoaderScopeMiddleware(loads), {"anyloader": shared})

    with anyio.from_thread.start_blocking_portal() as portal:
        with portal.wrap_async_context_manager(LoaderScope(shared=True)) as shared:
            with pytest.raises(RuntimeError, match="opened in another event loop"):
                anyio.run(ask, backend=backend, backend_options=options)


async def test_the_scope_of_a_mounted_application_is_inside_of_that_of_the_request() -> None:
    async def mounted(scope: Message, receive: Receive, send: Send) -> None:
        await loads(scope, receive, send)
        assert await loader.load(2) == 6, "its first load was made in the scope around"

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        assert await loader.load(1) == 3
        await LoaderScopeMiddleware(mounted)(scope, receive, send)

    loader = DataLoader(triple)
    async with LoaderScope(shared=True) as shared:
        token = ambient.set(None)  # as in the context of a request
        await call(LoaderScopeMiddleware(app), {"anyloader": shared})
        ambient.reset(token)
    assert shared.statistics().loads == 1


async def test_inside_takes_the_place_of_the_scope_around() -> None:
    async with (
        LoaderScope(shared=True) as shared,
        LoaderScope(shared=True) as nearer,
        LoaderScope() as around,
    ):
        async with LoaderScope(inside=shared) as inner:
            assert current_scope() is inner
            assert await double.load(1) == 2
            assert (shared.statistics().batches, nearer.statistics().batches) == (1, 0)
            async with LoaderScope() as innermost:  # inside of it as any other
                assert await double.load(2) == 4
                assert await innermost.get(triple).load(2) == 6
        assert current_scope() is around
        assert await double.load(3) == 6
    assert (shared.statistics().batches, nearer.statistics().batches) == (2, 1)


async def test_inside_of_a_scope_that_is_not_shared_reaches_the_shared_one_around_it() -> None:
    async with LoaderScope(shared=True) as shared, LoaderScope() as request:
        token = ambient.set(None)
        async with LoaderScope(inside=request):
            assert await double.load(1) == 2
        ambient.reset(token)
    assert shared.statistics().batches == 1


def test_inside_has_to_be_a_scope() -> None:
    with pytest.raises(TypeError, match="inside must be a LoaderScope, not"):
        LoaderScope(inside=Context())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", SERVERS)
def test_real_servers_hand_it_over(name: str) -> None:
    pytest.importorskip("starlette")
    with serve(name, "web_shared:app", folder=PAGES) as server:
        for _ in range(2):
            with closing(HTTPConnection("127.0.0.1", server.port, timeout=10)) as connection:
                connection.request("GET", "/")
                response = connection.getresponse()
                assert (response.status, response.read()) == (200, b"[1,2]")
