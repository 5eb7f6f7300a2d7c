"""What a hook that observes adds to a load, with the real SDK and the real client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import anyloader

from ._contenders import batch, is_installed
from ._measure import Contest, Sample, cpu_time

Make = Callable[[], Any]


def _prometheus() -> Any:
    client = import_module("prometheus_client")
    from anyloader.integrations.prometheus import PrometheusHook

    return PrometheusHook(registry=client.CollectorRegistry())


def _tracer_provider(sampled: bool) -> Any:
    """What an exporter takes is its own matter."""
    tracing = import_module("opentelemetry.sdk.trace")
    sampling = import_module("opentelemetry.sdk.trace.sampling")
    sampler = sampling.ALWAYS_ON if sampled else sampling.ALWAYS_OFF
    return tracing.TracerProvider(sampler, shutdown_on_exit=False)


def _opentelemetry(sampled: bool) -> Any:
    """Metrics and spans, which go nowhere."""
    measuring = import_module("opentelemetry.sdk.metrics")
    exporting = import_module("opentelemetry.sdk.metrics.export")
    from anyloader.integrations.opentelemetry import OpenTelemetryHook

    return OpenTelemetryHook(
        tracer_provider=_tracer_provider(sampled),
        meter_provider=measuring.MeterProvider(
            [exporting.InMemoryMetricReader()], shutdown_on_exit=False
        ),
    )


def _sdk_alone(sampled: bool) -> float:
    """The least that a span for each batch takes, in a loop of nothing else."""
    trace: Any = import_module("opentelemetry.trace")
    context: Any = import_module("opentelemetry.context")
    tracer = _tracer_provider(sampled).get_tracer("anyloader")
    began = cpu_time()
    for _ in range(1_000):
        span = tracer.start_span(
            "GraphQL DataLoader Batch fetch",
            attributes={
                "graphql.processing.type": "dataloader_batch",
                "graphql.dataloader.name": "fetch",
                "graphql.dataloader.batch.size": 1,
                "anyloader.batch.reason": "schedule",
                "anyloader.batch.wait": 0.001,
            },
        )
        token = context.attach(trace.set_span_in_context(span))
        context.detach(token)
        span.end()
    return (cpu_time() - began) / 1_000


def _sample(hits: bool, make: Make | None) -> float:
    hooks = [] if make is None else [make()]

    async def main() -> float:
        async with anyloader.DataLoader(batch, hooks=hooks) as loader:
            await loader.load(0)
            began = cpu_time()
            if hits:
                for _ in range(5_000):
                    await loader.load(0)
                return (cpu_time() - began) / 5_000
            for key in range(1, 1_001):
                await loader.load(key)
            return (cpu_time() - began) / 1_000

    return asyncio.run(main())


def observing_contests(*, hits: bool) -> Iterator[Contest]:
    makers: dict[str, Make] = {}
    if is_installed("prometheus_client"):
        makers["Prometheus"] = _prometheus
    if is_installed("opentelemetry"):
        makers["OpenTelemetry, no span sampled"] = partial(_opentelemetry, False)
        makers["OpenTelemetry"] = partial(_opentelemetry, True)
    for name, make in makers.items():
        samples: dict[str, Sample] = {
            "the hook": partial(_added, hits, make),
            "1 us": lambda: 1e-6,
        }
        if isinstance(make, partial) and not hits:
            samples["the SDK alone"] = partial(_sdk_alone, *make.args)
        pairs = [(contender, "1 us") for contender in samples if contender != "1 us"]
        yield Contest(name, samples, pairs)


def _added(hits: bool, make: Make) -> float:
    return _sample(hits, make) - _sample(hits, None)
