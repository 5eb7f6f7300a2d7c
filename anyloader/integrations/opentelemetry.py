"""Spans and metrics of batches, for OpenTelemetry."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

from ._extras import missing

try:
    from opentelemetry import context, metrics, trace
    from opentelemetry.metrics import CallbackOptions, Observation
except ModuleNotFoundError as _exc:
    raise missing("opentelemetry", _exc) from _exc

from ..hooks import BatchCancelled, BatchFailed, BatchStarted, Event, LoadQueued
from ._observer import SECONDS, SIZES, End, Observer, Pending, Series

__all__ = ("OpenTelemetryHook",)


class OpenTelemetryHook:
    """
    A hook that makes a span of each batch, and measures batches and loads::

        telemetry = OpenTelemetryHook()  # one for the whole program

        async with LoaderScope(hooks=[telemetry]): ...

    The spans follow the conventions that are proposed for GraphQL (`graphql/otel-wg
    <https://github.com/graphql/otel-wg/blob/main/spec/spans.yaml>`_): ``GraphQL DataLoader Batch
    {name}``, from the first load of the batch until its loads have settled. A span is the child of the
    one that was active where the loader, or its scope, was opened, and has links to those of its
    callers; what the batch function does is in it. Batches that are never sent have none. Attributes:

    - ``graphql.processing.type``: "dataloader_batch"
    - ``graphql.dataloader.name``
    - ``graphql.dataloader.batch.size``: the loads of the batch
    - ``graphql.dataloader.cache.miss_count``: of these, the keys that the batch function was given, and
      ``graphql.dataloader.cache.hit_count``: the others, which shared a key or were answered by the value
      cache; both only with ``cache_counts=True``
    - ``error.type``, with the status of an error: the class of what the batch function raised, or
      ``anyloader.key_error`` if single keys failed, whose number is ``anyloader.batch.errors``
    - ``anyloader.batch.reason``: why it left; ``anyloader.batch.wait``: seconds until its start;
      ``anyloader.batch.cancelled``: whether it was cancelled

    The metrics, all by ``graphql.dataloader.name``:

    - ``anyloader.loads``, by ``anyloader.result``: "hit", "shared" or "miss"
    - ``anyloader.batches``, by ``anyloader.outcome``: "finished", "failed" or "cancelled"; and
      ``anyloader.keys``, which they were sent with
    - ``anyloader.time`` and ``anyloader.wait``: seconds that batch functions took, and that batches
      waited for their start, all together
    - ``anyloader.queued``: keys that wait to be sent
    - ``anyloader.failed_keys``
    - ``anyloader.value_cache.keys``, by ``anyloader.result``: "hit" or "miss"; and
      ``anyloader.value_cache.failures``, by ``anyloader.operation``

    They are plain numbers, which are looked at when metrics are collected.

    No keys, no values and no texts of errors are in any of it. One hook can serve any number of
    loaders, scopes and event loops.

    :param tracer_provider: the global one by default
    :param meter_provider: the global one by default
    :param most_links: a span has links to so many callers; 0 for none
    :param cache_counts: whether spans tell what caches have saved
    :param histograms: whether to record ``anyloader.batch.size`` and ``anyloader.batch.duration``, which
        takes the SDK longer than all else here
    :param most_names: loaders with other names than the first so many are measured as "other"
    :raises TypeError: if ``most_links`` is no int >= 0, or ``most_names`` no int >= 1
    """

    def __init__(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        most_links: int = 128,
        cache_counts: bool = False,
        histograms: bool = False,
        most_names: int = 200,
    ) -> None:
        if isinstance(most_links, bool) or not isinstance(most_links, int) or most_links < 0:
            raise TypeError(f"most_links must be an int >= 0, not {most_links!r}")
        tracer = trace.get_tracer("anyloader", tracer_provider=tracer_provider)
        meter = metrics.get_meter("anyloader", meter_provider=meter_provider)
        series = _instruments_of(meter_provider, meter).series
        measured = _histograms(meter) if histograms else None
        observer = _Observer(tracer, series, measured, most_links, cache_counts, most_names)
        self._handlers = observer.handlers

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        self._handlers[type(event)](event)


class _Series(Series):
    """What is counted for the loaders of one name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.labels = {"graphql.dataloader.name": name}
        self.batches = {"finished": 0, "failed": 0, "cancelled": 0}
        self.keys = 0
        self.seconds = self.waited = 0.0
        self.cache_hits = self.cache_misses = 0
        self.cache_failures: dict[str, int] = {}


