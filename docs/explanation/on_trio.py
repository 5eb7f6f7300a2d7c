import importlib.util

import trio

from anyloader import LoaderScope


async def fetch(keys: list[int]) -> list[int]:
    return keys


def make_loader(library: str):
    if library == "aiodataloader":
        from aiodataloader import DataLoader
    elif library == "Strawberry":
        from strawberry.dataloader import DataLoader
    elif library == "dloader":
        from dloader import DataLoader
    else:
        from anyloader import DataLoader
    return DataLoader(fetch)


async def use(library: str) -> None:
    async with LoaderScope():
        value = await make_loader(library).load(1)
    print(f"{library} gives {value}")


def main() -> None:
    for library in "aiodataloader", "Strawberry", "dloader", "anyloader":
        if importlib.util.find_spec(library.lower()) is not None:
            try:
                trio.run(use, library)
            except Exception:
                print(f"{library} fails")


if __name__ == "__main__":
    main()
