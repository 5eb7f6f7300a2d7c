"""The scope is quiet, not the batch (contract 2.2).

A new key for any loader of a scope starts the count of quiet rounds anew, and then all batches that
waited for quiet are sealed in one step, before any of their functions runs.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import DataLoader, LoaderScope, schedules
from support import (
    SHUFFLED_BACKENDS,
    Recorder,
    all_orders,
    run_seeds,
    run_shuffled,
    wait_all_tasks_blocked,
)

pytestmark = pytest.mark.anyio

Fetch = Callable[[list[int]], Any]


class Sources:
    """Batch functions of one scope; each loads from the ones that it needs, 100 further on."""

    def __init__(self, scope: LoaderScope, needs: dict[str, list[str]], depth: int = 1) -> None:
        self.calls: dict[str, list[list[int]]] = {name: [] for name in needs}
        self.loaders = {name: scope.get(self._function(name, needs, depth)) for name in needs}

    def _function(self, name: str, needs: dict[str, list[str]], depth: int) -> Fetch:
        async def fetch(keys: list[int]) -> list[int]:
            self.calls[name].append(sorted(keys))
            wanted = [key + 100 for key in keys if key < 100 * depth]
            manys = [self.loaders[need].load_many(wanted) for need in needs[name]]
            for many in manys:
                assert await many == wanted
            return keys

        return fetch

    @property
    def batches(self) -> dict[str, list[list[int]]]:
        return {name: sorted(calls) for name, calls in self.calls.items()}


async def in_one_step(names: tuple[str, ...], needs: dict[str, list[str]], depth: int) -> Any:
    async with LoaderScope() as scope:
        sources = Sources(scope, needs, depth)
        for load in [sources.loaders[name].load(1) for name in names]:
            assert await load == 1
    return sources.batches


async def in_tasks(names: tuple[str, ...], needs: dict[str, list[str]], depth: int) -> Any:
    async with LoaderScope() as scope:
        sources = Sources(scope, needs, depth)
        async with anyio.create_task_group() as tg:
            for name in names:
                tg.start_soon(sources.loaders[name].load, 1)
    return sources.batches


# --- what a batch function loads never falls into a batch that was open beside its own ---


@pytest.mark.parametrize("program", [in_one_step, in_tasks])
@pytest.mark.parametrize("names", [("posts", "users"), ("users", "posts")], ids="-".join)
def test_a_batch_function_does_not_reach_a_batch_that_leaves_beside_its_own(
    shuffled_backend: str, program: Any, names: tuple[str, ...]
) -> None:
    needs = {"posts": ["users"], "users": []}
    assert run_seeds(shuffled_backend, range(40), program, names, needs, 1) == {
        "posts": [[1]],
        "users": [[1], [101]],
    }


@pytest.mark.parametrize("names", [("posts", "users"), ("users", "posts")], ids="-".join)
def test_nor_in_any_order_at_all(shuffled_backend: str, names: tuple[str, ...]) -> None:
    needs = {"posts": ["users"], "users": []}
    results = list(all_orders(shuffled_backend, in_one_step, names, needs, 1))
    assert results == [{"posts": [[1]], "users": [[1], [101]]}] * len(results)


@pytest.mark.parametrize("program", [in_one_step, in_tasks])
@pytest.mark.parametrize("names", [("posts", "users"), ("users", "posts")], ids="-".join)
async def test_nor_where_the_loop_is_seen_to_have_nothing_else_to_run(
    program: Any, names: tuple[str, ...]
) -> None:
    """Loops that are shuffled do not tell: there each round is counted."""
    needs = {"posts": ["users"], "users": []}
    assert await program(names, needs, 1) == {"posts": [[1]], "users": [[1], [101]]}


def test_three_sources_that_are_stacked(shuffled_backend: str) -> None:
    needs = {"comments": ["posts"], "posts": ["users"], "users": []}
    for names in (("comments", "posts", "users"), ("users", "posts", "comments")):
        assert run_seeds(shuffled_backend, range(40), in_tasks, names, needs, 2) == {
            "comments": [[1]],
            "posts": [[1], [101]],
            "users": [[1], [101], [201]],
        }


def test_what_several_functions_load_in_their_first_step_meets_in_one_batch(
    shuffled_backend: str,
) -> None:
    async def main() -> dict[str, list[list[int]]]:
        async with LoaderScope() as scope:
            sources = Sources(scope, {"a": ["users"], "b": ["users"], "users": []})
            async with anyio.create_task_group() as tg:
                for key, name in enumerate(("a", "b", "users")):
                    tg.start_soon(sources.loaders[name].load, key)
        return sources.batches

    assert run_seeds(shuffled_backend, range(40), main) == {
        "a": [[0]],
        "b": [[1]],
        "users": [[2], [100, 101]],
    }


def test_random_programs_send_the_same_batches_in_every_order_on_every_backend() -> None:
    names = ("a", "b", "c", "d")
    for number in range(12):
        choose = random.Random(number)
        needs: dict[str, list[str]] = {
            name: choose.sample(names, choose.randrange(3)) for name in names
        }
        roots = tuple(choose.sample(names, choose.randint(2, 4)))
        outcomes = [
            run_shuffled(backend, seed, in_tasks, roots, needs, 2)
            for backend in SHUFFLED_BACKENDS
            for seed in range(5)
        ]
        assert outcomes == outcomes[:1] * len(outcomes), (needs, roots)


# --- a new key for any loader of the scope starts the count anew ---


async def relay(second: Callable[[], Any], between: Callable[[int], Any], rounds: int) -> None:
    """Load from another loader in each round up to the one in which ``second`` loads."""
    for number in range(rounds):
        between(number)
        await checkpoint()
    second()


def test_keys_of_another_loader_keep_a_batch_open(shuffled_backend: str) -> None:
    async def main() -> tuple[Any, Any]:
        first, second = Recorder[int, int](int), Recorder[int, int](lambda key: -key)
        async with LoaderScope() as scope:
            users, posts = scope.get(first), scope.get(second)
            load = users.load(1)
            await relay(lambda: users.load(2), posts.load, 12)
            await load
            await users.load(2)
            await posts.load(0)
        return first.calls, second.calls

    assert run_seeds(shuffled_backend, range(40), main) == ([[1, 2]], [[*range(12)]])


def test_keys_of_another_scope_do_not(shuffled_backend: str) -> None:
    async def main() -> int:
        first, second = Recorder[int, int](int), Recorder[int, int](int)
        rounds = 0
        async with DataLoader(first) as users, DataLoader(second) as posts:
            load = users.load(1)
            while not first.calls:
                rounds += 1
                assert rounds < 20
                posts.load(rounds)
                await checkpoint()
            await load
        return 0

    assert run_seeds(shuffled_backend, range(20), main) == 0


def test_a_loader_of_its_own_block_is_a_scope_of_its_own_within_a_scope(
    shuffled_backend: str,
) -> None:
    async def main() -> int:
        first, second = Recorder[int, int](int), Recorder[int, int](int)
        async with LoaderScope() as scope, DataLoader(first) as users:
            users.load(1)
            for key in range(20):
                scope.get(second).load(key)
                await checkpoint()
            return len(first.calls)

    assert run_seeds(shuffled_backend, range(20), main) == 1


def test_the_cap_on_rounds_holds_though_another_loader_gets_keys_without_end(
    shuffled_backend: str,
) -> None:
    async def main() -> list[list[int]]:
        first, second = Recorder[int, int](int), Recorder[int, int](int)
        async with LoaderScope() as scope:
            patience = schedules.quiescent(max_rounds=10)
            users = DataLoader(first, schedule=patience)
            users.load(1)
            for key in range(20):
                scope.get(second).load(key)
                await checkpoint()
            return first.calls

    assert run_seeds(shuffled_backend, range(20), main) == [[1]]


async def test_keys_that_join_a_batch_which_waits_for_its_token_do_not_count() -> None:
    first, second = Recorder[int, int](int), Recorder[int, int](int)
    limiter = anyio.CapacityLimiter(1)
    async with LoaderScope() as scope:
        held = DataLoader(first, limiter=limiter)
        async with limiter:
            held.load(0)
            await wait_all_tasks_blocked()
            load = scope.get(second).load(1)
            for key in range(1, 20):
                held.load(key)
                await checkpoint()
            assert second.calls == [[1]]
            assert first.calls == []
        assert await load == 1


async def test_a_batch_of_another_schedule_is_no_hindrance() -> None:
    """Keys of a batch that waits for something else than quiet are new keys of the scope too."""
    first, second = Recorder[int, int](int), Recorder[int, int](int)
    async with LoaderScope() as scope:
        users, manual = scope.get(first), DataLoader(second, schedule=schedules.manual())
        waiting = manual.load(1)
        assert await users.load(1) == 1
        assert second.calls == []
        manual.dispatch()
        assert await waiting == 1
