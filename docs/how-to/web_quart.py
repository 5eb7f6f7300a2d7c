from contextvars import ContextVar

from anyio import from_thread
from anyio.lowlevel import current_token
from quart import Quart, g, request

from anyloader import batch_loader, current_scope
from anyloader.integrations.asgi import LoaderScopeMiddleware

app = Quart(__name__)
app.asgi_app = LoaderScopeMiddleware(app.asgi_app)  # type: ignore[method-assign]

tenant: ContextVar[str] = ContextVar("tenant")


@batch_loader
async def fetch_names(ids: list[int]) -> list[str]:
    print("batch", ids)
    return [f"{tenant.get()} {id}" for id in ids]


@app.before_request
async def begin() -> None:
    current_scope().set(tenant, request.headers.get("X-Tenant", "user"))
    g.event_loop = current_token()  # for what runs in threads


@app.get("/")
async def show() -> list[str]:
    return await fetch_names.load_many([1, 2, 1])


@app.get("/sync")
def show_from_a_thread() -> list[str]:
    return from_thread.run(fetch_names.load_many, [1, 2, 1], token=g.event_loop)
