"""Spans and metrics, against the real SDK of OpenTelemetry and the real Prometheus client."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyloader import DataLoader, LoaderScope, batch_loader, schedules
from anyloader.hooks import BatchOpened
from support import Recorder, wait_all_tasks_blocked
from support.telemetry import Telemetry

pytestmark = pytest.mark.anyio

pytest_plugins = ["support.telemetry"]


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
    batch, opened = telemetry.of("GraphQL DataLoader Batch echo"), telemetry.of("opened here")
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
    span = telemetry.of("GraphQL DataLoader Batch it")
    attributes = dict(span.attributes)
    wait = attributes.pop("anyloader.batch.wait")
    assert 0 <= wait < 60
    assert wait * 1e9 <= span.end_time - span.start_time
    assert attributes == {
        "graphql.processing.type": "dataloader_batch",
        "graphql.dataloader.name": "it",
        "graphql.dataloader.batch.size": 4,
        "anyloader.batch.reason": "full",
        "anyloader.batch.errors": 1,
        "error.type": "anyloader.key_error",
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
    assert ids(telemetry.named("GraphQL DataLoader Batch it")) == {
        span.parent.span_id for span in telemetry.named("query")
    }
    assert [span.parent for span in telemetry.named("GraphQL DataLoader Batch it")] == [None, None]


async def test_a_nested_load_links_to_the_batch_that_made_it(telemetry: Telemetry) -> None:
    async def outer(keys: list[int]) -> list[int]:
        return await inner.load_many(keys)

    hooks = [telemetry.hook]
    async with DataLoader(echo, name="inner", hooks=hooks) as inner:
        async with DataLoader(outer, name="outer", hooks=hooks) as loader:
            await loader.load(1)
    links = telemetry.of("GraphQL DataLoader Batch inner").links
    assert [link.context.span_id for link in links] == list(
        ids(telemetry.named("GraphQL DataLoader Batch outer"))
    )


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
    links = telemetry.of("GraphQL DataLoader Batch it").links
    assert [link.context.span_id for link in links] == list(ids([telemetry.of("late")]))
    assert (
        telemetry.of("GraphQL DataLoader Batch it").attributes["graphql.dataloader.batch.size"] == 2
    )


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
    failed, cancelled = (
        telemetry.of("GraphQL DataLoader Batch fail"),
        telemetry.of("GraphQL DataLoader Batch left"),
    )
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.attributes["error.type"] == "ValueError"
    assert "broken" not in failed.to_json(), "texts of errors hold rows as often as not"
    assert cancelled.status.status_code is StatusCode.UNSET
    assert cancelled.attributes["anyloader.batch.cancelled"] is True


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
    assert telemetry.open_batches() == {}


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
    metrics = telemetry.metrics()
    counts = {
        name: {labels: point.value for labels, point in metrics[name].items()}
        for name in metrics
        if not name.startswith("anyloader.batch.")
    }
    for seconds in "anyloader.time", "anyloader.wait":
        assert 0 < counts.pop(seconds)["it",] < 60
    assert counts == {
        "anyloader.batches": {("finished", "it"): 1, ("failed", "it"): 0, ("cancelled", "it"): 0},
        "anyloader.keys": {("it",): 3},
        "anyloader.queued": {("it",): 0},
        "anyloader.failed_keys": {("it",): 0},
        "anyloader.loads": {("miss", "it"): 3, ("shared", "it"): 1, ("hit", "it"): 2},
        "anyloader.value_cache.keys": {("hit", "it"): 1, ("miss", "it"): 2},
        "anyloader.value_cache.failures": {("set_many", "it"): 1},
    }
    size = metrics["anyloader.batch.size"]["it",]
    assert (size.count, size.sum) == (1, 3)
    duration = metrics["anyloader.batch.duration"]["finished", "it"]
    assert duration.count == 1
    assert 0 < duration.sum < 60
    assert duration.explicit_bounds[0] == 0.0005


async def test_what_caches_save_is_in_the_span_where_that_is_asked_for(
    telemetry: Telemetry,
) -> None:
    from anyloader.integrations.opentelemetry import OpenTelemetryHook

    await use(OpenTelemetryHook(tracer_provider=telemetry.traces, cache_counts=True))
    attributes = telemetry.of("GraphQL DataLoader Batch it").attributes
    assert attributes["graphql.dataloader.batch.size"] == 4
    assert attributes["graphql.dataloader.cache.hit_count"] == 2
    assert attributes["graphql.dataloader.cache.miss_count"] == 2


@pytest.mark.parametrize("most", [0, 3])
async def test_links_are_bounded(telemetry: Telemetry, most: int) -> None:
    from anyloader.integrations.opentelemetry import OpenTelemetryHook

    hook = OpenTelemetryHook(tracer_provider=telemetry.traces, most_links=most)
    async with DataLoader(echo, name="it", hooks=[hook]) as loader:
        for key in range(10):
            with telemetry.span("caller"):
                loader.load(key)
                loader.load(key)
        await loader.load_many(range(10))
    batch = telemetry.of("GraphQL DataLoader Batch it")
    assert ids(telemetry.named("caller")[:most]) == {link.context.span_id for link in batch.links}
    assert batch.attributes["graphql.dataloader.batch.size"] == 30


async def test_a_value_cache_that_answers_after_the_end_leaves_nothing_behind(
    telemetry: Telemetry,
) -> None:
    class Slow(Store):
        async def get_many(self, keys: Sequence[int]) -> Mapping[int, int]:
            with anyio.CancelScope(shield=True):
                await gate.wait()
            return {}

    gate = anyio.Event()
    async with DataLoader(echo, value_cache=Slow(), hooks=[telemetry.hook]) as loader:
        async with anyio.create_task_group() as group:
            group.start_soon(loader.load(1).wait)
            await wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        gate.set()
    assert telemetry.open_batches() == {}


async def test_batches_that_were_opened_before_the_hooks_time_are_left_out(
    telemetry: Telemetry,
) -> None:
    from anyloader._watch import Watch

    asked, go_on = anyio.Event(), anyio.Event()

    class Slow(Store):
        async def get_many(self, keys: Sequence[int]) -> Mapping[int, int]:
            asked.set()
            await go_on.wait()
            return {}

    manual = schedules.manual()
    async with LoaderScope():
        loader = DataLoader(echo, name="it", value_cache=Slow())
        other = DataLoader(echo, name="open", schedule=manual)
        first, second = loader.load(1), other.load(1)
        await asked.wait()
        with Watch(telemetry.hook):
            other.load(2)
            other.dispatch()
            third = loader.load(2)
            go_on.set()
            for load in first, second, third:
                await load
            await wait_all_tasks_blocked()  # until what was loaded is stored
    assert telemetry.open_batches() == {}
    assert [span.name for span in telemetry.exporter.get_finished_spans()] == [
        "GraphQL DataLoader Batch it"
    ]


async def test_loaders_are_measured_by_few_names(telemetry: Telemetry) -> None:
    from anyloader.integrations.opentelemetry import OpenTelemetryHook

    async def times(keys: list[int], factor: int) -> list[int]:
        return [key * factor for key in keys]

    hook = OpenTelemetryHook(
        tracer_provider=telemetry.traces, meter_provider=telemetry.meters, most_names=2
    )  # the second one of this provider: they count together
    async with LoaderScope(hooks=[hook]) as scope:
        for factor in 1, 2:
            await scope.get(batch_loader(times), factor=factor).load(1)
    for name in "abc":
        async with DataLoader(echo, name=name, hooks=[hook]) as loader:
            await loader.load(1)
    times_ = f"{test_loaders_are_measured_by_few_names.__qualname__}.<locals>.times(factor)"
    loads = telemetry.metrics()["anyloader.loads"]
    assert {name: point.value for (result, name), point in loads.items() if result == "miss"} == {
        times_: 2,
        "a": 1,
        "other": 2,
    }
    assert len(telemetry.named("GraphQL DataLoader Batch c")) == 1
    assert len(telemetry.named(f"GraphQL DataLoader Batch {times_}")) == 2


GLOBAL = """
import anyio
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from anyloader import DataLoader
from anyloader.integrations.opentelemetry import OpenTelemetryHook

