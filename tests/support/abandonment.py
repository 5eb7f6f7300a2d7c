"""A batch function without an end, and waiters that can be cancelled."""

from __future__ import annotations

from collections.abc import Awaitable

import anyio

from anyloader import LoadCancelledError, LoadHandle, schedules

MANUAL = schedules.manual()

PENDING, CANCELLED = LoadHandle.Status.PENDING, LoadHandle.Status.CANCELLED


async def give_up(*loads: Awaitable[object]) -> None:
    """Await these loads and be cancelled."""
    for load in loads:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await load
        assert scope.cancelled_caught


class Endless:
    """A batch function that runs until it is cancelled, and then until ``cleaned`` is set."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.cancelled: list[list[int]] = []
        self.ended: list[list[int]] = []
        self.cleaned = anyio.Event()
        self.cleaned.set()

    async def __call__(self, keys: list[int]) -> list[int]:
        self.calls.append(keys)
        try:
            await anyio.sleep_forever()
        except BaseException:
            self.cancelled.append(keys)
            with anyio.CancelScope(shield=True):
                await self.cleaned.wait()
            raise
        finally:
            self.ended.append(keys)
        return keys


class Waiters:
    """Tasks that each await one load, and can be cancelled one by one."""

    def __init__(self, tg: anyio.abc.TaskGroup, outcomes: list[object] | None = None) -> None:
        self._tg = tg
        self.outcomes: list[object] = [] if outcomes is None else outcomes

    def __call__(self, load: Awaitable[object]) -> anyio.CancelScope:
        scope = anyio.CancelScope()
        self._tg.start_soon(self._wait, load, scope)
        return scope

    async def _wait(self, load: Awaitable[object], scope: anyio.CancelScope) -> None:
        with scope:
            try:
                self.outcomes.append(await load)
            except LoadCancelledError as exc:
                self.outcomes.append(exc)
