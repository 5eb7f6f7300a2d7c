import asyncio
import os
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import TypeVar

import anyio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from anyloader import LoaderScope, batch_loader

K = TypeVar("K")
R = TypeVar("R")

engine = create_async_engine(os.environ["DATABASE"])  # postgresql+asyncpg://...


def cancelled_once(fetch: Callable[[list[K]], Awaitable[R]]) -> Callable[[list[K]], Awaitable[R]]:
    """A batch function for asyncio whose cleaning up may await, and is waited for."""

    @wraps(fetch)
    async def fetch_in_task(keys: list[K]) -> R:
        task = asyncio.ensure_future(fetch(keys))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([task])
            raise

    return fetch_in_task


@batch_loader
@cancelled_once
async def fetch_names(ids: list[int]) -> dict[int, str]:
    query = text("SELECT id, 'user ' || id FROM generate_series(1, 100) id WHERE id = ANY(:ids)")
    async with engine.connect() as connection:
        rows = await connection.execute(query, {"ids": ids})
        return dict(rows.all())


async def main() -> None:
    async with LoaderScope():
        print(await fetch_names.load_many([1, 2, 1]))
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
