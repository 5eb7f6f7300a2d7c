import anyio

from anyloader import DataLoader


async def double(keys: list[int]) -> list[int]:
    return [2 * key for key in keys]


async def main() -> None:
    async with anyio.create_task_group() as group:
        loader = DataLoader(double, task_group=group)
        one = group.start_soon(loader.load, 1)
        two = group.start_soon(loader.load, 2)
    print(one.return_value, two.return_value, loader.statistics().batches)


if __name__ == "__main__":
    anyio.run(main)
