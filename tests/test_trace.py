"""``anyloader.trace``: what is recorded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import DataLoader, LoaderScope, schedules
from anyloader.trace import (
    Trace,
    TracedBatch,
    TracedHit,
    TracedLoad,
    record,
)
from support import BACKENDS, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio


async def echo(keys: list[int]) -> list[int]:
    return keys


async def slow(keys: list[int]) -> list[int]:
    await anyio.sleep(0.25)
    return keys


@pytest.mark.virtual_time
async def test_a_batch_is_recorded_with_its_loads_and_its_times() -> None:
    async with DataLoader(slow, schedule=schedules.window(0.5)) as loader:
        await anyio.sleep(3)
        with record() as trace:
            await anyio.sleep(1)
            first = loader.load(1)
            await anyio.sleep(0.125)
            both = loader.load_many([2, 1])
            await first
            await both
            await loader.load(1)
    assert trace == Trace(
        1.75,
        [
            TracedBatch(
                *("slow", 1, 1.0, 1.5, 1.5, 1.75, "schedule", 2, "finished"),
                keys=2,
                shared=1,
                loads=[
                    TracedLoad("1", 1.0, False),
                    TracedLoad("2", 1.125, False),
                    TracedLoad("1", 1.125, True),
                ],
            )
        ],
        1,
        [TracedHit("slow", "1", 1.75)],
        {"slow": 1},
    )


@pytest.mark.virtual_time
async def test_waiting_for_the_limiter_lies_between_the_seal_and_the_start() -> None:
    limiter = anyio.CapacityLimiter(1)
    async with DataLoader(slow, batch=False, limiter=limiter) as loader:
        with record() as trace:
            await loader.load_many([1, 2])
    # Which of the two gets it first is arbitrary on trio.
    first, second = sorted(trace.batches, key=lambda batch: batch.started or 0)
    assert (first.sealed, first.started, first.ended) == (0, 0, 0.25)
    assert (second.sealed, second.started, second.ended) == (0, 0.25, 0.5)
    assert (second.reason, second.missed) == ("full", None)


async def test_failed_cancelled_dropped_and_unfinished_batches_say_so() -> None:
    async def fail(keys: list[int]) -> list[Any]:
        if keys == [1]:
            raise ValueError("broken")
        if keys == [2]:
            return [KeyError(2)]
        await anyio.sleep_forever()
        return []

    async with DataLoader(fail, schedule=schedules.manual()) as loader:
        with record() as trace:
            for key in (1, 2):
                loads = loader.load_many([key], return_exceptions=True)
                loader.dispatch()
                await loads
            for wait in (True, False):
                async with anyio.create_task_group() as group:
                    group.start_soon(loader.load(3).wait)
                    if wait:
                        await wait_all_tasks_blocked()
                        loader.dispatch()
                    await wait_all_tasks_blocked()
                    group.cancel_scope.cancel()
                loader.dispatch()
            loader.load(4)
    got = [(batch.outcome, batch.errors, batch.error, batch.size) for batch in trace.batches]
    assert got == [
        ("failed", 0, "ValueError: broken", 1),
        ("finished", 1, None, 1),
        ("cancelled", 0, "all its loads were given up", 1),
        ("dropped", 0, None, 0),
        (None, 0, None, None),
    ]
    for text in (
        "failed: ValueError: broken",
        "1 key failed",
        "cancelled: all its",
        "not sent yet",
    ):
        assert text in trace.text()


async def test_the_value_cache_is_recorded() -> None:
    class Store:
        async def get_many(self, keys: Sequence[int]) -> Mapping[int, int]:
            return {1: 1}

        async def set_many(self, items: Mapping[int, int]) -> None:
            raise OSError("full")

        async def delete_many(self, keys: Sequence[int]) -> None: ...

    async with DataLoader(slow, value_cache=Store()) as loader:
        with record() as trace:
            await loader.load_many([1, 2, 3])
            await wait_all_tasks_blocked()
    batch = trace.batches[0]
    assert (batch.cached, batch.uncached, batch.failures) == (1, 2, ["set_many: OSError: full"])
    assert "value cache had 1 of 3 · value cache failed: set_many: OSError: full" in trace.text()


async def test_a_value_cache_that_cannot_delete_makes_no_batch() -> None:
    class Store:
        async def get_many(self, keys: Sequence[int]) -> Mapping[int, int]:
            return {}

        async def set_many(self, items: Mapping[int, int]) -> None: ...

        async def delete_many(self, keys: Sequence[int]) -> None:
            raise OSError("gone")

    with record() as trace:
        async with DataLoader(slow, value_cache=Store()) as loader:
            loader.clear(1)
        assert trace.batches == []
        async with DataLoader(slow, value_cache=Store()) as loader:
            await loader.load(1)
            loader.clear(1)
    # At once, and on the way out.
    assert [batch.failures for batch in trace.batches] == [["delete_many: OSError: gone"] * 2]


async def test_a_key_that_comes_too_late_says_what_it_missed_and_by_how_many_rounds() -> None:
    async def late(key: int, rounds: int) -> None:
        for _ in range(rounds):
            await checkpoint()
        await loader.load(key)

    async with DataLoader(slow, schedule=schedules.rounds(2)) as loader:
        with record() as trace:
            async with anyio.create_task_group() as group:
                group.start_soon(late, 1, 0)
                group.start_soon(late, 2, 8)
                group.start_soon(late, 3, 30)
    _, second, third = (batch.missed for batch in trace.batches)
    # A task's place within a round is arbitrary, and so are the rounds that it takes to start.
    assert second is not None
    assert (second.batch, second.same_task) == (1, False)
    assert second.rounds in range(4, 8)
    assert third is not None
    assert (third.batch, third.rounds, third.same_task) == (2, None, False)
    assert re.search(r"missed #1 by \d rounds", trace.text())
    assert re.search(r"s after #2 had left", trace.text())


async def test_one_load_after_the_other_in_the_same_task_is_told_apart() -> None:
    async with DataLoader(slow) as loader:
        with record() as trace:
            await loader.load(1)
            await loader.load(2)
    missed = trace.batches[1].missed
    assert missed is not None
    assert missed.same_task
    assert "after #1, in the same task" in trace.text()


@pytest.mark.only_on("asyncio")
async def test_a_load_from_a_callback_of_the_loop_is_recorded() -> None:
    import asyncio

    async with DataLoader(slow) as loader:
        with record() as trace:
            asyncio.get_running_loop().call_soon(loader.load, 1)
            await wait_all_tasks_blocked()
    assert [each.key for each in trace.batches[0].loads] == ["1"]


async def test_a_task_that_outlives_the_block_is_recorded_no_longer() -> None:
    async def outlive() -> None:
        await ended.wait()
        await loader.load(1)

    ended = anyio.Event()
    async with DataLoader(slow) as loader:
        with record() as trace:
            group = anyio.create_task_group()
            await group.__aenter__()
            group.start_soon(outlive)
            await wait_all_tasks_blocked()
        ended.set()
        await group.__aexit__(None, None, None)
    assert trace == Trace(trace.duration)


def test_a_block_can_be_left_in_another_context_than_it_was_entered_in() -> None:
    import contextvars

    block = record()
    trace = contextvars.copy_context().run(block.__enter__)
    block.__exit__(None, None, None)
    assert trace == Trace()


async def test_loaders_of_scopes_and_of_batch_functions_are_recorded() -> None:
    async def low(keys: list[int]) -> list[int]:
        return keys

    async def high(keys: list[int]) -> list[int]:
        return await lows.load_many(keys)

    async with LoaderScope() as scope, DataLoader(low) as lows:
        loader = scope.get(high)
        loader.prime(0, 0)
        with record() as trace:
            await loader.load(0)
            await loader.load(1)
        await loader.load(2)
    names = [batch.loader.rpartition(".")[2] for batch in trace.batches]
    assert (names, len(trace.hits)) == (["high", "low"], 1)


async def test_loaders_of_outer_scopes_are_recorded() -> None:
    async with LoaderScope() as outer:
        loader = outer.get(slow).prime(0, 0)
        async with LoaderScope():
            with record() as trace:
                assert await loader.load(0) == 0
    assert [hit.key for hit in trace.hits] == ["0"]


async def test_a_batch_opened_before_the_block_is_recorded_from_its_first_event_on() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        return keys

    async with LoaderScope() as scope:
        loader = scope.get(fetch)
        loader.load(1)
        with record() as trace:
            await loader.load(2)
            await loader.load(2)
    (batch,) = trace.batches
    assert [each.key for each in batch.loads] == ["2"]
    assert (batch.size, batch.outcome, len(trace.hits)) == (2, "finished", 1)


async def test_what_a_value_cache_tells_of_an_unknown_batch_is_not_recorded() -> None:
    class Slow:
        async def get_many(self, keys: Sequence[int]) -> Mapping[int, int]:
            asked.set()
            await go_on.wait()
            return {}

        async def set_many(self, items: Mapping[int, int]) -> None: ...

        async def delete_many(self, keys: Sequence[int]) -> None: ...

    asked, go_on = anyio.Event(), anyio.Event()
    async with DataLoader(echo, value_cache=Slow()) as loader:
        first = loader.load(1)
        await asked.wait()
        with record() as trace:
            other = loader.load(2)
            go_on.set()
            await first
            await other
    assert sorted(batch.uncached for batch in trace.batches) == [0, 1], trace


async def test_a_block_that_raises_is_recorded_until_then() -> None:
    async with DataLoader(slow) as loader:
        traces = []
        with pytest.raises(KeyError), record() as trace:
            traces.append(trace)
            await loader.load(1)
            raise KeyError
        await loader.load(2)
    assert [batch.outcome for batch in traces[0].batches] == ["finished"]


@pytest.mark.parametrize("library", sorted({name.split("+")[0] for name in BACKENDS}))
def test_an_event_loop_that_ends_while_rounds_are_counted_ends_well(library: str) -> None:
    async def fetch(keys: list[int]) -> list[int]:
        return keys

    async def run() -> None:
        async with DataLoader(fetch) as loader:
            await loader.load(1)
            await loader.load(2)

    for _ in range(20):  # on trio it is a matter of chance what runs last
        with record() as trace:
            anyio.run(run, backend=library)
        assert len(trace.batches) == 2


def test_it_works_around_a_whole_run() -> None:
    async def run() -> None:
        async with DataLoader(slow) as loader:
            await loader.load(1)

    with record() as trace:
        anyio.run(run)
    assert [batch.opened for batch in trace.batches] == [0]
    assert trace.duration >= 0.25


async def test_of_much_only_how_much_it_was_is_recorded() -> None:
    with record() as trace:
        async with DataLoader(echo, name="it") as loader:
            for _ in range(96):
                await loader.load_many(range(1, 1001))
    (batch,) = trace.batches
    assert (batch.keys, batch.shared, len(batch.loads)) == (1000, 0, 100)
    assert trace.hit_counts == {"it": 95_000}
    assert len(trace.hits) == 100
    assert trace.text().startswith("96000 loads, 1 batch, 95000 hits, ")
    assert "and 988 more" in trace.text()
    assert "and 94988 more" in trace.text()
    for shown in (trace.html(), trace.chrome()):
        assert len(shown) < 100_000
    assert "and 900 more loads" in trace.html()
    assert "and 94900 more hits" in trace.html()


async def test_of_many_batches_the_first_are_recorded() -> None:
    with record(most=2) as trace:
        async with DataLoader(echo, name="it") as loader:
            for key in range(30):
                await loader.load(key)
    assert (len(trace.batches), trace.batch_count) == (20, 30)
    assert trace.text().startswith("more than 20 loads, 30 batches, 0 hits")
    assert "and 10 more batches" in trace.text()
    assert "and 10 more batches" in trace.html()


async def test_of_many_names_of_loaders_the_first_are_told_apart() -> None:
    with record(most=1) as trace:
        for number in range(30):
            async with DataLoader(echo, name=f"it({number})") as loader:
                for _ in range(2):
                    await loader.load(1)
    assert len(trace.hit_counts) == 11
    assert trace.hit_counts["other loaders"] == 20
    assert [batch.missed for batch in trace.batches] == [None] * 10


async def test_all_loads_and_hits_together_are_bounded() -> None:
    with record(most=12) as trace:
        async with DataLoader(echo, cache=False, schedule=schedules.manual()) as loader:
            for _ in range(150):
                loads = loader.load_many(range(12))
                loader.dispatch()
                await loads
    assert (len(trace.batches), trace.batch_count) == (120, 150)
    assert sum(len(batch.loads) for batch in trace.batches) == 1200


async def test_failures_of_a_value_cache_are_bounded() -> None:
    class Store:
        async def get_many(self, keys: Sequence[int]) -> Mapping[int, int]:
            raise OSError

        async def set_many(self, items: Mapping[int, int]) -> None: ...

        async def delete_many(self, keys: Sequence[int]) -> None:
            raise OSError

    with record() as trace:
        for number in range(30):
            async with DataLoader(echo, name="it", value_cache=Store()) as loader:
                loader.clear(1)
                if number == 0:
                    await loader.load(1)
    (batch,) = trace.batches
    assert len(batch.failures) == 10


async def test_an_error_that_cannot_say_what_it_is_fails_its_batch_in_the_record() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    async def fetch(keys: list[int]) -> list[int]:
        raise Silent

    with record() as trace:
        async with DataLoader(fetch) as loader:
            with pytest.raises(Silent):
                await loader.load(1)
    (batch,) = trace.batches
    assert batch.outcome == "failed"
    assert batch.error == "Silent: <its str() failed>"


async def test_a_record_can_do_without_keys_and_texts() -> None:
    async def fail(keys: list[str]) -> list[str]:
        raise ValueError("secret row")

    with record(keys=False) as trace:
        async with DataLoader(fail, name="it") as loader, DataLoader(echo) as other:
            await loader.load("secret key").wait()
            for _ in range(2):
                await other.load(31415)
    for shown in (trace.text(), trace.html(), trace.chrome(), repr(trace)):
        assert "secret" not in shown
        assert "31415" not in shown
    assert "a key at" in trace.text()
    assert trace.batches[0].error == "ValueError"


@pytest.mark.parametrize(("most", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_a_wrong_bound_is_refused(most: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="most must"), record(most=most):
        pass
