"""A worker without a web: messages come from a queue, and each is handled in a scope of its own.

    python examples/worker.py --backend trio

Messages are handled at the same time, by tasks of one group; the loaders of a message run in that
group too, and are gone when it is done. Needs `sqlite-anyio`, `pycountry` and, for trio, `trio`.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import anyio
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream

from _data import DEFAULT_DATABASE, Atlas, ensure_database, open_atlas
from anyloader import LoaderScope

MESSAGES = ["FR DE IT", "JP JP JP", "FR", "BR AR CL PE"]


class Result(NamedTuple):
    message: str
    names: list[str]
    batches: int


async def handle(message: str, atlas: Atlas, tasks: TaskGroup, results: list[Result]) -> None:
    async with LoaderScope(task_group=tasks) as scope:
        handles = [scope.get(atlas.countries).load_required(code) for code in message.split()]
        names = [(await handle).name for handle in handles]
        results.append(Result(message, names, scope.statistics().batches))


async def work(
    messages: MemoryObjectReceiveStream[str], atlas: Atlas, results: list[Result]
) -> None:
    """Handle messages until there are no more."""
    async with messages, anyio.create_task_group() as tasks:
        async for message in messages:
            tasks.start_soon(handle, message, atlas, tasks, results)


async def run() -> list[Result]:
    queue, messages = anyio.create_memory_object_stream[str](2)

    async def produce() -> None:
        async with queue:
            for message in MESSAGES:
                await queue.send(message)

    results: list[Result] = []
    async with open_atlas(DEFAULT_DATABASE) as atlas:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(produce)
            tasks.start_soon(work, messages, atlas, results)
    return results


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Messages from a queue, a scope for each.")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    options = parser.parse_args(arguments)
    ensure_database(DEFAULT_DATABASE)
    for result in sorted(anyio.run(run, backend=options.backend)):
        print(f"{result.message}: {', '.join(result.names)} ({result.batches} batch)")


if __name__ == "__main__":
    main()
