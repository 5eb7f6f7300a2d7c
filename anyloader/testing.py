"""
What is needed to test one's own batching.

With pytest, ``max_batches`` is also a fixture, once this package is installed; it does nothing
before a test calls it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from types import FrameType
from typing import Any, Generic, TypeVar

import anyio

from ._dataloader import DataLoader
from ._results import excerpt
from ._scope import BatchLoader
from ._watch import Watch
from .hooks import BatchSealed, BatchStarted, Event, LoadQueued, users_lines

__all__ = ("RecordingBatchFn", "assert_batches", "max_batches")

K = TypeVar("K")
V = TypeVar("V")

#: How many lines of one batch, and of its callers, a report shows: enough to find the loop that
#: loads one key at a time, few enough to read.
_MOST_LINES = 5
#: How many batches that differ in more than their keys.
_MOST_BATCHES = 10


class RecordingBatchFn(Generic[K, V]):
    """
    A batch function that remembers the keys of each of its calls.

    Between calls its attributes can be changed, ``value`` too.

    :param value: called with a key, it returns the value; an exception that it returns or raises
        fails this key alone. Without it keys are their own values
    :param gate: if given, calls do not return before it is set
    :param error: if given, calls raise it, and so fail the whole batch

    Used as a batch function it is a checkpoint only if it waits for the gate.
    """

    def __init__(
        self,
        value: Callable[[K], V | Exception] | None = None,
        *,
        gate: anyio.Event | None = None,
        error: Exception | None = None,
    ) -> None:
        self.value = value
        self.gate = gate
        self.error = error
        #: The keys of each call, in the order of the calls.
        self.batches: list[list[K]] = []

    async def __call__(self, keys: list[K]) -> list[V | Exception]:
        self.batches.append(list(keys))
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return [self._value_of(key) for key in keys]

    def _value_of(self, key: Any) -> Any:
        try:
            return key if self.value is None else self.value(key)
        except Exception as exc:
            return exc

    def __repr__(self) -> str:
        return f"<RecordingBatchFn: {len(self.batches)} batches {excerpt(self.batches)}>"


def assert_batches(
    source: DataLoader[K, Any] | BatchLoader[K, Any] | RecordingBatchFn[K, Any],
    expected: Sequence[Sequence[K]],
    *,
    any_order: bool = False,
) -> None:
    """
    Check which batches there were::

        fetch = RecordingBatchFn()
        async with DataLoader(fetch) as loader:
            await loader.load_many([1, 2])
            assert_batches(loader, [[1, 2]])

    :param source: a :class:`RecordingBatchFn`, or the loader that has one as its batch function
    :param expected: the keys of each call
    :param any_order: neither the order of batches nor that of keys matters: for loads from several
        tasks, whose order is nobody's promise (trio's scheduler changes it at random)
    :raises AssertionError: if there were other batches; the message shows both
    :raises TypeError: if ``source`` has no :class:`RecordingBatchFn`
    """
    function: Any = source
    if isinstance(source, DataLoader):
        function = source.batch_load_fn
    elif isinstance(source, BatchLoader):
        function = source._function
    if not isinstance(function, RecordingBatchFn):
        raise TypeError(
            f"assert_batches() needs a RecordingBatchFn, or a loader of one, not {source!r}"
        )
    actual = [list(keys) for keys in function.batches]
    wanted = [list(keys) for keys in expected]
    if actual == wanted or (any_order and _unordered(actual) == _unordered(wanted)):
        return
    lines = [f"the batches of {_name(function)} are not as expected"]
    for title, batches in ("expected", wanted), ("actual", actual):
        lines.append(f"{title}: {len(batches)} {_plural(len(batches))}")
        lines += [f"  {number}. {keys!r}" for number, keys in enumerate(batches, 1)]
    raise AssertionError("\n".join(lines))


def _unordered(batches: list[list[Any]]) -> list[list[str]]:
    return sorted(sorted(map(repr, keys)) for keys in batches)


def _name(function: RecordingBatchFn[Any, Any]) -> str:
    value = function.value
    return "RecordingBatchFn" if value is None else getattr(value, "__qualname__", repr(value))


def _plural(n: int) -> str:
    return "batch" if n == 1 else "batches"


class _Seen:
    """One batch, as a report shows it."""

    def __init__(self, loader: str) -> None:
        self.loader = loader
        self.keys: tuple[Any, ...] | None = None
        #: Where its keys were loaded, innermost line first, each with the first key from there.
        self.lines: dict[tuple[str, ...], Any] = {}

    def is_like(self, other: _Seen) -> bool:
        return self.loader == other.loader and self.lines.keys() == other.lines.keys()


@contextmanager
def max_batches(n: int, *, loader: str | None = None) -> Iterator[None]:
    """
    Guard against the N+1 problem: fail if the block sends more than ``n`` batches.

    Seen are the loaders used in the block: those of the scopes around it, those that are opened in
    it, and all that open a batch in it or in a batch function of one of these. All that such a
    loader does while the block runs counts, whoever asked for it. Not seen are scopes that a task opens
    which was started before the block, as that of a server or a worker. If the block raises, that goes
    on alone. ::

        with max_batches(2):
            await client.get("/countries/FR")

    :param n: how many batches may be sent
    :param loader: count the batches of the loader with this name only
    :raises AssertionError: if there were more; the message lists the batches that were too many,
        each with its keys and the lines of code that loaded them
    :raises TypeError: if ``n`` is not an int
    :raises ValueError: if ``n`` is negative
    """
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"max_batches() takes an int, not {n!r}")
    if n < 0:
        raise ValueError(f"max_batches() takes an int >= 0, not {n!r}")
    seen: dict[int, _Seen] = {}
    sent: list[_Seen] = []

    def hook(event: Event) -> None:
        if loader not in (None, event.loader):
            return
        if isinstance(event, LoadQueued):
            batch = seen.setdefault(event.batch, _Seen(event.loader))
            if not event.shared and len(batch.lines) < _MOST_LINES:
                batch.lines.setdefault(_callers(sys._getframe()), event.key)
        elif isinstance(event, BatchSealed) and event.size:
            sent.append(seen.setdefault(event.batch, _Seen(event.loader)))
        elif isinstance(event, BatchStarted) and event.batch in seen:
            seen[event.batch].keys = event.keys

    with Watch(hook):
        yield
    if len(sent) > n:
        raise AssertionError(_report(n, sent))


def _report(n: int, sent: list[_Seen]) -> str:
    lines = [f"expected at most {n} {_plural(n)}, got {len(sent)}; too many:"]
    left = sent[n:]
    for _ in range(_MOST_BATCHES):
        if not left:
            break
        first = left[0]
        number = len(sent) - len(left) + 1
        lines.append(f"  {number}. {first.loader} {_keys(first)}")
        for callers, key in first.lines.items():
            where = list(callers) or ["somewhere without a line of its own"]
            lines.append(f"       {excerpt(key)} from {where[0]}")
            lines += [f"         called at {line}" for line in where[1:]]
        # What a loop has sent one by one is said once.
        same = list(takewhile(first.is_like, left[1:]))
        left = left[1 + len(same) :]
        if same:
            keys = ", ".join(map(_keys, same[:_MOST_LINES]))
            more = ", ..." if len(same) > _MOST_LINES else ""
            last = f" to {number + len(same)}." if len(same) > 1 else ""
            lines.append(f"  {number + 1}.{last} from the same lines: {keys}{more}")
    if left:
        lines.append(f"  and {len(left)} more")
    return "\n".join(lines)


def _keys(batch: _Seen) -> str:
    return "keys that were not sent yet" if batch.keys is None else excerpt(list(batch.keys))


def _callers(frame: FrameType | None) -> tuple[str, ...]:
    """Return the lines of the user's own code that led to a load, innermost first."""
    lines = users_lines(frame, _MOST_LINES)
    return tuple(f"{path}:{line} in {name}" for path, line, name in lines)
