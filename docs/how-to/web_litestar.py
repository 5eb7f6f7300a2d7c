from typing import Any

from anyio import from_thread
from anyio.lowlevel import current_token
from litestar import Litestar, Request, get

from anyloader import batch_loader
from anyloader.integrations.asgi import LoaderScopeMiddleware


@batch_loader
async def fetch_names(ids: list[int]) -> list[str]:
    print("batch", ids)
    return [f"user {id}" for id in ids]


@get("/")
async def show() -> list[str]:
    return await fetch_names.load_many([1, 2, 1])


@get("/sync", sync_to_thread=True)
def show_from_a_thread(request: Request[Any, Any, Any]) -> list[str]:
    return from_thread.run(fetch_names.load_many, [1, 2, 1], token=request.state.event_loop)


async def begin(request: Request[Any, Any, Any]) -> None:
    request.state.event_loop = current_token()  # for what runs in threads


app = Litestar(
    route_handlers=[show, show_from_a_thread],
    middleware=[LoaderScopeMiddleware],
    before_request=begin,
    logging_config=None,
)
