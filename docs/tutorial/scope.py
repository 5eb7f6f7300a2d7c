from contextvars import ContextVar

import anyio
from library import Library, open_library

from anyloader import LoaderScope, batch_loader

library: ContextVar[Library] = ContextVar("library")


@batch_loader(max_batch_size=100)
async def fetch_authors(ids: list[int]) -> dict[int, str]:
    marks = ", ".join("?" * len(ids))
    sql = f"SELECT id, name FROM author WHERE id IN ({marks})"
    return dict(await library.get().select(sql, ids))


async def handle_request(author_id: int) -> str:
    # Any function that is called from here, however deep, can load.
    return f"request for author {author_id}: {await fetch_authors.load(author_id)}"


async def main() -> None:
    async with open_library() as opened:
        library.set(opened)
        for author_id in 1, 2, 2:
            async with LoaderScope() as scope:
                print(await handle_request(author_id))
                print(await handle_request(author_id))
                done = scope.statistics()
                print(f"{done.loads} loads, {done.hits} hit, {done.batches} batch")


if __name__ == "__main__":
    anyio.run(main)
