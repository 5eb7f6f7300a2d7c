"""
One loader in front of a model, beside other libraries that batch calls.

The model takes one call at a time and at most 64 items, 20 ms and 0.1 ms an item long. Callers come
at times drawn once, whether or not those before them have their answers (an open loop), and a wait
begins when its caller is due, so that no delay of this program hides in it. Time is real time: waiting is what
is measured. The others get the batch size and a delay of 5 ms (what `batched` has by default,
half of what `async-batcher` has), and nothing else; anyloader has its default schedule.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import random
import sys
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from html import escape
from importlib import import_module
from math import log10
from pathlib import Path
from statistics import mean, median
from time import perf_counter, process_time
from typing import Any, TypeVar, cast

import anyio

import anyloader

from ._contenders import is_installed
from ._report import environment

PACKAGES = ("anyloader", "anyio", "trio", "batched", "async-batcher")

R = TypeVar("R")
Call = Callable[[int], Awaitable[int]]
Function = Callable[[list[int]], Awaitable[list[int]]]

BATCH_SIZE = 64
SECONDS_A_CALL = 0.020
SECONDS_AN_ITEM = 0.0001
#: What the model can do at best, in items a second.
CAPACITY = BATCH_SIZE / (SECONDS_A_CALL + BATCH_SIZE * SECONDS_AN_ITEM)
#: Callers a second, and for how many seconds of a round they come.
RATES = {20: 4.0, 200: 2.0, 1000: 1.5, 2000: 1.5}
CALLERS, CALLS_EACH = 1000, 50
QUEUE = 4 * BATCH_SIZE
OVERLOAD = 3
#: The model of that row, so that not this program is what has too much to do.
SLOWER = 5
#: Longer than anything here takes that works.
HANGS = 0.5


class Model:
    """Takes one call at a time; calls that come meanwhile wait for their turn."""

    def __init__(self, slower: float = 1) -> None:
        self.sizes: list[int] = []
        self._slower = slower
        self._turn = anyio.Lock()

    async def __call__(self, items: list[int]) -> list[int]:
        async with self._turn:
            self.sizes.append(len(items))
            await anyio.sleep((SECONDS_A_CALL + SECONDS_AN_ITEM * len(items)) * self._slower)
            return list(items)


async def free(items: list[int]) -> list[int]:
    return list(items)


# --- who is measured ---


@asynccontextmanager
async def _anyloader(
    function: Function, size: int | None, bound: int | None
) -> AsyncIterator[Call]:
    async with anyloader.DataLoader(
        function,
        cache=False,  # the others do not join equal items either
        max_batch_size=size,
        max_queue_size=bound,
        limiter=anyloader.limit(1),
    ) as loader:
        yield loader.load


@asynccontextmanager
async def _batched(function: Function, size: int | None, bound: int | None) -> AsyncIterator[Call]:
    processor = import_module("batched").aio.AsyncBatchProcessor(
        function, batch_size=size or CALLERS
    )
    yield processor  # its task ends with the event loop


@asynccontextmanager
async def _async_batcher(
    function: Function, size: int | None, bound: int | None
) -> AsyncIterator[Call]:
    async def process_batch(self: Any, batch: list[int]) -> list[int]:
        return await function(batch)

    base = import_module("async_batcher.batcher").AsyncBatcher
    batcher = type("Batcher", (base,), {"process_batch": process_batch})(
        max_batch_size=size or -1, max_queue_time=0.005, max_queue_size=bound or -1
    )
    try:
        yield batcher.process
    finally:
        await batcher.stop(force=True)


@asynccontextmanager
async def _floor(function: Function, size: int | None, bound: int | None) -> AsyncIterator[Call]:
    """Do the least that a batch takes on asyncio, a list and a future for each call, and no more."""
    import asyncio

    loop = asyncio.get_running_loop()
    waiting: list[tuple[int, asyncio.Future[int]]] = []
    tasks: set[asyncio.Task[None]] = set()

    def send() -> None:
        tasks.add(task := loop.create_task(run()))
        task.add_done_callback(tasks.discard)

    async def run() -> None:
        batch = waiting.copy()
        waiting.clear()
        for (_, future), value in zip(batch, await function([item for item, _ in batch])):
            future.set_result(value)

    def call(item: int) -> Awaitable[int]:
        if not waiting:
            loop.call_soon(send)
        future = loop.create_future()
        waiting.append((item, future))
        return future

    yield call


Open = Callable[[Function, "int | None", "int | None"], AbstractAsyncContextManager[Call]]


@dataclass(frozen=True)
class Contender:
    name: str
    open: Open
    backend: str = "asyncio"
    busy: str = "LoaderBusyError"
    bounded: bool = True

    def run(self, main: Callable[[Contender], Awaitable[R]]) -> R:
        return anyio.run(main, self, backend=self.backend)


def contenders() -> list[Contender]:
    """Return those that are installed; the first is what the others are compared with."""
    found = [Contender("anyloader", _anyloader)]
    if is_installed("batched"):
        found.append(Contender("batched", _batched, bounded=False))
    if is_installed("async_batcher"):
        found.append(Contender("async-batcher", _async_batcher, busy="QueueFullException"))
    if is_installed("trio"):
        found.append(Contender("anyloader on trio", _anyloader, backend="trio"))
    return found


# --- what is measured ---


@dataclass
class Waits:
    """How long callers waited, in seconds; an array, so that what is kept makes no objects."""

    waits: array[float] = field(default_factory=lambda: array("d"))
    refused: int = 0
    sizes: list[int] = field(default_factory=list)
    #: Blocks of memory in use after a third of the time, and at its end, while callers come.
    blocks: tuple[int, int] = (0, 0)

    def percentile(self, percent: int, part: slice = slice(None)) -> float:
        ordered = sorted(self.waits[part])
        return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)] * 1000


def arrivals(rate: float, seconds: float) -> Iterator[float]:
    """Give the times at which callers come: at random, but the same for everybody."""
    draw = random.Random(int(rate))
    at = draw.expovariate(rate)
    while at < seconds:
        yield at
        at += draw.expovariate(rate)


async def open_loop(
    contender: Contender,
    *,
    rate: float,
    seconds: float,
    bound: int | None = None,
    slower: float = 1,
) -> Waits:
    found = Waits()
    model = Model(slower)

    async def caller(call: Call, item: int, due: float) -> None:
        try:
            await call(item)
        except Exception as exc:
            if type(exc).__name__ != contender.busy:
                raise
            found.refused += 1
        else:
            found.waits.append(perf_counter() - due)

    async with contender.open(model.__call__, BATCH_SIZE, bound) as call:
        await call(-1)
        gc.collect()
        began = perf_counter()
        a_third = 0
        async with anyio.create_task_group() as callers:
            for item, at in enumerate(arrivals(rate, seconds)):
                if not a_third and at > seconds / 3:
                    a_third = sys.getallocatedblocks()
                if (early := began + at - perf_counter()) > 0:
                    await anyio.sleep(early)
                else:  # late: let the others have their turn all the same
                    await anyio.lowlevel.checkpoint()
                callers.start_soon(caller, call, item, began + at)
            found.blocks = a_third, sys.getallocatedblocks()
            if bound and not contender.bounded:
                callers.cancel_scope.cancel()  # those that wait are too many to wait for
        found.sizes = model.sizes[1:]
    return found


async def throughput(contender: Contender) -> float:
    """Return the calls a second of many callers that each call, await and call again."""

    async def caller(call: Call, first: int) -> None:
        for item in range(first, first + CALLS_EACH):
            await call(item)

    async with contender.open(free, None, None) as call:
        await call(-1)
        gc.collect()
        began = perf_counter()
        async with anyio.create_task_group() as callers:
            for number in range(CALLERS):
                callers.start_soon(caller, call, number * CALLS_EACH)
        return CALLERS * CALLS_EACH / (perf_counter() - began)


async def idle(contender: Contender, *, seconds: float) -> float:
    """Return the processor time, in ms a second, while nobody calls."""
    async with contender.open(free, None, None) as call:
        await call(0)
        began = process_time()
        await anyio.sleep(seconds)
        return (process_time() - began) / seconds * 1000


# --- what goes wrong ---


async def _answer(call: Call, item: int, answers: dict[int, str]) -> None:
    with anyio.move_on_after(HANGS) as scope:
        try:
            value = await call(item)
        except Exception as exc:
            answers[item] = type(exc).__name__
        except anyio.get_cancelled_exc_class():
            if scope.cancel_called:
                raise
            answers[item] = "cancelled"
        else:
            answers[item] = "answer" if type(value) is int and value == item else "WRONG"
    if scope.cancelled_caught:
        answers[item] = "HANGS"


async def _ask(
    call: Call, items: list[int], given_up: int | None = None, after: float = 0.05
) -> dict[int, str]:
    """Call with each item at the same time, and give up one of them."""
    answers: dict[int, str] = {}

    async def give_up(item: int) -> None:
        with anyio.move_on_after(after):
            await call(item)

    async with anyio.create_task_group() as callers:
        for item in items:
            if item == given_up:
                callers.start_soon(give_up, item)
            else:
                callers.start_soon(_answer, call, item, answers)
    return answers


async def cancelled_caller(contender: Contender) -> str:
    async def slow(items: list[int]) -> list[int]:
        await anyio.sleep(0.1)
        return list(items)

    async with contender.open(slow, None, None) as call:
        return await _and_later(call, await _ask(call, [1, 2], given_up=1))


async def timed_out_caller(contender: Contender) -> str:
    sent: list[int] = []

    async def slow(items: list[int]) -> list[int]:
        sent.extend(items)
        await anyio.sleep(0.1)
        return list(items)

    answers: dict[int, str] = {}
    async with contender.open(slow, None, None) as call:
        async with anyio.create_task_group() as callers:
            callers.start_soon(_answer, call, 1, {})
            await anyio.sleep(0.03)  # now the model is busy
            answers = await _ask(call, [2, 3], given_up=2, after=0.02)
        return f"{'SENT' if 2 in sent else 'not sent'}; {await _and_later(call, answers)}"


async def _fails(contender: Contender, failure: Callable[[list[int]], list[int]]) -> str:
    failed = False

    async def function(items: list[int]) -> list[int]:
        nonlocal failed
        if failed or -1 in items:
            return list(items)
        failed = True
        return failure(items)

    async with contender.open(function, None, None) as call:
        await call(-1)
        return await _and_later(call, await _ask(call, [1, 2]))


async def function_raises(contender: Contender) -> str:
    def failure(items: list[int]) -> list[int]:
        raise ZeroDivisionError

    return await _fails(contender, failure)


async def function_cancelled(contender: Contender) -> str:
    def failure(items: list[int]) -> list[int]:
        raise import_module("asyncio").CancelledError

    return await _fails(contender, failure)


async def too_little(contender: Contender) -> str:
    return await _fails(contender, lambda items: items[:-1])


async def one_value_is_an_error(contender: Contender) -> str:
    return await _fails(contender, lambda items: cast("list[int]", [items[0], KeyError()]))


async def _and_later(call: Call, answers: dict[int, str]) -> str:
    """Say what callers got, and what one gets that comes afterwards."""
    later = await _ask(call, [9])
    return f"{', '.join(answers[item] for item in sorted(answers))}; later {later[9]}"


FAILURES: dict[str, Callable[[Contender], Awaitable[str]]] = {
    "one of two callers is cancelled": cancelled_caller,
    "one of two times out behind a busy model": timed_out_caller,
    "the function raises": function_raises,
    "the function ends as cancelled": function_cancelled,
    "the function returns too little": too_little,
    "one of two values is an exception": one_value_is_an_error,
}


# --- what comes out ---

_COLOURS = ("#2e8b57", "#c0504d", "#4f81bd", "#8f7fb8")
_INK = "#767676"  # as far from white as from black


def plot(waits: dict[str, dict[int, tuple[float, float]]]) -> str:
    """
    Draw the waits: a dot for the median, a line up to the 99th percentile, on a logarithmic axis.

    There is no background, and all colours can be read on a light and on a dark one.
    """
    left, width, top, height, foot = 60, 640, 30, 280, 60
    values = [value for rates in waits.values() for pair in rates.values() for value in pair]
    low, high = log10(min(values) * 0.8), log10(max(values) * 1.25)

    def y(value: float) -> float:
        return top + height * (high - log10(value)) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 10} '
        f'{top + height + foot}" font-family="sans-serif" font-size="12" fill="{_INK}">',
        f'<text x="{left}" y="16">wait in ms: median (dot) to 99th percentile (end of line)</text>',
    ]
    for value in (10, 15, 20, 30, 40, 60, 80, 100, 150, 200, 400, 1000, 4000, 10000):
        if low < log10(value) < high:
            parts.append(
                f'<path d="M{left} {y(value):.1f}h{width}" stroke="{_INK}" opacity="0.35"/>'
                f'<text x="{left - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value}</text>'
            )
    rates = list(next(iter(waits.values())))
    for number, rate in enumerate(rates):
        middle = left + width * (number + 0.5) / len(rates)
        parts.append(
            f'<text x="{middle:.1f}" y="{top + height + 18}" text-anchor="middle">'
            f"{rate:,} callers a second</text>"
        )
        for place, (found, colour) in enumerate(zip(waits.values(), _COLOURS)):
            x = middle + 26 * (place - (len(waits) - 1) / 2)
            low_y, high_y = (y(value) for value in found[rate])
            parts.append(
                f'<path d="M{x:.1f} {low_y:.1f}V{high_y:.1f}m-5 0h10" fill="none" '
                f'stroke="{colour}" stroke-width="2.5"/>'
                f'<circle cx="{x:.1f}" cy="{low_y:.1f}" r="4.5" fill="{colour}"/>'
            )
    for place, (name, colour) in enumerate(zip(waits, _COLOURS)):
        x = left + width * place / len(waits)
        parts.append(
            f'<circle cx="{x + 6:.1f}" cy="{top + height + 41}" r="5" fill="{colour}"/>'
            f'<text x="{x + 16:.1f}" y="{top + height + 45}">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def _take_turns(
    names: list[Contender], rounds: int, main: Callable[[Contender], Awaitable[R]]
) -> dict[str, list[R]]:
    """Measure each in each round, and begin each round with another one."""
    found: dict[str, list[R]] = {contender.name: [] for contender in names}
    for number in range(rounds):
        first = number % len(names)
        for contender in names[first:] + names[:first]:
            found[contender.name].append(contender.run(main))
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__)
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="the median of which is shown (default %(default)s)",
    )
    parser.add_argument(
        "--brief", type=float, default=1.0, metavar="FACTOR", help="multiply all times by this"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or not 0 < options.brief <= 10:
        parser.error("--rounds must be at least 1, --brief more than 0 and at most 10")

    began = perf_counter()
    print(*(f"{name} {version}" for name, version in environment(*PACKAGES).items()), sep=", ")
    everybody = contenders()
    rounds: int = options.rounds
    brief: float = options.brief
    raw: dict[str, Any] = {"environment": environment(*PACKAGES)}

    print(f"\n{CALLERS:,} callers of a function that costs nothing, calls a second")
    floor = Contender("a future each", _floor)
    raw["throughput"] = _take_turns([*everybody, floor], 2 * rounds + 1, throughput)
    for name, speeds in raw["throughput"].items():
        print(f"  {name:20} {median(speeds):9,.0f}, at best {max(speeds):9,.0f}", flush=True)

    print("\nwait behind a model that takes one call at a time, ms: median and 99th percentile")
    waits: dict[str, dict[int, tuple[float, float]]] = {c.name: {} for c in everybody}
    for rate, seconds in RATES.items():
        main_ = partial(open_loop, rate=rate, seconds=seconds * brief)
        for name, parts in _take_turns(everybody, rounds, main_).items():
            pair = waits[name][rate] = (
                median(part.percentile(50) for part in parts),
                median(part.percentile(99) for part in parts),
            )
            size = mean(size for part in parts for size in part.sizes)
            print(
                f"  {rate:5,}/s {name:20} {pair[0]:7.1f} {pair[1]:7.1f}   batches of {size:.1f}",
                flush=True,
            )
    raw["waits"] = waits

    print(
        f"\n{OVERLOAD} times what the model can do, {QUEUE} may wait: 99th percentile of the wait "
        "in ms of the first and the last third that was answered, blocks of memory after a third "
        "and at the end"
    )
    raw["overload"] = {}
    main_ = partial(
        open_loop,
        rate=OVERLOAD * CAPACITY / SLOWER,
        seconds=6 * brief,
        bound=QUEUE,
        slower=SLOWER,
    )
    for name, (found,) in _take_turns(everybody, 1, main_).items():
        third = len(found.waits) // 3 + 1
        ends = found.percentile(99, slice(third)), found.percentile(99, slice(-third, None))
        raw["overload"][name] = {
            "p99": ends,
            "blocks": found.blocks,
            "answered": len(found.waits),
            "refused": found.refused,
        }
        print(
            f"  {name:20} {ends[0]:8.1f} {ends[1]:8.1f}   {found.blocks[0]:9,} {found.blocks[1]:9,}"
            f"   answered {len(found.waits):,}, refused {found.refused:,}",
            flush=True,
        )

    print("\nprocessor time while nobody calls, ms a second")
    raw["idle"] = _take_turns(everybody, rounds, partial(idle, seconds=2 * brief))
    for name, costs in raw["idle"].items():
        print(f"  {name:20} {median(costs):6.2f}", flush=True)

    print("\nwhat callers get when something goes wrong, and one that comes later")
    raw["failures"] = {}
    logging.disable()  # some of them log what fails
    for title, case in FAILURES.items():
        print(f"  {title}")
        raw["failures"][title] = {}
        for contender in everybody:
            if contender.backend == "trio":
                continue  # where the same can be said only in other words
            raw["failures"][title][contender.name] = outcome = contender.run(case)
            print(f"    {contender.name:20} {outcome}", flush=True)
    logging.disable(logging.NOTSET)

    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "inference.json").write_text(json.dumps(raw, indent=1) + "\n")
    (folder / "inference.svg").write_text(plot(waits))
    print(f"\nin {perf_counter() - began:.0f} s; plot and raw numbers in {folder}")


if __name__ == "__main__":
    main()
