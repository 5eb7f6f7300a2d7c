"""
Who is measured. Each gets the same batch function and, for each sample, a fresh loader.

What may be missing is imported by name, so that this runs, and can be type-checked, without it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, cast

import anyloader

OURS = "anyloader"
#: A schedule for those who load one thing after the other, and wait for no quiet round.
ROUNDS_0 = "anyloader rounds(0)"

_PEERS = {
    "aiodataloader": "aiodataloader",
    "strawberry": "strawberry.dataloader",
    "dloader": "dloader",
}


class Loader(Protocol):
    """What all of them have in common."""

    def load(self, key: int, /) -> Awaitable[Any]: ...

    def load_many(self, keys: Iterable[int], /) -> Awaitable[list[Any]]: ...


BatchFunction = Callable[[list[int]], Awaitable[list[Any]]]


class Open(Protocol):
    """Makes a fresh loader and opens it, where it is something that is opened."""

    def __call__(
        self, batch_function: BatchFunction, /, *, cache: bool = True
    ) -> AbstractAsyncContextManager[Loader]: ...


async def batch(keys: list[int]) -> list[int]:
    return list(keys)


def is_installed(name: str) -> bool:
    return find_spec(name) is not None


def loops() -> dict[str, Callable[[Coroutine[Any, Any, float]], float]]:
    """Return the ways to run a coroutine under asyncio."""
    found = {"asyncio": import_module("asyncio").run}
    if is_installed("uvloop"):
        found["uvloop"] = import_module("uvloop").run
    return found


def peers() -> dict[str, Open]:
    found: dict[str, Open] = {}
    for name, module in _PEERS.items():
        if is_installed(name):
            found[name] = _peer(import_module(module).DataLoader)
    return found


def _peer(loader_class: Any) -> Open:
    def opened(
        batch_function: BatchFunction, /, *, cache: bool = True
    ) -> AbstractAsyncContextManager[Loader]:
        return nullcontext(cast(Loader, loader_class(batch_function, cache=cache)))

    return opened


def ours(batch_function: BatchFunction, /, *, cache: bool = True) -> Any:
    return anyloader.DataLoader(batch_function, cache=cache)


def ours_rounds_0(batch_function: BatchFunction, /, *, cache: bool = True) -> Any:
    schedule = anyloader.schedules.rounds(0)
    return anyloader.DataLoader(batch_function, cache=cache, schedule=schedule)


def missing() -> list[str]:
    return [name for name in (*_PEERS, "uvloop", "trio", "graphql") if not is_installed(name)]


class Floor:
    """
    The least that batches on trio at all, to the same rule of when a batch leaves.

    A nursery task for each batch passes two checkpoints, calls the batch function and sets one
    event. No cache, no errors, no cancellation.
    """

    def __init__(self, nursery: Any) -> None:
        self._nursery = nursery
        self._open: _FloorBatch | None = None

    async def load(self, key: int) -> int:
        queued = self._open
        if queued is None:
            queued = self._open = _FloorBatch()
            self._nursery.start_soon(self._run, queued)
        index = len(queued.keys)
        queued.keys.append(key)
        await queued.done.wait()
        return queued.values[index]

    async def _run(self, queued: _FloorBatch) -> None:
        checkpoint = import_module("trio.lowlevel").checkpoint
        await checkpoint()
        await checkpoint()
        self._open = None
        queued.values = await batch(queued.keys)
        queued.done.set()


class _FloorBatch:
    def __init__(self) -> None:
        self.keys: list[int] = []
        self.values: list[int] = []
        self.done: Any = import_module("trio").Event()
