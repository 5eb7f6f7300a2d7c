import textwrap
import warnings
from pathlib import Path

import anyio

from anyloader import DataLoader, LoaderScope, batch_loader, current_scope
from anyloader.hooks import warn_unbatched

IDS = range(12)
calls: list[list[int]] = []


@batch_loader
async def fetch(ids: list[int], *, tenant: str = "north") -> list[str]:
    calls.append(ids)
    return [f"{tenant} {id}" for id in ids]


async def with_a_new_loader(id: int) -> None:
    async with DataLoader(fetch) as loader:
        await loader.load(id)


async def with_a_new_function(id: int) -> None:
    await current_scope().get(lambda ids: fetch(ids, tenant="south")).load(id)


async def with_arguments(id: int) -> None:
    await fetch.bind(tenant="south").load(id)


def show(what: str) -> None:
    print(f"{what}: {len(calls)}")
    calls.clear()


async def main() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        async with LoaderScope(hooks=[warn_unbatched()]):
            for id in IDS:
                await fetch.load(id)  # which comes next, nobody can know
        show("sequential awaits")

        async with LoaderScope():
            await fetch.load_many(IDS)
        show("load_many")

        async with LoaderScope():
            loads = [fetch.load(id) for id in IDS]
            for load in loads:
                await load
        show("all loads, then the awaits")

        for work in with_a_new_loader, with_a_new_function, with_arguments:
            async with LoaderScope(), anyio.create_task_group() as tasks:
                for id in IDS:
                    tasks.start_soon(work, id)
            show(f"in tasks, {work.__name__}")

    print("\nWarnings:")
    for warning in caught:
        text = str(warning.message).replace(str(Path(__file__).parent), "...")
        print(textwrap.fill(text, 90, initial_indent="- ", subsequent_indent="  "))


if __name__ == "__main__":
    anyio.run(main)
