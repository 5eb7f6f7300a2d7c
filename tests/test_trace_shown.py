"""``anyloader.trace``: how a record is shown, and what it is saved as."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from anyloader.trace import (
    Trace,
    TracedBatch,
    TracedHit,
    TracedLoad,
    TracedMiss,
)

pytestmark = pytest.mark.anyio


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
