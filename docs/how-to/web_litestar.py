from litestar import Litestar, get

from anyloader import batch_loader
from anyloader.integrations.asgi import LoaderScopeMiddleware


@batch_loader
async def fetch_names(ids: list[int]) -> list[str]:
    print("batch", ids)
    return [f"user {id}" for id in ids]


@get("/")
async def show() -> list[str]:
    return await fetch_names.load_many([1, 2, 1])


litestar = Litestar(route_handlers=[show], logging_config=None)
app = LoaderScopeMiddleware(litestar)
