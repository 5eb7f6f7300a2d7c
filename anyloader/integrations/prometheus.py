"""Metrics of batches and loads, for ``prometheus_client``."""

from __future__ import annotations

import time
from typing import Any

from ._extras import missing

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
except ModuleNotFoundError as _exc:
    raise missing("prometheus", _exc) from _exc

from ..hooks import BatchStarted, Event, LoadHit
from ._observer import SECONDS, SIZES, End, Observer, Pending

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

    No keys and no values are in any of them.

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


class _Series:
    """The metrics of one loader; looked up once, as that takes longer than to count."""

    def __init__(self, metrics: _Metrics, name: str) -> None:
        self._metrics = metrics
        self._name = name
        self.hits, self.shared, self.misses = (
            metrics.loads.labels(name, result) for result in ("hit", "shared", "miss")
        )
        self.queued = metrics.queued.labels(name)
        self.wait = metrics.wait.labels(name)
        self.size = metrics.size.labels(name)
        self.finished = metrics.seconds.labels(name, "finished")
        self.failed_keys = metrics.failed_keys.labels(name)

    def seconds(self, outcome: str) -> Any:
        return self._metrics.seconds.labels(self._name, outcome)

    def value_cache_keys(self, result: str) -> Any:
        return self._metrics.cache_keys.labels(self._name, result)

    def value_cache_failures(self, operation: str) -> Any:
        return self._metrics.cache_failures.labels(self._name, operation)


class _Metrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        def make(kind: Any, name: str, text: str, *labels: str, **options: Any) -> Any:
            labels = ("loader", *labels)
            return kind(f"anyloader_{name}", text, labels, registry=registry, **options)

        self.loads = make(Counter, "loads", "Loads, by how they were answered", "result")
        self.queued = make(
            Gauge, "queued_keys", "Keys that wait to be sent", multiprocess_mode="livesum"
        )
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
        self.failed_keys = make(Counter, "failed_keys", "Keys that failed")
        self.cache_keys = make(
            Counter, "value_cache_keys", "Keys that a value cache was asked for", "result"
        )
        self.cache_failures = make(
            Counter, "value_cache_failures", "Calls of a value cache that failed", "operation"
        )


class _Observer(Observer[_Series]):
    def __init__(self, registry: CollectorRegistry, most_names: int) -> None:
        super().__init__(lambda name: _Series(metrics, name), most_names)
        metrics = _Metrics(registry)

    def on_hit(self, event: LoadHit) -> None:
        (self.series.get(event.loader) or self.of(event.loader)).hits.inc()

    def queued(self, batch: Pending[_Series], shared: bool) -> None:
        series = batch.series
        if shared:
            series.shared.inc()
        else:
            series.misses.inc()
            series.queued.inc()

    def waiting(self, series: _Series, change: int) -> None:
        series.queued.inc(change)

    def start(self, batch: Pending[_Series], event: BatchStarted) -> None:
        series = batch.series
        series.wait.observe(batch.started - batch.opened)
        series.size.observe(batch.keys)

    def end(self, batch: Pending[_Series], event: End, failed: int) -> None:
        series = batch.series
        outcome = type(event).__name__.removeprefix("Batch").lower()
        seconds = series.finished if outcome == "finished" else series.seconds(outcome)
        seconds.observe(time.perf_counter() - batch.started)
        if failed:
            series.failed_keys.inc(failed)

    def asked_value_cache(self, series: _Series, found: int, missed: int) -> None:
        series.value_cache_keys("hit" if found else "miss").inc(found or missed)

    def value_cache_failed(self, series: _Series, operation: str) -> None:
        series.value_cache_failures(operation).inc()
