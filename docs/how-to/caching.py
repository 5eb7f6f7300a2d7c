import anyio
from cachetools import LRUCache

from anyloader import DataLoader

calls: list[list[str]] = []


async def fetch(keys: list[str]) -> list[str | Exception]:
    calls.append(keys)
    return [ConnectionError(key) if key == "bad" else key.upper() for key in keys]


def show(what: str) -> None:
    print(f"{what}: {calls}")
    calls.clear()


async def main() -> None:
    # At most two entries: "c" pushes "a" out. cachetools.TTLCache forgets by time.
    async with DataLoader(fetch, cache_map=LRUCache(maxsize=2)) as loader:
        for key in "a", "b", "c", "a":
            await loader.load(key)
    show("LRU")

    # Some errors are worth another try.
    async with DataLoader(
        fetch, cache_errors=lambda error: not isinstance(error, ConnectionError)
    ) as loader:
        for _ in range(2):
            await loader.load_many(["bad", "good"], return_exceptions=True)
    show("cache_errors")

    # A key that cannot be hashed, or keys that mean the same.
    async with DataLoader(fetch, get_cache_key=str.casefold) as loader:
        await loader.load_many(["a", "A"])
    show("get_cache_key")

    # After a change: forget, or put in what is known.
    async with DataLoader(fetch) as loader:
        await loader.load("a")
        await loader.clear("a").load("a")
        loader.prime("a", "new", force=True)
        print(await loader.load("a"))
    show("clear and prime")

    # Batches without a memory; equal keys of one batch are sent once.
    async with DataLoader(fetch, cache=False, deduplicate=True) as loader:
        await loader.load_many(["a", "a"])
        await loader.load("a")
    show("cache off")

    # One call at a time for each key, and nothing remembered.
    async with DataLoader(fetch, cache="pending") as loader:
        await loader.load_many(["a", "a"])
        await loader.load("a")
    show("pending")


if __name__ == "__main__":
    anyio.run(main)
