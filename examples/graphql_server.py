"""A GraphQL server: the countries of the world and their subdivisions, with Strawberry.

    hypercorn --worker-class trio examples/graphql_server.py:app

or `--worker-class asyncio`. Then http://127.0.0.1:8000/ has a page to try queries in, such as

    { countries(limit: 80) { name subdivisions { name parent { name } country { name } } } }

For each request the server prints the SQL statements that it took, and http://127.0.0.1:8000/trace
draws the batches of the last one. Needs `hypercorn`, `strawberry-graphql`, `starlette`,
`sqlite-anyio`, `pycountry` and, for trio, `trio`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import strawberry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from strawberry.asgi import GraphQL
from strawberry.extensions import SchemaExtension

import _data
from _data import Atlas, lifespan
from anyloader import batch_loader
from anyloader.integrations.strawberry import AnyioExecutionContext, LoaderScopeExtension
from anyloader.trace import Trace, record

#: How this request reads the database.
atlas: ContextVar[Atlas] = ContextVar("atlas")


# A statement for many keys. The resolvers below load a key at a time.


@batch_loader
async def load_countries(codes: list[str]) -> dict[str, _data.Country]:
    return await atlas.get().countries(codes)


@batch_loader
async def load_subdivisions(codes: list[str]) -> dict[str, _data.Subdivision]:
    return await atlas.get().subdivisions(codes)


@batch_loader
async def load_subdivisions_of(codes: list[str]) -> dict[str, list[_data.Subdivision]]:
    return await atlas.get().subdivisions_of(codes)


@strawberry.type
class Subdivision:
    code: str
    name: str
    country_code: strawberry.Private[str]
    parent_code: strawberry.Private[str | None]

    @strawberry.field
    async def country(self) -> Country:
        return Country(**(await load_countries.load_required(self.country_code))._asdict())

    @strawberry.field
    async def parent(self) -> Subdivision | None:
        if self.parent_code is None:
            return None
        return Subdivision(**(await load_subdivisions.load_required(self.parent_code))._asdict())


@strawberry.type
class Country:
    code: str
    name: str

    @strawberry.field
    async def subdivisions(self) -> list[Subdivision]:
        found = await load_subdivisions_of.load_required(self.code)
        return [Subdivision(**item._asdict()) for item in found]


@strawberry.type
class Query:
    @strawberry.field
    async def country(self, code: str) -> Country | None:
        found = await load_countries.load(code.upper())
        return None if found is None else Country(**found._asdict())

    @strawberry.field
    async def countries(self, limit: int = 10) -> list[Country]:
        codes = await atlas.get().country_codes()
        found = await load_countries.load_many_required(codes[:limit])
        return [Country(**item._asdict()) for item in found]


class AtlasExtension(SchemaExtension):
    """Gives each operation an ``Atlas`` of its own, and prints what it sent."""

    async def on_execute(self) -> AsyncIterator[None]:
        context: Any = self.execution_context.context
        atlas.set(Atlas(context["request"].state.connection))
        yield
        statements = atlas.get().statements
        print(f"{len(statements)} SQL statements", flush=True)
        for name, _, keys in statements:
            print(f"    {name}: {len(keys)} keys", flush=True)


class TraceExtension(SchemaExtension):
    """Keeps a record of the last operation that loaded something."""

    async def on_execute(self) -> AsyncIterator[None]:
        with record() as trace:
            yield
        if trace.batches:
            context: Any = self.execution_context.context
            context["request"].app.state.trace = trace


async def show_trace(request: Request) -> Response:
    last: Trace = getattr(request.app.state, "trace", Trace())
    return HTMLResponse(last.html())


schema = strawberry.Schema(
    Query,
    extensions=[AtlasExtension, TraceExtension, LoaderScopeExtension],
    execution_context_class=AnyioExecutionContext,
)


app = Starlette(
    routes=[Route("/trace", show_trace), Mount("/", GraphQL[Any, Any](schema))],
    lifespan=lifespan,
)
