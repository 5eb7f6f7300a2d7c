"""A load that settles keeps the scope from being quiet (contract 2.2).

Who awaited it may load in the next round. So the loads of a program that awaits nothing but loads
share batches in the same way in any order of tasks, however many loads lie before them.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import DataLoader, LoaderScope, LoadHandle, gather, schedules
from support import SHUFFLED_BACKENDS, Recorder, run_seeds, run_shuffled

SEEDS = range(30)


async def functions(depth: int, load: Callable[[], None]) -> None:
    """Await a function that awaits a function, and so on, the second last of which loads."""

    async def link(level: int, keys: list[int]) -> list[int]:
        if level:
            await links[level - 1].load(keys[0])
        if level == 1:
            load()
        return keys

    links = [DataLoader[int, int](partial(link, level)) for level in range(depth)]
    await links[-1].load(0)
    load()


async def streamed(depth: int, load: Callable[[], None]) -> None:
    """Await one load after the other of a stream that gives one in each round."""

    async def stream(keys: list[int]) -> AsyncIterator[tuple[int, int]]:
        for key in keys:
            yield key, key
            await checkpoint()

    loader = DataLoader(stream)
    first, *rest = [loader.load(key) for key in range(depth)]
    await first
    load()
    for one in rest:
        await one
    load()


async def gathered(depth: int, load: Callable[[], None]) -> None:
    """Load in tasks within tasks, and after these have ended one after the other."""

    async def nested(level: int) -> None:
        if level:
            await gather(nested(level - 1))
        else:
            load()

    load()
    await nested(depth)
    await nested(depth)
    load()


@pytest.mark.parametrize("depth", [3, 6])
@pytest.mark.parametrize("program", [functions, streamed, gathered])
def test_what_is_loaded_after_it_shares_a_batch(
    shuffled_backend: str, program: Callable[[int, Callable[[], None]], Any], depth: int
) -> None:
    async def main() -> int:
        fetch = Recorder[int, int](int)
        loads: list[LoadHandle[int]] = []
        async with LoaderScope() as scope:
            users = scope.get(fetch)
            await program(depth, lambda: loads.append(users.load(len(loads))))
            for load in loads:
                await load
        return len(fetch.calls)

    assert run_seeds(shuffled_backend, SEEDS, main) == 1


async def at_its_end(load: Callable[[], Any], then: Callable[[], Any]) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(load)
    await then()


async def at_its_start(load: Callable[[], Any], then: Callable[[], Any]) -> None:
    await load()
    async with anyio.create_task_group() as tg:
        tg.start_soon(then)


@pytest.mark.parametrize("program", [at_its_end, at_its_start])
def test_a_task_group_takes_a_round_after_it_in_which_there_is_nothing_to_be_seen(
    shuffled_backend: str, program: Any
) -> None:
    """Beside it a batch function has loaded before, and its batch is still open."""

    async def main() -> list[list[int]]:
        fetch = Recorder[int, int](int)

        async def from_posts(keys: list[int]) -> list[int]:
            return await users.load_many(keys)

        async with LoaderScope() as scope:
            users, posts = scope.get(fetch), scope.get(from_posts)
            comments = scope.get(Recorder[int, int](int))

            async def comment() -> None:
                await comments.load(1)

            async def user() -> None:
                await users.load(2)

            async with anyio.create_task_group() as tg:
                tg.start_soon(posts.load, 1)
                tg.start_soon(program, comment, user)
        return [sorted(keys) for keys in fetch.calls]

    assert run_seeds(shuffled_backend, SEEDS, main) == [[1, 2]]


def test_a_hit_that_waited_for_a_batch_without_a_token_is_a_load_that_settles(
    shuffled_backend: str,
) -> None:
    async def main() -> list[list[int]]:
        fetch = Recorder[int, int](int)
        limiter = anyio.CapacityLimiter(1)
        async with LoaderScope() as scope:
            users = scope.get(fetch)
            posts = DataLoader(Recorder[int, int](int), defer_hits=True, limiter=limiter)
            await posts.load(1)
            async with limiter:
                posts.load(2)
                hit = posts.load(1)
                first = users.load(1)
                await checkpoint()
                posts.dispatch()
                await hit
                second = users.load(2)
                await first
                await second
        return fetch.calls

    assert run_seeds(shuffled_backend, SEEDS, main) == [[1, 2]]


def test_a_stream_that_settles_a_load_in_each_round_holds_no_batch_beyond_the_cap(
    shuffled_backend: str,
) -> None:
    async def main() -> list[list[int]]:
        async def stream(keys: list[int]) -> AsyncIterator[tuple[int, int]]:
            for key in keys:
                yield key, key
                await checkpoint()

        fetch = Recorder[int, int](int)
        async with LoaderScope() as scope:
            users = DataLoader(fetch, schedule=schedules.quiescent(max_rounds=10))
            loads = [scope.get(stream).load(key) for key in range(40)]
            await loads[0]
            users.load(1)
            for load in loads[:20]:
                await load
            calls = fetch.calls.copy()
            for load in loads:
                await load
        return calls

    assert run_seeds(shuffled_backend, SEEDS, main) == [[1]]


# --- random programs ---


@dataclass(frozen=True)
class Source:
    """What a batch function loads from, and whether one after the other, all at once or in tasks."""

    needs: tuple[int, ...]
    way: str


Step = tuple[int, list[int]]


def make(seed: int) -> tuple[list[Source], list[list[Step]]]:
    """Make up sources, and tasks that load from them, one thing after the other."""
    rng = random.Random(seed)
    number = rng.randint(2, 5)
    sources = [
        Source(
            tuple(other for other in range(index + 1, number) if rng.random() < 0.6),
            rng.choice(("in turn", "many", "at once", "gathered")),
        )
        for index in range(number)
    ]
    steps = [
        [
            (rng.randrange(number), [rng.randint(0, 3) for _ in range(rng.randint(1, 3))])
            for _ in range(rng.randint(1, 4))
        ]
        for _ in range(rng.randint(1, 5))
    ]
    return sources, steps


async def run(sources: list[Source], tasks: list[list[Step]]) -> list[tuple[int, list[int]]]:
    """Return the calls of the functions."""
    calls: list[tuple[int, list[int]]] = []

    def function(number: int, source: Source) -> Callable[[list[int]], Any]:
        async def fetch(keys: list[int]) -> list[int]:
            calls.append((number, sorted(keys)))
            wanted = [
                (loaders[other], (7 * key + other) % 5) for other in source.needs for key in keys
            ]
            if source.way == "in turn":
                for loader, key in sorted(wanted, key=lambda one: one[1]):
                    await loader.load(key)
            elif source.way == "many":
                for other in source.needs:
                    await loaders[other].load_many([(7 * key + other) % 5 for key in keys])
            elif source.way == "at once":
                for load in [loader.load(key) for loader, key in wanted]:
                    await load
            else:
                await gather(*(loader.load(key) for loader, key in wanted))
            return keys

        return fetch

    async def follow(steps: list[Step]) -> None:
        for number, keys in steps:
            await loaders[number].load_many(keys)

    async with LoaderScope() as scope:
        loaders = [scope.get(function(number, source)) for number, source in enumerate(sources)]
        async with anyio.create_task_group() as tg:
            for steps in tasks:
                tg.start_soon(follow, steps)
    return sorted(calls)


@pytest.mark.parametrize("part", range(4))
def test_random_programs_send_the_same_batches_in_any_order(part: int) -> None:
    for seed in range(part, 100, 4):
        sources, tasks = make(seed)
        outcomes = [
            run_shuffled(backend, 1_000 * order + seed, run, sources, tasks)
            for backend in SHUFFLED_BACKENDS
            for order in range(5)
        ]
        assert outcomes == outcomes[:1] * len(outcomes), (seed, sources, tasks)
