import anyio

from anyloader import DataLoader, schedules


async def fetch(keys: list[str]) -> list[str]:
    print("  batch", sorted(keys))
    return keys


async def late(loader: DataLoader[str, str], seconds: float, key: str) -> None:
    await anyio.sleep(seconds)
    await loader.load(key)


async def half_full(batch: schedules.BatchView) -> None:
    """A schedule of one's own: leave with two keys, or after a fifth of a second."""
    with anyio.move_on_after(0.2):
        while batch.size < 2:
            await anyio.sleep(0.01)


async def main() -> None:
    for schedule in schedules.quiescent(), schedules.window(0.3), half_full:
        print(getattr(schedule, "__name__", schedule))
        async with (
            DataLoader(fetch, schedule=schedule) as loader,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(late, loader, 0, "a")
            tasks.start_soon(late, loader, 0.1, "b")

    print("manual()")
    async with DataLoader(fetch, schedule=schedules.manual()) as loader:
        a, b = loader.load("a"), loader.load("b")
        loader.dispatch()
        print(" ", await a, await b)


if __name__ == "__main__":
    anyio.run(main)
