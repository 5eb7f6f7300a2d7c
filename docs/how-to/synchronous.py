import anyio
from anyio.from_thread import start_blocking_portal

from anyloader import LoaderScope, batch_loader


@batch_loader
async def fetch_books(ids: list[int]) -> list[str]:
    print("batch", ids)
    return [f"book {id}" for id in ids]


def titles(ids: list[int]) -> list[str]:
    """A plain function, for callers that know nothing of async."""

    async def load() -> list[str]:
        async with LoaderScope():
            return await fetch_books.load_many(ids)

    return anyio.run(load)


def job() -> None:
    """One event loop, in a thread of its own, and one scope for all that this function does."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(LoaderScope()) as scope,
    ):
        books = portal.call(scope.get, fetch_books)
        print(portal.call(books.load_many, [3, 4]))
        print(portal.call(books.load, 4))  # a hit


def main() -> None:
    print(titles([1, 2, 1]))
    job()


if __name__ == "__main__":
    main()