async def echo(keys):
    return keys

async def main(hooks):
    for hook in hooks:
        async with DataLoader(echo, name="it", hooks=[hook]) as loader:
            await loader.load(1)

hooks = [OpenTelemetryHook(), OpenTelemetryHook()]
reader = InMemoryMetricReader()
provider = MeterProvider([reader], shutdown_on_exit=False)
metrics.set_meter_provider(provider)
hooks += [OpenTelemetryHook(), OpenTelemetryHook(meter_provider=provider)]
anyio.run(main, hooks)
for resource in reader.get_metrics_data().resource_metrics:
    for metric in resource.scope_metrics[0].metrics:
        if metric.name == "anyloader.keys":
            print([point.value for point in metric.data.data_points])
"""


@pytest.mark.only_on("asyncio")
async def test_hooks_count_together_whenever_the_provider_of_the_program_was_set() -> None:
    pytest.importorskip("opentelemetry.sdk")
    run = [sys.executable, "-W", "error", "-c", GLOBAL]
    ended = await anyio.run_process(run, check=False)
    assert (ended.stdout.decode(), ended.stderr.decode()) == ("[4]\n", "")


async def test_hooks_do_not_keep_a_provider() -> None:
    pytest.importorskip("opentelemetry.sdk")
    from anyloader.integrations.opentelemetry import _instruments

    gc.collect()
    before = len(_instruments)
    telemetry = Telemetry()
    assert len(_instruments) == before + 1
    telemetry.meters.shutdown()
    del telemetry
    gc.collect()
    assert len(_instruments) == before


async def test_what_is_not_sampled_is_measured_all_the_same(telemetry: Telemetry) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    from anyloader.integrations.opentelemetry import OpenTelemetryHook

    traces = TracerProvider(ALWAYS_OFF, shutdown_on_exit=False)
    hook = OpenTelemetryHook(tracer_provider=traces, meter_provider=telemetry.meters)
    async with DataLoader(echo, name="it", hooks=[hook]) as loader:
        await loader.load(1)
    metrics = telemetry.metrics()
    assert metrics["anyloader.batches"]["finished", "it"].value == 1
    assert "anyloader.batch.size" not in metrics, "a histogram has to be asked for"


async def test_queued_keys_are_those_that_wait(telemetry: Telemetry) -> None:
    client = pytest.importorskip("prometheus_client")
    from anyloader.integrations.prometheus import PrometheusHook

    registry = client.CollectorRegistry()
    hooks: list[Any] = [telemetry.hook, PrometheusHook(registry=registry)]

    def queued() -> set[Any]:
        return {
            registry.get_sample_value("anyloader_queued_keys", {"loader": "it"}),
            telemetry.metrics()["anyloader.queued"]["it",].value,
        }

    manual = schedules.manual()
    gate = anyio.Event()
    fetch = Recorder[int, str](str, gate=gate)
    async with DataLoader(fetch, name="it", schedule=manual, hooks=hooks) as loader:
        async with anyio.create_task_group() as group:
            group.start_soon(loader.load(1).wait)
            await wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        rest = loader.load_many([1, 2, 3, 3])
        assert queued() == {3}
        loader.dispatch()
        assert queued() == {3}
        await wait_all_tasks_blocked()
        assert queued() == {0}
        gate.set()
        await rest
        loader.load(4)
        assert queued() == {1}
    assert queued() == {0}


async def test_a_caller_whose_span_is_invalid_is_no_link(telemetry: Telemetry) -> None:
    from opentelemetry import context, trace

    nothing = trace.set_span_in_context(trace.NonRecordingSpan(trace.INVALID_SPAN_CONTEXT))
    async with DataLoader(echo, name="it", hooks=[telemetry.hook]) as loader:
        token = context.attach(nothing)
        await loader.load(1)
        context.detach(token)
    assert not telemetry.of("GraphQL DataLoader Batch it").links


async def test_a_batch_of_deferred_hits_alone_leaves_nothing_behind(telemetry: Telemetry) -> None:
    async with DataLoader(echo, defer_hits=True, hooks=[telemetry.hook]) as loader:
        assert await loader.load(1) == await loader.load(1) == 1
    handler: Any = telemetry.hook._handlers[BatchOpened]
    assert handler.__self__.batches == {}


@pytest.mark.parametrize("bad", [{"most_links": -1}, {"most_links": 1.0}, {"most_names": 0}])
async def test_bad_bounds_are_refused(telemetry: Telemetry, bad: dict[str, Any]) -> None:
    from anyloader.integrations.opentelemetry import OpenTelemetryHook

    with pytest.raises(TypeError, match=f"{next(iter(bad))} must be an int >= "):
        OpenTelemetryHook(tracer_provider=telemetry.traces, **bad)


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

    store = Store()
    async with DataLoader(fail, name="half", value_cache=store, hooks=[hook]) as loader:
        await loader.load_many([1, 2, 3], return_exceptions=True)

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
    assert value("failed_keys_total", loader="bad") == 1
    assert value("failed_keys_total", loader="half") == 2
    assert value("failed_keys_total", loader="it") == 0
    assert value("batch_wait_seconds_count", loader="it") == 1
    async with DataLoader(echo, schedule=schedules.manual(), name="no", hooks=[hook]) as manual:
        manual.load(1)
    assert value("batch_seconds_count", loader="no", outcome="cancelled") is None
    handler: Any = hook._handlers[BatchOpened]
    assert handler.__self__.batches == {}


OF_A_WORKER = """
import anyio
from anyloader import DataLoader
from anyloader.integrations.prometheus import PrometheusHook

