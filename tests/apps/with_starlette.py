"""A Starlette application whose requests have loader scopes."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

import work
from anyloader.integrations.asgi import LoaderScopeMiddleware, safe_methods


async def squares(request: Request) -> Response:
    return JSONResponse(await work.squares(request.path_params["count"]))


async def session(request: Request) -> Response:
    return JSONResponse(await work.session())


async def teapot(request: Request) -> Response:
    await work.square.load(1)
    raise HTTPException(418)


async def crash(request: Request) -> Response:
    await work.square.load(1)
    raise ZeroDivisionError


async def slow(request: Request) -> Response:
    return PlainTextResponse(await work.slow.load(request.path_params["name"]))


async def order(request: Request) -> Response:
    return PlainTextResponse(await work.order(request.path_params["name"]))


async def timeout(request: Request) -> Response:
    return PlainTextResponse(await work.within(0.2, request.path_params["name"]), 504)


async def upload(request: Request) -> Response:
    return JSONResponse(await work.lengths(request.stream()))


async def background(request: Request) -> Response:
    task = BackgroundTask(work.later, request.path_params["name"])
    return PlainTextResponse("done", background=task)


async def stream(request: Request) -> Response:
    return StreamingResponse(work.lines(request.path_params["name"]))


async def chat(websocket: WebSocket) -> None:
    await websocket.accept()
    name = websocket.path_params["name"]
    try:
        while True:
            await websocket.send_text(await work.chat(await websocket.receive_text()))
    except WebSocketDisconnect:
        work.log[name].append("disconnected")


app = Starlette(
    routes=[
        Route("/squares/{count:int}", squares),
        Route("/session", session),
        Route("/teapot", teapot),
        Route("/crash", crash),
        Route("/slow/{name}", slow, methods=["GET", "POST"]),
        Route("/order/{name}", order, methods=["GET", "POST"]),
        Route("/timeout/{name}", timeout),
        Route("/upload", upload, methods=["POST"]),
        Route("/background/{name}", background),
        Route("/stream/{name}", stream),
        WebSocketRoute("/chat/{name}", chat),
    ],
    middleware=[Middleware(LoaderScopeMiddleware, cancel_on_disconnect=safe_methods)],
)
