"""
How things are measured: in one process, in turns, and judged by the median of pairwise ratios.

On a shared machine the speed changes from second to second. So a *round* takes a sample of each
contender, one directly after the other, and only samples of the same round are divided by each
other: a slow second slows both. The median of these ratios is what is judged; the quartiles say how
far it can be trusted. Each round begins with another contender, so that none profits from its place.

Time is the processor time of the thread. None of this work ever waits for anything but the processor,
so a clock on the wall would show the same plus what other programs took.

The garbage collector runs as it does in any program, because how often it has to is a
consequence of what a loader allocates. But everyone begins with a collected heap, and what the
imports left behind is frozen, so that nobody's collections walk through other people's modules.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter, thread_time

#: Does the work once and returns what it cost: seconds, or bytes, for each unit of work.
Sample = Callable[[], float]

cpu_time = thread_time

#: A row takes its rounds, but no new one after this many seconds, unless it has too few. With these
#: numbers a noisy machine makes the figures less certain, instead of the run endless.
SECONDS_PER_CONTEST = 1.0
FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class Contest:
    """Contenders that take turns, and which of them are divided by which."""

    where: str
    contenders: dict[str, Sample]
    pairs: list[tuple[str, str]]
    #: Report only the pair with the highest ratio.
    worst_only: bool = False


@dataclass(frozen=True)
class Row:
    """One line of the table of promises."""

    name: str
    title: str
    #: What the ratio must reach, perhaps by rival; or, where it says ours / theirs, must not exceed.
    target: float | dict[str, float]
    at_most: bool
    #: Of the costs; those of time are measured in seconds.
    unit: str
    contests: Callable[[], Iterator[Contest]]

    @property
    def scale(self) -> float:
        """Costs are shown multiplied by this."""
        return {"us": 1e6, "ms": 1e3}.get(self.unit, 1)

    def target_of(self, over: str) -> float:
        return self.target[over] if isinstance(self.target, dict) else self.target

    def promise(self, over: str) -> str:
        return f"{'<=' if self.at_most else '>='} {self.target_of(over):g}"


@dataclass(frozen=True)
class Result:
    row: str
    where: str
    over: str
    under: str
    ratios: list[float]
    #: The median cost of each.
    cost_over: float
    cost_under: float
    ratio: float
    quartiles: tuple[float, float]
    target: float
    met: bool


def measure(row: Row, rounds: int) -> Iterator[Result]:
    for contest in row.contests():
        costs = _take_turns(contest.contenders, rounds)
        results = [_compare(row, contest.where, costs, *pair) for pair in contest.pairs]
        if contest.worst_only:
            results = [max(results, key=lambda result: result.ratio)]
        yield from results


def _take_turns(contenders: dict[str, Sample], rounds: int) -> dict[str, list[float]]:
    costs: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    # A round for nothing first: it imports and specialises what the others should find ready.
    for name in names:
        contenders[name]()
    gc.collect()
    gc.freeze()
    began = perf_counter()
    for number in range(rounds):
        if number >= FEWEST_ROUNDS and perf_counter() - began > SECONDS_PER_CONTEST:
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            costs[name].append(contenders[name]())
    gc.unfreeze()
    return costs


def _compare(row: Row, where: str, costs: dict[str, list[float]], over: str, under: str) -> Result:
    ratios = [a / b for a, b in zip(costs[over], costs[under])]
    ratio = median(ratios)
    target = row.target_of(over)
    first, _, third = quantiles(ratios, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Result(
        row=row.name,
        where=where,
        over=over,
        under=under,
        ratios=ratios,
        cost_over=median(costs[over]),
        cost_under=median(costs[under]),
        ratio=ratio,
        quartiles=(first, third),
        target=target,
        met=ratio <= target if row.at_most else ratio >= target,
    )
