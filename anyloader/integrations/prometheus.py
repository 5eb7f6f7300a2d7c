"""Metrics of batches and loads, for ``prometheus_client``."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from ._extras import missing

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
except ModuleNotFoundError as _exc:
    raise missing("prometheus", _exc) from _exc

from ..hooks import BatchSealed, BatchStarted, Event, LoadQueued
from ._observer import OUTCOMES, SECONDS, SIZES, End, Observer, Pending, Series

__all__ = ("PrometheusHook",)


class PrometheusHook:
    """
    A hook that counts and measures; one for the whole process::

        prometheus = PrometheusHook()

        async with LoaderScope(hooks=[prometheus]): ...

    All metrics have the label ``loader``, the name of the loader:

    - ``anyloader_loads_total``, by ``result``: "hit", "shared" or "miss"
    - ``anyloader_queued_keys``, a gauge: keys that wait to be sent
    - ``anyloader_batch_wait_seconds``, a histogram: from the first load of a batch to its start
    - ``anyloader_batch_size``, a histogram of the keys that batches were sent with
    - ``anyloader_batch_seconds``, a histogram by ``outcome`` ("finished", "failed" or "cancelled"): how
      long the batch function took
    - ``anyloader_failed_keys_total``: keys that failed, by themselves or with their batch
    - ``anyloader_value_cache_keys_total``, by ``result``: "hit" or "miss"
    - ``anyloader_value_cache_failures_total``, by ``operation``

    No keys and no values are in any of them. Loads are counted when metrics are collected. In the
    client's multiprocess mode hits are, with the next batch of their loader, as another process
    collects there.

    :param registry: where the metrics are registered
    :param most_names: loaders with other names than the first so many are counted as "other", so that
        names made at run time do not fill the registry
    :raises TypeError: if ``most_names`` is no int >= 1
    """

    def __init__(self, *, registry: CollectorRegistry = REGISTRY, most_names: int = 200) -> None:
        self._handlers = _Observer(registry, most_names).handlers

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        self._handlers[type(event)](event)


class _Series(Series):
    """The metrics of one loader. What is counted is written there when somebody looks at it."""

    def __init__(self, metrics: _Metrics, name: str) -> None:
        super().__init__()
        self._metrics = metrics
        self._name = name
        loads, failed = metrics.loads, metrics.failed_keys
        self._counters: dict[str, tuple[Any, int]] = {
            "hits": (loads.labels(name, "hit"), 0),
            "shared": (loads.labels(name, "shared"), 0),
            "misses": (loads.labels(name, "miss"), 0),
            "failed": (failed.labels(name), 0),
        }
        self._queued = metrics.queued.labels(name)
        self._lock = threading.Lock()
        self.wait = metrics.wait.labels(name)
        self.size = metrics.size.labels(name)
        self.finished = metrics.seconds.labels(name, "finished")

    def write(self) -> None:
        with self._lock:
            for counted, (counter, written) in self._counters.items():
                number = getattr(self, counted)
                if number != written:
                    counter.inc(number - written)
                    self._counters[counted] = counter, number
            self._queued.set(self.queued)

    def seconds(self, outcome: str) -> Any:
        return self._metrics.seconds.labels(self._name, outcome)

    def value_cache_keys(self, result: str) -> Any:
        return self._metrics.cache_keys.labels(self._name, result)

    def value_cache_failures(self, operation: str) -> Any:
        return self._metrics.cache_failures.labels(self._name, operation)


class _Written:
    """A metric of the client that is told what was counted before it is looked at."""

    write_all: Callable[[], None]

    def collect(self) -> Iterable[Any]:
        self.write_all()
        found: Iterable[Any] = super().collect()  # type: ignore[misc]  # pyright: ignore
        return found


class _Counter(_Written, Counter):
    pass


class _Gauge(_Written, Gauge):
    pass


class _Metrics:
    def __init__(self, registry: CollectorRegistry, write_all: Callable[[], None]) -> None:
        def make(kind: Any, name: str, text: str, *labels: str, **options: Any) -> Any:
            labels = ("loader", *labels)
            return kind(f"anyloader_{name}", text, labels, registry=registry, **options)

        self.loads = make(_Counter, "loads", "Loads, by how they were answered", "result")
        self.queued = make(
            _Gauge, "queued_keys", "Keys that wait to be sent", multiprocess_mode="livesum"
        )
        self.failed_keys = make(_Counter, "failed_keys", "Keys that failed")
        for metric in (self.loads, self.queued, self.failed_keys):
            metric.write_all = write_all
        self.wait = make(
            Histogram,
            "batch_wait_seconds",
            "From the first load of a batch to its start",
            buckets=SECONDS,
        )
        self.size = make(Histogram, "batch_size", "Keys that a batch was sent with", buckets=SIZES)
        self.seconds = make(
            Histogram,
            "batch_seconds",
            "How long the batch function took",
            "outcome",
            buckets=SECONDS,
        )
        self.cache_keys = make(
            Counter, "value_cache_keys", "Keys that a value cache was asked for", "result"
        )
        self.cache_failures = make(
            Counter, "value_cache_failures", "Calls of a value cache that failed", "operation"
        )


class _Observer(Observer[_Series]):
    def __init__(self, registry: CollectorRegistry, most_names: int) -> None:
        super().__init__(lambda name: _Series(metrics, name), most_names)
        metrics = _Metrics(registry, self._write_all)
        # There another process looks, at what this one has written. The client knows both names.
        if not {"PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"}.isdisjoint(os.environ):
            for kind in (LoadQueued, BatchSealed, BatchStarted, *OUTCOMES):
                self.handlers[kind] = partial(self._handle_and_write, self.handlers[kind])

    def _handle_and_write(self, handle: Callable[[Any], object], event: Any) -> None:
        handle(event)
        self.of(event.loader).write()

    def _write_all(self) -> None:
        for series in list(self.series.values()):
            series.write()

    def start(self, batch: Pending[_Series], event: BatchStarted) -> None:
        series = batch.series
        series.wait.observe(batch.started - batch.opened)
        series.size.observe(batch.size)

    def end(self, batch: Pending[_Series], event: End, outcome: str, failed: int) -> None:
        series = batch.series
        seconds = series.finished if outcome == "finished" else series.seconds(outcome)
        seconds.observe(time.perf_counter() - batch.started)

    def asked_value_cache(self, series: _Series, found: int, missed: int) -> None:
        series.value_cache_keys("hit" if found else "miss").inc(found or missed)

    def value_cache_failed(self, series: _Series, operation: str) -> None:
        series.value_cache_failures(operation).inc()
