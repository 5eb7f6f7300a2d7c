"""When the default schedule lets a batch leave, in whatever order tasks run (contract 2.2).

A *round* is one step of every task that can run. A resolver that is n rounds late passes n
checkpoints before it loads; one in a list starts a round later than the list itself.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import DataLoader, schedules
from support import SHUFFLED_BACKENDS, Recorder, all_orders, run_seeds, run_shuffled

pytestmark = pytest.mark.anyio

#: How many rounds late a resolver is, or a list of resolvers and lists.
Shape = int | list[Any]

#: Some resolver loads in every round from the first that does to the last.
WITHOUT_GAP: dict[str, Shape] = {
    "even lists": [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
    "uneven lists": [[0], [0, 0, 0], [], [0, 0]],
    "some resolvers one round late": [[0, 1, 0], [1, 0], [0, 0, 1]],
    "resolvers 0..2 rounds late": [[0, 1, 2], [2, 0], [1, 1, 2], [0]],
    "lists nested twice": [0, [0, 0], [[0, 0], [0]], [[0]]],
    "lists nested three times": [0, [0], [[0, 0], [0]], [[[0, 0], [0]], [[0]]]],
    "late resolvers in nested lists": [0, 1, [2, [0, 2]], [[1], [[0, 2], 1]], [[[2]]]],
    "every round for long": [0, [8, 3, 5], 2, [[[4], 0], 8], 1, 3, 13, 5, 8, 11, 10, 12],
}

#: What is promised here is only that it settles.
WITH_GAP: dict[str, Shape] = {
    "resolvers 0 or 2 rounds late": [[0, 2, 0], [2, 2]],
    "resolvers 0 or 3 rounds late": [[0, 3], [3, 0, 3]],
    "resolvers 0 or 4 rounds late": [[4, 0], [0, 4]],
    "a list nested in nothing else": [0, [[[0, 0]]]],
}


async def rounds_later(number: int) -> None:
    for _ in range(number):
        await checkpoint()


def rounds_of(shape: Shape, depth: int = 0) -> list[int]:
    """Give the round of each resolver."""
    if isinstance(shape, int):
        return [depth + shape]
    return [number for child in shape for number in rounds_of(child, depth + 1)]


def missing_rounds(shape: Shape) -> list[int]:
    rounds = set(rounds_of(shape))
    return [number for number in range(min(rounds), max(rounds)) if number not in rounds]


def leaves(shape: Shape) -> int:
    return len(rounds_of(shape))


async def resolve(shape: Shape, load: Callable[[], Awaitable[object]]) -> None:
    if isinstance(shape, int):
        await rounds_later(shape)
        await load()
    else:
        async with anyio.create_task_group() as tg:
            for child in shape:
                tg.start_soon(resolve, child, load)


async def batch_sizes(shape: Shape, **options: Any) -> list[int]:
    """Resolve what hangs on an item of an earlier batch, as fields of a GraphQL query do."""

    async def fetch(keys: list[int]) -> list[int]:
        sizes.append(len(keys))
        await rounds_later(len(keys) % 3)
        return keys

    sizes: list[int] = []
    loaded: list[int] = []
    async with DataLoader(fetch, **options) as loader:

        async def load() -> None:
            loaded.append(len(loaded))
            key = loaded[-1]
            assert await loader.load(key) == key

        await load()
        await resolve(shape, load)
    assert sum(sizes) == len(loaded) == leaves(shape) + 1
    return sizes


async def all_batch_sizes(shapes: dict[str, Shape]) -> dict[str, list[int]]:
    return {name: await batch_sizes(shape) for name, shape in shapes.items()}


# --- No quiet round between ---


@pytest.mark.parametrize("name", [*WITHOUT_GAP, *WITH_GAP])
def test_shapes_are_what_they_are_called(name: str) -> None:
    if name in WITHOUT_GAP:
        assert missing_rounds(WITHOUT_GAP[name]) == []
    else:
        assert missing_rounds(WITH_GAP[name])


def test_loads_without_a_quiet_round_between_share_a_batch_in_any_order(
    shuffled_backend: str,
) -> None:
    """That is also: the same batches every time, and the same on every backend."""
    expected = {name: [1, leaves(shape)] for name, shape in WITHOUT_GAP.items()}
    assert run_seeds(shuffled_backend, range(200), all_batch_sizes, WITHOUT_GAP) == expected


@pytest.mark.parametrize("shape", [[0, 1], [[0], 0], [1, 2], [0, 1, 2]], ids=str)
def test_loads_without_a_quiet_round_between_share_a_batch_in_every_order(
    shuffled_backend: str, shape: Shape
) -> None:
    async def resolve_loads() -> list[list[int]]:
        fetch = Recorder[int, int](lambda key: key)
        async with DataLoader(fetch) as loader:
            keys = iter(range(10))
            await resolve(shape, lambda: loader.load(next(keys)))
        return fetch.calls

    number = leaves(shape)
    for calls in all_orders(shuffled_backend, resolve_loads):
        assert calls == [list(range(number))]


def random_shape(seed: int) -> Shape:
    rand = random.Random(seed)

    def grow(depth: int) -> Shape:
        if depth < 2 or (depth < 5 and rand.random() < 0.4):
            return [grow(depth + 1) for _ in range(rand.randint(1, 4))]
        return rand.randint(0, 3)

    shape = grow(0)
    assert isinstance(shape, list)
    # What stands in the outermost list has depth 1.
    shape += [number - 1 for number in missing_rounds(shape)]
    assert not missing_rounds(shape)
    return shape


def test_queries_of_any_shape_give_the_same_batches(shuffled_backend: str) -> None:
    for seed in range(150):
        shape = random_shape(seed)
        sizes = run_shuffled(shuffled_backend, seed, batch_sizes, shape)
        assert sizes == [1, leaves(shape)], f"seed {seed}, {shape}"


def test_levels_of_a_query_give_a_batch_each_and_the_same_keys_in_it(
    shuffled_backend: str,
) -> None:
    """Two loaders, four levels, of which each hangs on the values of the one before."""

    async def query() -> list[tuple[str, frozenset[int]]]:
        calls: list[tuple[str, frozenset[int]]] = []

        async def fetch_friends(keys: list[int]) -> list[list[int]]:
            calls.append(("friends", frozenset(keys)))
            return [[key * 3 + n for n in range(1, 4)] for key in keys]

        async def fetch_names(keys: list[int]) -> list[str]:
            calls.append(("names", frozenset(keys)))
            return [str(key) for key in keys]

        async with DataLoader(fetch_friends) as friends, DataLoader(fetch_names) as names:

            async def person(key: int, depth: int) -> None:
                if key % 3 == 1:
                    await checkpoint()
                if depth:
                    async with anyio.create_task_group() as tg:
                        for friend in await friends.load(key):
                            tg.start_soon(person, friend, depth - 1)
                else:
                    await names.load(key)

            await person(0, 3)
        return calls

    assert run_seeds(shuffled_backend, range(30), query) == [
        ("friends", frozenset({0})),
        ("friends", frozenset(range(1, 4))),
        ("friends", frozenset(range(4, 13))),
        ("names", frozenset(range(13, 40))),
    ]


async def test_shapes_without_a_gap_give_one_batch_as_the_backends_are() -> None:
    """As above, but in the order in which the backends run tasks by themselves, uvloop too."""
    for name, shape in WITHOUT_GAP.items():
        assert await batch_sizes(shape) == [1, leaves(shape)], name


@pytest.mark.parametrize("children", [0, 1])
@pytest.mark.parametrize("busy", [True, False])
def test_a_load_after_a_task_group_shares_the_batch_of_one_beside_it(
    shuffled_backend: str, children: int, busy: bool
) -> None:
    """Though the end of a group with a child takes three rounds on asyncio, and one on trio."""

    async def end_at_once() -> None:
        pass

    async def load_after_a_group() -> list[list[int]]:
        async def beside_it() -> None:
            await loader.load(1)

        async def after_a_group() -> None:
            async with anyio.create_task_group() as group:
                for _ in range(children):
                    group.start_soon(end_at_once)
            await loader.load(2)

        async def keep_busy() -> None:  # so that the event loop is never seen to be idle
            while busy:
                await checkpoint()

        fetch = Recorder[int, int](lambda key: key)
        async with DataLoader(fetch) as loader, anyio.create_task_group() as tg:
            tg.start_soon(keep_busy)
            async with anyio.create_task_group() as loads:
                loads.start_soon(beside_it)
                loads.start_soon(after_a_group)
            tg.cancel_scope.cancel()
        return [sorted(call) for call in fetch.calls]

    assert run_seeds(shuffled_backend, range(40), load_after_a_group) == [[1, 2]]


# --- A gap between ---


def test_what_comes_after_a_short_gap_settles_in_any_order(shuffled_backend: str) -> None:
    for seed in range(100):
        for sizes in run_shuffled(shuffled_backend, seed, all_batch_sizes, WITH_GAP).values():
            assert len(sizes) in (2, 3)


@pytest.mark.parametrize("cache", [True, False])
def test_after_at_most_four_quiet_rounds_the_batch_has_left(
    shuffled_backend: str, cache: bool
) -> None:
    fetch = Recorder[int, int](lambda key: key)

    async def load_and_count_quiet_rounds() -> int:
        fetch.calls.clear()
        async with DataLoader(fetch, cache=cache) as loader:
            loader.load(1)
            await checkpoint()
            loader.load(2)
            for quiet in range(20):
                await checkpoint()
                if fetch.calls:
                    return quiet
        return -1

    counts = set(all_orders(shuffled_backend, load_and_count_quiet_rounds))
    assert min(counts) >= 1, "a round that was not quiet let it leave"
    assert max(counts) <= 4


def test_a_load_after_four_quiet_rounds_is_in_another_batch(shuffled_backend: str) -> None:
    shape: Shape = [0, 0, 5, 5, 5]
    assert run_seeds(shuffled_backend, range(100), batch_sizes, shape) == [1, 2, 3]


# --- A cap on rounds ---


@pytest.mark.parametrize("max_rounds", [1, 2, 5, 30])
def test_max_rounds_lets_a_batch_leave_that_gets_a_key_in_every_round(
    shuffled_backend: str, max_rounds: int
) -> None:
    async def produce_until_called() -> int:
        fetch = Recorder[int, int](lambda key: key)
        async with DataLoader(fetch, schedule=schedules.quiescent(max_rounds=max_rounds)) as loader:
            key = 0
            while not fetch.calls:
                assert key < 100, "starved"
                loader.load(key)
                key += 1
                await checkpoint()
        return len(fetch.calls[0])

    # Those of round 0, in which the batch opens, up to the round in which the dispatcher, which
    # starts in round 1, has passed so many checkpoints; its place in that round decides.
    sizes = {run_shuffled(shuffled_backend, seed, produce_until_called) for seed in range(30)}
    assert sizes <= {max_rounds + 1, max_rounds + 2}


async def test_endless_producers_do_not_starve_a_batch_by_default() -> None:
    fetch = Recorder[int, int](lambda key: key)
    async with DataLoader(fetch) as loader, anyio.create_task_group() as tg:

        async def produce(first: int) -> None:
            for key in range(first, first + 10_000):
                loader.load(key)
                await checkpoint()

        for number in range(3):
            tg.start_soon(produce, number * 10_000)
        assert await loader.load(-1) == -1
        assert 3 * 10 < len(fetch.calls[0]) < 3 * 1_000
        tg.cancel_scope.cancel()


def test_max_rounds_does_not_hold_a_quiet_batch(shuffled_backend: str) -> None:
    schedule = schedules.quiescent(max_rounds=1_000_000)

    async def load_after_five_rounds() -> list[int]:
        return await batch_sizes([0, 5], schedule=schedule)

    assert run_seeds(shuffled_backend, range(20), load_after_five_rounds) == [1, 1, 1]


# --- Other task groups, eager tasks ---


def native_group(backend: str) -> Any:
    """Give what opens a task group of the backend's own library, or ``None`` if it has none."""
    if backend == "trio":
        import trio

        return trio.open_nursery
    return getattr(asyncio, "TaskGroup", None)


