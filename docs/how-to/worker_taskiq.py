import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from taskiq import InMemoryBroker

from anyloader import LoaderScope, batch_loader

P = ParamSpec("P")
R = TypeVar("R")

broker = InMemoryBroker(await_inplace=True)


def in_scope(function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    @wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> R:
        async with LoaderScope():
            return await function(*args, **kwargs)

    return call


@batch_loader
async def fetch_names(ids: list[int]) -> list[str]:
    print("batch", ids)
    return [f"user {id}" for id in ids]


@broker.task
@in_scope
async def greet(ids: list[int]) -> list[str]:
    return [f"Hello, {name}" for name in await fetch_names.load_many(ids)]


async def main() -> None:
    await broker.startup()
    for message in [1, 2, 1], [2]:
        job = await greet.kiq(message)
        print((await job.wait_result()).return_value)
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
