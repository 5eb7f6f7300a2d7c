"""Small things that tests start or raise."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from support import backend_options, wait_all_tasks_blocked


def asyncio_group() -> Any:
    return getattr(asyncio, "TaskGroup")()  # noqa: B009 - unknown to checkers of 3.10


needs_eager_tasks = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="eager tasks are new in Python 3.12"
)


def run_with_eager_tasks(main: Callable[[], Awaitable[None]]) -> None:
    """Run it where the first step of a task is made inside the call that makes the task."""
    backend, options = backend_options("asyncio+eager")
    anyio.run(main, backend=backend, backend_options=options)


class CleansUp:
    """A batch function that runs until it is cancelled, and then cleans up until it is let."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.may_end = anyio.Event()

    async def __call__(self, keys: list[int]) -> list[int]:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await self.may_end.wait()
            self.events.append("cleaned up")
        return keys


async def cancel_natively_again_and_again(
    work: Coroutine[Any, Any, None], function: CleansUp, name: str
) -> None:
    """Cancel ``work`` three times on asyncio, let ``function`` end, and note when ``work`` has."""

    async def run() -> None:
        try:
            await work
        finally:
            function.events.append(name)

    task = asyncio.create_task(run())
    for _ in range(3):
        await wait_all_tasks_blocked()
        task.cancel()
    await wait_all_tasks_blocked()
    function.may_end.set()
    await asyncio.wait([task])
    assert task.cancelled()


async def stray_cancellation() -> BaseException:
    """Return a cancellation that no scope around who raises it asked for."""
    if anyio.get_cancelled_exc_class() is asyncio.CancelledError:
        return asyncio.CancelledError("stray")
    caught: list[BaseException] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.lowlevel.checkpoint()
        except BaseException as exc:
            caught.append(exc)
    return caught.pop()
