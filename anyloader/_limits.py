"""Limiters: one for each event loop, and who of ours holds their tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import count
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

import anyio
from anyio.lowlevel import RunVar

from ._backend import running_backend

if TYPE_CHECKING:
    from ._batch import Batch

    LimiterOption = anyio.CapacityLimiter | Callable[[], anyio.CapacityLimiter]

__all__ = ("Gate", "gates_for", "is_limiter", "limit")

_numbers = count()

#: The gates of all limiters that were met. They go with these.
_gates: WeakKeyDictionary[anyio.CapacityLimiter, Gate] = WeakKeyDictionary()


def limit(n: float) -> Callable[[], anyio.CapacityLimiter]:
    """
    Bound how many batch functions run at once, in each event loop by itself::

        @batch_loader(limiter=limit(10))
        async def fetch_users(ids): ...

    Safe to state at import, where an ``anyio.CapacityLimiter`` would belong to whichever event loop
    uses it first. All loaders that are given the same object share its tokens.

    :param n: how many at once; an int >= 1, or ``math.inf``
    :return: what the ``limiter`` of loaders and scopes takes: called in an event loop it returns the
        ``CapacityLimiter`` of that loop
    :raises TypeError: if ``n`` is no int
    :raises ValueError: if ``n`` is less than 1
    """
    if isinstance(n, bool) or not (isinstance(n, int) or n == math.inf):
        raise TypeError(f"limit() takes an int >= 1 or math.inf, not {n!r}")
    if n < 1:
        raise ValueError(f"limit() takes a number of tokens >= 1, not {n!r}")
    limiters: RunVar[anyio.CapacityLimiter] = RunVar(f"anyloader limit({n})")

    def limiter() -> anyio.CapacityLimiter:
        try:
            return limiters.get()
        except LookupError:
            made = anyio.CapacityLimiter(n)
            limiters.set(made)
            return made

    return limiter


def is_limiter(option: object) -> bool:
    return option is None or isinstance(option, anyio.CapacityLimiter) or callable(option)


class Gate:
    """
    A limiter in its event loop.

    What anyio does not tell is which of our batches hold tokens, without a list of all who do.
    """

    __slots__ = ("__weakref__", "_token", "holders", "limiter_ref", "number")

    def __init__(self, limiter: anyio.CapacityLimiter, token: object) -> None:
        self._token = ref(token)
        self.limiter_ref = ref(limiter)
        #: Who needs several tokens asks for them in this order.
        self.number = next(_numbers)
        #: Changed by :meth:`take`, :meth:`acquire` and :meth:`release` only.
        self.holders: dict[Batch, None] = {}

    @property
    def limiter(self) -> anyio.CapacityLimiter:
        limiter = self.limiter_ref()
        if limiter is None:  # pragma: no cover - who asks has it from a loader, which keeps it
            raise ReferenceError("the limiter is gone")
        return limiter

    def is_of(self, token: object) -> bool:
        return self._token() is token

    def take(self, batch: Batch) -> bool:
        """Take a token for a batch, if there is one now."""
        try:
            self.limiter.acquire_on_behalf_of_nowait(batch)
        except anyio.WouldBlock:
            return False
        self.holders[batch] = None
        return True

    async def acquire(self, batch: Batch) -> None:
        """Wait for a token."""
        await self.limiter.acquire_on_behalf_of(batch)
        self.holders[batch] = None

    def release(self, batch: Batch) -> None:
        del self.holders[batch]
        self.limiter.release_on_behalf_of(batch)

    def blockers(self, batch: Batch) -> Iterable[Batch] | None:
        """
        Return those of whom one has to end before ``batch`` gets a token.

        ``None`` if nobody holds it up, or nobody known: a token that somebody else holds may be
        returned whenever he likes, and tokens may be added.
        """
        limiter = self.limiter
        if batch in self.holders or limiter.available_tokens > 0 or not self.holders:
            return None
        return None if limiter.borrowed_tokens > len(self.holders) else self.holders


def gates_for(name: str, *options: LimiterOption | None) -> tuple[Any, ...]:
    """
    Return the gates of some limiters, in the order in which their tokens are to be taken.

    Called in the event loop of the loader. The limiters come with them, so that these stay.

    :param name: of the loader
    :raises TypeError: if a callable gives no limiter
    :raises RuntimeError: if a limiter belongs to another event loop
    """
    backend: Any = running_backend()
    gates: dict[Gate, anyio.CapacityLimiter] = {}
    for option in options:
        if option is None:
            continue
        limiter = option if isinstance(option, anyio.CapacityLimiter) else option()
        if not isinstance(limiter, anyio.CapacityLimiter):
            raise TypeError(
                f"limiter of {name} must give an anyio.CapacityLimiter when it is called, not "
                f"{limiter!r}"
            )
        gate = _gates.get(limiter)
        if gate is None:
            gate = _gates[limiter] = Gate(limiter, backend.token)
        if not gate.is_of(backend.token):
            raise RuntimeError(
                f"the limiter of {name} was used in another event loop before, to which an "
                "anyio.CapacityLimiter belongs; use anyloader.limit(n), which makes one for each "
                "event loop, or make the limiter where the loader is made"
            )
        gates[gate] = limiter
    return tuple(sorted(gates, key=lambda gate: gate.number)), tuple(gates.values())
