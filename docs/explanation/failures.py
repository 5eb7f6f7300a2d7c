"""What becomes of one program with each of four loaders, on asyncio.

Each function below is one situation. It is given a function that makes a loader, and returns what
came of it.
"""

import asyncio
import gc
import importlib.util
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

LIBRARIES = {
    "aiodataloader": "aiodataloader",
    "Strawberry": "strawberry",
    "dloader": "dloader",
    "anyloader": "anyloader",
}


async def outcome(load: Awaitable[Any]) -> str:
    """Say what a task sees that awaits a load; a second without an answer count as a hang."""
    task = asyncio.ensure_future(load)
    await asyncio.wait([task], timeout=1)
    if not task.done():
        return "hangs"
    if task.cancelled():
        return "is cancelled"
    error = task.exception()
    return f"gets {task.result()!r}" if error is None else f"gets {type(error).__name__}"


async def other_waiter(make: Callable[..., Any]) -> str:
    async def fetch(keys: list[int]) -> list[int]:
        await asyncio.sleep(0.2)
        return keys

    async def wait() -> int:
        return await loader.load(1)

    loader = make(fetch)
    first, second = asyncio.create_task(wait()), asyncio.create_task(wait())
    await asyncio.sleep(0.1)
    first.cancel()  # as a timeout would
    return await outcome(second)


async def in_a_task_group(make: Callable[..., Any]) -> str:
    finished: list[str] = []

    async def fetch(keys: list[int]) -> list[int]:
        await asyncio.sleep(0.2)
        return keys

    async def wait(name: str) -> None:
        await loader.load(1)
        finished.append(name)

    loader = make(fetch)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(wait("first"))
        group.create_task(wait("second"))
        await asyncio.sleep(0.1)
        first.cancel()
    return f"no error; finished: {finished}"


async def later_load(make: Callable[..., Any]) -> str:
    async def fetch(keys: list[int]) -> list[int]:
        await asyncio.sleep(0.1)
        return keys

    async def wait() -> int:
        return await loader.load(1)

    loader = make(fetch)
    first = asyncio.create_task(wait())
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.wait([first])
    await asyncio.sleep(0.2)
    return await outcome(loader.load(1))


async def cancelled_batch(make: Callable[..., Any]) -> str:
    async def fetch(keys: list[int]) -> list[int]:
        raise asyncio.CancelledError

    return await outcome(make(fetch).load(1))


async def wrong_signature(make: Callable[..., Any]) -> str:
    async def fetch() -> list[int]:  # takes no keys
        return []

    return await outcome(make(fetch).load(1))


async def mapping(make: Callable[..., Any]) -> str:
    async def fetch(keys: list[int]) -> dict[int, str]:
        return {key: f"user {key}" for key in keys}

    return await outcome(make(fetch).load(1))


async def own_key(make: Callable[..., Any]) -> str:
    async def fetch(keys: list[int]) -> list[int]:
        return [await loader.load(key) for key in keys]

    loader = make(fetch)
    return await outcome(loader.load(1))


async def second_try(make: Callable[..., Any]) -> str:
    calls: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        calls.append(keys)
        if len(calls) == 1:
            raise ConnectionError
        return keys

    loader = make(fetch)
    await outcome(loader.load(1))
    return await outcome(loader.load(1))


async def cleared_in_flight(make: Callable[..., Any]) -> str:
    calls: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        calls.append(keys)
        if len(calls) == 1:
            await asyncio.sleep(0.05)
            raise ConnectionError
        return keys

    loader = make(fetch)
    old = loader.load(1)
    await asyncio.sleep(0.02)
    loader.clear(1)
    new = loader.load(1)
    await outcome(old)
    await outcome(new)
    await outcome(loader.load(1))
    return f"the key is fetched {len(calls)} times"


async def nobody_asks(make: Callable[..., Any]) -> str:
    heard: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: heard.append(context))

    async def fetch(keys: list[int]) -> list[int]:
        raise ConnectionError

    make(fetch).load(1)  # and never awaited
    await asyncio.sleep(0.05)
    gc.collect()
    return heard[0]["message"] if heard else "silence"


async def last_waiter(make: Callable[..., Any]) -> str:
    events: list[str] = []

    async def fetch(keys: list[int]) -> list[int]:
        try:
            await asyncio.sleep(0.1)
            events.append("the query runs to its end")
        except asyncio.CancelledError:
            events.append("the query is cancelled")
            raise
        return keys

    async def wait() -> int:
        return await loader.load(1)

    loader = make(fetch)
    task = asyncio.create_task(wait())
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0.2)
    return events[0]


async def failing_request(make: Callable[..., Any]) -> str:
    events: list[str] = []

    async def fetch(keys: list[int]) -> list[int]:
        try:
            await asyncio.sleep(0.2)
        finally:
            events.append("the batch ends")
        return keys

    try:
        async with AsyncExitStack() as stack:
            loader = make(fetch)
            if hasattr(loader, "__aenter__"):
                await stack.enter_async_context(loader)
            loader.load(1)
            await asyncio.sleep(0.1)
            raise ConnectionError
    except ConnectionError:
        events.append("the session is closed")
    await asyncio.sleep(0.3)
    return ", then ".join(events)


SITUATIONS = [
    other_waiter,
    in_a_task_group,
    later_load,
    cancelled_batch,
    wrong_signature,
    mapping,
    own_key,
    second_try,
    cleared_in_flight,
    nobody_asks,
    last_waiter,
    failing_request,
]


async def run(situation: Callable[..., Awaitable[str]], library: str) -> str:
    async with AsyncExitStack() as stack:
        if library == "aiodataloader":
            from aiodataloader import DataLoader as make
        elif library == "Strawberry":
            from strawberry.dataloader import DataLoader as make
        elif library == "dloader":
            from dloader import DataLoader as make
        else:
            from anyloader import DataLoader, LoaderScope

            await stack.enter_async_context(LoaderScope())
            make = DataLoader
        return await situation(make)


def run_in_a_loop_of_its_own(situation: Callable[..., Awaitable[str]], library: str) -> str:
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)
    # aiodataloader asks for the loop before it is given a function.
    asyncio.set_event_loop(loop)
    return loop.run_until_complete(run(situation, library))


def main(only: str | None = None) -> None:
    for situation in SITUATIONS:
        print(situation.__name__)
        for library, module in LIBRARIES.items():
            if importlib.util.find_spec(module) is not None and only in (None, library):
                print(f"  {library:14}{run_in_a_loop_of_its_own(situation, library)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
