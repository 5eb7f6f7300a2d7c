import anyio

from anyloader import LoaderScope, gather
from anyloader.compat import DataLoader


async def fetch_users(ids: list[int]) -> list[str]:
    print("batch", ids)
    return [f"user {id}" for id in ids]


async def main() -> None:
    async with LoaderScope():
        users: DataLoader[int, str] = DataLoader(fetch_users)

        # anyio.gather(users.load(1), users.load(2))
        print(await gather(users.load(1), users.load(2)))

        # anyio.amap(users.load, [3, 4])
        print(await users.load_many([3, 4]))

        # tg.start_soon(users.load, 5), to have it in the cache
        users.load(5)

        # tg.start_soon, anyio.amap and from_thread.run of what else has to be done with it
        async def show(id: int) -> None:
            print("shown", await users.load(id))

        async with anyio.create_task_group() as tg:
            tg.start_soon(show, 5)


if __name__ == "__main__":
    anyio.run(main)
