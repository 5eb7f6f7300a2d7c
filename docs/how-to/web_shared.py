from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from anyloader import LoaderScope, batch_loader
from anyloader.integrations.asgi import LoaderScopeMiddleware


@batch_loader(shared=True, cache="pending")
async def embed(texts: list[str]) -> list[int]:
    print("batch", texts)
    return [len(text) for text in texts]


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[dict[str, Any]]:
    async with LoaderScope(shared=True) as shared:
        yield {"anyloader": shared}


async def show(request: Request) -> JSONResponse:
    return JSONResponse(await embed.load_many(["a", "bb"]))


app = Starlette(
    routes=[Route("/", show)], lifespan=lifespan, middleware=[Middleware(LoaderScopeMiddleware)]
)
