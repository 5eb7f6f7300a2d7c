"""``anyloader.trace``: what is recorded, how it is shown, and what it is saved as."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import DataLoader, LoaderScope, schedules
from anyloader.trace import (
    Trace,
    TracedBatch,
    TracedHit,
    TracedLoad,
    TracedMiss,
    record,
)
from support import BACKENDS, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio


async def echo(keys: list[int]) -> list[int]:
    return keys


async def slow(keys: list[int]) -> list[int]:
    await anyio.sleep(0.25)
    return keys


# --- what is recorded ---


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


async def test_a_value_cache_that_fails_on_the_way_out_makes_no_batch() -> None:
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
    assert [batch.failures for batch in trace.batches] == [["delete_many: OSError: gone"]]


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


# --- how it is shown ---

SAMPLE = Trace(
    0.02,
    [
        TracedBatch(
            *("users", 1, 0.0, 0.0002, 0.0002, 0.01, "schedule", 2, "finished", None, 0, 1, 1),
            keys=2,
            shared=1,
            loads=[
                TracedLoad("1", 0.0, False),
                TracedLoad("'two'", 0.0001, False),
                TracedLoad("1", 0.0001, True),
            ],
        ),
        TracedBatch(
            *("users", 2, 0.0005, 0.0006, 0.01, 0.02, "full", 1, "failed", "ValueError: no"),
            missed=TracedMiss(1, 0.0003, 3, False),
            keys=1,
            loads=[TracedLoad("3", 0.0005, False)],
        ),
        TracedBatch(
            *("posts", 3, 0.015),
            keys=20,
            loads=[TracedLoad(str(key), 0.015, False) for key in range(20)],
        ),
    ],
    3,
    [TracedHit("users", "1", 0.012)],
    {"users": 1},
)


def page(trace: Trace) -> ElementTree.Element:
    return ElementTree.fromstring(trace.html())


TEXT = """\
25 loads, 3 batches, 1 hit, 20 ms

users #1: 2 keys, 1 shared · value cache had 1 of 2 · left by its schedule · 10 ms
  |██████████████████                  |
    1 at 0 µs, waited 10 ms
    'two' at 100 µs, waited 9.9 ms
    1 at 100 µs, waited 9.9 ms, shared

users #2: 1 key · left as it was full · 19.5 ms · failed: ValueError: no · missed #1 by 3 rounds
  |░▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒██████████████████|
    3 at 500 µs, waited 19.5 ms

posts #3: 20 keys · not sent yet · not done yet
  |                           ░░░░░░░░░|
