"""One line, where the scopes are made, observes all loaders of a service."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from anyloader import LoaderScope, batch_loader
from support.telemetry import Telemetry

pytestmark = pytest.mark.anyio

pytest_plugins = ["support.telemetry"]


@batch_loader(name="users")
async def fetch_users(keys: list[int]) -> list[str]:
    return [f"user {key}" for key in keys]


async def request(make_scope: Callable[[], LoaderScope]) -> None:
    httpx = pytest.importorskip("httpx")
    from anyloader.integrations.asgi import LoaderScopeMiddleware

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await fetch_users.load_many([1, 2])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    transport = httpx.ASGITransport(LoaderScopeMiddleware(app, make_scope=make_scope))
    async with httpx.AsyncClient(transport=transport, base_url="http://it") as client:
        assert (await client.get("/")).status_code == 204


async def strawberry_operation(make_scope: Callable[[], LoaderScope]) -> None:
    strawberry = pytest.importorskip("strawberry")
    from anyloader.integrations.strawberry import AnyioExecutionContext, LoaderScopeExtension

    async def user(id: int) -> str:
        return await fetch_users.load(id)

    query = strawberry.type(
        type("Query", (), {"user": strawberry.field(resolver=user), "__annotations__": {}})
    )
    extension = partial(LoaderScopeExtension, make_scope=make_scope)
    schema = strawberry.Schema(
        query, extensions=[extension], execution_context_class=AnyioExecutionContext
    )
    result = await schema.execute("{a: user(id: 1) b: user(id: 2)}")
    assert result.data == {"a": "user 1", "b": "user 2"}


async def graphql_core_operation(make_scope: Callable[[], LoaderScope]) -> None:
    graphql = pytest.importorskip("graphql")
    from anyloader.integrations.graphql import AnyioExecutor

    class Executor(AnyioExecutor):
        pass

    Executor.make_scope = staticmethod(make_scope)
    schema = graphql.build_schema("type Query {user(id: Int!): String}")
    root = {"user": lambda _info, id: fetch_users.load(id)}
    document = graphql.parse("{a: user(id: 1) b: user(id: 2)}")
    option = "executor_class" if graphql.version_info >= (3, 3) else "execution_context_class"
    result = graphql.execute(schema, document, root, **{option: Executor})
    assert (await result).data == {"a": "user 1", "b": "user 2"}


async def job(make_scope: Callable[[], LoaderScope]) -> None:
    async with make_scope():
        await fetch_users.load_many([1, 2])


@pytest.mark.parametrize("use_it", [request, strawberry_operation, graphql_core_operation, job])
async def test_one_line_observes_all_loaders_of_a_service(
    telemetry: Telemetry, use_it: Callable[[Callable[[], LoaderScope]], Any]
) -> None:
    client = pytest.importorskip("prometheus_client")
    from anyloader.integrations.prometheus import PrometheusHook

    registry = client.CollectorRegistry()
    hooks: list[Any] = [telemetry.hook, PrometheusHook(registry=registry)]
    for times in 1, 2:
        await use_it(lambda: LoaderScope(hooks=hooks))
        spans = telemetry.named("GraphQL DataLoader Batch users")
        assert [span.attributes["graphql.dataloader.batch.size"] for span in spans] == [2] * times
        sent = registry.get_sample_value("anyloader_batch_size_sum", {"loader": "users"})
        assert sent == 2 * times
