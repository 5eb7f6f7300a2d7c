import anyio

from anyloader import LoaderScope, batch_loader


@batch_loader
async def fetch_names(ids: list[int]) -> list[str]:
    return [f"user {id}" for id in ids]


async def handle(message: list[int]) -> None:
    async with LoaderScope() as scope:
        names = await fetch_names.load_many(message)
        print(names, "in", scope.statistics().batches, "batch")


async def main() -> None:
    for message in [1, 2, 1], [2]:
        await handle(message)


if __name__ == "__main__":
    anyio.run(main)
