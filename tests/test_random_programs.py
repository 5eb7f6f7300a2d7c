"""Random programs, whose events fall into each other, break no rule (see ``random_world.py``)."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from random_programs import Op, Program, Source, program, shrink
from random_world import World
from support import SHUFFLED_BACKENDS, run_shuffled

PROGRAMS = 120
CALM_PROGRAMS = 240
PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable()  # of value caches that fail
    yield
    logging.disable(logging.NOTSET)


def run(backend: str, one: Program) -> World:
    return run_shuffled(backend, one.seed, World(one).main)


@pytest.mark.parametrize("part", range(4))
def test_random_programs_break_no_rule(shuffled_backend: str, part: int) -> None:
    for seed in range(part, PROGRAMS, 4):
        assert not run(shuffled_backend, program(seed)).faults, program(seed)


def calm(seed: int) -> Program:
    """Make a program up in which no two events fall into each other, so that there is one result."""
    made = program(seed)
    tasks = []
    for index, task in enumerate(made.tasks):
        # Before all that it does each task sleeps for a time of its own, of which no sums are the same.
        pause = Op("sleep", seconds=0.01 * math.sqrt(PRIMES[index]))
        ops = [op for op in task if op.name not in ("cancel", "timeout", "again", "hold")]
        tasks.append(tuple(one for op in ops for one in (pause, op)))
    needed = {other for source in made.sources for other in source.needs}
    # What waits for ``dispatch()`` would all come at once when the scope is left. How many rounds lie
    # between the ends of two functions depends on the event loop, and in which order they load on chance:
    # by that a bound decides what goes together.
    bounds = ("max_batch_size", "max_batch_weight", "max_queue_size")
    sources = tuple(
        replace(
            source,
            value_cache=None,
            keys="int",
            cache_map=False,
            needs=tuple(other for other in source.needs if other > number),
            sleep=math.sqrt(PRIMES[-1 - number]),
            limiter=None,
            way="raise",
            options=tuple(
                (name, value)
                for name, value in source.options
                if value not in ("manual", "rounds") and not (number in needed and name in bounds)
            ),
        )
        for number, source in enumerate(made.sources)
    )
    return replace(
        made, sources=sources, tasks=tuple(tasks), place="group", scope_limiter=False, until=100.7
    )


@pytest.mark.parametrize("part", range(8))
def test_calm_programs_give_the_same_everywhere(part: int) -> None:
    for seed in range(part, CALM_PROGRAMS, 8):
        one = calm(seed)
        found: list[Any] = []
        for backend in SHUFFLED_BACKENDS:
            world = run(backend, one)
            assert not world.faults, one
            calls = sorted((call.source, sorted(call.keys)) for call in world.calls)
            found.append((sorted(world.got), calls))
        assert all(other == found[0] for other in found), one


def test_what_can_be_left_out_of_a_program_is() -> None:
    def loads_two(one: Program) -> bool:
        return any(op.loader == 0 and 2 in op.keys for task in one.tasks for op in task)

    made = next(one for one in map(program, range(100)) if loads_two(one))
    small = shrink(made, loads_two)
    assert [len(task) for task in small.tasks] == [1]
    assert all(source == Source() for source in small.sources)
