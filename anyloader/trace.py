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

from ._results import excerpt
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
    #: The first of each loader, and how many each had.
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

    :param keys: whether the record may hold excerpts of keys and of the texts of errors; without them it
        can be shown to everybody
    :param most: so many loads of each batch and hits of each loader are recorded one by one, and ten
        times so many batches; of the others only how many there were
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
        for _, rounds in self._last.values():
            rounds.stop()

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
            self.trace.batch_count += 1
            batch = TracedBatch(event.loader, self.trace.batch_count, now)
            self._batches[event.batch] = self._of_loader[event.loader] = batch
            if len(self.trace.batches) < 10 * self._most:
                self.trace.batches.append(batch)
        if isinstance(event, BatchOpened):
            batch.missed = self._missed(batch)
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
        if len(batch.loads) < self._most:
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
        if batch.number > 10 * self._most:
            del self._batches[number]

    def _note_hit(self, event: LoadHit, now: float) -> None:
        counts = self.trace.hit_counts
        counts[event.loader] = counts.get(event.loader, 0) + 1
        if counts[event.loader] <= self._most:
            self.trace.hits.append(TracedHit(event.loader, self._key(event.key), now))

    def _key(self, key: object) -> str:
        return excerpt(key) if self._keys else "a key"

    def _describe(self, error: BaseException) -> str:
        name = type(error).__name__
        return f"{name}: {excerpt(str(error))[1:-1]}" if self._keys else name

    def _note_failure(self, event: ValueCacheFailed) -> None:
        # On the way out of a scope no batch is there to tell of; the last one says it.
        last = self._of_loader.get(event.loader)
        batch = self._batches.get(event.batch, last)
        if batch is not None:
            batch.failures.append(f"{event.operation}: {self._describe(event.error)}")

    def _missed(self, batch: TracedBatch) -> TracedMiss | None:
        if batch.loader not in self._last:
            return None
        last, rounds = self._last[batch.loader]
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


def _count(n: int, thing: str, things: str | None = None) -> str:
    return f"{n} {thing if n == 1 else things or thing + 's'}"


