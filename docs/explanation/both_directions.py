import anyio

from anyloader import DataLoader, LoadCancelledError, LoaderScope


async def slow(keys: list[str]) -> list[str]:
    await anyio.sleep(10)
    return keys


async def main() -> None:
    # From a waiter to the load: its only waiter has gone, so it is given up.
    async with DataLoader(slow) as loader:
        load = loader.load("a")
        with anyio.move_on_after(0.1):
            await load
        await anyio.sleep(0.1)
        print("given up by its only waiter:", load.status.name)

    # From the scope to the waiter: it gets an error, and is not cancelled itself.
    async with LoaderScope() as scope:
        load = scope.get(slow).load("a")
        scope.cancel("the client has gone")
        try:
            await load
        except LoadCancelledError as exc:
            print("its scope was cancelled:", exc)


if __name__ == "__main__":
    anyio.run(main)
