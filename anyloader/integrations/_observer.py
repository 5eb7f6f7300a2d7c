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

__all__ = ("OTHER", "OUTCOMES", "SECONDS", "SIZES", "End", "Observer", "Pending", "Series")

#: Batches take from a fraction of a millisecond, in memory, to seconds.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
#: Half of the sizes above 100 matter to nobody who asks why batches are small.
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000)

#: Stands for all loaders beyond the first so many.
OTHER = "other"

End = BatchFinished | BatchFailed | BatchCancelled

#: What has become of a batch.
OUTCOMES: dict[type[Any], str] = {
    BatchFinished: "finished",
    BatchFailed: "failed",
    BatchCancelled: "cancelled",
}


class Series:
    """What is counted for the loaders of one name: plain numbers, as a metric takes several times as long."""

    def __init__(self) -> None:
        self.hits = self.shared = self.misses = self.failed = 0
        #: How many of the keys that were missing do not wait any more.
        self.left = 0

    @property
    def queued(self) -> int:
        return self.misses - self.left


S = TypeVar("S", bound=Series)


class Pending(Generic[S]):
    """A batch that is not done."""

    __slots__ = (
        "callers",
        "context",
        "keys",
        "opened",
        "reason",
        "series",
        "shared",
        "size",
        "span",
        "started",
        "told",
    )

    def __init__(self, series: S) -> None:
        self.series = series
        #: In seconds, of ``time.perf_counter``.
        self.opened = time.perf_counter()
        self.started: Any = None
        self.keys = self.shared = 0
        #: With how many keys it was sealed; from the start on, how many were sent, without those a
        #: value cache had.
        self.size = 0
        #: Why it was sealed, if it was.
        self.reason = ""
        # Of the one hook that makes spans: links by caller, the context that was looked at last, and how
        # many loads the span was told of.
        self.callers: dict[Any, Any] = {}
        self.context: Any = None
        self.span: Any = None
        self.told = 0


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
        self.handlers: dict[type[Any], Callable[[Any], object]] = {
            LoadHit: self._on_hit,
            LoadQueued: self.on_queued,
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

    def start(self, batch: Pending[S], event: BatchStarted) -> None:
        raise NotImplementedError

    def end(self, batch: Pending[S], event: End, outcome: str, failed: int) -> None:
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

    def _on_hit(self, event: LoadHit) -> None:
        (self.series.get(event.loader) or self.of(event.loader)).hits += 1

    def _on_opened(self, event: BatchOpened) -> None:
        series = self.series.get(event.loader) or self.of(event.loader)
        self.batches[event.batch] = Pending(series)

    def on_queued(self, event: LoadQueued) -> Pending[S] | None:
        batch = self.batches.get(event.batch)
        if batch is None:  # its opening was before this hook's time
            return None
        if event.shared:
            batch.shared += 1
            batch.series.shared += 1
        else:
            batch.keys += 1
            batch.series.misses += 1
        return batch

    def _on_sealed(self, event: BatchSealed) -> None:
        batch = self.batches.get(event.batch)
        if batch is not None:
            batch.reason = event.reason
            batch.size = size = event.size
            if size != batch.keys:
                batch.series.left += batch.keys - size
            if not size:  # with deferred hits alone there never was one
                del self.batches[event.batch]

    def _on_started(self, event: BatchStarted) -> None:
        batch = self.batches.get(event.batch)
        if batch is not None:
            batch.started = time.perf_counter()
            batch.series.left += batch.size
            batch.size = len(event.keys)
            self.start(batch, event)

    def _on_end(self, event: End) -> None:
        batch = self.batches.pop(event.batch, None)
        if batch is None:
            return
        if batch.started is None:
            batch.series.left += batch.size if batch.reason else batch.keys
            return
        failed = 0
        if isinstance(event, BatchFinished):
            failed = event.errors
        elif isinstance(event, BatchFailed):
            failed = batch.size
        if failed:
            batch.series.failed += failed
        self.end(batch, event, OUTCOMES[type(event)], failed)

    def _on_value_cache(self, event: ValueCacheHit | ValueCacheMiss) -> None:
        keys = len(event.keys)
        found, missed = (keys, 0) if type(event) is ValueCacheHit else (0, keys)
        batch = self.batches.get(event.batch)
        if batch is not None:
            batch.size -= found
        self.asked_value_cache(self.of(event.loader), found, missed)

    def _on_value_cache_failed(self, event: ValueCacheFailed) -> None:
        self.value_cache_failed(self.of(event.loader), event.operation)
