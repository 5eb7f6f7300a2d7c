"""A batch function that waits for itself gets an error instead of a hang (contract 2.6)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any

import anyio
import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint

from anyloader import DataLoader, LoadDeadlockError, in_thread, schedules
from support import Recorder, run_shuffled, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio

Loader = DataLoader[int, Any]
Await = Callable[[Loader, int], Awaitable[object]]


async def settled(load: Awaitable[Any]) -> Any:
    """Await what would hang if a deadlock went unseen."""
    with anyio.fail_after(5):
        return await load


async def by_load(loader: Loader, key: int) -> object:
    return await loader.load(key)


async def by_wait(loader: Loader, key: int) -> object:
    handle = loader.load(key)
    await handle.wait()
    return handle


async def by_load_many(loader: Loader, key: int) -> object:
    return await loader.load_many([key])


async def by_load_many_among_others(loader: Loader, key: int) -> object:
    return await loader.load_many([1_000, key, 1_001], return_exceptions=True)


async def in_a_task(loader: Loader, key: int) -> object:
    results: list[object] = []
    errors: list[LoadDeadlockError] = []

    async def child() -> None:
        try:
            results.append(await loader.load(key))
        except LoadDeadlockError as exc:
            errors.append(exc)

    async with anyio.create_task_group() as tg:
        tg.start_soon(child)
    if errors:
        raise errors[0]
    return results[0]


async def in_a_thread(loader: Loader, key: int) -> object:
    def blocking(keys: list[int]) -> list[object]:
        return [anyio.from_thread.run(loader.load, key) for key in keys]

    return await in_thread(blocking)([key])


AWAITS: list[Await] = [
    by_load,
    by_wait,
    by_load_many,
    by_load_many_among_others,
    in_a_task,
    in_a_thread,
]
each_await = pytest.mark.parametrize("await_", AWAITS, ids=lambda function: function.__name__)


class Loaders:
    """Loaders that load from each other: ``needs[name][key]`` is the load that a key needs.

    Each function awaits what its keys need, one after the other, but for keys of 1,000 and more,
    which need nothing. The value of a key is its own number.
    """

    def __init__(self, await_: Await = by_load) -> None:
        self.needs: dict[str, dict[int, tuple[str, int]]] = {}
        self.errors: list[LoadDeadlockError] = []
        self.by_name: dict[str, Loader] = {}
        self._await = await_
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Loaders:
        await self._stack.__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._stack.__aexit__(*exc_info)

    async def open(
        self, name: str, needs: dict[int, tuple[str, int]] | None = None, **options: Any
    ) -> Loader:
        self.needs[name] = needs or {}

        async def fetch(keys: list[int]) -> list[int]:
            for key in keys:
                if key in self.needs[name]:
                    other, needed = self.needs[name][key]
                    try:
                        await self._await(self.by_name[other], needed)
                    except LoadDeadlockError as exc:
                        self.errors.append(exc)
                        raise
            return keys

        loader = DataLoader(fetch, name=name, **options)
        self.by_name[name] = loader
        return await self._stack.enter_async_context(loader)


# --- Cycles of loads ---


@each_await
async def test_awaiting_a_load_of_its_own_batch(await_: Await) -> None:
    async with Loaders(await_) as loaders:
        a = await loaders.open("a", {1: ("a", 1)})
        with pytest.raises(LoadDeadlockError):
            await settled(a.load(1))


@each_await
async def test_awaiting_another_load_of_its_own_batch(await_: Await) -> None:
    async with Loaders(await_) as loaders:
        a = await loaders.open("a", {1: ("a", 2)})
        one, two = a.load(1), a.load(2)
        for handle in (one, two):
            with pytest.raises(LoadDeadlockError):
                await settled(handle)


@each_await
async def test_awaiting_a_batch_that_waits_for_it(await_: Await) -> None:
    async with Loaders(await_) as loaders:
        a = await loaders.open("a", {1: ("b", 2)})
        await loaders.open("b", {2: ("a", 1)})
        await settled(a.load(1).wait())
    # It is b's await that closed the cycle; a just awaits a load that fails.
    assert re.search(r"b \[.*2.*\] -> a \[1\] -> b \[.*2.*\]", loaders.errors[0].excerpt)
    assert loaders.errors.count(loaders.errors[0]) == len(loaders.errors)


@pytest.mark.parametrize("length", [3, 4, 7])
async def test_longer_cycles(length: int) -> None:
    async with Loaders() as loaders:
        for n in range(length):
            await loaders.open(f"loader{n}", {1: (f"loader{(n + 1) % length}", 1)})
        with pytest.raises(LoadDeadlockError) as caught:
            await settled(loaders.by_name["loader0"].load(1))
    cycle = [*range(length), 0]
    # The one that closed it stands first, and last.
    names = " -> ".join(f"loader{(n - 1) % length} [1]" for n in cycle)
    assert names in caught.value.excerpt


async def test_a_cycle_between_tasks_that_load_from_both_ends() -> None:
    """a 1 -> b 1 and b 2 -> a 2, where 1 and 2 of each were sent together."""
    async with Loaders() as loaders:
        a = await loaders.open("a", {1: ("b", 1)})
        b = await loaders.open("b", {2: ("a", 2)})
        loads = [a.load_many([1, 2], return_exceptions=True)]
        loads.append(b.load_many([1, 2], return_exceptions=True))
        results = [await settled(load) for load in loads]
        assert all(isinstance(error, LoadDeadlockError) for result in results for error in result)


async def test_a_cycle_further_on_does_not_hide_from_the_message() -> None:
    """A wait that only leads into a cycle of others, which got their error, ends with them."""
    async with Loaders() as loaders:
        a = await loaders.open("a", {1: ("b", 1)})
        await loaders.open("b", {1: ("c", 1)})
        await loaders.open("c", {1: ("b", 1)})
        with pytest.raises(LoadDeadlockError) as caught:
            await settled(a.load(1))
        assert re.search(r"c \[1\] -> b \[1\] -> c \[1\]", caught.value.excerpt)


@pytest.mark.only_on("asyncio")
async def test_in_a_task_made_by_asyncio() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        return await asyncio.gather(*[asyncio.create_task(as_task(key)) for key in keys])

    async def as_task(key: int) -> int:
        return await loader.load(key)

    async with DataLoader(fetch) as loader:
        with pytest.raises(LoadDeadlockError):
            await settled(loader.load(1))


async def test_in_a_stream_for_a_key_it_has_not_yet_given() -> None:
    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, int], None]:
        yield 1, 10
        assert await loader.load(1) == 10, "this one is settled already"
        yield 2, await loader.load_required(3)

    async with DataLoader(stream) as loader:
        one, two, three = map(loader.load, [1, 2, 3])
        assert await settled(one) == 10
        for handle in (two, three):
            with pytest.raises(LoadDeadlockError):
                await settled(handle)


async def test_on_a_handle_made_before() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        await handles[0]
        return keys

    async with DataLoader(fetch) as loader:
        handles = [loader.load(1)]
        with pytest.raises(LoadDeadlockError):
            await settled(handles[0])


# --- Cycles through a limiter ---


@each_await
@pytest.mark.parametrize("tokens", [1, 2])
async def test_awaiting_a_load_that_needs_the_last_token_which_it_holds(
    await_: Await, tokens: int
) -> None:
    limiter = anyio.CapacityLimiter(tokens)
    async with Loaders(await_) as loaders:
        needs = {n: ("b", n) for n in range(tokens)}
        a = await loaders.open("a", needs, limiter=limiter, batch=False)
        await loaders.open("b", limiter=limiter)
        results = await settled(a.load_many(needs, return_exceptions=True))
        # With the tokens of others given back, the rest can go on.
        errors = [type(result) for result in results if isinstance(result, Exception)]
        assert errors == [LoadDeadlockError]
    assert limiter.borrowed_tokens == 0


async def test_awaiting_a_new_load_of_its_own_loader_that_needs_its_token() -> None:
    async with Loaders() as loaders:
        a = await loaders.open("a", {1: ("a", 2)}, limiter=anyio.CapacityLimiter(1))
        with pytest.raises(LoadDeadlockError) as caught:
            await settled(a.load(1))
        assert re.search(r"a \[1\] -> a \[2\] -> a \[1\]", caught.value.excerpt)


async def test_awaiting_a_load_that_needs_a_token_which_a_batch_that_waits_for_it_holds() -> None:
    limiter = anyio.CapacityLimiter(1)
    async with Loaders() as loaders:
        a = await loaders.open("a", {1: ("b", 2)}, limiter=limiter)
        await loaders.open("b", {2: ("c", 3)})
        await loaders.open("c", limiter=limiter)
        with pytest.raises(LoadDeadlockError) as caught:
            await settled(a.load(1))
        assert re.search(r"b \[2\] -> c \[3\] -> a \[1\] -> b \[2\]", caught.value.excerpt)
    assert limiter.borrowed_tokens == 0


async def test_two_holders_of_which_the_last_to_wait_gets_the_error() -> None:
    limiter = anyio.CapacityLimiter(2)
    gate = anyio.Event()
    errors: list[int] = []

    async def fetch(keys: list[int]) -> list[int]:
        if keys == [2]:
            await gate.wait()
        try:
            return await inner.load_many([key * 10 for key in keys])
        except LoadDeadlockError:
            errors.append(keys[0])
            return [0]

    async with (
        DataLoader(Recorder[int, int](lambda key: key), limiter=limiter) as inner,
        DataLoader(fetch, batch=False, limiter=limiter) as outer,
    ):
        one, two = outer.load(1), outer.load(2)
        await wait_all_tasks_blocked()
        assert errors == [], "the other one may still return its token"
        gate.set()
        assert [await settled(one), await settled(two)] == [10, 0]
    assert errors == [2]


async def test_a_waiter_behind_a_deadlock_of_two_limiters() -> None:
    """Each of two holds the only token of one limiter and needs that of the other."""
    first, second = anyio.CapacityLimiter(1), anyio.CapacityLimiter(1)
    async with Loaders() as loaders:
        a = await loaders.open("a", {1: ("y", 1)}, limiter=first)
        b = await loaders.open("b", {1: ("x", 1)}, limiter=second)
        await loaders.open("x", limiter=first)
        await loaders.open("y", limiter=second)
        one, two = a.load(1), b.load(1)
        results = [await settled(load.wait()) or load.exception for load in (one, two)]
        assert sorted(type(result).__name__ for result in results) == [
            "LoadDeadlockError",
            "NoneType",
        ]


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


# --- What the error says, and what comes after ---


async def test_the_error_names_the_cycle() -> None:
    async with Loaders() as loaders:
        await loaders.open("authors", {7: ("books", 8)})
        await loaders.open("books", {8: ("authors", 7)})
        outer = await loaders.open("page", {1: ("authors", 7)})
        with pytest.raises(LoadDeadlockError) as caught:
            await settled(outer.load(1))
    assert "books [8] -> authors [7] -> books [8]" in caught.value.excerpt
    assert "page" not in str(caught.value), "it is not part of the cycle"


async def test_the_error_does_not_list_a_thousand_keys() -> None:
    async with Loaders() as loaders:
        a = await loaders.open("a", {0: ("a", 0)})
        with pytest.raises(LoadDeadlockError) as caught:
            await settled(a.load_many(range(900)))
    assert len(str(caught.value)) + len(caught.value.excerpt) < 500


@pytest.mark.parametrize("limiter", [False, True])
async def test_the_keys_can_be_loaded_again(limiter: bool) -> None:
    async with Loaders() as loaders:
        options = {"limiter": anyio.CapacityLimiter(1)} if limiter else {}
        a = await loaders.open("a", {1: ("b", 1)}, **options)
        b = await loaders.open("b", {1: ("a", 1)}, **options)
        for _ in range(2):
            with pytest.raises(LoadDeadlockError):
                await settled(a.load(1))
        loaders.needs["a"].clear()
        loaders.needs["b"].clear()
        assert await settled(a.load_many([1, 2])) == [1, 2]
        assert await settled(b.load_many([1, 2])) == [1, 2]


async def test_a_batch_function_may_go_on_after_the_error() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        try:
            await loader.load(1)
        except LoadDeadlockError:
            return [key * 2 for key in keys]
        return []

    async with DataLoader(fetch) as loader:
        assert await settled(loader.load_many([1, 2])) == [2, 4]


async def test_a_refused_await_gives_no_load_up() -> None:
    """It was not cancelled; here nobody else awaits the load so far."""

    async def fetch(keys: list[int]) -> list[int]:
        for load in handles:
            with pytest.raises(LoadDeadlockError):
                await load
        await checkpoint()
        return keys

    for many in (False, True):
        async with DataLoader(fetch, schedule=schedules.manual()) as loader:
            handles: list[Awaitable[object]] = [loader.load_many([1]) if many else loader.load(1)]
            loader.dispatch()
            await wait_all_tasks_blocked()
            assert await settled(handles[0]) == ([1] if many else 1)


@pytest.mark.parametrize("loader", ["needs the token", "loads from one that does"])
async def test_a_cancelled_function_that_cleans_up_still_holds_its_token(loader: str) -> None:
    errors: list[Exception] = []
    limiter = anyio.CapacityLimiter(1)

    async def fetch(keys: list[int]) -> list[int]:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                try:
                    await settled(loaders.by_name[loader].load(1))
                except (LoadDeadlockError, TimeoutError) as exc:
                    errors.append(exc)
        return keys

    async with Loaders() as loaders:
        await loaders.open("needs the token", limiter=limiter)
        await loaders.open("loads from one that does", {1: ("needs the token", 1)})
        async with DataLoader(fetch, limiter=limiter) as cancelled:
            async with anyio.create_task_group() as tg:
                tg.start_soon(cancelled.load, 1)
                await wait_all_tasks_blocked()
                tg.cancel_scope.cancel()
    assert [type(error) for error in errors] == [LoadDeadlockError]
