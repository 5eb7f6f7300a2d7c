"""How loads end, with a limit of time, and how to cancel who waits for them."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import anyio

from .recording import wait_all_tasks_blocked


async def double(keys: list[int]) -> list[int]:
    return [key * 2 for key in keys]


async def outcome(load: Awaitable[Any]) -> Any:
    """Give the value of a load, or the error that it raised; a hang is cut short."""
    with anyio.fail_after(5):
        try:
            return await load
        except Exception as exc:
            return exc


async def outcomes(*loads: Awaitable[Any]) -> list[Any]:
    return [await outcome(load) for load in loads]


async def cancel_once_blocked(scope: anyio.CancelScope) -> None:
    """Cancel what waits in ``scope``, once the batch function runs."""
    await wait_all_tasks_blocked()
    scope.cancel()
    await wait_all_tasks_blocked()
