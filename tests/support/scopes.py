"""Batch functions, with and without options, that record their calls."""

from __future__ import annotations

from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from anyloader import (
    DataLoader,
    batch_loader,
)

calls: list[tuple[str, list[int]]] = []


async def double(keys: list[int]) -> list[int]:
    calls.append(("double", keys))
    return [key * 2 for key in keys]


async def triple(keys: list[int]) -> dict[int, int]:
    calls.append(("triple", keys))
    return {key: key * 3 for key in keys}


class Squares(DataLoader[int, int]):
    max_batch_size = 2

    async def batch_load_fn(self, keys: list[int]) -> list[int]:
        calls.append(("squares", keys))
        return [key * key for key in keys]


@batch_loader
async def negate(keys: list[int]) -> list[int]:
    """Give the opposite."""
    calls.append(("negate", keys))
    return [-key for key in keys]


SOURCES: list[Any] = [Squares, double, negate]


class Slow:
    """A batch function that runs until it is let go, or cancelled, and records how it ended."""

    def __init__(self) -> None:
        self.go_on = anyio.Event()
        self.log: list[str] = []

    async def __call__(self, keys: list[int]) -> list[int]:
        self.log.append("started")
        try:
            await self.go_on.wait()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await checkpoint()
                self.log.append("cancelled")
            raise
        self.log.append("finished")
        return [key * 2 for key in keys]
