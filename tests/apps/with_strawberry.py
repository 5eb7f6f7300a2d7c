"""Strawberry over HTTP and WebSockets: its ASGI application, and its router in FastAPI."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator

import anyio
import strawberry
from fastapi import FastAPI
from strawberry.asgi import GraphQL
from strawberry.fastapi import GraphQLRouter

from anyloader import LoaderScope, batch_loader
from anyloader.integrations.asgi import LoaderScopeMiddleware
from anyloader.integrations.strawberry import LoaderScopeExtension

#: What the database has in each row.
rows: defaultdict[str, int] = defaultdict(int)
#: What happened, by the name that the client gave.
log: defaultdict[str, list[str]] = defaultdict(list)


@batch_loader
async def row(names: list[str]) -> list[int]:
    return [rows[name] for name in names]


@batch_loader
async def slow(names: list[str]) -> list[int]:
    for name in names:
        log[name].append("started")
    try:
        await anyio.sleep_forever()
    finally:
        for name in names:
            log[name].append("ended")
    return []


@strawberry.type
class Event:
    name: str

    @strawberry.field
    async def row(self) -> int:
        return await row.load(self.name)

    @strawberry.field
    async def again(self) -> int:
        return await row.load(self.name)

    @strawberry.field
    async def slow(self) -> int:
        return await slow.load(self.name)


@strawberry.type
class Query:
    @strawberry.field
    async def log(self, name: str) -> list[str]:
        return log[name]

    @strawberry.field
    async def event(self, name: str) -> Event:
        return Event(name=name)

    @strawberry.field
    async def increased(self, name: str) -> int:
        rows[name] += 1
        return await row.load(name)


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def events(self, name: str, count: int = 3) -> AsyncIterator[Event]:
        for _ in range(count):
            rows[name] += 1
            async with LoaderScope():
                log[name].append(f"generator {await row.load(name)}")
            yield Event(name=name)

    @strawberry.subscription
    async def without_a_scope(self, name: str) -> AsyncIterator[Event]:
        await row.load(name)
        yield Event(name=name)


schema = strawberry.Schema(Query, None, Subscription, extensions=[LoaderScopeExtension])

app = FastAPI()
app.include_router(GraphQLRouter(schema), prefix="/router")
app.mount("/asgi", GraphQL(schema))
app.add_middleware(LoaderScopeMiddleware)