_Counts = Callable[[_Series], tuple[str, dict[str, int]]]


class _Instruments:
    """What one provider of meters has, whatever the number of hooks."""

    def __init__(self, meter: metrics.Meter) -> None:
        self.series: dict[str, _Series] = {}
        counter = meter.create_observable_counter
        self._observe(counter, "loads", "{load}", "Loads, by their answer", _loads)
        self._observe(counter, "batches", "{batch}", "Batches, by their outcome", _batches)
        self._observe(counter, "keys", "{key}", "Keys that batches were sent with", "keys")
        self._observe(counter, "time", "s", "What batch functions took", "seconds")
        self._observe(counter, "wait", "s", "What batches waited for their start", "waited")
        up_and_down = meter.create_observable_up_down_counter
        self._observe(up_and_down, "queued", "{key}", "Keys that wait to be sent", "queued")
        self._observe(counter, "failed_keys", "{key}", "Keys that failed", "failed")
        asked = "Keys that a value cache was asked for"
        self._observe(counter, "value_cache.keys", "{key}", asked, _asked)
        failures = "Calls of a value cache that failed"
        self._observe(counter, "value_cache.failures", "{call}", failures, _cache_failures)

    def _observe(
        self, make: Any, name: str, unit: str, description: str, counts: str | _Counts
    ) -> None:
        """:param counts: what gives the numbers of a series, with their labels; or its one number"""
        known = self.series

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            for series in list(known.values()):
                if isinstance(counts, str):
                    yield Observation(getattr(series, counts), series.labels)
                else:
                    label, numbers = counts(series)
                    for value, number in list(numbers.items()):
                        labels = {**series.labels, f"anyloader.{label}": value}
                        yield Observation(number, labels)

        make(f"anyloader.{name}", callbacks=[observe], unit=unit, description=description)


def _histograms(meter: metrics.Meter) -> tuple[metrics.Histogram, metrics.Histogram]:
    return (
        meter.create_histogram(
            "anyloader.batch.size",
            unit="{key}",
            description="Keys that a batch was sent with",
            explicit_bucket_boundaries_advisory=SIZES,
        ),
        meter.create_histogram(
            "anyloader.batch.duration",
            unit="s",
            description="How long the batch function took",
            explicit_bucket_boundaries_advisory=SECONDS,
        ),
    )


#: By provider; and those of the whole program, as hooks can be made before its provider is set.
#: Nothing in a value holds its provider, or none would ever go.
_instruments: WeakKeyDictionary[metrics.MeterProvider, _Instruments] = WeakKeyDictionary()
_global_instruments: list[_Instruments] = []


def _instruments_of(provider: metrics.MeterProvider | None, meter: metrics.Meter) -> _Instruments:
    """An instrument exists once: of a second one of the same name the SDK never asks the callback."""
    program = metrics.get_meter_provider()
    provider = program if provider is None else provider
    known = _instruments.get(provider)
    if known is None:
        known = (
            _global_instruments[0]
            if provider is program and _global_instruments
            else _Instruments(meter)
        )
        _instruments[provider] = known
    if provider is program and not _global_instruments:
        _global_instruments.append(known)
    return known


