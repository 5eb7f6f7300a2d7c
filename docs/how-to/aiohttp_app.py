from aiohttp import web
from aiohttp.typedefs import Handler

from anyloader import LoaderScope, batch_loader


@batch_loader
async def fetch_names(ids: list[int]) -> list[str]:
    print("batch", ids)
    return [f"user {id}" for id in ids]


async def show(request: web.Request) -> web.StreamResponse:
    return web.json_response(await fetch_names.load_many([1, 2, 1]))


@web.middleware
async def loader_scope(request: web.Request, handler: Handler) -> web.StreamResponse:
    if web.WebSocketResponse().can_prepare(request):
        return await handler(request)  # where each message opens one
    async with LoaderScope():
        return await handler(request)


app = web.Application(middlewares=[loader_scope])
app.add_routes([web.get("/", show)])

if __name__ == "__main__":
    web.run_app(app, port=8000)
