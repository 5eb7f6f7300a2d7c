"""
When a batch leaves.

A schedule is an async function that is given a :class:`BatchView` and returns when the batch
should leave. It runs in the task that will call the batch function, in the loader's task group.

**Why two quiet checkpoints.** There is no "end of the tick" that holds on every event loop: what
both backends have is rounds. All tasks that are runnable now get one step, then comes the next
round. A task's place within a round is arbitrary; trio reverses each round at random. So after one
checkpoint some siblings may have had their step since our last one and others not. After two
consecutive checkpoints every runnable task has had at least one whole step, and if none of these
brought a key, one whole round was quiet. A fixed number of checkpoints was measured to give
different batches from run to run on trio as soon as keys come from different depths.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import anyio

__all__ = ("BatchView", "Schedule", "manual", "quiescent", "rounds", "window")

# A burst of loads that belongs together, say the deepest of nested GraphQL lists, comes within some
# ten rounds. A round of a busy server takes in the order of a millisecond. 100 rounds leave the
# bursts alone and let a batch that always gets one more key leave after about a tenth of a second.
DEFAULT_MAX_ROUNDS = 100


class BatchView(Protocol):
    """What a schedule sees of the batch it decides about; all of it is live and read-only."""

    @property
    def name(self) -> str:
        """The loader's name."""
        ...

    @property
    def keys(self) -> tuple[Any, ...]:
        """The keys queued now, in load order."""
        ...

    @property
    def size(self) -> int:
        """How many keys are queued now."""
        ...

    @property
    def added(self) -> int:
        """How many keys were ever queued; unlike ``size`` it never goes down."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether the batch still takes keys: it is neither full nor dispatched."""
        ...

    def checkpoint(self) -> Awaitable[None]:
        """Pass one checkpoint, as ``anyio.lowlevel.checkpoint()`` does, for less."""
        ...


#: Any async function of one :class:`BatchView`.
Schedule = Callable[[BatchView], Awaitable[object]]


class Polling:
    """
    A schedule that counts rounds, which the dispatcher does for all batches of a scope at once.

    Called as any other schedule, within one of the user's own, it counts them for its batch alone.
    """

    #: Whether a quiet round of the scope is enough.
    ends_when_quiet = False

    def __init__(self, rounds: int) -> None:
        #: After so many rounds the batch leaves.
        self.rounds = rounds

    async def __call__(self, batch: BatchView, /) -> None:
        seen = batch.added
        quiet = 0
        for _ in range(self.rounds):
            await batch.checkpoint()
            quiet = quiet + 1 if batch.added == seen else 0
            seen = batch.added
            if not batch.is_open or (self.ends_when_quiet and quiet == 2):
                return


class _Quiescent(Polling):
    ends_when_quiet = True

    def __repr__(self) -> str:
        return f"quiescent(max_rounds={self.rounds})"


class _Rounds(Polling):
    def __repr__(self) -> str:
        return f"rounds({self.rounds})"


class _Window:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __repr__(self) -> str:
        return f"window({self._seconds})"

    async def __call__(self, batch: BatchView, /) -> None:
        await anyio.sleep(self._seconds)


class Manual:
    """Told apart by the dispatcher, which starts no task for a batch under this schedule."""

    def __repr__(self) -> str:
        return "manual()"

    async def __call__(self, batch: BatchView, /) -> None:
        raise NotImplementedError


def quiescent(*, max_rounds: int = DEFAULT_MAX_ROUNDS) -> Schedule:
    """
    Let a batch leave once one whole scheduler round has brought its scope no new key and settled no load.

    This is the default. Loads with no quiet round between them share a batch, on both backends and
    in whatever order the scheduler runs the tasks; after at most four quiet rounds the batch has
    left. All batches of a :class:`~anyloader.LoaderScope` that wait for a quiet round leave together,
    before the function of any of them runs. Only where a batch is full
    (``max_batch_size``), which keys it has is the scheduler's choice.

    :param max_rounds: the batch leaves after this many checkpoints, even if each of them still
        brings a key
    :raises TypeError: if ``max_rounds`` is not an int
    :raises ValueError: if ``max_rounds`` is less than 1
    """
    return _Quiescent(_integer("max_rounds", max_rounds, least=1))


def rounds(n: int) -> Schedule:
    """
    Let a batch leave after ``n`` checkpoints, whatever they bring.

    How many of these lie between two events depends on the event loop, so that with ``n`` above 0
    batches may differ between asyncio and trio.

    :param n: 0 sends what the current step of the loading task enqueues, and gives the lowest
        latency for one load after the other
    :raises TypeError: if ``n`` is not an int
    :raises ValueError: if ``n`` is negative
    """
    return _Rounds(_integer("n", n, least=0))


def window(seconds: float) -> Schedule:
    """
    Let a batch leave some time after its first key.

    :param seconds: how long the batch stays open
    :raises TypeError: if ``seconds`` is not a number
    :raises ValueError: if ``seconds`` is negative, infinite or NaN
    """
    return _Window(duration("seconds", seconds))


def manual() -> Schedule:
    """
    Let a batch leave only when it is full or ``dispatch()`` is called.

    Until then it has no task. When the scope of the loader is left, batches that a task awaits
    leave too.
    """
    return Manual()


def duration(name: str, seconds: float) -> float:
    """
    Return ``seconds``, if a task can wait so long.

    :raises TypeError: if it is not a number
    :raises ValueError: if it is negative, infinite or NaN
    """
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{name} must be a number, not {seconds!r}")
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{name} must be finite and not negative, not {seconds!r}")
    return seconds


def _integer(name: str, value: int, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value!r}")
    return value
