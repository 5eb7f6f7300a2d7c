"""A batch function whose calls can be held, and waiters that tell what they got."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from anyloader import LoadHandle
from support import wait_all_tasks_blocked


class Batches:
    """A batch function; a call waits for the gate of its first key, if that key has one.

    ``events`` tells what happened: keys come in, and keys with "cancelled", and with "cleaned" once
    a cleanup of several rounds, shielded against cancellation, is through.
    """

    def __init__(self, *gated: int) -> None:
        self.gates = {key: anyio.Event() for key in gated}
        self.events: list[object] = []

    async def __call__(self, keys: list[int]) -> list[int]:
        self.events.append(keys)
        if keys[0] in self.gates:
            try:
                await self.gates[keys[0]].wait()
            except anyio.get_cancelled_exc_class():
                self.events.append((*keys, "cancelled"))
                with anyio.CancelScope(shield=True):
                    for _ in range(10):
                        await checkpoint()
                self.events.append((*keys, "cleaned"))
                raise
        return [key * 10 for key in keys]

    async def open_once_all_wait(self, key: int) -> None:
        await wait_all_tasks_blocked()
        self.events.append(f"gate {key}")
        self.gates[key].set()


async def wait_for(awaitable: Awaitable[object], seen: list[object]) -> None:
    try:
        seen.append(await awaitable)
    except Exception as exc:
        seen.append(type(exc))


def statuses(handles: Sequence[LoadHandle[Any]]) -> list[str]:
    return [handle.status.name for handle in handles]
