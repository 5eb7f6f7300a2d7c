import anyio

from anyloader import DataLoader


async def slow(keys: list[str]) -> list[str]:
    print("batch function starts with", keys)
    try:
        await anyio.sleep(0.3)
    except anyio.get_cancelled_exc_class():
        print("batch function is cancelled")
        raise
    return [key.upper() for key in keys]


async def impatient(loader: DataLoader[str, str]) -> None:
    with anyio.move_on_after(0.1):
        print("impatient got", await loader.load("a"))
    print("impatient has gone")


async def patient(loader: DataLoader[str, str]) -> None:
    print("patient got", await loader.load("a"))


async def main() -> None:
    print("-- one of two gives up")
    async with DataLoader(slow) as loader, anyio.create_task_group() as tasks:
        tasks.start_soon(impatient, loader)
        tasks.start_soon(patient, loader)

    print("-- the only one gives up, and loads again")
    async with DataLoader(slow) as loader:
        await impatient(loader)
        await anyio.sleep(0.1)
        await patient(loader)


if __name__ == "__main__":
    anyio.run(main)
