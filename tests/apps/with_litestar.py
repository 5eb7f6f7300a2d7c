"""A Litestar application whose requests have loader scopes."""

from __future__ import annotations

from typing import Any

from litestar import Litestar, MediaType, Request, Response, WebSocket, get, post, route, websocket
from litestar.background_tasks import BackgroundTask
from litestar.enums import HttpMethod
from litestar.exceptions import HTTPException, WebSocketDisconnect
from litestar.middleware import DefineMiddleware
from litestar.response import Stream

import work
from anyloader.integrations.asgi import LoaderScopeMiddleware, safe_methods


@get("/squares/{count:int}")
async def squares(count: int) -> dict[str, Any]:
    return await work.squares(count)


@get("/session")
async def session() -> dict[str, int]:
    return await work.session()


@get("/teapot")
async def teapot() -> None:
    await work.square.load(1)
    raise HTTPException(status_code=418)


@get("/crash")
async def crash() -> None:
    await work.square.load(1)
    raise ZeroDivisionError


@route("/slow/{name:str}", http_method=[HttpMethod.GET, HttpMethod.POST], media_type=MediaType.TEXT)
async def slow(name: str) -> str:
    return await work.slow.load(name)


@route("/order/{name:str}", http_method=[HttpMethod.GET, HttpMethod.POST], media_type="text/plain")
async def order(name: str) -> str:
    return await work.order(name)


@get("/timeout/{name:str}", media_type=MediaType.TEXT, status_code=504)
async def timeout(name: str) -> str:
    return await work.within(0.2, name)


@post("/upload", status_code=200)
async def upload(request: Request[Any, Any, Any]) -> dict[str, int]:
    return await work.lengths(request.stream())


@get("/background/{name:str}", media_type=MediaType.TEXT)
async def background(name: str) -> Response[str]:
    return Response("done", background=BackgroundTask(work.later, name))


@get("/stream/{name:str}")
async def stream(name: str) -> Stream:
    return Stream(work.lines(name))


@websocket("/chat/{name:str}")
async def chat(socket: WebSocket[Any, Any, Any], name: str) -> None:
    await socket.accept()
    try:
        while True:
            await socket.send_text(await work.chat(await socket.receive_text()))
    except WebSocketDisconnect:
        work.log[name].append("disconnected")


app = Litestar(
    route_handlers=[
        squares,
        session,
        teapot,
        crash,
        slow,
        order,
        timeout,
        upload,
        background,
        stream,
        chat,
    ],
    middleware=[DefineMiddleware(LoaderScopeMiddleware, cancel_on_disconnect=safe_methods)],
)
