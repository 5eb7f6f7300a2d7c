"""Metrics of batches and loads, for ``prometheus_client``."""

from __future__ import annotations

import time

from ._extras import missing

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
except ModuleNotFoundError as _exc:
    raise missing("prometheus", _exc) from _exc

from ..hooks import (
    BatchCancelled,
    BatchFailed,
    BatchFinished,
    BatchStarted,
    Event,
    LoadHit,
    LoadQueued,
    ValueCacheFailed,
    ValueCacheHit,
    ValueCacheMiss,
)

__all__ = ("PrometheusHook",)

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000)


class PrometheusHook:
    """
    A hook that counts and measures; one for the whole process::

        prometheus = PrometheusHook()

        async with LoaderScope(hooks=[prometheus]): ...

    All metrics have the label ``loader``: the histograms ``anyloader_batch_size`` and
    ``anyloader_batch_seconds`` (also by ``outcome``), and the counters ``anyloader_loads_total`` (by
    ``result``: "hit", "shared" or "miss"), ``anyloader_value_cache_keys_total`` (by ``result``: "hit"
    or "miss") and ``anyloader_value_cache_failures_total`` (by ``operation``).

    :param registry: where the metrics are registered
    """

    def __init__(self, *, registry: CollectorRegistry = REGISTRY) -> None:
        self._size = Histogram(
            "anyloader_batch_size",
            "Keys that a batch was sent with",
            ["loader"],
            buckets=_SIZES,
            registry=registry,
        )
        self._seconds = Histogram(
            "anyloader_batch_seconds",
            "How long the batch function took",
            ["loader", "outcome"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._loads = Counter(
            "anyloader_loads",
            "Loads, by how they were answered",
            ["loader", "result"],
            registry=registry,
        )
        self._cache_keys = Counter(
            "anyloader_value_cache_keys",
            "Keys that a value cache was asked for",
            ["loader", "result"],
            registry=registry,
        )
        self._cache_failures = Counter(
            "anyloader_value_cache_failures",
            "Calls of a value cache that failed",
            ["loader", "operation"],
            registry=registry,
        )
        #: When batches started, by their numbers.
        self._started: dict[int, float] = {}

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        loader = event.loader
        if isinstance(event, LoadHit):
            self._loads.labels(loader, "hit").inc()
        elif isinstance(event, LoadQueued):
            self._loads.labels(loader, "shared" if event.shared else "miss").inc()
        elif isinstance(event, BatchStarted):
            self._size.labels(loader).observe(len(event.keys))
            self._started[event.batch] = time.perf_counter()
        elif isinstance(event, ValueCacheHit):
            self._cache_keys.labels(loader, "hit").inc(len(event.keys))
        elif isinstance(event, ValueCacheMiss):
            self._cache_keys.labels(loader, "miss").inc(len(event.keys))
        elif isinstance(event, ValueCacheFailed):
            self._cache_failures.labels(loader, event.operation).inc()
        elif isinstance(event, (BatchFinished, BatchFailed, BatchCancelled)):
            started = self._started.pop(event.batch, None)
            if started is not None:
                outcome = type(event).__name__.removeprefix("Batch").lower()
                self._seconds.labels(loader, outcome).observe(time.perf_counter() - started)
