"""Which shapes of Strawberry's relay support work on trio too, as the page on GraphQL says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import strawberry
    from strawberry import relay
else:
    strawberry = pytest.importorskip("strawberry")
    relay = pytest.importorskip("strawberry.relay")

from anyloader import batch_loader
from anyloader.integrations.strawberry import AnyioExecutionContext, LoaderScopeExtension

pytestmark = pytest.mark.anyio

calls: list[list[int]] = []


@batch_loader
async def names(ids: list[int]) -> list[str]:
    calls.append(ids)
    return [f"fruit {id}" for id in ids]


@strawberry.type
class Fruit(relay.Node):
    id: relay.NodeID[int]

    @strawberry.field
    async def name(self) -> str:
        return await names.load(self.id)

    @classmethod
    async def resolve_nodes(cls, *, node_ids: Iterable[str], **_: Any) -> list[Any]:
        return [fruit(int(id)) for id in node_ids]


def fruit(id: int) -> Fruit:
    made: Any = Fruit
    result: Fruit = made(id=id)
    return result


FRUITS = [fruit(1), fruit(2)]


@strawberry.type
class Query:
    node: relay.Node = relay.node()
    nodes: list[relay.Node] = relay.node()

    @relay.connection(relay.ListConnection[Fruit])  # type: ignore[untyped-decorator]
    def listed(self) -> Iterable[Fruit]:
        return FRUITS

    @relay.connection(relay.ListConnection[Fruit])  # type: ignore[untyped-decorator]
    async def streamed(self) -> AsyncIterator[Fruit]:
        for fruit in FRUITS:
            yield fruit


SCHEMA = strawberry.Schema(
    Query,
    types=[Fruit],
    execution_context_class=AnyioExecutionContext,
    extensions=[LoaderScopeExtension],
)
IDS = [relay.to_base64("Fruit", id) for id in (1, 2)]
NODE = "{... on Fruit {name}}"
EDGES = "{edges {node {name}}}"
QUERIES = {
    "node": f'{{a: node(id: "{IDS[0]}") {NODE} b: node(id: "{IDS[1]}") {NODE}}}',
    "listed": f"{{listed {EDGES}}}",
    "nodes": f'{{nodes(ids: ["{IDS[0]}", "{IDS[1]}"]) {NODE}}}',
    "streamed": f"{{streamed {EDGES}}}",
}


async def execute_in_one_batch(shape: str) -> None:
    calls.clear()
    result = await SCHEMA.execute(QUERIES[shape])
    assert result.errors is None
    assert [sorted(call) for call in calls] == [[1, 2]]


@pytest.mark.parametrize("shape", ["node", "listed"])
async def test_nodes_and_connections_of_lists_load_in_one_batch(shape: str) -> None:
    await execute_in_one_batch(shape)


@pytest.mark.only_on("asyncio")  # which Strawberry itself uses for these
@pytest.mark.parametrize("shape", ["nodes", "streamed"])
async def test_lists_of_nodes_and_async_connections_do_on_asyncio(shape: str) -> None:
    await execute_in_one_batch(shape)
