"""Strawberry: as it is on asyncio, and with `AnyioExecutionContext` on every backend."""

from __future__ import annotations

import gc
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

if TYPE_CHECKING:
    import graphql
    import strawberry
else:
    graphql = pytest.importorskip("graphql")
    strawberry = pytest.importorskip("strawberry")

from anyloader import (
    DataLoader,
    LoaderClosedError,
    LoaderNotOpenError,
    LoaderScope,
    batch_loader,
    current_scope,
)
from anyloader.integrations.strawberry import (
    AnyioExecutionContext,
    LoaderScopeExtension,
)
from support import SERVERS, Server, run_seeds, serve, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio

calls: list[tuple[str, list[int]]] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()
    events.clear()


@batch_loader
async def names(keys: list[int]) -> list[str]:
    calls.append(("names", sorted(keys)))
    await checkpoint()
    return [f"user {key}" for key in keys]


@batch_loader
async def posts_of(keys: list[int]) -> list[list[int]]:
    calls.append(("posts", sorted(keys)))
    await checkpoint()
    return [[key * 10 + number for number in range(1 + key % 3)] for key in keys]


@strawberry.type
class Post:
    id: int

    @strawberry.field
    async def author(self) -> User:
        await checkpoint()
        return User(id=self.id * 10)


@strawberry.type
class User:
    id: int

    @strawberry.field
    async def name(self) -> str:
        return await names.load(self.id)

    @strawberry.field
    async def posts(self) -> list[Post]:
        return [Post(id=id) for id in await posts_of.load(self.id)]

    @strawberry.field
    async def shared(self) -> str | None:
        return await names.load(0)

    @strawberry.field
    async def boom(self) -> int:
        await checkpoint()
        if self.id == 1:
            raise ValueError("boom")
        return 1


@strawberry.type
class Query:
    @strawberry.field
    async def users(self) -> list[User]:
        await checkpoint()
        return [User(id=id) for id in (1, 2, 3)]

    @strawberry.field
    async def user(self, id: int) -> User | None:
        await checkpoint()
        return User(id=id)

    @strawberry.field
    async def scope(self) -> str:
        return str(id(current_scope()))

    @strawberry.field
    async def forever(self) -> int:
        names.load(1)
        await anyio.sleep_forever()
        return 1


@strawberry.type
class Mutation:
    @strawberry.mutation
    async def rename(self, id: int) -> User:
        await checkpoint()
        return User(id=id)


@batch_loader
async def serials(keys: list[int]) -> list[int]:
    """Never the same number twice."""
    await checkpoint()
    return [next(_serials) for _ in keys]


@batch_loader
async def endless(keys: list[int]) -> list[int]:
    events.append("started")
    try:
        await anyio.sleep_forever()
    finally:
        events.append("ended")
    return keys


_serials = itertools.count()
events: list[str] = []


@strawberry.type
class Event:
    @strawberry.field
    async def first(self) -> int:
        return await serials.load(1)

    @strawberry.field
    async def again(self) -> int:
        await checkpoint()
        return await serials.load(1)

    @strawberry.field
    def scope(self) -> str:
        return str(id(current_scope()))

    @strawberry.field
    async def endless(self) -> int:
        return await endless.load(1)

    @strawberry.field
    async def unawaited(self) -> int:
        endless.load(2)
        await serials.load(1)
        return 1

    @strawberry.field
    async def boom(self) -> int:
        await serials.load(1)
        raise ValueError("boom")


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def ticks(self) -> AsyncIterator[int]:
        for number in range(2):
            await checkpoint()
            yield number

    @strawberry.subscription
    async def events(self) -> AsyncIterator[Event]:
        for _ in range(3):
            async with LoaderScope():
                await serials.load(1)
            yield Event()

    @strawberry.subscription
    async def loads_outside(self) -> AsyncIterator[int]:
        yield await serials.load(1)


STOCK = strawberry.Schema(Query, Mutation, Subscription, extensions=[LoaderScopeExtension])
ANYIO = strawberry.Schema(
    Query,
    Mutation,
    Subscription,
    extensions=[LoaderScopeExtension],
    execution_context_class=AnyioExecutionContext,
)


@pytest.fixture(params=["AnyioExecutionContext", "stock"])
def schema(request: pytest.FixtureRequest, anyio_backend_name: str) -> Any:
    if request.param == "AnyioExecutionContext":
        return ANYIO
    if anyio_backend_name == "trio":
        pytest.skip("Strawberry itself runs on asyncio only")
    return STOCK


