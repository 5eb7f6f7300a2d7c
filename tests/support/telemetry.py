"""A hook for OpenTelemetry, with what it has exported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from anyloader.hooks import BatchOpened

__all__ = ("Telemetry", "telemetry")


class Telemetry:
    """A hook, and what it has exported."""

    def __init__(self) -> None:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        from anyloader.integrations.opentelemetry import OpenTelemetryHook

        self.exporter = InMemorySpanExporter()
        self.traces = TracerProvider(shutdown_on_exit=False)
        self.traces.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.hook = OpenTelemetryHook(
            tracer_provider=self.traces, meter_provider=self.meters, histograms=True
        )
        self.span: Callable[[str], Any] = self.traces.get_tracer("test").start_as_current_span

    def open_batches(self) -> Any:
        handler: Any = self.hook._handlers[BatchOpened]
        return handler.__self__.batches

    def named(self, name: str) -> list[Any]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def of(self, name: str) -> Any:
        (span,) = self.named(name)
        return span

    def metrics(self) -> dict[str, Any]:
        """Give the points of each metric by the values of their attributes."""
        data: Any = self.reader.get_metrics_data()
        return {
            metric.name: {
                tuple(value for _, value in sorted(dict(point.attributes).items())): point
                for point in metric.data.data_points
            }
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def telemetry() -> Telemetry:
    pytest.importorskip("opentelemetry.sdk")
    return Telemetry()
