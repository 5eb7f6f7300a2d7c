"""The backends of the suite: which are there, and with which options anyio starts each of them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from .virtual_time import VirtualTimeLoop

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

# The suite has to pass without uvloop and without trio: what is missing is absent, not skipped.
BACKENDS: tuple[str, ...] = (
    "asyncio",
    *(["asyncio+uvloop"] if find_spec("uvloop") else []),
    *(["asyncio+eager"] if sys.version_info >= (3, 12) else []),
    *(["trio"] if find_spec("trio") else []),
)

# uvloop keeps its clock and its queue of callbacks in C, where nothing can replace or permute them.
VIRTUAL_TIME_BACKENDS = tuple(name for name in BACKENDS if name != "asyncio+uvloop")
SHUFFLED_BACKENDS = VIRTUAL_TIME_BACKENDS


def eager(new_loop: LoopFactory) -> LoopFactory:
    """Make a loop factory whose tasks run their first step inside ``create_task``."""

    def new_eager_loop() -> asyncio.AbstractEventLoop:
        loop = new_loop()
        if sys.version_info >= (3, 12):
            loop.set_task_factory(asyncio.eager_task_factory)
        return loop

    return new_eager_loop


def backend_options(name: str, *, virtual_time: bool = False) -> tuple[str, dict[str, Any]]:
    """Say how anyio starts one of ``BACKENDS``: the name of its own backend, and options for that.

    :raises ValueError: if there is no such backend here, or it has no virtual clock

    """
    available = VIRTUAL_TIME_BACKENDS if virtual_time else BACKENDS
    if name not in available:
        raise ValueError(f"expected one of {', '.join(available)}, got {name!r}")

    if name == "trio":
        if not virtual_time:
            return "trio", {}

        import trio.testing

        return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}

    new_loop: LoopFactory = VirtualTimeLoop if virtual_time else asyncio.new_event_loop
    if name == "asyncio+uvloop":
        new_loop = import_module("uvloop").new_event_loop
    elif name == "asyncio+eager":
        new_loop = eager(new_loop)

    return "asyncio", {"loop_factory": new_loop}
