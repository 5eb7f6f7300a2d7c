from threading import Thread

import anyio
from anyio import from_thread, to_thread
from anyio.lowlevel import EventLoopToken, current_token

from anyloader import DataLoader


async def double(keys: list[int]) -> list[int]:
    return [2 * key for key in keys]


def work(loader: DataLoader[int, int]) -> int:
    """Runs in a worker thread; each load is made in the event loop, and waited for here."""
    return from_thread.run(loader.load, 1) + from_thread.run(loader.load, 2)


def work_anywhere(loader: DataLoader[int, int], token: EventLoopToken) -> None:
    """Runs in a thread of any kind."""
    print(from_thread.run(loader.load, 3, token=token))


def wrong(loader: DataLoader[int, int]) -> None:
    try:
        loader.load(1)
    except RuntimeError as exc:
        print(type(exc).__name__)


async def main() -> None:
    async with DataLoader(double) as loader:
        print(await to_thread.run_sync(work, loader))

        thread = Thread(target=work_anywhere, args=[loader, current_token()])
        thread.start()
        await to_thread.run_sync(thread.join)

        await to_thread.run_sync(wrong, loader)


if __name__ == "__main__":
    anyio.run(main)
