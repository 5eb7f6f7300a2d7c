"""A schema, and how its operations are executed."""

from __future__ import annotations

from typing import Any

import pytest
from anyio.lowlevel import checkpoint

graphql = pytest.importorskip("graphql")

from anyloader.integrations.graphql import AnyioExecutor  # noqa: E402

IS_3_3 = hasattr(graphql, "Executor")
on_asyncio = pytest.mark.only_on("asyncio")
only_3_3 = pytest.mark.skipif(not IS_3_3, reason="new in graphql-core 3.3")

SCHEMA = graphql.build_schema(
    """
    type Query { a: Item, b: Item, items: [Item], must: [Item!], number: Int, any: Thing }
    type Mutation { first: Int, second: Int, third: Int }
    type Item implements Thing { boom: Int!, x: Int, y: Int, items: [Item] }
    type Other implements Thing { x: Int }
    interface Thing { x: Int }
    """
)


async def execute(
    query: str, root: object, *, stock: bool = False, schema: Any = SCHEMA, **options: Any
) -> Any:
    if not stock:
        options["executor_class" if IS_3_3 else "execution_context_class"] = AnyioExecutor
    result = graphql.execute(schema, graphql.parse(query), root, **options)
    return await result if graphql.pyutils.is_awaitable(result) else result


def outcome(result: Any) -> tuple[Any, list[tuple[str, list[str | int] | None]]]:
    return result.data, sorted((error.message, error.path) for error in result.errors or ())


async def number(_info: object) -> int:
    await checkpoint()
    return 1


async def fail(_info: object) -> int:
    await checkpoint()
    raise ValueError("boom")


# --- Errors ---


@pytest.fixture(params=[False, True], ids=["AnyioExecutor", "stock"])
def stock(request: pytest.FixtureRequest, anyio_backend_name: str) -> bool:
    if request.param and anyio_backend_name == "trio":
        pytest.skip("graphql-core itself runs on asyncio only")
    return bool(request.param)
