"""A batch function that waits for itself gets an error instead of a hang (contract 2.6)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable

import anyio
import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint

from anyloader import (
    DataLoader,
    LoadDeadlockError,
    LoaderScope,
    batch_loader,
    limit,
    schedules,
)
from anyloader.schedules import BatchView
from support import (
    Recorder,
    wait_all_tasks_blocked,
)
from support.deadlocks import (
    Await,
    Loaders,
    each_await,
    settled,
)
from support.loads import outcome

pytestmark = pytest.mark.anyio

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


async def test_awaiting_a_batch_that_gets_no_token_even_if_somebody_dispatches_it() -> None:
    limiter = anyio.CapacityLimiter(1)

    @batch_loader(schedule=schedules.manual(), limiter=limiter)
    async def manual(keys: list[int]) -> list[int]:
        return keys

    @batch_loader(limiter=limiter)
    async def outer(keys: list[int]) -> list[int]:
        return await manual.load_many(keys)

    async with LoaderScope():
        with anyio.fail_after(5), pytest.raises(LoadDeadlockError, match=r"outer -> .*manual"):
            await outer.load(1)


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


# --- Schedules ---


@each_await
async def test_a_schedule_that_awaits_its_own_batch(await_: Await) -> None:
    async def schedule(batch: BatchView) -> None:
        await await_(loader, 1)

    async with DataLoader(Recorder[int, str](str), schedule=schedule) as loader:
        for _ in range(2):
            with pytest.raises(LoadDeadlockError, match=r"schedule it is in: .* -> "):
                await settled(loader.load(1))


@each_await
async def test_a_schedule_that_awaits_a_batch_that_waits_for_it(await_: Await) -> None:
    async with Loaders(await_) as loaders:
        b = await loaders.open("b", {1: ("a", 1)})

        async def schedule(batch: BatchView) -> None:
            await outcome(await_(b, 1))

        a = DataLoader(Recorder[int, str](str), name="a", schedule=schedule)
        async with a:
            loaders.by_name["a"] = a
            assert await settled(a.load(1)) == "1"
        assert len(loaders.errors) == 1


async def test_a_schedule_may_await_other_batches() -> None:
    async def schedule(batch: BatchView) -> None:
        assert await other.load(batch.added) == str(batch.added)

    async with (
        DataLoader(Recorder(str)) as other,
        DataLoader(Recorder(str), schedule=schedule, limiter=limit(1)) as loader,
    ):
        for key in range(3):
            assert await loader.load(key) == str(key)


@pytest.mark.virtual_time
@pytest.mark.parametrize("many", [False, True], ids=["load", "load_many"])
async def test_an_await_that_a_batch_function_gave_up_is_no_part_of_a_cycle(many: bool) -> None:
    async def first(keys: list[int]) -> list[int]:
        with anyio.move_on_after(1):
            if many:
                await two.load_many(keys)
            else:
                await two.load(keys[0])
        await anyio.sleep(3)
        return keys

    async def second(keys: list[int]) -> list[int]:
        await anyio.sleep(2)
        return await one.load_many(keys)  # which does not wait for this any more

    async with LoaderScope() as scope:
        one, two = scope.get(first), scope.get(second)
        one.load(1)
        await wait_all_tasks_blocked()
        assert await two.load(1) == 1


async def test_a_batch_that_loads_its_own_key_gets_an_error() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        return await loader.load_many(keys)

    async with DataLoader(fetch) as loader:
        assert isinstance(await outcome(loader.load(1)), LoadDeadlockError)


async def test_batches_that_load_each_other_in_a_circle_get_an_error() -> None:
    async def to_b(keys: list[int]) -> list[int]:
        return await b.load_many(keys)

    async def to_a(keys: list[int]) -> list[int]:
        return await a.load_many(keys)

    async with DataLoader(to_b) as a, DataLoader(to_a) as b:
        assert isinstance(await outcome(a.load(1)), LoadDeadlockError)
