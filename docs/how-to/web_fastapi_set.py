from contextvars import ContextVar
from typing import Annotated

from anyio import from_thread
from fastapi import Depends, FastAPI, Header

from anyloader import batch_loader, current_scope
from anyloader.integrations.asgi import LoaderScopeMiddleware

tenant: ContextVar[str] = ContextVar("tenant")


@batch_loader
async def fetch_names(ids: list[int]) -> list[str]:
    print("batch", ids)
    return [f"{tenant.get()} {id}" for id in ids]


async def know_tenant(x_tenant: Annotated[str, Header()] = "user") -> None:
    current_scope().set(tenant, x_tenant)


app = FastAPI(dependencies=[Depends(know_tenant)])
app.add_middleware(LoaderScopeMiddleware)


@app.get("/")
async def show() -> list[str]:
    return await fetch_names.load_many([1, 2, 1])


@app.get("/sync")
def show_from_a_thread() -> list[str]:
    return from_thread.run(fetch_names.load_many, [1, 2, 1])
