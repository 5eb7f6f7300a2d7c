"""A small service: the countries of the world and their subdivisions, one scope for each request.

    hypercorn --worker-class trio examples/web.py:app

or `--worker-class asyncio`. Then http://127.0.0.1:8000/countries/FR answers with the country, and
each of its subdivisions with everything above it; http://127.0.0.1:8000/batches shows the batches
of the last such request, and http://127.0.0.1:8000/trace draws them. Needs `hypercorn`,
`starlette`, `sqlite-anyio`, `pycountry` and, for trio, `trio`.
"""

from __future__ import annotations

from contextvars import ContextVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from _data import Atlas, Country, Subdivision, lifespan
from anyloader import batch_loader, gather
from anyloader.integrations.asgi import LoaderScopeMiddleware
from anyloader.trace import Trace, record

#: How this request reads the database. Set before its scope is entered, so batch functions see it.
atlas: ContextVar[Atlas] = ContextVar("atlas")


# A statement for many keys. The code below loads a key at a time, wherever it needs one.


@batch_loader
async def country(codes: list[str]) -> dict[str, Country]:
    return await atlas.get().countries(codes)


@batch_loader
async def subdivision(codes: list[str]) -> dict[str, Subdivision]:
    return await atlas.get().subdivisions(codes)


@batch_loader
async def subdivisions_of(codes: list[str]) -> dict[str, list[Subdivision]]:
    return await atlas.get().subdivisions_of(codes)


async def show_country(request: Request) -> Response:
    request.app.state.last = atlas.get()
    request.app.state.trace = request.state.trace
    code = request.path_params["code"].upper()
    found = await country.load(code)
    if found is None:
        raise HTTPException(404, f"there is no country {code}")
    items = await subdivisions_of.load_required(code)
    paths = await gather(*(path(item) for item in items))
    return JSONResponse({"name": found.name, "subdivisions": paths})


async def path(item: Subdivision) -> str:
    if item.parent_code is None:
        return f"{item.name}, {(await country.load_required(item.country_code)).name}"
    return f"{item.name}, {await path(await subdivision.load_required(item.parent_code))}"


async def show_batches(request: Request) -> Response:
    last: Atlas | None = getattr(request.app.state, "last", None)
    statements = [] if last is None else last.statements
    return JSONResponse([{"batch": name, "keys": keys} for name, _, keys in statements])


async def show_trace(request: Request) -> Response:
    last: Trace = getattr(request.app.state, "trace", Trace())
    return HTMLResponse(last.html())


# The application.


class AtlasMiddleware:
    """Gives each request an ``Atlas`` of its own, which remembers its statements."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            atlas.set(Atlas(scope["state"]["connection"]))
        await self._app(scope, receive, send)


class TraceMiddleware:
    """Records the batches of each request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with record() as trace:
            if scope["type"] == "http":
                scope["state"]["trace"] = trace
            await self._app(scope, receive, send)


app = Starlette(
    routes=[
        Route("/countries/{code}", show_country),
        Route("/batches", show_batches),
        Route("/trace", show_trace),
    ],
    middleware=[
        Middleware(TraceMiddleware),
        Middleware(AtlasMiddleware),
        Middleware(LoaderScopeMiddleware),
    ],
    lifespan=lifespan,
)
