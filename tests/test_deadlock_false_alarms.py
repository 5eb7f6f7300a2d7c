"""What looks like a deadlock and is none (contract 2.6)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from itertools import pairwise
from typing import Any

import anyio
import anyio.from_thread
import pytest

from anyloader import DataLoader, LoadDeadlockError, LoaderScope, schedules
from support import Recorder, run_shuffled, wait_all_tasks_blocked
from support.deadlocks import (
    Await,
    Loaders,
    by_load,
    each_await,
    in_a_task,
    settled,
)

pytestmark = pytest.mark.anyio

# --- No false alarms ---


def children(key: int) -> list[int]:
    return [] if key >= 50 else [key * 3 + n for n in range(1, 4)]


async def test_a_loader_may_descend_a_tree_by_its_own_loads() -> None:
    async def subtree_size(keys: list[int]) -> list[int]:
        sizes = []
        for key in keys:
            sizes.append(1 + sum(await loader.load_many(children(key))))
        return sizes

    async with DataLoader(subtree_size) as loader:
        nodes = [0]
        for node in nodes:
            nodes += children(node)
        assert await settled(loader.load(0)) == len(nodes)


async def test_two_ways_to_what_is_awaited_and_two_to_who_awaits_are_no_cycle() -> None:
    """``top`` needs ``middle`` by two others, and ``middle`` needs ``bottom`` by two others."""
    needs = {"top": "ab", "a": ["middle"], "b": ["middle"], "middle": ["hub"]}
    needs |= {"hub": "cd", "c": ["bottom"], "d": ["bottom"]}
    loaders: dict[str, DataLoader[int, int]] = {}
    gate = anyio.Event()

    def function(name: str) -> Any:
        async def fetch(keys: list[int]) -> list[int]:
            async with anyio.create_task_group() as tg:
                for need in needs.get(name, ()):
                    tg.start_soon(loaders[need].load(1).wait)
                if name == "bottom":
                    await gate.wait()
            return keys

        return fetch

    async with LoaderScope():
        for name in (*needs, "bottom"):
            loaders[name] = DataLoader[int, int](function(name))
        hub = loaders["hub"].load(1)
        await wait_all_tasks_blocked()
        top = loaders["top"].load(1)
        await wait_all_tasks_blocked()
        gate.set()
        assert (await hub, await top) == (1, 1)


async def test_loaders_may_load_from_each_other_without_a_cycle() -> None:
    async with Loaders() as loaders:
        a = await loaders.open("a", {n: ("b", n + 1) for n in range(0, 10)})
        await loaders.open("b", {n: ("a", n + 1) for n in range(0, 10)})
        assert await settled(a.load(0)) == 0
    assert loaders.errors == []


@each_await
async def test_a_shared_limiter_with_tokens_enough(await_: Await) -> None:
    limiter = anyio.CapacityLimiter(4)
    async with Loaders(await_) as loaders:
        a = await loaders.open("a", {1: ("b", 1)}, limiter=limiter)
        await loaders.open("b", {1: ("c", 1)}, limiter=limiter)
        await loaders.open("c", {1: ("a", 2)}, limiter=limiter)
        assert await settled(a.load(1)) == 1
    assert loaders.errors == []


@pytest.mark.parametrize("tokens", [1, 2])
async def test_a_token_that_somebody_else_holds(tokens: int) -> None:
    """Who is no batch may give it back whenever he likes."""
    limiter = anyio.CapacityLimiter(tokens)
    async with Loaders() as loaders:
        a = await loaders.open("a", {1: ("b", 1)}, limiter=limiter if tokens == 2 else None)
        await loaders.open("b", limiter=limiter)
        async with limiter:
            handle = a.load(1)
            await wait_all_tasks_blocked()
            assert limiter.available_tokens == 0
            assert handle.status is handle.Status.PENDING
        assert await settled(handle) == 1
    assert loaders.errors == []


async def settles_once_the_token_is_free(
    loader: DataLoader[int, int], limiter: anyio.CapacityLimiter, gate: anyio.Event
) -> None:
    handle = loader.load(1)
    await wait_all_tasks_blocked()
    assert limiter.statistics().tasks_waiting == 1
    gate.set()
    assert await settled(handle) == 1


async def test_a_token_of_a_batch_that_waits_for_nobody() -> None:
    limiter = anyio.CapacityLimiter(1)
    gate = anyio.Event()
    fetch = Recorder[int, int](lambda key: key, gate=gate)
    async with DataLoader(fetch, limiter=limiter) as busy, Loaders() as loaders:
        a = await loaders.open("a", {1: ("b", 1)})
        await loaders.open("b", limiter=limiter)
        busy.load(1)
        await wait_all_tasks_blocked()
        await settles_once_the_token_is_free(a, limiter, gate)
    assert loaders.errors == []


async def test_a_token_behind_many_batches_of_which_the_last_waits_for_nobody() -> None:
    limiter = anyio.CapacityLimiter(1)
    gate = anyio.Event()
    fetch = Recorder[int, int](lambda key: key, gate=gate)
    async with DataLoader(fetch) as last, Loaders() as loaders:
        loaders.by_name["last"] = last
        names = [*"abcdefg", "last"]
        for name, needed in pairwise(names):
            await loaders.open(name, {1: (needed, 1)}, limiter=limiter if name == "a" else None)
        waiter = await loaders.open("waiter", {1: ("a", 1000)})
        loaders.by_name["a"].load(1)
        await wait_all_tasks_blocked()
        await settles_once_the_token_is_free(waiter, limiter, gate)
    assert loaders.errors == []


def test_a_batch_that_is_done_holds_nobody_up(shuffled_backend: str) -> None:
    """``x`` ends and its token goes to ``y``, which awaits the very batch that awaits ``x``.

    Whether that batch or ``y`` gets its next step first is the scheduler's to decide.
    """

    async def chain() -> list[Any]:
        limiter = anyio.CapacityLimiter(1)
        gate = anyio.Event()
        fetch = Recorder[int, int](lambda key: key, gate=gate)
        async with DataLoader(fetch, limiter=limiter) as x, Loaders() as loaders:
            loaders.by_name["x"] = x
            a = await loaders.open("a", {1: ("x", 1)})
            y = await loaders.open("y", {1: ("a", 1)}, limiter=limiter)
            a.load(1)
            await wait_all_tasks_blocked()
            handle = y.load_many([1], return_exceptions=True)
            await wait_all_tasks_blocked()
            gate.set()
            return await handle

    for seed in range(30):
        assert run_shuffled(shuffled_backend, seed, chain) == [1], f"seed {seed}"


@pytest.mark.parametrize("tokens", [None, 2])
async def test_many_callers_at_once(tokens: int | None) -> None:
    limiter = None if tokens is None else anyio.CapacityLimiter(tokens)
    async with Loaders(in_a_task) as loaders:
        a = await loaders.open("a", {n: ("b", n // 2) for n in range(20)}, max_batch_size=3)
        await loaders.open("b", {n: ("c", n // 2) for n in range(20)}, max_batch_size=2)
        await loaders.open("c", limiter=limiter)
        assert await settled(a.load_many(range(20))) == [*range(20)]
    assert loaders.errors == []


async def test_a_task_that_outlives_its_batch_function_may_load_the_key() -> None:
    results: list[int] = []

    async def later(key: int) -> None:
        await ended.wait()
        results.append(await loader.load(key))
        loader.clear(key)
        results.append(await loader.load(key))

    async def fetch(keys: list[int]) -> list[int]:
        if not ended.is_set():
            tg.start_soon(later, keys[0])
        return keys

    ended = anyio.Event()
    async with DataLoader(fetch) as loader, anyio.create_task_group() as tg:
        assert await loader.load(1) == 1
        ended.set()
    assert results == [1, 1]


async def test_a_task_that_outlived_its_batch_function_holds_nobody_up() -> None:
    """``a`` awaits two batches of ``x``; one is done, and left a task that awaits ``y``."""
    gates = {"x": anyio.Event(), "y": anyio.Event()}

    async def fetch_x(keys: list[int]) -> list[int]:
        if keys == [1]:
            tg.start_soon(by_load, y, 1)
        else:
            await gates["x"].wait()
        return keys

    async def fetch_a(keys: list[int]) -> list[int]:
        return (await x.load_many([1, 2]))[:1]

    async def fetch_y(keys: list[int]) -> list[int]:
        await gates["y"].wait()
        tg.start_soon(open_gate_of_x)
        return [await a.load(1)]

    async def open_gate_of_x() -> None:
        await wait_all_tasks_blocked()
        gates["x"].set()

    async with (
        DataLoader(fetch_x, batch=False) as x,
        DataLoader(fetch_y) as y,
        DataLoader(fetch_a) as a,
        anyio.create_task_group() as tg,
    ):
        handle = a.load(1)
        await wait_all_tasks_blocked()
        gates["y"].set()
        assert await settled(y.load(1)) == 1
        assert await settled(handle) == 1


async def test_an_await_that_is_over_holds_nobody_up() -> None:
    """``b`` gives what ``a`` awaits and runs on; then it awaits ``a``, which runs on too."""
    given = anyio.Event()

    async def fetch(keys: list[int]) -> list[int]:
        assert await b.load(1) == 10
        given.set()
        await wait_all_tasks_blocked()
        return keys

    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, int], None]:
        yield 1, 10
        await given.wait()
        yield 2, await a.load(1)

    async with DataLoader(stream, schedule=schedules.manual()) as b, DataLoader(fetch) as a:
        one, two = a.load(1), b.load(2)
        await wait_all_tasks_blocked()
        b.dispatch()
        assert [await settled(one), await settled(two)] == [1, 1]


async def test_one_of_two_awaits_that_is_over_leaves_the_other() -> None:
    gate = anyio.Event()

    async def fetch_a(keys: list[int]) -> list[int]:
        async with anyio.create_task_group() as tg:

            async def give_up() -> None:
                with anyio.CancelScope() as scope:
                    scopes.append(scope)
                    await b.load(1)

            tg.start_soon(give_up)
            await b.load(2).wait()
        return keys

    async def fetch_b(keys: list[int]) -> list[int]:
        await gate.wait()
        return [await a.load(1) for _ in keys]

    scopes: list[anyio.CancelScope] = []
    async with DataLoader(fetch_b, schedule=schedules.manual()) as b, DataLoader(fetch_a) as a:
        handle, failing = a.load(1), b.load(2)
        await wait_all_tasks_blocked()
        b.dispatch()
        await wait_all_tasks_blocked()
        scopes[0].cancel()
        await wait_all_tasks_blocked()
        gate.set()
        assert await settled(handle) == 1
        with pytest.raises(LoadDeadlockError):
            await failing


async def test_loading_without_awaiting() -> None:
    """Only an await can end in a deadlock."""

    async def fetch(keys: list[int]) -> list[int]:
        loader.load(keys[0])
        loader.load_many([*keys, *[key + 1 for key in keys if key < 5]])
        return keys

    async with DataLoader(fetch, limiter=anyio.CapacityLimiter(1)) as loader:
        assert await settled(loader.load(1)) == 1
        assert await settled(loader.load(4)) == 4
