import anyio

from anyloader import LoaderScope, batch_loader


@batch_loader(max_batch_size=100)
async def fetch_users(ids: list[int]) -> list[str]:
    print("batch", ids)
    return [f"user {id}" for id in ids]


async def handle_request() -> None:
    loads = fetch_users.load(1), fetch_users.load(2), fetch_users.load(1)
    print([await load for load in loads])


async def main() -> None:
    for _ in range(2):
        async with LoaderScope():
            await handle_request()


if __name__ == "__main__":
    anyio.run(main)
