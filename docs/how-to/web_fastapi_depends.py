from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import Depends, FastAPI

from anyloader import DataLoader

app = FastAPI()


async def fetch_names(ids: list[int]) -> list[str]:
    print("batch", ids)
    return [f"user {id}" for id in ids]


async def open_names() -> AsyncGenerator[DataLoader[int, str], None]:
    async with DataLoader(fetch_names) as loader:
        yield loader


Names = Annotated[DataLoader[int, str], Depends(open_names)]


@app.get("/")
async def show(names: Names) -> list[str]:
    return await names.load_many([1, 2, 1])
