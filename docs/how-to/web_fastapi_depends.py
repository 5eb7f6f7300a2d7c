from collections.abc import AsyncGenerator
from contextvars import ContextVar
from typing import Annotated

from anyio import CapacityLimiter, from_thread
from fastapi import Depends, FastAPI

from anyloader import LoaderScope, batch_loader


class Session:
    async def names(self, ids: list[int]) -> list[str]:
        print("batch", ids)
        return [f"user {id}" for id in ids]


session: ContextVar[Session] = ContextVar("session")


@batch_loader
async def fetch_names(ids: list[int]) -> list[str]:
    return await session.get().names(ids)


async def get_session() -> AsyncGenerator[Session, None]:
    yield Session()


async def loader_scope(
    request_session: Annotated[Session, Depends(get_session)],
) -> AsyncGenerator[LoaderScope, None]:
    async with LoaderScope(limiter=CapacityLimiter(1)) as scope:
        scope.set(session, request_session)
        yield scope


app = FastAPI(dependencies=[Depends(loader_scope)])


@app.get("/")
async def show() -> list[str]:
    return await fetch_names.load_many([1, 2, 1])


@app.get("/sync")
def show_from_a_thread() -> list[str]:
    return from_thread.run(fetch_names.load_many, [1, 2, 1])
