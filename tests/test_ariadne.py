"""Ariadne: as it is on asyncio, and with `AnyioExecutor` on every backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from anyio.lowlevel import checkpoint

if TYPE_CHECKING:
    import ariadne
else:
    ariadne = pytest.importorskip("ariadne")

from anyloader import LoaderScope, batch_loader
from anyloader.integrations.graphql import AnyioExecutor
from support import SERVERS, serve

HOW_TO = Path(__file__).parents[1] / "docs" / "how-to"

pytestmark = pytest.mark.anyio

calls: list[list[int]] = []


@batch_loader
async def names(keys: list[int]) -> list[str]:
    calls.append(sorted(keys))
    await checkpoint()
    return [f"user {key}" for key in keys]


query = ariadne.QueryType()
user = ariadne.ObjectType("User")


@query.field("users")
async def resolve_users(_root: object, _info: object) -> list[dict[str, int]]:
    await checkpoint()
    return [{"id": id} for id in (1, 2, 3)]


@user.field("name")
def resolve_name(user: dict[str, int], _info: object) -> Any:
    return names.load(user["id"])


@user.field("boom")
async def resolve_boom(user: dict[str, int], _info: object) -> int:
    await checkpoint()
    if user["id"] == 1:
        raise ValueError("boom")
    return 1


@user.field("shared")
async def resolve_shared(_user: object, _info: object) -> str:
    return await names.load(0)


SCHEMA = ariadne.make_executable_schema(
    "type Query { users: [User] } type User { id: Int, name: String, shared: String, boom: Int! }",
    query,
    user,
)


@pytest.fixture(params=["AnyioExecutor", "stock"])
def options(request: pytest.FixtureRequest, anyio_backend_name: str) -> dict[str, Any]:
    calls.clear()
    if request.param == "AnyioExecutor":
        return {"execution_context_class": AnyioExecutor}
    if anyio_backend_name == "trio":
        pytest.skip("graphql-core itself runs on asyncio only")
    return {}


async def test_a_level_is_one_batch(options: dict[str, Any]) -> None:
    async with LoaderScope():
        success, result = await ariadne.graphql(SCHEMA, {"query": "{users {name}}"}, **options)
    assert success
    assert result == {"data": {"users": [{"name": f"user {id}"} for id in (1, 2, 3)]}}
    assert calls == [[1, 2, 3]]


async def test_a_failing_sibling_leaves_the_load_of_a_shared_key_alone(
    options: dict[str, Any],
) -> None:
    async with LoaderScope():
        data = {"query": "{users {boom shared}}"}
        _, result = await ariadne.graphql(SCHEMA, data, **options)
    found = {"boom": 1, "shared": "user 0"}
    assert result["data"] == {"users": [None, found, found]}
    assert [error["path"] for error in result["errors"]] == [["users", 0, "boom"]]
    assert calls == [[0]]


async def test_it_answers_over_asgi(options: dict[str, Any]) -> None:
    httpx = pytest.importorskip("httpx")
    asgi = pytest.importorskip("ariadne.asgi")
    middleware = pytest.importorskip("anyloader.integrations.asgi").LoaderScopeMiddleware
    app = middleware(asgi.GraphQL(SCHEMA, **options))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.post("/", json={"query": "{users {name}}"})
    assert response.json() == {"data": {"users": [{"name": f"user {id}"} for id in (1, 2, 3)]}}
    assert calls == [[1, 2, 3]]


@pytest.mark.parametrize("server", [name for name in SERVERS if not name.endswith("trio")])
def test_events_and_operations_over_a_socket_are_never_stale(server: str) -> None:
    client = pytest.importorskip("websockets.sync.client")
    with (
        serve(server, "graphql_ariadne_socket:app", folder=HOW_TO) as running,
        client.connect(f"ws://{running.url}/", subprotocols=["graphql-transport-ws"]) as socket,
    ):

        def receive() -> Any:
            return json.loads(socket.recv(timeout=10))

        def results(*queries: str) -> list[list[Any]]:
            """Execute all of them at the same time."""
            found: list[list[Any]] = [[] for _ in queries]
            for id, query in enumerate(queries):
                payload = {"query": query}
                socket.send(json.dumps({"type": "subscribe", "id": str(id), "payload": payload}))
            missing = len(queries)
            while missing:
                message = receive()
                if message["type"] == "complete":
                    missing -= 1
                else:
                    found[int(message["id"])].append(message["payload"]["data"]["number"])
            return found

        socket.send(json.dumps({"type": "connection_init"}))
        assert receive()["type"] == "connection_ack"
        assert results("{number(id: 1)}") == [[0]]
        assert results("subscription {number(id: 1)}") == [[0, 1, 2]]
        assert results("{number(id: 1)}") == [[2]]
        assert results("{number(id: 1)}", "subscription {number(id: 1)}")[1] == [0, 1, 2]
