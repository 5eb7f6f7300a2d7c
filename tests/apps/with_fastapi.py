"""FastAPI applications whose requests have loader scopes: by middleware, and by a dependency."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import (
    APIRouter,
    BackgroundTasks,
    Depends,
    FastAPI,
    HTTPException,
    Request,
    WebSocket,
    WebSocketDisconnect,
)
from fastapi.responses import PlainTextResponse, StreamingResponse

import work
from anyloader import LoaderScope
from anyloader.integrations.asgi import LoaderScopeMiddleware

router = APIRouter()


@router.get("/squares/{count}")
async def squares(count: int) -> dict[str, Any]:
    return await work.squares(count)


@router.get("/session")
async def session() -> dict[str, int]:
    return await work.session()


@router.get("/teapot")
async def teapot() -> None:
    await work.square.load(1)
    raise HTTPException(418)


@router.get("/crash")
async def crash() -> None:
    await work.square.load(1)
    raise ZeroDivisionError


@router.api_route("/slow/{name}", methods=["GET", "POST"], response_class=PlainTextResponse)
async def slow(name: str) -> str:
    return await work.slow.load(name)


@router.api_route("/order/{name}", methods=["GET", "POST"], response_class=PlainTextResponse)
async def order(name: str) -> str:
    return await work.order(name)


@router.get("/timeout/{name}", response_class=PlainTextResponse, status_code=504)
async def timeout(name: str) -> str:
    return await work.within(0.2, name)


@router.post("/upload")
async def upload(request: Request) -> dict[str, int]:
    return await work.lengths(request.stream())


@router.get("/background/{name}", response_class=PlainTextResponse)
async def background(name: str, tasks: BackgroundTasks) -> str:
    tasks.add_task(work.later, name)
    return "done"


@router.get("/stream/{name}")
async def stream(name: str) -> StreamingResponse:
    return StreamingResponse(work.lines(name))


@router.websocket("/chat/{name}")
async def chat(websocket: WebSocket, name: str) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await work.chat(await websocket.receive_text()))
    except WebSocketDisconnect:
        work.log[name].append("disconnected")


async def loader_scope() -> AsyncIterator[LoaderScope]:
    async with LoaderScope() as scope:
        yield scope


app = FastAPI()
app.add_middleware(LoaderScopeMiddleware)
app.include_router(router)

app_with_dependency = FastAPI(dependencies=[Depends(loader_scope)])
app_with_dependency.include_router(router)