async def test_queries_and_mutations_are_executed(schema: Any) -> None:
    result = await schema.execute("{users {name}}")
    assert result.errors is None
    assert result.data == {"users": [{"name": f"user {id}"} for id in (1, 2, 3)]}
    result = await schema.execute("mutation {rename(id: 5) {name}}")
    assert result.errors is None
    assert result.data == {"rename": {"name": "user 5"}}


QUERY = "{users {name posts {author {name posts {author {name}}}}}}"


def test_each_level_is_one_batch(shuffled_backend: str) -> None:
    async def batches(schema: Any) -> list[tuple[str, list[int]]]:
        calls.clear()
        result = await schema.execute(QUERY)
        assert result.errors is None
        return sorted(calls)

    authors = [100, 110, 200, 210, 220, 300]
    last = [(author * 10 + number) * 10 for author in authors for number in range(1 + author % 3)]
    expected = sorted(
        [(name, keys) for name in ("names", "posts") for keys in ([1, 2, 3], authors)]
        + [("names", last)]
    )
    assert run_seeds(shuffled_backend, range(20), batches, ANYIO) == expected
    if shuffled_backend != "trio":
        assert run_seeds(shuffled_backend, range(20), batches, STOCK) == expected


async def test_a_failing_sibling_leaves_the_load_of_a_shared_key_alone(schema: Any) -> None:
    result = await schema.execute("{a: user(id: 1) {boom shared} b: user(id: 2) {boom shared}}")
    assert result.data == {"a": None, "b": {"boom": 1, "shared": "user 0"}}
    assert [(error.message, error.path) for error in result.errors] == [("boom", ["a", "boom"])]
    assert calls == [("names", [0])]


async def test_each_operation_has_a_scope_of_its_own(schema: Any) -> None:
    first = await schema.execute("{a: scope b: scope}")
    second = await schema.execute("{users {name} a: scope}")
    assert first.data["a"] == first.data["b"]
    assert second.errors is None
    await schema.execute("{users {name}}")
    assert calls == [("names", [1, 2, 3])] * 2


async def test_an_extension_that_derives_from_it_knows_what_is_executed() -> None:
    queries: list[str | None] = []

    class Derived(LoaderScopeExtension):
        async def on_execute(self) -> AsyncIterator[None]:
            queries.append(self.execution_context.query)
            async for _ in super().on_execute():
                yield

    schema = strawberry.Schema(
        Query,
        extensions=[Derived, LoaderScopeExtension],
        execution_context_class=AnyioExecutionContext,
    )
    result = await schema.execute("{scope}")
    assert result.errors is None
    assert queries == ["{scope}"]


async def test_the_scope_of_each_operation_can_be_made_by_the_user() -> None:
    scopes: list[LoaderScope] = []

    @dataclass
    class MakeScope:
        """Not hashable."""

        options: dict[str, Any]

        def __call__(self) -> LoaderScope:
            scopes.append(LoaderScope(**self.options))
            return scopes[-1]

    make_scope = MakeScope({"hooks": []})
    schema = strawberry.Schema(
        Query,
        extensions=[partial(LoaderScopeExtension, make_scope=make_scope)],
        execution_context_class=AnyioExecutionContext,
    )
    for _ in range(2):
        result = await schema.execute("{scope}")
        assert result.data == {"scope": str(id(scopes[-1]))}
    assert len(scopes) == 2


async def test_what_makes_no_new_scope_fails_the_operation() -> None:
    def execute(made: Any) -> Any:
        schema = strawberry.Schema(
            Query,
            extensions=[partial(LoaderScopeExtension, make_scope=lambda: made)],
            execution_context_class=AnyioExecutionContext,
        )
        return schema.execute("{__typename}")

    only = LoaderScope()
    assert (await execute(only)).errors is None
    for made, message in (
        (only, "a LoaderScope can be entered once; make a new one for each request"),
        (
            None,
            "make_scope must return a new LoaderScope for each operation; it returned an object",
        ),
    ):
        (error,) = (await execute(made)).errors
        assert error.message.startswith(message)


