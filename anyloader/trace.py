"""
A picture of the batches: which loads made each of them, why it left, and what it missed. ::

    with record() as trace:
        await handle(request)
    print(trace.text())
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any

import anyio
from anyio.lowlevel import current_token

from ._results import counted, excerpt
from ._watch import Watch
from .hooks import (
    BatchFailed,
    BatchFinished,
    BatchOpened,
    BatchSealed,
    BatchStarted,
    Event,
    LoadHit,
    LoadQueued,
    ValueCacheFailed,
    ValueCacheHit,
    ValueCacheMiss,
)

__all__ = (
    "Trace",
    "TracedBatch",
    "TracedHit",
    "TracedLoad",
    "TracedMiss",
    "record",
)

# What is recorded. All times are seconds since the record began.


@dataclass
class TracedLoad:
    """A load that brought a key into a batch, or shared one that was there."""

    #: An excerpt.
    key: str
    at: float
    shared: bool


@dataclass
class TracedMiss:
    """The batch of the same loader before this one, which left without the key that opened it."""

    batch: int
    #: How long before it had been sealed.
    seconds: float
    #: The same in rounds of the scheduler; ``None`` for more than are counted.
    rounds: int | None
    #: Whether a task that had loaded into that batch opened this one: it could not have joined.
    same_task: bool


@dataclass
class TracedBatch:
    """One batch; ``None`` stands for what had not happened yet when the record ended."""

    loader: str
    #: From 1 on, in the order of opening.
    number: int
    opened: float
    sealed: float | None = None
    started: float | None = None
    ended: float | None = None
    #: Why it was sealed: "schedule", "full", "dispatch" or "close".
    reason: str | None = None
    #: With how many keys.
    size: int | None = None
    #: "finished", "failed", "cancelled", or "dropped" if nobody wanted any of its keys any more.
    outcome: str | None = None
    #: What it failed with, or why it was cancelled.
    error: str | None = None
    #: How many single keys failed.
    errors: int = 0
    #: How many keys the value cache had, and had not.
    cached: int = 0
    uncached: int = 0
    missed: TracedMiss | None = None
    #: How many loads brought a key, and how many shared one.
    keys: int = 0
    shared: int = 0
    #: The first of these.
    loads: list[TracedLoad] = field(default_factory=list)
    #: Failures of the value cache.
    failures: list[str] = field(default_factory=list)


@dataclass
class TracedHit:
    """A load that was answered by a settled entry of the cache."""

    loader: str
    key: str
    at: float


@dataclass
class Trace:
    """What :func:`record` has recorded, and how to show and save it."""

    duration: float = 0.0
    #: The first of them, and how many there were.
    batches: list[TracedBatch] = field(default_factory=list)
    batch_count: int = 0
    #: The first of each loader, and how many hits each had.
    hits: list[TracedHit] = field(default_factory=list)
    hit_counts: dict[str, int] = field(default_factory=dict)

    def text(self, width: int = 100) -> str:
        """
        Show the batches in a terminal.

        :param width: in columns
        """
        return _text(self, max(width, 40))

    def html(self) -> str:
        """Return a page with a picture and a table of the loads, that needs no other file."""
        return _html(self)

    def chrome(self) -> str:
        """
        Return Chrome's trace events as JSON, which https://ui.perfetto.dev and ``chrome://tracing`` open.

        A thread for each loader; a batch is a slice with its phases in it, and a hit an instant.
        """
        return json.dumps(_chrome(self), indent=1)

    def save(self, path: str | PathLike[str]) -> None:
        """
        Write the record to a file.

        :param path: its name tells as what: ``.html``, ``.txt``, or ``.json`` for :meth:`chrome`
        :raises ValueError: if it tells something else
        :raises OSError: if the file cannot be written
        """
        path = Path(path)
        make = {".html": self.html, ".json": self.chrome, ".txt": self.text}.get(path.suffix)
        if make is None:
            raise ValueError(
                f"a trace is saved as .html, .json or .txt, and not as {path.suffix or 'a file of no kind'}"
            )
        path.write_text(make(), encoding="utf-8")


@contextmanager
def record(*, keys: bool = True, most: int = 100) -> Iterator[Trace]:
    """
    Record what the loaders do that are used in the block.

    These are the loaders of the scopes around it, those that are opened in it, and all that open a
    batch in it or in a batch function of one of these. All that such a loader does while the block
    runs is recorded, whoever asked for it. The block can be a request, a test or a whole program.

    To tell by how many rounds a key missed a batch, a callback runs in each of the ten rounds that
    follow one. Nothing else of the program changes.

    :param keys: whether the record may hold excerpts of keys and of the texts of errors; without them
        it can be shown to everybody
    :param most: so many loads of each batch and hits of each loader are recorded one by one, a hundred
        times so many in all, and ten times so many batches; of the others only how many there were
    :raises TypeError: if ``most`` is no int
    :raises ValueError: if it is negative
    """
    if isinstance(most, bool) or not isinstance(most, int):
        raise TypeError(f"most must be an int, not {most!r}")
    if most < 0:
        raise ValueError(f"most must not be negative, and it is {most}")
    recorder = _Recorder(keys, most)
    try:
        with Watch(recorder):
            yield recorder.trace
    finally:
        recorder.end()


#: A key that comes later than this has nothing to do with the batch before it.
_MOST_ROUNDS = 10


class _Recorder:
    def __init__(self, keys: bool, most: int) -> None:
        self.trace = Trace()
        self._keys = keys
        self._most = most
        self._most_batches = 10 * most
        #: So many loads and hits more are recorded one by one.
        self._room = 100 * most
        self._start: float | None = None
        #: By the number in the process.
        self._batches: dict[int, TracedBatch] = {}
        #: Of each loader the batch that was opened last.
        self._of_loader: dict[str, TracedBatch] = {}
        #: Of each loader the batch that was sealed last, the rounds since then, and its tasks.
        self._last: dict[str, tuple[TracedBatch, _Rounds]] = {}
        self._tasks: dict[int, set[object]] = {}
        try:
            self._now()
        except anyio.NoEventLoopError:
            pass  # around a whole program: it starts with the first event

    def _now(self) -> float:
        now = anyio.current_time()
        if self._start is None:
            self._start = now
        self.trace.duration = round(now - self._start, 6)
        return self.trace.duration

    def end(self) -> None:
        try:
            self._now()
        except anyio.NoEventLoopError:
            pass
        self._stop_rounds()

    def __call__(self, event: Event) -> None:
        now = self._now()
        if isinstance(event, LoadHit):
            self._note_hit(event, now)
            return
        if isinstance(event, ValueCacheFailed):
            self._note_failure(event)
            return
        batch = self._batches.get(event.batch)
        if batch is None:
            if isinstance(event, (ValueCacheHit, ValueCacheMiss)):
                return  # the call went on after the end of its batch
            if len(self._of_loader) > self._most_batches:
                self._forget_loaders()
            self.trace.batch_count += 1
            batch = TracedBatch(event.loader, self.trace.batch_count, now)
            self._batches[event.batch] = self._of_loader[event.loader] = batch
            if batch.number <= self._most_batches:
                self.trace.batches.append(batch)
        if isinstance(event, BatchOpened):
            batch.missed = self._missed(event.loader, batch)
        elif isinstance(event, LoadQueued):
            self._note_load(batch, event, now)
        elif isinstance(event, BatchSealed):
            self._note_seal(batch, event, now)
        elif isinstance(event, BatchStarted):
            batch.started = now
        elif isinstance(event, ValueCacheHit):
            batch.cached = len(event.keys)
        elif isinstance(event, ValueCacheMiss):
            batch.uncached = len(event.keys)
        else:
            batch.ended = now
            if isinstance(event, BatchFinished):
                batch.outcome, batch.errors = "finished", event.errors
            elif isinstance(event, BatchFailed):
                batch.outcome, batch.error = "failed", self._describe(event.error)
            else:
                batch.outcome, batch.error = "cancelled", event.why
            self._forget(batch, event.batch)

    def _note_load(self, batch: TracedBatch, event: LoadQueued, now: float) -> None:
        batch.shared += event.shared
        batch.keys += not event.shared
        if batch.number <= self._most_batches and len(batch.loads) < self._most and self._room:
            self._room -= 1
            batch.loads.append(TracedLoad(self._key(event.key), now, event.shared))
        self._tasks.setdefault(batch.number, set()).add(_current_task())

    def _note_seal(self, batch: TracedBatch, event: BatchSealed, now: float) -> None:
        batch.sealed, batch.reason, batch.size = now, event.reason, event.size
        if event.loader in self._last:
            last, rounds = self._last[event.loader]
            rounds.stop()
            self._tasks.pop(last.number, None)
        self._last[event.loader] = (batch, _Rounds())
        if not event.size:
            batch.ended, batch.outcome = now, "dropped"
            self._forget(batch, event.batch)

    def _forget(self, batch: TracedBatch, number: int) -> None:
        """A batch has ended: keep it if it is in the record."""
        if batch.number > self._most_batches:
            del self._batches[number]

    def _note_hit(self, event: LoadHit, now: float) -> None:
        counts = self.trace.hit_counts
        name = event.loader
        if name not in counts and len(counts) >= self._most_batches:
            name = "other loaders"
        counts[name] = counts.get(name, 0) + 1
        if counts[name] <= self._most and self._room:
            self._room -= 1
            self.trace.hits.append(TracedHit(name, self._key(event.key), now))

    def _forget_loaders(self) -> None:
        """Names may be many: what came before is not compared with what comes now."""
        self._stop_rounds()
        for known in self._of_loader, self._last, self._tasks:
            known.clear()

    def _stop_rounds(self) -> None:
        for _, rounds in self._last.values():
            rounds.stop()

    def _key(self, key: object) -> str:
        return excerpt(key) if self._keys else "a key"

    def _describe(self, error: BaseException) -> str:
        name = type(error).__name__
        if not self._keys:
            return name
        try:
            text = str(error)
        except Exception:
            text = "<its str() failed>"
        return f"{name}: {excerpt(text)[1:-1]}"

    def _note_failure(self, event: ValueCacheFailed) -> None:
        # On the way out of a scope no batch is there to tell of; the last one says it.
        last = self._of_loader.get(event.loader)
        batch = self._batches.get(event.batch, last)
        if batch is not None and len(batch.failures) < 10:
            batch.failures.append(f"{event.operation}: {self._describe(event.error)}")

    def _missed(self, loader: str, batch: TracedBatch) -> TracedMiss | None:
        if loader not in self._last:
            return None
        last, rounds = self._last[loader]
        if last.reason == "full" or last.sealed is None:
            return None
        same_task = _current_task() in self._tasks.get(last.number, ())
        seconds = round(batch.opened - last.sealed, 6)
        return TracedMiss(last.number, seconds, rounds.count, same_task)


def _current_task() -> object:
    try:
        return anyio.get_current_task().id
    except RuntimeError:  # a callback of the loop
        return None


class _Rounds:
    """Counts rounds of the scheduler, for a while."""

    def __init__(self) -> None:
        #: ``None`` once there are too many.
        self.count: int | None = 1  # a load in the round of the seal comes too late by one as well
        native: Any = current_token().native_token
        self._soon = native.run_sync_soon if hasattr(native, "run_sync_soon") else native.call_soon
        self._soon(self._next)
        self._ticks = 0

    def _next(self) -> None:
        if self.count is None:
            return
        self._ticks += 1
        self.count = max(self._ticks, 1)
        if self._ticks > _MOST_ROUNDS:
            self.stop()
            return
        try:
            self._soon(self._next)
        except RuntimeError:  # the event loop is about to end
            self.stop()

    def stop(self) -> None:
        self.count = None


# What all pictures say


def _clean(text: str, most: int = 1000) -> str:
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= most else text[: most - 1].rstrip(".") + "…"


def _time(seconds: float) -> str:
    micro = round(seconds * 1e6)
    if micro < 1000:
        return f"{micro} µs"
    value, unit = (seconds * 1e3, "ms") if micro < 999_500 else (seconds, "s")
    return f"{value:.3g} {unit}" if value < 999.5 else f"{value:.0f} {unit}"


def _summary(trace: Trace) -> str:
    hits = sum(trace.hit_counts.values())
    loads = sum(batch.keys + batch.shared for batch in trace.batches) + hits
    more = "more than " if trace.batch_count > len(trace.batches) else ""
    return (
        f"{more}{counted(loads, 'load')}, {counted(trace.batch_count, 'batch', 'batches')}, "
        f"{counted(hits, 'hit')}, {_time(trace.duration)}"
    )


def _title(batch: TracedBatch) -> str:
    return f"{_clean(batch.loader, 60)} #{batch.number}"


_REASONS = {
    "schedule": "left by its schedule",
    "full": "left as it was full",
    "dispatch": "left by dispatch()",
    "close": "left as its scope was left",
}


def _facts(batch: TracedBatch) -> list[str]:
    """Say all there is to say of one batch, but for the times of its loads."""
    facts = [counted(batch.keys if batch.size is None else batch.size, "key")]
    if batch.shared:
        facts[0] += f", {batch.shared} shared"
    if batch.cached or batch.uncached:
        facts.append(f"value cache had {batch.cached} of {batch.cached + batch.uncached}")
    facts += [_clean(f"value cache failed: {failure}", 80) for failure in batch.failures[:2]]
    if batch.reason is not None:
        facts.append(_REASONS.get(batch.reason, _clean(batch.reason, 30)))
    elif batch.ended is None:
        facts.append("not sent yet")
    if batch.ended is None:
        facts.append("not done yet")
    else:
        facts.append(_time(batch.ended - batch.opened))
    if batch.errors:
        facts.append(f"{counted(batch.errors, 'key')} failed")
    if batch.outcome == "dropped":
        facts.append("nobody wanted it any more")
    elif batch.error is not None:
        facts.append(_clean(f"{batch.outcome}: {batch.error}", 100))
    if batch.missed is not None:
        facts.append(_miss(batch.missed))
    return facts


def _miss(missed: TracedMiss) -> str:
    if missed.same_task:
        return f"after #{missed.batch}, in the same task"
    if missed.rounds is None:
        return f"{_time(missed.seconds)} after #{missed.batch} had left"
    return f"missed #{missed.batch} by {counted(missed.rounds, 'round')}"


def _phases(trace: Trace, batch: TracedBatch) -> list[tuple[str, float, float]]:
    """Return the parts of a bar: what, from when, until when."""
    end = trace.duration if batch.ended is None else batch.ended
    sealed = end if batch.sealed is None else batch.sealed
    started = end if batch.started is None else batch.started
    parts = [
        ("open", batch.opened, sealed),
        ("waits", sealed, started),
        ("runs", started, end),
    ]
    return [part for part in parts if part[2] > part[1]] or [("runs", batch.opened, end)]


def _wait(batch: TracedBatch, load: TracedLoad) -> str:
    if batch.ended is None:
        return "no end"
    return _time(max(0, batch.ended - load.at))


#: How many loads of a batch a terminal has room for; the page has all that are recorded.
_MOST_LOADS = 12

# Text

_MARKS = {"open": "░", "waits": "▒", "runs": "█"}


def _text(trace: Trace, width: int) -> str:
    lines = [_summary(trace)]
    room = width - 4
    for batch in trace.batches:
        lines += ["", f"{_title(batch)}: {' · '.join(_facts(batch))}"]
        bar = [" "] * room
        for what, start, end in _phases(trace, batch):
            first = _column(trace, start, room)
            for column in range(first, max(first, _column(trace, end, room, up=True) - 1) + 1):
                bar[column] = _MARKS[what]
        lines.append("  " + "|" + "".join(bar) + "|")
        for load in batch.loads[:_MOST_LOADS]:
            shared = ", shared" if load.shared else ""
            waited = _wait(batch, load)
            lines.append(f"    {_clean(load.key, 40)} at {_time(load.at)}, waited {waited}{shared}")
        more = batch.keys + batch.shared - len(batch.loads[:_MOST_LOADS])
        if more:
            lines.append(f"    and {more} more")
    if trace.batch_count > len(trace.batches):
        lines += ["", f"and {trace.batch_count - len(trace.batches)} more batches"]
    if trace.hit_counts:
        lines += ["", "hits:"]
        for hit in trace.hits[:_MOST_LOADS]:
            lines.append(f"    {_clean(hit.loader, 60)} {_clean(hit.key, 40)} at {_time(hit.at)}")
        more = sum(trace.hit_counts.values()) - len(trace.hits[:_MOST_LOADS])
        if more:
            lines.append(f"    and {more} more")
    lines += ["", "  ".join(f"{mark} {what}" for what, mark in _MARKS.items())]
    return "\n".join(lines) + "\n"


def _column(trace: Trace, time: float, room: int, *, up: bool = False) -> int:
    share = time / trace.duration if trace.duration else 0
    return min(math.ceil(share * room), room) if up else min(int(share * room), room - 1)


# Trace events


def _chrome(trace: Trace) -> dict[str, Any]:
    events: list[dict[str, Any]] = []
    names = [*(batch.loader for batch in trace.batches), *trace.hit_counts]
    threads = {name: number for number, name in enumerate(dict.fromkeys(names), 1)}
    for name, thread in threads.items():
        named = {"ph": "M", "name": "thread_name", "args": {"name": _clean(name, 60)}}
        events.append({"pid": 1, "tid": thread, **named})
    for batch in trace.batches:
        # Asynchronous, as batches of one loader may run at the same time.
        common = {"pid": 1, "tid": threads[batch.loader], "cat": "batch", "id": batch.number}
        slices = [
            (_title(batch), batch.opened, trace.duration if batch.ended is None else batch.ended)
        ]
        for name, start, end in slices + _phases(trace, batch):
            facts = {"args": {"facts": _facts(batch)}} if name == _title(batch) else {}
            events.append({"ph": "b", "name": name, "ts": start * 1e6, **common, **facts})
            events.append({"ph": "e", "name": name, "ts": end * 1e6, **common})
    for hit in trace.hits:
        instant = {"ph": "i", "s": "t", "name": "hit", "cat": "hit", "ts": hit.at * 1e6}
        key = {"key": _clean(hit.key, 200)}
        events.append({**instant, "pid": 1, "tid": threads[hit.loader], "args": key})
    return {"traceEvents": events, "otherData": {"summary": _summary(trace)}}


# HTML

_COLOURS_LIGHT = ("#2f6fde", "#b3560b", "#217a3c", "#7c4bc0", "#0b7a7a", "#b8326b")
_COLOURS_DARK = ("#6ea8fe", "#f0a35e", "#6cc788", "#b794f4", "#5cc9c9", "#f08ab8")

_STYLE = (
    "body{margin:1rem;font:13px system-ui,sans-serif;background:var(--bg);color:var(--fg)}"
    # On a narrow screen the table scrolls: smaller, nothing in it could be told apart.
    "main{overflow-x:auto;padding-right:8px}table{border-collapse:collapse;width:100%;min-width:60rem}"
    "td,th{padding:.1rem .7rem .1rem 0;text-align:left;overflow-wrap:anywhere;font-weight:400}"
    "td:nth-child(2),td:nth-child(3){white-space:nowrap;font-variant-numeric:tabular-nums}"
    "h1{font-size:1.1em}thead th,.facts{color:var(--dim)}.batch th{padding-top:.7rem}"
    ".bad{color:var(--bad)}.track{position:relative;width:60%;padding:0;background:"
    "repeating-linear-gradient(90deg,var(--grid) 0 1px,#0000 1px var(--step))}"
    # A thing that begins with the last moment of the record is seen all the same.
    ".track i{position:absolute;min-width:2px}"
    ".track span{position:absolute;bottom:0;padding-left:3px;white-space:nowrap}"
    ".open,.waits,.runs{height:12px;bottom:3px;background:var(--loader)}.open{opacity:.3}"
    ".waits{background:var(--grid);outline:1px solid var(--dim);outline-offset:-1px}"
    ".runs.failed{outline:2px solid var(--bad);outline-offset:-2px}"
    ".load{height:1px;top:50%;background:var(--loader)}"
    ".load::before,.hit{content:'';position:absolute;left:-3px;top:-3px;width:7px;height:7px;"
    "border-radius:50%;background:var(--loader)}"
    ".shared::before{width:4px;height:4px;border:1.5px solid var(--loader);background:var(--bg)}"
    ".hit{top:calc(50% - 3px);margin-left:-3px;border-radius:0;transform:rotate(45deg)}"
    "footer i{display:inline-block;position:relative!important;inset:auto!important;"
    "width:18px;margin:0 .4rem 0 1.2rem}footer .hit{width:7px;margin-left:1.2rem}footer .load{top:-4px!important}"
)


def _colours(name: str, ground: str, colours: Sequence[str]) -> str:
    loaders = "".join(f".l{i}{{--loader:{colour}}}" for i, colour in enumerate(colours))
    return f"{name}{{{ground}}}{loaders}"


def _html(trace: Trace) -> str:
    light = "--bg:#ffffff;--fg:#1f2328;--dim:#59636e;--grid:#d8dee4;--bad:#cf222e"
    dark = "--bg:#0d1117;--fg:#e6edf3;--dim:#9aa4af;--grid:#30363d;--bad:#ff7b72"
    style = _colours(":root", light, _COLOURS_LIGHT) + _STYLE
    style += f"@media(prefers-color-scheme:dark){{{_colours(':root', dark, _COLOURS_DARK)}}}"
    ticks = _ticks(trace.duration)
    step = _share(trace, ticks[1]) if len(ticks) > 1 else 100
    axis = [
        f'<span style="left:{_share(trace, time)}%">{_time(time) if time else "0"}</span>'
        for time in ticks
        if _share(trace, time) < 95  # or it has no room
    ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8"/>',
            '<meta name="viewport" content="width=device-width"/>',
            '<meta name="color-scheme" content="light dark"/>',
            f"<title>{escape(_summary(trace))}</title>",
            f"<style>{style}</style></head><body><main><h1>{escape(_summary(trace))}</h1>",
            f'<table style="--step:{step}%"><thead><tr><th>key</th><th>at</th><th>waited</th>',
            f'<th class="track">{"".join(axis)}</th></tr></thead><tbody>',
            *_html_rows(trace),
            '</tbody></table></main><footer class="l0"><p><i class="open"></i>open for keys',
            '<i class="waits"></i>waits for the limiter<i class="runs"></i>runs',
            '<i class="load"></i>a load with its wait<i class="load shared"></i>shares a key',
            '<i class="hit"></i>hit</p></footer></body></html>\n',
        ]
    )


def _html_rows(trace: Trace) -> Iterator[str]:
    names = [*(batch.loader for batch in trace.batches), *trace.hit_counts]
    colours = {name: i % len(_COLOURS_LIGHT) for i, name in enumerate(dict.fromkeys(names))}
    for batch in trace.batches:
        colour = colours[batch.loader]
        bad = batch.outcome in ("failed", "cancelled") or batch.errors > 0
        bars = [
            _bar(trace, f"{what} failed" if bad and what == "runs" else what, start, end)
            for what, start, end in _phases(trace, batch)
        ]
        yield _html_head(colour, _title(batch), " · ".join(_facts(batch)), bad, bars)
        for load in batch.loads:
            end = trace.duration if batch.ended is None else batch.ended
            bar = _bar(trace, "load shared" if load.shared else "load", load.at, max(end, load.at))
            yield _html_row(colour, load.key, load.at, _wait(batch, load), bar)
        yield from _html_more(batch.keys + batch.shared - len(batch.loads), "loads")
    yield from _html_more(trace.batch_count - len(trace.batches), "batches")
    for loader, count in trace.hit_counts.items():
        hits = [hit for hit in trace.hits if hit.loader == loader]
        marks = [_bar(trace, "hit", hit.at, hit.at) for hit in hits]
        yield _html_head(colours[loader], _clean(loader, 60), counted(count, "hit"), False, marks)
        for hit, mark in zip(hits, marks):
            yield _html_row(colours[loader], hit.key, hit.at, "0", mark)
        yield from _html_more(count - len(hits), "hits")


def _share(trace: Trace, time: float) -> float:
    """Return where this time is, in percent."""
    return round(100 * time / trace.duration, 2) if trace.duration else 0


def _bar(trace: Trace, kind: str, start: float, end: float) -> str:
    left = _share(trace, start)
    width = "" if kind == "hit" else f";width:{_share(trace, end) - left:.4g}%"
    return f'<i class="{kind}" style="left:{left}%{width}"></i>'


def _html_head(colour: int, title: str, facts: str, bad: bool, bars: list[str]) -> str:
    kind = "facts bad" if bad else "facts"
    return (
        f'<tr class="batch l{colour}"><th colspan="3"><b>{escape(title)}</b> '
        f'<span class="{kind}">{escape(facts)}</span></th><td class="track">{"".join(bars)}</td></tr>'
    )


def _html_row(colour: int, key: str, at: float, waited: str, bar: str) -> str:
    return (
        f'<tr class="l{colour}"><td>{escape(_clean(key, 200))}</td><td>{_time(at)}</td>'
        f'<td>{waited}</td><td class="track">{bar}</td></tr>'
    )


def _html_more(more: int, things: str) -> Iterator[str]:
    if more:
        yield f'<tr class="facts"><td colspan="4">and {more} more {things}</td></tr>'


def _ticks(duration: float) -> list[float]:
    """Return some round times, from 0 on."""
    if duration <= 0:
        return [0]
    rough = duration / 6
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= rough * 0.999)
    return [step * i for i in range(int(duration / step * 1.000001) + 1)]
