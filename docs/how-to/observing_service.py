from functools import partial

import anyio
import httpx
import strawberry
from prometheus_client import CollectorRegistry, generate_latest

from anyloader import LoaderScope, batch_loader
from anyloader.integrations.asgi import LoaderScopeMiddleware
from anyloader.integrations.prometheus import PrometheusHook
from anyloader.integrations.strawberry import LoaderScopeExtension

registry = CollectorRegistry()
prometheus = PrometheusHook(registry=registry)  # once


def make_scope() -> LoaderScope:
    return LoaderScope(hooks=[prometheus])


@batch_loader
async def fetch_users(ids: list[int]) -> list[str]:
    return [f"user {id}" for id in ids]


async def shop(scope, receive, send) -> None:
    await fetch_users.load(1)
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


# For each request of a web application,
app = LoaderScopeMiddleware(shop, make_scope=make_scope)


@strawberry.type
class Query:
    @strawberry.field
    async def user(self, id: int) -> str:
        return await fetch_users.load(id)


# for each operation of a schema,
schema = strawberry.Schema(Query, extensions=[partial(LoaderScopeExtension, make_scope=make_scope)])


async def main() -> None:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        await client.get("/")

    await schema.execute("{user(id: 2)}")

    async with make_scope():  # for each job of a worker
        await fetch_users.load_many([3, 4, 5])

    for line in generate_latest(registry).decode().splitlines():
        if line.startswith(("anyloader_batch_size_count", "anyloader_batch_size_sum")):
            print(line)


if __name__ == "__main__":
    anyio.run(main)