def test_what_makes_no_scope_is_refused() -> None:
    with pytest.raises(TypeError, match="make_scope must be a callable"):
        LoaderScopeExtension(make_scope=LoaderScope())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def test_a_cancelled_operation_leaves_nothing_behind(schema: Any) -> None:
    async def cancel() -> None:
        await wait_all_tasks_blocked()
        scope.cancel()

    scope = anyio.CancelScope()
    async with anyio.create_task_group() as tg:
        with scope:
            tg.start_soon(cancel)
            await schema.execute("{forever users {name}}")
    assert scope.cancelled_caught


async def test_a_handle_of_an_ended_scope_is_an_error_in_the_response() -> None:
    async with DataLoader(names) as closed:
        pass

    @strawberry.type
    class Late:
        @strawberry.field
        async def name(self) -> str | None:
            return str(await closed.load(1))

        @strawberry.field
        async def one(self) -> int:
            return 1

    schema = strawberry.Schema(Late, execution_context_class=AnyioExecutionContext)
    with anyio.fail_after(5):
        result = await schema.execute("{name one}")
    assert result.data == {"name": None, "one": 1}
    assert result.errors
    assert isinstance(result.errors[0].original_error, LoaderClosedError)


def test_execute_sync_refuses_the_scope() -> None:
    result = ANYIO.execute_sync("{__typename}")
    assert result.errors
    assert "failed to complete synchronously" in result.errors[0].message


async def test_events_of_a_subscription_are_sent(schema: Any, anyio_backend_name: str) -> None:
    stream = await schema.subscribe("subscription {ticks}")
    results = [result async for result in stream]
    if anyio_backend_name == "trio" and not hasattr(graphql, "Executor"):
        assert [error.message for error in results[0].errors] == [
            f"a subscription is not supported under trio: graphql-core {graphql.version} "
            "uses asyncio for it"
        ]
    else:
        assert [result.data for result in results] == [{"ticks": 0}, {"ticks": 1}]


async def test_it_answers_over_asgi(schema: Any) -> None:
    httpx = pytest.importorskip("httpx")
    asgi = pytest.importorskip("strawberry.asgi")
    transport = httpx.ASGITransport(asgi.GraphQL(schema))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.post("/", json={"query": "{users {name}}"})
    assert response.status_code == 200
    assert response.json()["data"] == {"users": [{"name": f"user {id}"} for id in (1, 2, 3)]}


# --- Subscriptions ---

# With graphql-core 3.2 no executor takes part in the events of a subscription.
EVENTS = pytest.mark.skipif(not hasattr(graphql, "Executor"), reason="needs graphql-core 3.3")


@EVENTS
async def test_each_event_has_a_scope_of_its_own(schema: Any) -> None:
    stream = await schema.subscribe("subscription {events {first again scope}}")
    results = [result async for result in stream]
    assert [result.errors for result in results] == [None] * 3
    found = [result.data["events"] for result in results]
    assert all(event["first"] == event["again"] for event in found)
    assert len({event["first"] for event in found}) == 3
    with pytest.raises(LoaderNotOpenError):
        current_scope()


@EVENTS
async def test_a_subscription_keeps_nothing_of_its_events(schema: Any) -> None:
    """graphql-core would keep which fields each of them had until the subscription ends."""
    stream = await schema.subscribe("subscription {events {first again}}")
    kept = []
    for _ in range(3):
        await anext(stream)
        gc.collect()
        kept.append(sum(type(thing).__name__ == "CollectedFields" for thing in gc.get_objects()))
    await stream.aclose()
    assert kept[0] == kept[1] == kept[2]


@EVENTS
async def test_a_consumer_may_use_cancel_scopes_around_each_event(schema: Any) -> None:
    """Nothing of a scope is open between the events."""
    stream = await schema.subscribe("subscription {events {first}}")
    for _ in range(3):
        with anyio.fail_after(5):
            async with anyio.create_task_group():
                await anext(stream)
        with pytest.raises(LoaderNotOpenError):
            current_scope()
    await stream.aclose()


@EVENTS
async def test_events_that_need_no_awaiting_have_a_scope(schema: Any) -> None:
    stream = await schema.subscribe("subscription {events {scope}}")
    assert [result.errors async for result in stream] == [None] * 3


@EVENTS
async def test_what_an_event_does_not_await_ends_with_it(schema: Any) -> None:
    stream = await schema.subscribe("subscription {events {unawaited first}}")
    async for result in stream:
        assert result.errors is None
        assert events.count("started") == events.count("ended")


