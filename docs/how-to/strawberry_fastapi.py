from collections import defaultdict
from collections.abc import AsyncGenerator
from contextvars import ContextVar

import strawberry
from fastapi import Depends, FastAPI
from fastapi.requests import HTTPConnection
from strawberry.fastapi import GraphQLRouter

from anyloader import LoaderScope, batch_loader
from anyloader.integrations.strawberry import LoaderScopeExtension

tenant: ContextVar[str] = ContextVar("tenant")
numbers: defaultdict[str, dict[int, int]] = defaultdict(lambda: {1: 0})


async def know_tenant(connection: HTTPConnection) -> None:  # of a request, or of a WebSocket
    tenant.set(connection.headers.get("x-tenant", "nobody"))


@batch_loader
async def fetch_numbers(ids: list[int]) -> list[int]:
    return [numbers[tenant.get()][id] for id in ids]


@strawberry.type
class Counter:
    id: int

    @strawberry.field
    async def number(self) -> int:
        return await fetch_numbers.load(self.id)


@strawberry.type
class Query:
    @strawberry.field
    async def counter(self, id: int) -> Counter:
        return Counter(id=id)


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def counts(self, id: int) -> AsyncGenerator[Counter, None]:
        async with LoaderScope():  # the generator's own loads; it is left before the event
            before = await fetch_numbers.load(id)
        for number in range(before, before + 3):
            numbers[tenant.get()][id] = number + 1
            yield Counter(id=id)


schema = strawberry.Schema(Query, subscription=Subscription, extensions=[LoaderScopeExtension])
app = FastAPI()
router = GraphQLRouter(schema, dependencies=[Depends(know_tenant)])
app.include_router(router, prefix="/graphql")
