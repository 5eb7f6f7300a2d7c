"""Record and compare, instead of sleeping."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

import anyio
from anyio.lowlevel import checkpoint

K = TypeVar("K")
V = TypeVar("V")

# Rounds without a runnable task after which a loop counts as idle. A task that waits may still be
# woken through a chain of callbacks, one round each: a gather in a gather takes two.
_QUIET_ROUNDS = 10

# Rounds in which nothing else is queued, after which nothing will be: each looks at timers and sockets too.
_EMPTY_ROUNDS = 3


class Recorder(Generic[K, V]):
    """A batch function that records the keys of each call in ``calls``.

    It returns ``value(key)`` for each key; if it has a ``gate``, not before that is set.
    """

    def __init__(self, value: Callable[[K], V], *, gate: anyio.Event | None = None) -> None:
        self.value = value
        self.gate = gate
        self.calls: list[list[K]] = []

    async def __call__(self, keys: list[K]) -> list[V]:
        self.calls.append(list(keys))
        if self.gate is not None:
            await self.gate.wait()
        return [self.value(key) for key in keys]


async def wait_all_tasks_blocked() -> None:
    """Wait until every other task waits for something.

    anyio's function of this name is right on trio. On asyncio it sleeps a tenth of a second between
    two looks, which is slow in real time; in virtual time it moves the clock, and so may fire the
    very timers that a test wants to see waiting.
    """
    try:
        this_task = asyncio.current_task()
    except RuntimeError:  # no asyncio loop: trio
        await anyio.wait_all_tasks_blocked()
        return

    # A task that does not heed its cancellation is blocked, though anyio queues it over and over again;
    # and uvloop shows no queue.
    queue = getattr(asyncio.get_running_loop(), "_ready", [None])
    quiet = empty = 0
    while quiet < _QUIET_ROUNDS and empty < _EMPTY_ROUNDS:
        await checkpoint()
        if not queue:
            empty += 1
            continue
        empty = 0
        others = asyncio.all_tasks() - {this_task}
        quiet = quiet + 1 if all(map(_is_blocked, others)) else 0


def _is_blocked(task: asyncio.Task[object]) -> bool:
    waits_for: asyncio.Future[object] | None = getattr(task, "_fut_waiter", None)
    return waits_for is not None and not waits_for.done()
