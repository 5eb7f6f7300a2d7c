import textwrap

import anyio

from anyloader import BatchResultError, DataLoader

NAMES = {1: "Ursula", 2: "Iain"}


async def lookup(ids: list[int]) -> dict[int, str]:
    return {id: NAMES[id] for id in ids if id in NAMES}


async def careful(ids: list[int]) -> list[str | Exception]:
    return [NAMES.get(id, LookupError(f"no author {id}")) for id in ids]


async def broken(ids: list[int]) -> list[str]:
    raise ConnectionError("the database is away")


async def short(ids: list[int]) -> list[str]:
    return [NAMES[1]]


async def main() -> None:
    async with DataLoader(lookup) as loader:
        print("absent from a mapping:", await loader.load(9))

    async with DataLoader(lookup, on_missing=KeyError) as loader:
        try:
            await loader.load(9)
        except KeyError as exc:
            print("on_missing=KeyError:", repr(exc))

    async with DataLoader(careful) as loader:
        values = await loader.load_many([1, 9, 2], return_exceptions=True)
        print("errors in place:", values)

    async with DataLoader(broken) as loader:
        for load in loader.load(1), loader.load(2):
            try:
                await load
            except ConnectionError as exc:
                print("the batch failed:", exc)

    async with DataLoader(short) as loader:
        try:
            await loader.load_many([1, 2])
        except BatchResultError as exc:
            print(textwrap.fill(str(exc), 80))


if __name__ == "__main__":
    anyio.run(main)