def test_a_loader_in_a_foreign_group_has_the_same_batches(shuffled_backend: str) -> None:
    open_group = native_group(shuffled_backend)
    if open_group is None:
        pytest.skip("asyncio.TaskGroup is new in Python 3.11")

    async def query() -> dict[str, list[int]]:
        sizes: dict[str, list[int]] = {}
        for name, shape in WITHOUT_GAP.items():
            fetch = Recorder[int, int](lambda key: key)
            async with open_group() as group:
                loader = DataLoader(fetch, task_group=group)
                keys = iter(range(100))
                await loader.load(next(keys))
                await resolve(shape, lambda: loader.load(next(keys)))  # noqa: B023
            sizes[name] = [len(call) for call in fetch.calls]
        return sizes

    expected = {name: [1, leaves(shape)] for name, shape in WITHOUT_GAP.items()}
    assert run_seeds(shuffled_backend, range(50), query) == expected


@pytest.mark.only_on("asyncio")
@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.TaskGroup is new in Python 3.11")
@pytest.mark.parametrize(
    "schedule", [schedules.rounds(0), schedules.quiescent()], ids=["rounds(0)", "quiescent()"]
)
async def test_an_eager_task_does_not_send_a_batch_inside_load(
    schedule: schedules.Schedule,
) -> None:
    """Under the eager task factory ``asyncio.TaskGroup`` runs a task's first step at once."""
    fetch = Recorder[int, int](lambda key: key)
    async with native_group("asyncio")() as tg:
        loader = DataLoader(fetch, task_group=tg, schedule=schedule)
        for first in (1, 4, 7):
            handles = [loader.load(first), loader.load(first + 1)]
            many = loader.load_many([first + 2])
            assert all(first not in call for call in fetch.calls)
            assert [await handle for handle in handles] == [first, first + 1]
            assert await many == [first + 2]
    assert fetch.calls == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


