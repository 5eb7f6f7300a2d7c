import anyio

from anyloader import DataLoader


async def fetch_users(ids: list[tuple[str, int]]) -> list[str]:
    print("batch", ids)
    return [f"user {id} of {tenant}" for tenant, id in ids]


async def main() -> None:
    async with DataLoader(
        fetch_users,
        max_batch_size=100,
        get_cache_key=lambda key: (key[0].lower(), key[1]),
    ) as loader:
        print(await loader.load_many([("A", 1), ("a", 1)]))
        loader.prime(("A", 2), "known")
        print(await loader.load(("A", 2)))


if __name__ == "__main__":
    anyio.run(main)
