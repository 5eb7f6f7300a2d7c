"""Virtual time for asyncio: an event loop that jumps to its next timer instead of waiting for it.

trio has this as ``MockClock(autojump_threshold=0)``, and this loop behaves as that clock does: time
starts at 0 and stands still while anything can run. Nobody waits for a thread at work as long as
there is a timer, which wins at once. With no timer there is nothing to jump to, and the loop really
blocks until a thread or a socket wakes it.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import sys
from collections.abc import Callable
from contextvars import Context

if sys.version_info >= (3, 11):
    from typing import TypeVarTuple, Unpack
else:
    from typing_extensions import TypeVarTuple, Unpack

Ts = TypeVarTuple("Ts")


class _JumpingSelector(selectors.DefaultSelector):
    """Where a loop would wait for its next timer, move the clock there.

    A loop passes ``timeout`` > 0 only if nothing is ready, and then it is the time left until the
    next timer. A thread that calls ``call_soon_threadsafe`` makes the loop's own pipe readable, so
    the poll sees it and no jump happens.
    """

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)

        events = super().select(0)
        if not events:
            self.now += timeout
        return events


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A stock asyncio loop but for its clock."""

    def __init__(self) -> None:
        self._jumping_selector = _JumpingSelector()
        super().__init__(self._jumping_selector)

    def time(self) -> float:
        return self._jumping_selector.now

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: Unpack[Ts],
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        # anyio.sleep_forever() sets a timer at infinity. The loop never waits longer than a day at
        # a time, so it would jump day by day for ever: such a timer is made, but not scheduled.
        if when == math.inf:
            return asyncio.TimerHandle(when, callback, args, self, context)
        return super().call_at(when, callback, *args, context=context)

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        # From Python 3.12 on asyncio gives the threads a time limit, which virtual time would use
        # up at once.
        await super().shutdown_default_executor()
