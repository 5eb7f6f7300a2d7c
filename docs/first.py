import anyio

from anyloader import DataLoader


async def fetch_users(ids: list[int]) -> list[str]:
    print("fetch_users is called with", ids)
    return [f"user {id}" for id in ids]


async def main() -> None:
    async with DataLoader(fetch_users) as users:
        a, b = users.load(1), users.load(2)
        print(await a, await b)


if __name__ == "__main__":
    anyio.run(main)