class _Observer(Observer[_Series]):
    def __init__(
        self,
        tracer: trace.Tracer,
        series: dict[str, _Series],
        histograms: tuple[metrics.Histogram, metrics.Histogram] | None,
        most_links: int,
        cache_counts: bool,
        most_names: int,
    ) -> None:
        super().__init__(_Series, most_names)
        self._tracer = tracer
        self._most_links = most_links
        self._cache_counts = cache_counts
        self.series = series
        self._histograms = histograms

    def on_queued(self, event: LoadQueued) -> Pending[_Series] | None:
        batch = super().on_queued(event)
        if batch is not None:
            current = context.get_current()
            # One caller loads many keys more often than not.
            if current is not batch.context:
                batch.context = current
                caller = trace.get_current_span(current)
                if caller is not trace.INVALID_SPAN:
                    self._link(batch, caller)
        return batch

    def _link(self, batch: Pending[_Series], caller: trace.Span) -> None:
        callers = batch.callers
        if caller in callers or len(callers) >= self._most_links:
            return
        span_context = caller.get_span_context()
        if span_context.is_valid:
            callers[caller] = trace.Link(span_context)
            if batch.span is not None:  # who shares a key that is on its way
                batch.span.add_link(span_context)

    def start(self, batch: Pending[_Series], event: BatchStarted) -> None:
        wait = batch.started - batch.opened
        series = batch.series
        series.keys += batch.size
        series.waited += wait
        # The event comes in the context of the batch function, which is that of the opening.
        current = context.get_current()
        batch.told = loads = batch.keys + batch.shared
        batch.span = span = self._tracer.start_span(
            f"GraphQL DataLoader Batch {event.loader}",
            current,
            links=list(batch.callers.values()),
            # All at once, as the SDK takes a lock for each that is set later.
            attributes={
                "graphql.processing.type": "dataloader_batch",
                "graphql.dataloader.name": event.loader,
                "graphql.dataloader.batch.size": loads,
                "anyloader.batch.reason": batch.reason,
                "anyloader.batch.wait": wait,
            },
            start_time=time.time_ns() - int(wait * 1e9),
        )
        # Never detached, as nothing else uses this context, and it ends with the function.
        context.attach(trace.set_span_in_context(span, current))
        if self._histograms is not None:
            self._histograms[0].record(batch.size, series.labels)

    def end(self, batch: Pending[_Series], event: End, outcome: str, failed: int) -> None:
        series = batch.series
        seconds = time.perf_counter() - batch.started
        series.batches[outcome] += 1
        series.seconds += seconds
        if self._histograms is not None:
            self._histograms[1].record(seconds, {**series.labels, "anyloader.outcome": outcome})
        span = batch.span
        if span.is_recording():
            self._describe(span, batch, event, failed)
        span.end()

    def _describe(self, span: trace.Span, batch: Pending[_Series], event: End, failed: int) -> None:
        loads = batch.keys + batch.shared
        if loads != batch.told:
            span.set_attribute("graphql.dataloader.batch.size", loads)
        if self._cache_counts:
            span.set_attribute("graphql.dataloader.cache.miss_count", batch.size)
            span.set_attribute("graphql.dataloader.cache.hit_count", loads - batch.size)
        if isinstance(event, BatchCancelled):
            span.set_attribute("anyloader.batch.cancelled", True)
        elif failed:
            error = "anyloader.key_error"
            if isinstance(event, BatchFailed):
                error = type(event.error).__qualname__
            span.set_attributes({"error.type": error, "anyloader.batch.errors": failed})
            span.set_status(trace.StatusCode.ERROR)

    def asked_value_cache(self, series: _Series, found: int, missed: int) -> None:
        series.cache_hits += found
        series.cache_misses += missed

    def value_cache_failed(self, series: _Series, operation: str) -> None:
        failures = series.cache_failures
        failures[operation] = failures.get(operation, 0) + 1


# A label, and a number for each of its values.


def _loads(series: _Series) -> tuple[str, dict[str, int]]:
    return "result", {"hit": series.hits, "shared": series.shared, "miss": series.misses}


def _batches(series: _Series) -> tuple[str, dict[str, int]]:
    return "outcome", series.batches


def _asked(series: _Series) -> tuple[str, dict[str, int]]:
    return "result", {"hit": series.cache_hits, "miss": series.cache_misses}


def _cache_failures(series: _Series) -> tuple[str, dict[str, int]]:
    return "operation", series.cache_failures
