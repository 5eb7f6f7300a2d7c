import asyncio

from anyloader import DataLoader


async def double(keys: list[int]) -> list[int]:
    return [2 * key for key in keys]


async def main() -> None:
    async with asyncio.TaskGroup() as group:
        loader = DataLoader(double, task_group=group)
        one = group.create_task(loader.load(1))
        two = group.create_task(loader.load(2))
    print(one.result(), two.result(), loader.statistics().batches)


if __name__ == "__main__":
    asyncio.run(main())