def _summary(trace: Trace) -> str:
    hits = sum(trace.hit_counts.values())
    loads = sum(batch.keys + batch.shared for batch in trace.batches) + hits
    more = "more than " if trace.batch_count > len(trace.batches) else ""
    return (
        f"{more}{_count(loads, 'load')}, {_count(trace.batch_count, 'batch', 'batches')}, "
        f"{_count(hits, 'hit')}, {_time(trace.duration)}"
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
    facts = [_count(batch.keys if batch.size is None else batch.size, "key")]
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
        facts.append(f"{_count(batch.errors, 'key')} failed")
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
    return f"missed #{missed.batch} by {_count(missed.rounds, 'round')}"


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


#: How many loads of a batch a picture has room for; the table of the page has all.
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


# SVG

_WIDTH, _LEFT, _RIGHT = 960, 190, 16
_ROW, _LINE, _TOP = 36, 15, 62

_COLOURS_LIGHT = ("#2f6fde", "#b3560b", "#217a3c", "#7c4bc0", "#0b7a7a", "#b8326b")
_COLOURS_DARK = ("#6ea8fe", "#f0a35e", "#6cc788", "#b794f4", "#5cc9c9", "#f08ab8")


def _style() -> str:
    def colours(values: Sequence[str]) -> str:
        return "".join(f".l{i}{{--loader:{value}}}" for i, value in enumerate(values))

    light = "--bg:#ffffff;--fg:#1f2328;--dim:#59636e;--grid:#d8dee4;--bad:#cf222e"
    dark = "--bg:#0d1117;--fg:#e6edf3;--dim:#9aa4af;--grid:#30363d;--bad:#ff7b72"
    return (
        f".trace{{{light}}}{colours(_COLOURS_LIGHT)}"
        f"@media(prefers-color-scheme:dark){{.trace{{{dark}}}{colours(_COLOURS_DARK)}}}"
        ".trace{font:12px system-ui,sans-serif}"
        # An edge in the colour of the ground, so that lines of the grid do not run through words.
        ".trace text{fill:var(--fg);paint-order:stroke;stroke:var(--bg);stroke-width:4}"
        ".trace .dim{fill:var(--dim);font-size:11px}"
        ".trace .name{font-weight:600}.trace .bad{fill:var(--bad)}"
        ".trace .grid{stroke:var(--grid)}.trace .bg{fill:var(--bg)}"
        ".trace .open{fill:var(--loader);fill-opacity:.3}"
        ".trace .waits{fill:var(--grid);stroke:var(--dim);stroke-width:.5}"
        ".trace .runs{fill:var(--loader)}.trace .failed{stroke:var(--bad);stroke-width:2}"
        ".trace .load{stroke:var(--loader);stroke-opacity:.55}"
        ".trace .key{fill:var(--loader)}"
        ".trace .shared{fill:var(--bg);stroke:var(--loader);stroke-width:1.5}"
    )


def _svg(trace: Trace) -> str:
    loaders: dict[str, int] = {}
    names = [*(batch.loader for batch in trace.batches), *trace.hit_counts]
    for name in names:
        loaders.setdefault(name, len(loaders) % len(_COLOURS_LIGHT))
    plot = _WIDTH - _LEFT - _RIGHT

    def x(time: float) -> str:
        return f"{_LEFT + (time / trace.duration * plot if trace.duration else 0):.1f}"

    body: list[str] = []
    y = _TOP
    for batch in trace.batches:
        body += _svg_batch(trace, batch, loaders[batch.loader], x, y)
        shown = len(batch.loads[:_MOST_LOADS])
        y += _ROW + _LINE * (shown + (batch.keys + batch.shared > shown)) + 8
    for loader, count in trace.hit_counts.items():
        hits = [hit for hit in trace.hits if hit.loader == loader]
        body += _svg_hits(loader, count, hits, loaders[loader], x, y)
        y += _ROW + 4
    height = y + 44
    axis = []
    for time in _ticks(trace.duration):
        axis.append(f'<line class="grid" x1="{x(time)}" x2="{x(time)}" y1="46" y2="{y}"/>')
        axis.append(_label(x(time), 40, _time(time) if time else "0", "dim", "middle"))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="trace" width="{_WIDTH}" '
            f'height="{height}" viewBox="0 0 {_WIDTH} {height}" role="img">',
            f"<title>{escape(_summary(trace))}</title>",
            f"<style>{_style()}</style>",
            f'<rect class="bg" width="{_WIDTH}" height="{height}"/>',
            _label("16", 22, _summary(trace), "name"),
            *axis,
            *body,
            *_svg_legend(height - 16),
            "</svg>\n",
        ]
    )


def _label(x: str, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg_batch(trace: Trace, batch: TracedBatch, colour: int, x: Any, y: int) -> Iterator[str]:
    facts = " · ".join(_facts(batch))
    bad = batch.outcome in ("failed", "cancelled") or batch.errors > 0
    yield f'<g class="l{colour}"><title>{escape(f"{_title(batch)}: {facts}")}</title>'
    yield (
        f'<text x="16" y="{y + 4}"><tspan class="name">{escape(_title(batch))}</tspan>'
        f'<tspan class="dim{" bad" if bad else ""}" dx="10">{escape(_clean(facts, 125))}</tspan>'
        "</text>"
    )
    for what, start, end in _phases(trace, batch):
        width = max(float(x(end)) - float(x(start)), 1.5)
        kind = f"{what} failed" if bad and what == "runs" else what
        yield f'<rect class="{kind}" x="{x(start)}" y="{y + 11}" width="{width:.1f}" height="12"/>'
    end = trace.duration if batch.ended is None else batch.ended
    for line, load in enumerate(batch.loads[:_MOST_LOADS]):
        middle = y + _ROW + _LINE * line
        yield _label("28", middle + 4, _clean(load.key, 16), "dim")
        yield _label(str(_LEFT - 12), middle + 4, _wait(batch, load), "dim", "end")
        yield (
            f'<line class="load" x1="{x(load.at)}" x2="{x(max(end, load.at))}" '
            f'y1="{middle}" y2="{middle}"/>'
        )
        kind = "shared" if load.shared else "key"
        yield f'<circle class="{kind}" cx="{x(load.at)}" cy="{middle}" r="3.5"/>'
    shown = len(batch.loads[:_MOST_LOADS])
    more = batch.keys + batch.shared - shown
    if more:
        middle = y + _ROW + _LINE * shown
        yield _label("28", middle + 4, f"and {_count(more, 'more load', 'more loads')}", "dim")
    yield "</g>"


def _svg_hits(
    loader: str, count: int, hits: list[TracedHit], colour: int, x: Any, y: int
) -> Iterator[str]:
    yield f'<g class="l{colour}"><text x="16" y="{y + 4}">'
    yield f'<tspan class="name">{escape(_clean(loader, 60))}</tspan>'
    yield f'<tspan class="dim" dx="10">{_count(count, "hit")}</tspan></text>'
    for hit in hits:
        title = escape(f"{_clean(hit.key, 60)} at {_time(hit.at)}")
        yield _diamond(float(x(hit.at)), y + 17, title)
    yield "</g>"


def _diamond(x: float, y: float, title: str) -> str:
    points = f"M{x:.1f} {y - 5}l5 5l-5 5l-5 -5z"
    return f'<path class="key" d="{points}"><title>{title}</title></path>'


def _svg_legend(y: int) -> Iterator[str]:
    yield '<g class="l0">'
    for left, kind, text in (
        (16, "open", "open for keys"),
        (136, "waits", "waits for the limiter"),
        (296, "runs", "runs"),
    ):
        yield f'<rect class="{kind}" x="{left}" y="{y - 10}" width="18" height="12"/>'
        yield _label(str(left + 24), y, text, "dim")
    for left, kind, text in (380, "key", "a load with its wait"), (526, "shared", "shares a key"):
        yield f'<circle class="{kind}" cx="{left}" cy="{y - 4}" r="3.5"/>'
        yield _label(str(left + 9), y, text, "dim")
    yield _diamond(640, y - 4, "hit")
    yield _label("650", y, "hit", "dim")
    yield "</g>"


def _ticks(duration: float) -> list[float]:
    """Return some round times, from 0 on."""
    if duration <= 0:
        return [0]
    rough = duration / 6
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= rough * 0.999)
    return [step * i for i in range(int(duration / step * 1.000001) + 1)]


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


