import asyncio

from anyloader import LoaderScope
from anyloader.compat_strawberry import DataLoader


async def fetch_users(ids: list[tuple[str, int]]) -> list[str]:
    print("batch", ids)
    return [f"user {id} of {tenant}" for tenant, id in ids]


async def main() -> None:
    async with LoaderScope():  # in a schema: LoaderScopeExtension
        loader = DataLoader(
            load_fn=fetch_users,
            max_batch_size=100,
            cache_key_fn=lambda key: (key[0].lower(), key[1]),
        )
        print(await asyncio.gather(loader.load(("A", 1)), loader.load(("a", 1))))
        loader.prime(("A", 2), "known")
        print(await loader.load(("A", 2)))


if __name__ == "__main__":
    asyncio.run(main())
