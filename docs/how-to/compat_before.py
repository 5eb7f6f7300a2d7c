import asyncio

from aiodataloader import DataLoader


async def fetch_users(ids: list[int]) -> list[str]:
    print("batch", ids)
    return [f"user {id}" for id in ids]


async def handle_request() -> None:
    users: DataLoader[int, str] = DataLoader(fetch_users, max_batch_size=100)
    print(await asyncio.gather(users.load(1), users.load(2), users.load(1)))


async def main() -> None:
    for _ in range(2):
        await handle_request()


if __name__ == "__main__":
    asyncio.run(main())
