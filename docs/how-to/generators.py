from collections.abc import AsyncGenerator
from contextlib import aclosing

import anyio

from anyloader import LoaderScope, batch_loader


@batch_loader
async def fetch_names(ids: list[int]) -> list[str]:
    return [f"user {id}" for id in ids]


async def pages(size: int) -> AsyncGenerator[list[str], None]:
    for start in range(0, 100, size):
        async with LoaderScope():  # for each page; it is left before `yield`
            page = await fetch_names.load_many(range(start, start + size))
        yield page


async def main() -> None:
    async with aclosing(pages(2)) as generator:
        async for page in generator:
            print(page)
            break


if __name__ == "__main__":
    anyio.run(main)