@EVENTS
async def test_a_cancelled_event_cancels_its_batches_and_nothing_is_left(schema: Any) -> None:
    stream = await schema.subscribe("subscription {events {endless}}")

    async def cancel() -> None:
        await wait_all_tasks_blocked()
        assert events == ["started"]
        scope.cancel()

    scope = anyio.CancelScope()
    async with anyio.create_task_group() as tg:
        with scope:
            tg.start_soon(cancel)
            await anext(stream)
    assert scope.cancelled_caught
    assert events == ["started", "ended"]


@EVENTS
async def test_an_event_that_fails_leaves_the_next_one_alone(schema: Any) -> None:
    stream = await schema.subscribe("subscription {events {boom}}")
    results = [result async for result in stream]
    assert [[error.message for error in result.errors] for result in results] == [["boom"]] * 3


async def test_a_generator_has_no_scope_of_its_own(schema: Any, anyio_backend_name: str) -> None:
    if anyio_backend_name == "trio" and not hasattr(graphql, "Executor"):
        return
    stream = await schema.subscribe("subscription {loadsOutside}")
    (result,) = [result async for result in stream]
    assert isinstance(result.errors[0].original_error, LoaderNotOpenError)


# On a real server. Strawberry serves WebSockets on asyncio only.


@pytest.fixture(scope="module", params=[name for name in SERVERS if "trio" not in name])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    pytest.importorskip("fastapi")
    with serve(request.param, "with_strawberry:app") as server:
        yield server


class Socket:
    """A connection that speaks graphql-transport-ws, one operation at a time or several."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.send(type="connection_init")
        assert self.receive()["type"] == "connection_ack"

    def send(self, **message: Any) -> None:
        self._connection.send(json.dumps(message))

    def receive(self) -> Any:
        return json.loads(self._connection.recv(timeout=10))

    def subscribe(self, id: str, query: str) -> None:
        self.send(id=id, type="subscribe", payload={"query": query})

    def results(self, query: str) -> list[Any]:
        """Execute an operation and return what it sends."""
        self.subscribe("only", query)
        found = []
        while (message := self.receive())["type"] != "complete":
            assert message["type"] == "next"
            found.append(message["payload"])
        return found


@pytest.fixture(params=["router", "asgi/"])
def transport_ws(server: Server, request: pytest.FixtureRequest) -> Iterator[Socket]:
    client = pytest.importorskip("websockets.sync.client")
    with client.connect(
        f"ws://{server.url}/{request.param}",
        subprotocols=["graphql-transport-ws"],
        open_timeout=10,
        close_timeout=10,
    ) as connection:
        yield Socket(connection)


@EVENTS
def test_events_over_a_socket_are_never_stale(
    transport_ws: Socket, request: pytest.FixtureRequest
) -> None:
    name = request.node.name
    query = f'subscription {{events(name: "{name}") {{row again}}}}'
    found = [payload["data"]["events"] for payload in transport_ws.results(query)]
    assert found == [{"row": number, "again": number} for number in (1, 2, 3)]
    (payload,) = transport_ws.results(f'{{log(name: "{name}")}}')
    assert payload["data"]["log"] == [f"generator {number}" for number in (1, 2, 3)]


def test_operations_over_a_socket_are_never_stale(
    transport_ws: Socket, request: pytest.FixtureRequest
) -> None:
    query = f'{{increased(name: "{request.node.name}")}}'
    for number in (1, 2, 3):
        assert transport_ws.results(query) == [{"data": {"increased": number}}]


@EVENTS
def test_a_subscription_that_is_completed_cancels_its_batches_alone(
    transport_ws: Socket, request: pytest.FixtureRequest
) -> None:
    name = request.node.name

    def wait_for(*events: str) -> None:
        deadline = time.monotonic() + 10
        while True:
            (payload,) = transport_ws.results(f'{{log(name: "{name}")}}')
            found = [event for event in payload["data"]["log"] if "generator" not in event]
            if found == list(events) or time.monotonic() > deadline:
                break
        assert found == list(events)

    transport_ws.subscribe("slow", f'subscription {{events(name: "{name}") {{slow}}}}')
    wait_for("started")
    transport_ws.send(id="slow", type="complete")
    wait_for("started", "ended")


@EVENTS
def test_a_load_outside_of_a_scope_is_an_error_that_says_what_to_open(
    transport_ws: Socket, request: pytest.FixtureRequest
) -> None:
    (payload,) = transport_ws.results(
        f'subscription {{withoutAScope(name: "{request.node.name}") {{row}}}}'
    )
    assert "LoaderScope" in payload["errors"][0]["message"]
