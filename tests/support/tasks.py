"""Small things that tests start or raise."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from support import backend_options


def asyncio_group() -> Any:
    return getattr(asyncio, "TaskGroup")()  # noqa: B009 - unknown to checkers of 3.10


needs_eager_tasks = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="eager tasks are new in Python 3.12"
)


def run_with_eager_tasks(main: Callable[[], Awaitable[None]]) -> None:
    """Run it where the first step of a task is made inside the call that makes the task."""
    backend, options = backend_options("asyncio+eager")
    anyio.run(main, backend=backend, backend_options=options)


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
