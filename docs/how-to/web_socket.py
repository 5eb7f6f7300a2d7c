from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from anyloader import LoaderScope, batch_loader
from anyloader.integrations.asgi import LoaderScopeMiddleware, safe_methods


@batch_loader
async def fetch_names(ids: list[int]) -> list[str]:
    print("batch", ids)
    return [f"user {id}" for id in ids]


async def show(request: Request) -> JSONResponse:
    return JSONResponse(await fetch_names.load_many([1, 2, 1]))


async def chat(websocket: WebSocket) -> None:
    await websocket.accept()
    async for ids in websocket.iter_json():
        async with LoaderScope():
            names = await fetch_names.load_many(ids)
        await websocket.send_json(names)


starlette = Starlette(routes=[Route("/", show), WebSocketRoute("/chat", chat)])
app = LoaderScopeMiddleware(starlette, cancel_on_disconnect=safe_methods)
