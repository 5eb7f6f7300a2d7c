from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from anyloader import batch_loader
from anyloader.integrations.asgi import LoaderScopeMiddleware


@batch_loader
async def fetch_names(ids: list[int]) -> list[str]:
    print("batch", ids)
    return [f"user {id}" for id in ids]


async def show(request: Request) -> JSONResponse:
    return JSONResponse(await fetch_names.load_many([1, 2, 1]))


app = Starlette(routes=[Route("/", show)], middleware=[Middleware(LoaderScopeMiddleware)])
