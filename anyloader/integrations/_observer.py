"""What the hooks for OpenTelemetry and Prometheus share: the batches on their way, and series by loader."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ..hooks import (
    BatchCancelled,
    BatchFailed,
    BatchFinished,
    BatchOpened,
    BatchSealed,
    BatchStarted,
    LoadHit,
    LoadQueued,
    ValueCacheFailed,
    ValueCacheHit,
    ValueCacheMiss,
)

__all__ = ("OTHER", "OUTCOMES", "SECONDS", "SIZES", "End", "Observer", "Pending")

#: Batches take from a fraction of a millisecond, in memory, to seconds.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
#: Half of the sizes above 100 matter to nobody who asks why batches are small.
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000)

#: Stands for all loaders beyond the first so many.
OTHER = "other"

S = TypeVar("S")

End = BatchFinished | BatchFailed | BatchCancelled

#: What has become of a batch.
OUTCOMES: dict[type[Any], str] = {
    BatchFinished: "finished",
    BatchFailed: "failed",
    BatchCancelled: "cancelled",
}


class Pending(Generic[S]):
    """A batch that is not done."""

    __slots__ = (
        "callers",
        "keys",
        "loads",
        "name",
        "opened",
        "reason",
        "series",
        "span",
        "started",
    )

    def __init__(self, name: str, series: S) -> None:
        self.name = name
        self.series = series
        #: In seconds, of ``time.perf_counter``.
        self.opened = time.perf_counter()
        self.started: Any = None
        self.loads = 0
        #: How many are queued; from the start on, how many were sent, without those a value cache had.
        self.keys = 0
        self.reason = ""
        # Of the one hook that makes spans.
        self.callers: Any = None
        self.span: Any = None


class Observer(Generic[S]):
    """
    :param make_series: makes what is counted for the loaders of one name
    :param most_names: after so many names all others are counted as ``OTHER``
    """

    def __init__(self, make_series: Callable[[str], S], most_names: int) -> None:
        if isinstance(most_names, bool) or not isinstance(most_names, int) or most_names < 1:
            raise TypeError(f"most_names must be an int >= 1, not {most_names!r}")
        self._make_series = make_series
        self._most_names = most_names
        self.series: dict[str, S] = {}
        #: By number. A batch is here from its opening to its end, and what is told of it afterwards
        #: is told of no batch.
        self.batches: dict[int, Pending[S]] = {}
        #: What is to be done with an event, by its class.
        self.handlers: dict[type[Any], Callable[[Any], None]] = {
            LoadHit: self.on_hit,
            LoadQueued: self._on_queued,
            BatchOpened: self._on_opened,
            BatchSealed: self._on_sealed,
            BatchStarted: self._on_started,
            BatchFinished: self._on_end,
            BatchFailed: self._on_end,
            BatchCancelled: self._on_end,
            ValueCacheHit: self._on_value_cache,
            ValueCacheMiss: self._on_value_cache,
            ValueCacheFailed: self._on_value_cache_failed,
        }

    def of(self, loader: str) -> S:
        """Return the series of a loader, by its name."""
        series = self.series.get(loader)
        if series is None:
            name = loader if len(self.series) < self._most_names else OTHER
            series = self.series.get(name)
            if series is None:
                series = self.series[name] = self._make_series(name)
        return series

    # What the hook does with it

    def on_hit(self, event: LoadHit) -> None:
        raise NotImplementedError

    def queued(self, batch: Pending[S], shared: bool) -> None:
        raise NotImplementedError

    def waiting(self, series: S, change: int) -> None:
        """So many keys more wait to be sent."""
        raise NotImplementedError

    def start(self, batch: Pending[S], event: BatchStarted) -> None:
        raise NotImplementedError

    def end(self, batch: Pending[S], event: End, failed: int) -> None:
        """
        A batch has ended that had started.

        :param failed: how many keys failed
        """
        raise NotImplementedError

    def asked_value_cache(self, series: S, found: int, missed: int) -> None:
        raise NotImplementedError

    def value_cache_failed(self, series: S, operation: str) -> None:
        raise NotImplementedError

    # Events

    def _on_opened(self, event: BatchOpened) -> None:
        self.batches[event.batch] = Pending(event.loader, self.of(event.loader))

    def _on_queued(self, event: LoadQueued) -> None:
        batch = self.batches.get(event.batch)
        if batch is not None:  # or its opening was before this hook's time
            batch.loads += 1
            if not event.shared:
                batch.keys += 1
            self.queued(batch, event.shared)

    def _on_sealed(self, event: BatchSealed) -> None:
        batch = self.batches.get(event.batch)
        if batch is not None:
            batch.reason = event.reason
            self._set_keys(batch, event.size)
            if not event.size:
                del self.batches[event.batch]

    def _set_keys(self, batch: Pending[S], keys: int) -> None:
        if keys != batch.keys:
            self.waiting(batch.series, keys - batch.keys)
            batch.keys = keys

    def _on_started(self, event: BatchStarted) -> None:
        batch = self.batches.get(event.batch)
        if batch is not None:
            batch.started = time.perf_counter()
            self._set_keys(batch, 0)
            batch.keys = len(event.keys)
            self.start(batch, event)

    def _on_end(self, event: End) -> None:
        batch = self.batches.pop(event.batch, None)
        if batch is None:
            return
        if batch.started is None:
            self._set_keys(batch, 0)
            return
        failed = 0
        if isinstance(event, BatchFinished):
            failed = event.errors
        elif isinstance(event, BatchFailed):
            failed = batch.keys
        self.end(batch, event, failed)

    def _on_value_cache(self, event: ValueCacheHit | ValueCacheMiss) -> None:
        keys = len(event.keys)
        found, missed = (keys, 0) if type(event) is ValueCacheHit else (0, keys)
        batch = self.batches.get(event.batch)
        if batch is not None:
            batch.keys -= found
        self.asked_value_cache(self.of(event.loader), found, missed)

    def _on_value_cache_failed(self, event: ValueCacheFailed) -> None:
        self.value_cache_failed(self.of(event.loader), event.operation)
