import anyio
from anyio.lowlevel import checkpoint

from anyloader import DataLoader


async def fetch(keys: list[str]) -> list[str]:
    print("batch:", sorted(keys))
    return keys


async def load_late(loader: DataLoader[str, str], rounds: int, key: str) -> None:
    for _ in range(rounds):
        await checkpoint()
    await loader.load(key)


async def main() -> None:
    async with DataLoader(fetch) as loader, anyio.create_task_group() as tasks:
        for rounds in range(8):
            tasks.start_soon(load_late, loader, rounds, str(rounds))
        tasks.start_soon(load_late, loader, 20, "late")


if __name__ == "__main__":
    anyio.run(main)
