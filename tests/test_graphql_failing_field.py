"""With stock graphql-core a field that fails fails no other one (contract 5.1)."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import DataLoader
from support import wait_all_tasks_blocked

pytestmark = pytest.mark.anyio


@pytest.mark.only_on("asyncio")
@pytest.mark.parametrize("same_handle", [False, True], ids=["two loads", "one load"])
async def test_a_failing_field_of_stock_graphql_fails_no_other_field(same_handle: bool) -> None:
    """``a.boom`` cancels ``a.x``; ``b.x``, which loads the same key, goes on."""
    graphql = pytest.importorskip("graphql")
    gate = anyio.Event()
    calls: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[str]:
        calls.append(keys)
        await gate.wait()
        return [f"value {key}" for key in keys]

    async def boom(side: str, info: object) -> str:
        if side == "b":
            return "calm"
        while not calls:
            await checkpoint()
        raise ConnectionError("boom")

    field, string = graphql.GraphQLField, graphql.GraphQLString
    non_null = graphql.GraphQLNonNull(string)
    async with DataLoader(fetch) as loader:
        shared = loader.load(1) if same_handle else None

        def x(side: str, info: object) -> Any:
            return shared or loader.load(1)

        side = graphql.GraphQLObjectType(
            "Side", {"boom": field(non_null, resolve=boom), "x": field(non_null, resolve=x)}
        )
        query = graphql.GraphQLObjectType(
            "Query",
            {
                "a": field(side, resolve=lambda root, info: "a"),
                "b": field(side, resolve=lambda root, info: "b"),
            },
        )
        async with anyio.create_task_group() as tg:

            async def open_the_gate() -> None:
                await wait_all_tasks_blocked()
                gate.set()

            tg.start_soon(open_the_gate)
            result = await graphql.graphql(
                graphql.GraphQLSchema(query), "{ a { boom x } b { boom x } }"
            )
            assert [error.message for error in result.errors] == ["boom"]
            assert [error.path for error in result.errors] == [["a", "boom"]]
            assert result.data == {"a": None, "b": {"boom": "calm", "x": "value 1"}}
    assert calls == [[1]]
