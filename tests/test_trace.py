"""``anyloader.trace``: what is recorded, how it is shown, and files that are no records."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from anyloader import DataLoader, LoaderScope, schedules
from anyloader.trace import (
    Trace,
    TracedBatch,
    TracedHit,
    TracedLoad,
    TracedMiss,
    TraceFileError,
    load,
    main,
    record,
)
from support import BACKENDS, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio


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
                loads=[
                    TracedLoad("1", 1.0, False),
                    TracedLoad("2", 1.125, False),
                    TracedLoad("1", 1.125, True),
                ],
            )
        ],
        [TracedHit("slow", "1", 1.75)],
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
            loads=[
                TracedLoad("1", 0.0, False),
                TracedLoad("'two'", 0.0001, False),
                TracedLoad("1", 0.0001, True),
            ],
        ),
        TracedBatch(
            *("users", 2, 0.0005, 0.0006, 0.01, 0.02, "full", 1, "failed", "ValueError: no"),
            missed=TracedMiss(1, 0.0003, 3, False),
            loads=[TracedLoad("3", 0.0005, False)],
        ),
        TracedBatch(
            "posts", 3, 0.015, loads=[TracedLoad(str(key), 0.015, False) for key in range(20)]
        ),
    ],
    [TracedHit("users", "1", 0.012)],
)

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


SVG = "{http://www.w3.org/2000/svg}"


def test_the_picture_has_a_bar_for_each_part_of_a_batch_and_a_mark_for_each_load() -> None:
    root = ElementTree.fromstring(SAMPLE.svg())
    groups = list(root.iter(f"{SVG}g"))[:-1]  # the last one is the legend
    marks = [
        [each.get("class") for each in group if each.tag in (f"{SVG}rect", f"{SVG}circle")]
        for group in groups
    ]
    assert marks == [
        ["open", "runs", "key", "key", "shared"],
        ["open", "waits", "runs failed", "key"],
        ["open", *["key"] * 12],
        [],
    ]
    assert "and 8 more loads" in SAMPLE.svg()
    assert len(list(root.iter(f"{SVG}path"))) == 2  # the hit, and that of the legend
    width = float(root.get("width", ""))
    for bar in root.iter(f"{SVG}rect"):
        assert 0 <= float(bar.get("x", "0")) + float(bar.get("width", "")) <= width


def test_the_same_record_makes_the_same_pictures() -> None:
    again = Trace.from_json(SAMPLE.to_json())
    assert again == SAMPLE
    for show in (Trace.text, Trace.svg, Trace.html, Trace.to_json):
        assert show(again) == show(SAMPLE) == show(SAMPLE)


@pytest.mark.parametrize("make", [Trace.svg, Trace.html])
def test_a_picture_needs_no_other_file_and_knows_light_and_dark(make: Any) -> None:
    picture = make(SAMPLE).replace("http://www.w3.org/2000/svg", "")
    for outside in ("://", "url(", "@import", "href", "src=", "<script"):
        assert outside not in picture
    assert "prefers-color-scheme:dark" in picture


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_text_and_bars_stand_out_in_light_and_in_dark() -> None:
    css = re.findall(r"<style>(.*)</style>", SAMPLE.svg())[0]
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
    trace = Trace(0.0, [batch], [TracedHit(HOSTILE, HOSTILE, 0.0)])
    for shown in (trace.text(), trace.svg(), trace.html()):
        shown.encode()
        assert not set(shown) & {"\x00", "\x1b", "\u202e"}
    ElementTree.fromstring(trace.svg())
    for shown in (trace.svg(), trace.html()):
        assert "<b " not in shown
    assert Trace.from_json(trace.to_json()) == trace


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
    text = Trace(1, [], [TracedHit("it", str(key), 0) for key in range(20)]).text()
    assert "    it 11 at 0 µs\n    and 8 more\n" in text


def test_an_empty_record_can_be_shown() -> None:
    trace = Trace()
    assert trace.text().startswith("0 loads, 0 batches, 0 hits, 0 µs\n")
    ElementTree.fromstring(trace.svg())
    assert Trace.from_json(trace.to_json()) == trace


# --- files ---


def test_a_name_says_as_what_a_record_is_saved(tmp_path: Path) -> None:
    for name, text in {
        "a.json": SAMPLE.to_json(),
        "a": SAMPLE.to_json(),
        "a.svg": SAMPLE.svg(),
        "a.html": SAMPLE.html(),
        "a.txt": SAMPLE.text(),
    }.items():
        SAMPLE.save(tmp_path / name)
        assert (tmp_path / name).read_text(encoding="utf-8") == text
    assert load(tmp_path / "a.json") == SAMPLE


def test_the_command_shows_a_saved_record(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "a.json"
    SAMPLE.save(file)
    command = [sys.executable, "-W", "error", "-X", "utf8", "-m", "anyloader.trace", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    assert (done.stdout, done.stderr) == (SAMPLE.text(), "")
    assert main([str(file)]) == 0
    assert capsys.readouterr() == (SAMPLE.text(), "")
    assert main([str(file), "-o", str(tmp_path / "a.svg")]) == 0
    assert (tmp_path / "a.svg").read_text(encoding="utf-8") == SAMPLE.svg()
    assert capsys.readouterr() == ("", "")


def changed(**fields: Any) -> str:
    return json.dumps({**json.loads(SAMPLE.to_json()), **fields})


def changed_batch(**fields: Any) -> str:
    batches = json.loads(SAMPLE.to_json())["batches"]
    batches[0].update(fields)
    return changed(batches=batches)


BROKEN = {
    "": "it is no JSON: Expecting value: line 1 column 1 (char 0)",
    "{": "it is no JSON: Expecting property name enclosed in double quotes",
    "[" * 100_000: "it is no JSON: ",
    "[]": "it is no record of anyloader.trace",
    "{}": "it is no record of anyloader.trace",
    changed(anyloader_trace=2): "it has version 2, and this is anyloader for version 1",
    changed(anyloader_trace="1"): "it has version '1', and this is anyloader for version 1",
    changed(anyloader_trace=True): "it has version True, and this is anyloader for version 1",
    changed(duration=None): "duration of the record must be a time, not None",
    changed(duration=-1): "duration of the record must be a time, not -1",
    changed(duration=10**400): "duration of the record must be a time, not 1000",
    '{"anyloader_trace": 1, "duration": NaN}': "it is no JSON: NaN is no number",
    changed(more=1): "the record has not the right fields: ['more']",
    changed(batches={}): "batches of the record must be a list, not {}",
    changed(batches=[1]): "batches[0] must be an object, not 1",
    changed(duration=0): "the times of batch 1 are in no order",
    changed(batches=[], duration=0): "a hit comes after the end",
    changed_batch(sealed=0.5): "the times of batch 1 are in no order",
    changed_batch(size="2"): "size of batches[0] must be a count, not '2'",
    changed_batch(cached=None): "cached of batches[0] must be a count, not None",
    changed_batch(loader=None): "loader of batches[0] must be a string, not None",
    changed_batch(missed={}): "missed of batches[0] has not the right fields: ",
    changed_batch(loads=[{}]): "loads[0] has not the right fields: ['at', 'key', 'shared']",
    changed_batch(failures=[1]): "failures of batches[0] must be a string, not 1",
    changed_batch(loads=[{"key": "", "at": 0, "shared": 0}]): "shared of loads[0] must be true or",
}


@pytest.mark.parametrize(("text", "message"), BROKEN.items(), ids=map(str, range(len(BROKEN))))
def test_a_file_that_is_no_record_is_one_clear_line_and_exit_status_2(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "broken.json"
    file.write_text(text)
    assert main([str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"anyloader.trace: {file}: {message}")
    assert err.count("\n") == 1
    assert len(err) < 1000


def test_a_file_that_cannot_be_read_or_written_is_one_clear_line_and_exit_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    binary, good, nowhere = tmp_path / "binary", tmp_path / "good", tmp_path / "nowhere"
    binary.write_bytes(b"\xff\xfe\x00")
    SAMPLE.save(good)
    assert [main([str(file)]) for file in (nowhere, tmp_path, binary)] == [2, 2, 2]
    assert main([str(good), "-o", str(nowhere / "a.svg")]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"anyloader.trace: {nowhere}: No such file or directory",
        f"anyloader.trace: {tmp_path}: Is a directory",
        f"anyloader.trace: {binary}: it is no text",
        f"anyloader.trace: {nowhere / 'a.svg'}: No such file or directory",
    ]
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.just([]), st.just({})
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_record_that_was_tampered_with_is_refused_or_shown(data: st.DataObject) -> None:
    record = json.loads(SAMPLE.to_json())
    where: Any = record
    while True:
        keys = list(where) if isinstance(where, dict) else list(range(len(where)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(where[key], (dict, list)) or not where[key] or data.draw(st.booleans()):
            break
        where = where[key]
    where[key] = data.draw(VALUES)
    try:
        trace = Trace.from_json(json.dumps(record))
    except TraceFileError:
        pass
    else:
        trace.text()
        trace.html()
        ElementTree.fromstring(trace.svg())
