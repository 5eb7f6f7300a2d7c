from collections.abc import AsyncGenerator

import strawberry
from fastapi import FastAPI
from strawberry.fastapi import GraphQLRouter

from anyloader import LoaderScope, batch_loader
from anyloader.integrations.strawberry import LoaderScopeExtension

numbers = {1: 0}


@batch_loader
async def fetch_numbers(ids: list[int]) -> list[int]:
    return [numbers[id] for id in ids]


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
            numbers[id] = number + 1
            yield Counter(id=id)


schema = strawberry.Schema(Query, subscription=Subscription, extensions=[LoaderScopeExtension])
app = FastAPI()
app.include_router(GraphQLRouter(schema), prefix="/graphql")