async def half(keys):
    await anyio.lowlevel.checkpoint()
    return [key if key else ValueError() for key in keys]

async def never(keys):
    raise AssertionError

async def main():
    hook = PrometheusHook()
    async with DataLoader(half, name="it", hooks=[hook]) as loader:
        for key in 1, 1, 1, 2:
            await loader.load(key)
        await loader.load_many([0, 3], return_exceptions=True)
    with anyio.CancelScope() as scope:
        async with DataLoader(never, name="asked", hooks=[hook], schedule=schedule) as loader:
            for key in range(3):
                loader.load(key)
            look()
            scope.cancel()

async def schedule(batch):
    await anyio.sleep_forever()

def look():
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    for name, labels in [
        ("loads_total", {"loader": "it", "result": "miss"}),
        ("loads_total", {"loader": "it", "result": "hit"}),
        ("failed_keys_total", {"loader": "it"}),
        ("queued_keys", {"loader": "asked"}),
    ]:
        print(registry.get_sample_value(f"anyloader_{name}", labels))

anyio.run(main)
"""


async def test_prometheus_counts_where_another_process_collects(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    variables = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    worker = await anyio.run_process([sys.executable, "-c", OF_A_WORKER], env=variables)
    assert worker.stdout.split() == [b"4.0", b"2.0", b"1.0", b"3.0"]


async def test_statistics_count_errors_and_what_the_value_cache_had() -> None:
    async def fetch(keys: list[int]) -> list[Any]:
        if keys == [2, 3]:
            return [2, ValueError()]
        raise ValueError

    async with LoaderScope() as scope:
        with_store = DataLoader(fetch, name="with store", value_cache=Store())
        await with_store.load_many([1, 2, 3], return_exceptions=True)
        plain = scope.get(fetch)
        await plain.load_many([4, 5], return_exceptions=True)
        now = with_store.statistics()
        assert (now.errors, now.value_cache_hits, now.value_cache_misses) == (1, 1, 2)
        now = scope.statistics()
        assert (now.errors, now.value_cache_hits, now.value_cache_misses) == (3, 1, 2)
        names = [loader.name for loader in scope.loaders()]
        assert names == ["with store", plain.name]


# --- One line for a service ---
