import trio

from anyloader import DataLoader


async def double(keys: list[int]) -> list[int]:
    return [2 * key for key in keys]


async def main() -> None:
    results: list[int] = []

    async def show(key: int) -> None:
        results.append(await loader.load(key))

    async with trio.open_nursery() as nursery:
        loader = DataLoader(double, task_group=nursery)
        nursery.start_soon(show, 1)
        nursery.start_soon(show, 2)
    print(*sorted(results), loader.statistics().batches)


if __name__ == "__main__":
    trio.run(main)
