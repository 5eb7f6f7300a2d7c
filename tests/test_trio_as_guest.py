"""With trio as a guest on asyncio, each loader is refused where it does not belong (contract 4.7)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from anyio.lowlevel import checkpoint

from anyloader import DataLoader, LoaderScope

trio = pytest.importorskip("trio")


async def fetch(keys: list[int]) -> list[int]:
    await checkpoint()
    return [key * 10 for key in keys]


def run_with_guest(
    host: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]],
    guest: Callable[[], Awaitable[Any]],
) -> Any:
    """Run ``host`` on asyncio; it is given a function that runs ``guest`` on trio, in its loop."""

    async def main() -> Any:
        loop = asyncio.get_running_loop()

        async def run_guest() -> Any:
            done: asyncio.Future[Any] = loop.create_future()
            trio.lowlevel.start_guest_run(
                guest,
                run_sync_soon_threadsafe=loop.call_soon_threadsafe,
                done_callback=done.set_result,
                host_uses_signal_set_wakeup_fd=True,
            )
            return (await done).unwrap()

        return await asyncio.wait_for(host(run_guest), 5)

    return asyncio.run(main())


def test_a_guest_is_refused_by_a_loader_of_the_host() -> None:
    loader = DataLoader(fetch)
    cached: list[Any] = []

    async def guest() -> None:
        for attempt in (
            lambda: loader.load(2),
            lambda: loader.load_many([2, 3]),
            lambda: loader.clear(1),
            lambda: loader.prime(5, 5),
            loader.dispatch,
        ):
            with pytest.raises(RuntimeError, match="event loop"):
                attempt()
        cached.append(1)

    async def host(run_guest: Any) -> None:
        async with loader:
            assert await loader.load(1) == 10
            await run_guest()
            assert await loader.load_many([1, 2, 3]) == [10, 20, 30]

    run_with_guest(host, guest)
    assert cached == [1]


def test_the_host_is_refused_by_a_loader_of_the_guest() -> None:
    loader = DataLoader(fetch)
    refused: list[Any] = []

    async def host(run_guest: Any) -> None:
        opened = asyncio.Event()
        go_on: list[Any] = []

        async def guest_task() -> Any:
            return await run_guest()

        states.update(opened=opened, go_on=go_on)
        task = asyncio.create_task(guest_task())
        await opened.wait()
        for attempt in (lambda: loader.load(2), lambda: loader.load_many([2]), loader.dispatch):
            with pytest.raises(RuntimeError, match="event loop"):
                attempt()
            refused.append(1)
        go_on.append(1)
        await task

    states: dict[str, Any] = {}

    async def guest() -> None:
        async with loader:
            assert await loader.load(1) == 10
            states["opened"].set()
            while not states["go_on"]:
                await trio.sleep(0)
            assert await loader.load_many([1, 2]) == [10, 20]

    run_with_guest(host, guest)
    assert refused == [1] * 3


def test_each_may_use_loaders_of_its_own_at_the_same_time() -> None:
    async def own(name: str) -> list[int]:
        async with LoaderScope():
            values: list[int] = await DataLoader(fetch, name=name).load_many(range(3))
            return values

    async def host(run_guest: Any) -> Any:
        task = asyncio.ensure_future(run_guest())
        return [await own("host"), await task]

    assert run_with_guest(host, lambda: own("guest")) == [[0, 10, 20]] * 2


def test_a_batch_function_of_the_host_cannot_run_loads_of_the_guest() -> None:
    """A trio task that inherits nothing of the host opens a scope of its own."""

    async def guest() -> int:
        async with DataLoader(fetch) as loader:
            return await loader.load(4)

    async def host(run_guest: Any) -> Any:
        async def outer(keys: list[int]) -> list[Any]:
            return [await run_guest() for _ in keys]

        async with DataLoader(outer) as loader:
            return await loader.load(1)

    assert run_with_guest(host, guest) == 40
