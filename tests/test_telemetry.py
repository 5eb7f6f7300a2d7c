"""Spans and metrics, against the real SDK of OpenTelemetry and the real Prometheus client."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio
import pytest

from anyloader import DataLoader, LoaderScope, schedules
from support import Recorder, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio


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
        self.hook = OpenTelemetryHook(tracer_provider=self.traces, meter_provider=self.meters)
        self.span: Callable[[str], Any] = self.traces.get_tracer("test").start_as_current_span

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


async def echo(keys: list[int]) -> list[int]:
    return keys


def ids(spans: Sequence[Any]) -> set[int]:
    return {span.context.span_id for span in spans}


@pytest.mark.parametrize("how", ["loader", "scope", "task group"])
async def test_a_batch_is_a_child_of_where_the_loader_was_opened_and_linked_to_all_callers(
    telemetry: Telemetry, how: str
) -> None:
    async def call(loader: DataLoader[int, int], key: int) -> None:
        with telemetry.span(f"caller {key}"):
            await loader.load(key)

    async def callers(loader: DataLoader[int, int]) -> None:
        async with anyio.create_task_group() as group:
            for key in (1, 2, 2, 1):
                group.start_soon(call, loader, key)

    with telemetry.span("opened here"):
        if how == "loader":
            async with DataLoader(echo, hooks=[telemetry.hook]) as loader:
                await callers(loader)
        elif how == "scope":
            async with LoaderScope(hooks=[telemetry.hook]) as scope:
                await callers(scope.get(echo))
        else:
            async with anyio.create_task_group() as group:
                await callers(DataLoader(echo, task_group=group, hooks=[telemetry.hook]))
    batch, opened = telemetry.of("batch echo"), telemetry.of("opened here")
    assert batch.parent.span_id == opened.context.span_id
    linked = {link.context.span_id for link in batch.links}
    assert linked == ids(telemetry.named("caller 1") + telemetry.named("caller 2"))
    assert len(linked) == len(batch.links) == 4


async def test_its_attributes_say_what_it_was(telemetry: Telemetry) -> None:
    async def mixed(keys: list[int]) -> list[Any]:
        return [ValueError() if key < 0 else key for key in keys]

    async with DataLoader(mixed, name="it", max_batch_size=3, hooks=[telemetry.hook]) as loader:
        await loader.load_many([1, 1, 2, -1], return_exceptions=True)
        await loader.load(1)
    attributes = dict(telemetry.of("batch it").attributes)
    assert 0 <= attributes.pop("anyloader.batch.wait") < 60
    assert attributes == {
        "anyloader.loader": "it",
        "anyloader.batch.size": 3,
        "anyloader.batch.reason": "full",
        "anyloader.batch.shared": 1,
        "anyloader.batch.errors": 1,
    }


async def test_what_the_batch_function_does_is_in_its_span_and_the_callers_is_not_touched(
    telemetry: Telemetry,
) -> None:
    from opentelemetry import trace

    async def fetch(keys: list[int]) -> list[int]:
        with telemetry.span("query"):
            return keys

    async with DataLoader(fetch, name="it", hooks=[telemetry.hook]) as loader:
        with telemetry.span("caller") as caller:
            await loader.load(1)
            assert trace.get_current_span() is caller
        await loader.load(2)
    assert ids(telemetry.named("batch it")) == {
        span.parent.span_id for span in telemetry.named("query")
    }
    assert [span.parent for span in telemetry.named("batch it")] == [None, None]


async def test_a_nested_load_links_to_the_batch_that_made_it(telemetry: Telemetry) -> None:
    async def outer(keys: list[int]) -> list[int]:
        return await inner.load_many(keys)

    hooks = [telemetry.hook]
    async with DataLoader(echo, name="inner", hooks=hooks) as inner:
        async with DataLoader(outer, name="outer", hooks=hooks) as loader:
            await loader.load(1)
    links = telemetry.of("batch inner").links
    assert [link.context.span_id for link in links] == list(ids(telemetry.named("batch outer")))


async def test_who_joins_a_batch_that_runs_is_linked_too(telemetry: Telemetry) -> None:
    gate = anyio.Event()
    fetch = Recorder[int, str](str, gate=gate)
    async with DataLoader(fetch, name="it", hooks=[telemetry.hook]) as loader:
        loader.load(1)
        await wait_all_tasks_blocked()
        with telemetry.span("late"):
            late = loader.load(1)
        gate.set()
        await late
    links = telemetry.of("batch it").links
    assert [link.context.span_id for link in links] == list(ids([telemetry.of("late")]))
    assert telemetry.of("batch it").attributes["anyloader.batch.shared"] == 1


async def test_errors_and_cancellations_are_in_the_span(telemetry: Telemetry) -> None:
    from opentelemetry.trace import StatusCode

    async def fail(keys: list[int]) -> list[int]:
        raise ValueError("broken")

    async with DataLoader(fail, hooks=[telemetry.hook], name="fail") as failing:
        await failing.load(1).wait()
    fetch = Recorder(str, gate=anyio.Event())
    async with DataLoader(fetch, name="left", hooks=[telemetry.hook]) as left:
        left.load(1)
        await wait_all_tasks_blocked()
    failed, cancelled = telemetry.of("batch fail"), telemetry.of("batch left")
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.status.description == "ValueError"
    assert [event.attributes["exception.message"] for event in failed.events] == ["broken"]
    assert cancelled.status.status_code is StatusCode.UNSET
    assert "nobody awaited it" in cancelled.attributes["anyloader.batch.cancelled"]


async def test_batches_that_never_start_have_no_span_and_leave_nothing_behind(
    telemetry: Telemetry,
) -> None:
    manual = schedules.manual()
    async with DataLoader(echo, schedule=manual, hooks=[telemetry.hook]) as loader:
        async with anyio.create_task_group() as group:
            group.start_soon(loader.load(1).wait)
            await wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        loader.dispatch()
        loader.load(2)
    assert telemetry.exporter.get_finished_spans() == ()
    assert telemetry.hook._batches == {}


class Store:
    async def get_many(self, keys: Sequence[int]) -> Mapping[int, int]:
        return {1: 1}

    async def set_many(self, items: Mapping[int, int]) -> None:
        raise OSError

    async def delete_many(self, keys: Sequence[int]) -> None: ...


async def use(hook: Any) -> None:
    async with DataLoader(echo, name="it", value_cache=Store(), hooks=[hook]) as loader:
        await loader.load_many([1, 2, 3, 3])
        await loader.load_many([1, 2])


async def test_metrics_give_sizes_durations_and_hit_ratios(telemetry: Telemetry) -> None:
    await use(telemetry.hook)
    attributes = telemetry.of("batch it").attributes
    assert attributes["anyloader.value_cache.hits"] == 1
    assert attributes["anyloader.value_cache.misses"] == 2
    metrics = telemetry.metrics()
    counts = {
        name: {labels: point.value for labels, point in metrics[name].items()}
        for name in metrics
        if not name.startswith("anyloader.batch")
    }
    assert counts == {
        "anyloader.loads": {("it", "miss"): 3, ("it", "shared"): 1, ("it", "hit"): 2},
        "anyloader.value_cache.keys": {("it", "hit"): 1, ("it", "miss"): 2},
        "anyloader.value_cache.failures": {("it", "set_many"): 1},
    }
    size = metrics["anyloader.batch.size"]["it",]
    assert (size.count, size.sum) == (1, 3)
    duration = metrics["anyloader.batch.duration"]["it", "finished"]
    assert duration.count == 1
    assert 0 < duration.sum < 60
    assert duration.explicit_bounds[0] == 0.0005


async def test_prometheus_has_the_same_metrics() -> None:
    client = pytest.importorskip("prometheus_client")
    from anyloader.integrations.prometheus import PrometheusHook

    registry = client.CollectorRegistry()
    hook = PrometheusHook(registry=registry)
    await use(hook)

    async def fail(keys: list[int]) -> list[int]:
        raise ValueError

    async with DataLoader(fail, name="bad", hooks=[hook]) as loader:
        await loader.load(1).wait()

    def value(name: str, **labels: str) -> Any:
        return registry.get_sample_value(f"anyloader_{name}", labels)

    for result, count in {"miss": 3, "shared": 1, "hit": 2}.items():
        assert value("loads_total", loader="it", result=result) == count
    for result, count in {"miss": 2, "hit": 1}.items():
        assert value("value_cache_keys_total", loader="it", result=result) == count
    assert value("value_cache_failures_total", loader="it", operation="set_many") == 1
    assert value("batch_size_sum", loader="it") == 3
    assert value("batch_seconds_count", loader="it", outcome="finished") == 1
    assert value("batch_seconds_count", loader="bad", outcome="failed") == 1
    async with DataLoader(echo, schedule=schedules.manual(), name="no", hooks=[hook]) as manual:
        manual.load(1)
    assert value("batch_seconds_count", loader="no", outcome="cancelled") is None
    assert hook._started == {}
