"""An application that asks a PostgreSQL for long, and cancels requests whose clients leave."""

from __future__ import annotations

import os
import runpy
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from anyloader import batch_loader
from anyloader.integrations.asgi import LoaderScopeMiddleware

Fetch = Callable[[list[int]], Awaitable[list[int]]]

SNIPPET = Path(__file__).parents[2] / "docs" / "how-to" / "sqlalchemy_asyncpg.py"
cancelled_once: Callable[[Fetch], Fetch] = runpy.run_path(str(SNIPPET))["cancelled_once"]
engine = create_async_engine(
    os.environ["DATABASE"], pool_size=int(os.environ["POOL_SIZE"]), max_overflow=0
)


@batch_loader
@cancelled_once
async def fetch(keys: list[int]) -> list[int]:
    async with engine.connect() as connection:
        await connection.execute(text("SELECT pg_sleep(60)"))
    return keys


async def respond(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        raise RuntimeError("there is nothing to start in here")
    await fetch.load(1)


app = LoaderScopeMiddleware(respond, cancel_on_disconnect=True)