"""


def test_the_text_is_as_it_should_be() -> None:
    text = SAMPLE.text(40)
    assert text.startswith(TEXT), text
    assert text.endswith(
        "    and 8 more\n\nhits:\n    users 1 at 12 ms\n\n░ open  ▒ waits  █ runs\n"
    )


def test_the_page_has_a_bar_for_each_part_of_a_batch_and_a_mark_for_each_load() -> None:
    rows = list(page(SAMPLE).iter("tr"))[1:]
    marks = [[each.get("class") for each in row.iter("i")] for row in rows]
    assert marks == [
        ["open", "runs"],
        *(["load"], ["load"], ["load shared"]),
        ["open", "waits", "runs failed"],
        ["load"],
        ["open"],
        *[["load"]] * 20,
        ["hit"],
        ["hit"],
    ]
    for bar in (bar for row in rows for bar in row.iter("i")):
        places = re.findall(r"(?:left|width):([0-9.]+)%", bar.get("style", ""))
        assert len(places) == 1 + (bar.get("class") != "hit")
        assert 0 <= sum(map(float, places)) <= 100.001
    cells = ["".join(cell.itertext()) for cell in rows[5]]
    assert cells == ["3", "500 µs", "19.5 ms", ""]
    assert "users #2 1 key · left as it was full · 19.5 ms" in "".join(rows[4].itertext())


def test_a_page_needs_no_other_file_and_knows_light_and_dark() -> None:
    for outside in ("://", "url(", "@import", "href", "src=", "<script"):
        assert outside not in SAMPLE.html()
    assert SAMPLE.html().count("prefers-color-scheme:dark") == 1


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_text_and_bars_stand_out_in_light_and_in_dark() -> None:
    css = re.findall(r"<style>(.*)</style>", SAMPLE.html())[0]
    light, dark = css.split("@media")
    for part in (light, dark.partition("}}")[0]):
        colours = dict(re.findall(r"--(bg|fg|dim|bad):(#\w{6})", part))
        background = colours.pop("bg")
        assert len(colours) == 3
        assert all(contrast(colour, background) > 4.5 for colour in colours.values())
        bars = re.findall(r"--loader:(#\w{6})", part)
        assert len(bars) == 6
        assert all(contrast(bar, background) > 4.5 for bar in bars)


HOSTILE = '<b a="1">&\'\x00\x1b[31m\n\ud800\u202e' + "x" * 200


def test_names_and_keys_do_no_harm_whatever_is_in_them() -> None:
    batch = TracedBatch(HOSTILE, 1, 0.0, error=HOSTILE, outcome="failed", ended=0.0)
    batch.loads.append(TracedLoad(HOSTILE, 0.0, False))
    batch.failures.append(HOSTILE)
    trace = Trace(0.0, [batch], 1, [TracedHit(HOSTILE, HOSTILE, 0.0)], {HOSTILE: 1})
    for shown in (trace.text(), trace.html(), trace.chrome()):
        shown.encode()
        assert not set(shown) & {"\x00", "\x1b", "\u202e"}
    page(trace)
    assert "<b " not in trace.html()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 µs"),
        (0.000_0004, "0 µs"),
        (0.000_9994, "999 µs"),
        (0.000_9996, "1 ms"),
        (0.012_34, "12.3 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1 s"),
        (12.34, "12.3 s"),
        (12345, "12345 s"),
    ],
)
def test_times_are_short(seconds: float, text: str) -> None:
    assert Trace(seconds).text().splitlines()[0].endswith(f" hits, {text}")


def test_of_many_hits_the_text_shows_the_first_ones() -> None:
    hits = [TracedHit("it", str(key), 0) for key in range(20)]
    text = Trace(1, [], 0, hits, {"it": 20}).text()
    assert "    it 11 at 0 µs\n    and 8 more\n" in text


def test_an_empty_record_can_be_shown() -> None:
    trace = Trace()
    assert trace.text().startswith("0 loads, 0 batches, 0 hits, 0 µs\n")
    page(trace)
    assert json.loads(trace.chrome())["traceEvents"] == []


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


def test_trace_events_pair_and_lie_in_each_other() -> None:
    events = json.loads(SAMPLE.chrome())["traceEvents"]
    assert [event["args"]["name"] for event in events if event["ph"] == "M"] == ["users", "posts"]
    hit = {"ph": "i", "s": "t", "name": "hit", "cat": "hit", "ts": 12_000, "pid": 1, "tid": 1}
    assert [event for event in events if event["ph"] == "i"] == [{**hit, "args": {"key": "1"}}]
    slices: dict[int, dict[str, list[float]]] = {}
    for event in events:
        if event["ph"] in "be":
            times = slices.setdefault(event["id"], {}).setdefault(event["name"], [])
            assert len(times) == "be".index(event["ph"])
            times.append(round(event["ts"]))
    assert slices == {
        1: {"users #1": [0, 10_000], "open": [0, 200], "runs": [200, 10_000]},
        2: {
            "users #2": [500, 20_000],
            "open": [500, 600],
            "waits": [600, 10_000],
            "runs": [10_000, 20_000],
        },
        3: {"posts #3": [15_000, 20_000], "open": [15_000, 20_000]},
    }


def test_a_name_says_as_what_a_record_is_saved(tmp_path: Path) -> None:
    for name, text in {
        "a.json": SAMPLE.chrome(),
        "a.html": SAMPLE.html(),
        "a.txt": SAMPLE.text(),
    }.items():
        SAMPLE.save(tmp_path / name)
        assert (tmp_path / name).read_text(encoding="utf-8") == text
    for name in "a", "a.svg":
        with pytest.raises(ValueError, match=r"saved as .html, .json or .txt"):
            SAMPLE.save(tmp_path / name)