@pytest.mark.only_on("asyncio")
async def test_tasks_made_by_asyncio_share_a_batch() -> None:
    fetch = Recorder[int, int](lambda key: key)
    async with DataLoader(fetch) as loader:

        async def load(key: int) -> int:
            return await loader.load(key)

        tasks = [asyncio.create_task(load(key)) for key in range(5)]
        assert await asyncio.gather(*tasks, *map(loader.load, range(5, 9))) == list(range(9))
    assert [sorted(call) for call in fetch.calls] == [list(range(9))]


def test_all_backends_give_equal_batches() -> None:
    """The keys in them too, where order does not decide about these."""

    async def query() -> list[list[int]]:
        fetch = Recorder[int, int](lambda key: key)
        async with DataLoader(fetch, max_batch_size=7) as loader:
            many = loader.load_many(range(21))

            async def load(key: int) -> None:
                await rounds_later(key % 3)
                for number in (key, key + 1_000):
                    await loader.load(number)

            async with anyio.create_task_group() as tg:
                for key in range(100, 106):
                    tg.start_soon(load, key)
            await many
        return sorted(sorted(call) for call in fetch.calls)

    results = [run_seeds(backend, range(30), query) for backend in SHUFFLED_BACKENDS]
    assert all(result == results[0] for result in results)
