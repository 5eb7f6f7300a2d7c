import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from ariadne import QueryType, SubscriptionType, make_executable_schema
from ariadne.asgi import GraphQL
from ariadne.asgi.handlers import GraphQLTransportWSHandler

from anyloader import LoaderScope, batch_loader
from anyloader.integrations.graphql import AnyioExecutor

numbers = {1: 0}


@batch_loader
async def load_number(ids: list[int]) -> list[int]:
    return [numbers[id] for id in ids]


query, subscription = QueryType(), SubscriptionType()


@query.field("number")
@subscription.field("number")
async def number(_root: object, _info: object, id: int) -> int:
    return await load_number.load(id)


@subscription.source("number")
async def each_change(_root: object, _info: object, id: int) -> AsyncGenerator[int, None]:
    for number in range(3):
        await asyncio.sleep(0)
        numbers[id] = number
        yield number


class Executor(AnyioExecutor):
    make_scope = LoaderScope  # for each query and mutation, over HTTP and over sockets


class Sockets(GraphQLTransportWSHandler):
    async def observe_async_results(
        self,
        websocket: Any,
        results_producer: AsyncGenerator[Any, None],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        scoped = in_scopes(results_producer)
        await super().observe_async_results(websocket, scoped, *args, **kwargs)


async def in_scopes(results: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    while True:
        async with LoaderScope():  # for each event
            try:
                result = await anext(results)
            except StopAsyncIteration:
                return
        yield result


schema = make_executable_schema(
    """
    type Query { number(id: Int!): Int }
    type Subscription { number(id: Int!): Int }
    """,
    query,
    subscription,
)
app = GraphQL(schema, execution_context_class=Executor, websocket_handler=Sockets())