def _html(trace: Trace) -> str:
    rows = []
    for batch in trace.batches:
        facts = escape(" · ".join(_facts(batch)))
        rows.append(f'<tr class="batch"><th colspan="4">{escape(_title(batch))}: {facts}</th></tr>')
        for load in batch.loads:
            how = "shared" if load.shared else ""
            rows.append(_html_row(load.key, load.at, _wait(batch, load), how))
        more = batch.keys + batch.shared - len(batch.loads)
        if more:
            rows.append(f'<tr><td colspan="4">and {more} more</td></tr>')
    if trace.batch_count > len(trace.batches):
        more = trace.batch_count - len(trace.batches)
        rows.append(f'<tr class="batch"><th colspan="4">and {more} more batches</th></tr>')
    for loader, count in trace.hit_counts.items():
        title = f"{_count(count, 'hit')} of {_clean(loader, 60)}"
        rows.append(f'<tr class="batch"><th colspan="4">{escape(title)}</th></tr>')
    for hit in trace.hits:
        rows.append(_html_row(hit.key, hit.at, "0", f"hit of {_clean(hit.loader, 60)}"))
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(_summary(trace))}</title>",
            f"<style>{_PAGE_STYLE}</style></head><body>",
            f'<div class="picture">{_svg(trace)}</div>',
            "<table><thead><tr><th>key</th><th>at</th><th>waited</th><th></th></tr></thead><tbody>",
            *rows,
            "</tbody></table></body></html>\n",
        ]
    )


def _html_row(key: str, at: float, waited: str, how: str) -> str:
    cells = (escape(_clean(key, 200)), _time(at), waited, escape(how))
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


_PAGE_STYLE = (
    "body{margin:1rem;font:14px system-ui,sans-serif;background:#fff;color:#1f2328}"
    # On a narrow screen the picture scrolls: smaller, its words could not be read.
    ".picture{overflow-x:auto}svg{display:block;max-width:100%;min-width:46rem;height:auto}"
    "table{border-collapse:collapse;margin-top:1rem}"
    "td,th{padding:.15rem .8rem;text-align:left;font-variant-numeric:tabular-nums}"
    "td:nth-child(2),td:nth-child(3){white-space:nowrap}td,th{overflow-wrap:anywhere}"
    ".batch th{padding-top:.7rem;font-weight:600}thead th{font-weight:400;color:#59636e}"
    "@media(prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}"
    "thead th{color:#9aa4af}}"
)
