"""Spans and metrics of batches, for OpenTelemetry."""

from __future__ import annotations

import time
from typing import Any

from ._extras import missing

try:
    from opentelemetry import context, metrics, trace
except ModuleNotFoundError as _exc:
    raise missing("opentelemetry", _exc) from _exc

from ..hooks import (
    BatchCancelled,
    BatchFailed,
    BatchFinished,
    BatchSealed,
    BatchStarted,
    Event,
    LoadHit,
    LoadQueued,
    ValueCacheFailed,
    ValueCacheHit,
    ValueCacheMiss,
)

__all__ = ("OpenTelemetryHook",)

#: Batches take from a fraction of a millisecond, in memory, to seconds.
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
#: Half of the sizes above 100 matter to nobody who asks why batches are small.
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000)


class OpenTelemetryHook:
    """
    A hook that makes a span of each batch, and measures batches and loads::

        telemetry = OpenTelemetryHook()

        async with LoaderScope(hooks=[telemetry]): ...

    The span lasts as long as the batch function. It is the child of the span that was active where
    the loader, or its scope, was opened, and has links to the spans of all callers; what the batch
    function does is in it. Its attributes say ``anyloader.loader``, ``anyloader.batch.size``,
    ``.reason``, ``.shared`` (loads that shared a key), ``.wait`` (seconds from the first load to the
    call), ``.errors`` (keys that failed), and ``anyloader.value_cache.hits`` and ``.misses``.

    The metrics are ``anyloader.batch.size``, ``anyloader.batch.duration``, ``anyloader.loads`` (by
    ``anyloader.result``: "hit", "shared" or "miss"), ``anyloader.value_cache.keys`` (by
    ``anyloader.result``: "hit" or "miss") and ``anyloader.value_cache.failures``, all by
    ``anyloader.loader``.

    One hook can serve any number of loaders, scopes and event loops.

    :param tracer_provider: the global one by default
    :param meter_provider: the global one by default
    """

    def __init__(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self._tracer = trace.get_tracer("anyloader", tracer_provider=tracer_provider)
        meter = metrics.get_meter("anyloader", meter_provider=meter_provider)
        self._size = meter.create_histogram(
            "anyloader.batch.size",
            unit="{key}",
            description="Keys that a batch was sent with",
            explicit_bucket_boundaries_advisory=_SIZES,
        )
        self._duration = meter.create_histogram(
            "anyloader.batch.duration",
            unit="s",
            description="How long the batch function took",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._loads = meter.create_counter(
            "anyloader.loads", unit="{load}", description="Loads, by how they were answered"
        )
        self._cache_keys = meter.create_counter(
            "anyloader.value_cache.keys",
            unit="{key}",
            description="Keys that a value cache was asked for",
        )
        self._cache_failures = meter.create_counter(
            "anyloader.value_cache.failures",
            unit="{call}",
            description="Calls of a value cache that failed",
        )
        #: By number; those that are not done.
        self._batches: dict[int, _Batch] = {}

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        by_loader = {"anyloader.loader": event.loader}
        if isinstance(event, LoadHit):
            self._loads.add(1, {**by_loader, "anyloader.result": "hit"})
            return
        if isinstance(event, ValueCacheFailed):  # may come after the end
            failed = {**by_loader, "anyloader.operation": event.operation}
            self._cache_failures.add(1, failed)
            return
        batch = self._batches.get(event.batch)
        if batch is None:
            batch = self._batches[event.batch] = _Batch()
        if isinstance(event, LoadQueued):
            result = "shared" if event.shared else "miss"
            self._loads.add(1, {**by_loader, "anyloader.result": result})
            batch.shared += event.shared
            batch.link(trace.get_current_span().get_span_context())
        elif isinstance(event, BatchSealed):
            batch.reason = event.reason
            if not event.size:
                del self._batches[event.batch]
        elif isinstance(event, BatchStarted):
            self._size.record(len(event.keys), by_loader)
            self._start(batch, event)
        elif isinstance(event, (ValueCacheHit, ValueCacheMiss)):
            result, plural = (
                ("hit", "hits") if isinstance(event, ValueCacheHit) else ("miss", "misses")
            )
            self._cache_keys.add(len(event.keys), {**by_loader, "anyloader.result": result})
            batch.set(f"anyloader.value_cache.{plural}", len(event.keys))
        elif isinstance(event, (BatchFinished, BatchFailed, BatchCancelled)):
            del self._batches[event.batch]
            self._end(batch, event)

    def _start(self, batch: _Batch, event: BatchStarted) -> None:
        now = time.perf_counter()
        batch.started = now
        # The event comes in the context of the batch function, which is that of the opening.
        batch.span = self._tracer.start_span(
            f"batch {event.loader}",
            links=[trace.Link(caller) for caller in batch.callers.values()],
            attributes={
                "anyloader.loader": event.loader,
                "anyloader.batch.size": len(event.keys),
                "anyloader.batch.reason": batch.reason,
                "anyloader.batch.wait": now - batch.opened,
            },
        )
        # Never detached, as nothing else uses this context, and it ends with the function.
        context.attach(trace.set_span_in_context(batch.span))

    def _end(self, batch: _Batch, event: BatchFinished | BatchFailed | BatchCancelled) -> None:
        if batch.span is trace.INVALID_SPAN:
            return
        outcome = {BatchFinished: "finished", BatchFailed: "failed", BatchCancelled: "cancelled"}
        self._duration.record(
            time.perf_counter() - batch.started,
            {"anyloader.loader": event.loader, "anyloader.outcome": outcome[type(event)]},
        )
        batch.set("anyloader.batch.shared", batch.shared)
        if isinstance(event, BatchFinished):
            batch.set("anyloader.batch.errors", event.errors)
        elif isinstance(event, BatchFailed):
            batch.span.record_exception(event.error)
            batch.span.set_status(trace.StatusCode.ERROR, type(event.error).__name__)
        else:
            batch.set("anyloader.batch.cancelled", event.why)
        batch.span.end()


class _Batch:
    def __init__(self) -> None:
        self.opened = time.perf_counter()
        self.started = self.opened
        self.reason = ""
        self.shared = 0
        #: In order, each once.
        self.callers: dict[tuple[int, int], trace.SpanContext] = {}
        #: Until it starts, one that takes no note of anything.
        self.span: trace.Span = trace.INVALID_SPAN

    def link(self, caller: trace.SpanContext) -> None:
        identity = (caller.trace_id, caller.span_id)
        if not caller.is_valid or identity in self.callers:
            return
        self.callers[identity] = caller
        self.span.add_link(caller)  # one that shares a key that is on its way

    def set(self, name: str, value: Any) -> None:
        self.span.set_attribute(name, value)
