"""Loaders that load from each other, and the ways to await a load."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio
import anyio.from_thread
import pytest

from anyloader import DataLoader, LoadDeadlockError, in_thread

Loader = DataLoader[int, Any]

Await = Callable[[Loader, int], Awaitable[object]]


async def settled(load: Awaitable[Any]) -> Any:
    """Await what would hang if a deadlock went unseen."""
    with anyio.fail_after(5):
        return await load


async def by_load(loader: Loader, key: int) -> object:
    return await loader.load(key)


async def by_wait(loader: Loader, key: int) -> object:
    handle = loader.load(key)
    await handle.wait()
    return handle


async def by_load_many(loader: Loader, key: int) -> object:
    return await loader.load_many([key])


async def by_load_many_among_others(loader: Loader, key: int) -> object:
    return await loader.load_many([1_000, key, 1_001], return_exceptions=True)


async def in_a_task(loader: Loader, key: int) -> object:
    results: list[object] = []
    errors: list[LoadDeadlockError] = []

    async def child() -> None:
        try:
            results.append(await loader.load(key))
        except LoadDeadlockError as exc:
            errors.append(exc)

    async with anyio.create_task_group() as tg:
        tg.start_soon(child)
    if errors:
        raise errors[0]
    return results[0]


async def in_a_thread(loader: Loader, key: int) -> object:
    def blocking(keys: list[int]) -> list[object]:
        return [anyio.from_thread.run(loader.load, key) for key in keys]

    return await in_thread(blocking)([key])


AWAITS: list[Await] = [
    by_load,
    by_wait,
    by_load_many,
    by_load_many_among_others,
    in_a_task,
    in_a_thread,
]

each_await = pytest.mark.parametrize("await_", AWAITS, ids=lambda function: function.__name__)


class Loaders:
    """Loaders that load from each other: ``needs[name][key]`` is the load that a key needs.

    Each function awaits what its keys need, one after the other, but for keys of 1,000 and more,
    which need nothing. The value of a key is its own number.
    """

    def __init__(self, await_: Await = by_load) -> None:
        self.needs: dict[str, dict[int, tuple[str, int]]] = {}
        self.errors: list[LoadDeadlockError] = []
        self.by_name: dict[str, Loader] = {}
        self._await = await_
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Loaders:
        await self._stack.__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._stack.__aexit__(*exc_info)

    async def open(
        self, name: str, needs: dict[int, tuple[str, int]] | None = None, **options: Any
    ) -> Loader:
        self.needs[name] = needs or {}

        async def fetch(keys: list[int]) -> list[int]:
            for key in keys:
                if key in self.needs[name]:
                    other, needed = self.needs[name][key]
                    try:
                        await self._await(self.by_name[other], needed)
                    except LoadDeadlockError as exc:
                        self.errors.append(exc)
                        raise
            return keys

        loader = DataLoader(fetch, name=name, **options)
        self.by_name[name] = loader
        return await self._stack.enter_async_context(loader)
