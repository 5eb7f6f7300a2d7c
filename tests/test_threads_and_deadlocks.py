"""Worker threads of ``in_thread`` are among what can deadlock (contract 2.6)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.from_thread
import pytest
from anyio import to_thread

from anyloader import (
    DataLoader,
    LoadDeadlockError,
    LoaderScope,
    batch_loader,
    in_thread,
    split_on_error,
)
from anyloader._threads import THREADS

pytestmark = pytest.mark.anyio

Blocking = Callable[[list[int]], list[int]]


@asynccontextmanager
async def rescued(limiter: anyio.CapacityLimiter) -> AsyncIterator[None]:
    """Fail, rather than hang with threads that nothing can cancel, if the block takes too long."""
    late = False

    async def rescue() -> None:
        nonlocal late
        await anyio.sleep(2)
        late = True
        limiter.total_tokens += 100

    async with anyio.create_task_group() as tg:
        tg.start_soon(rescue)
        yield
        tg.cancel_scope.cancel()
    assert not late, "it hung until there were more threads"


def loaders(
    posts_limiter: anyio.CapacityLimiter | None, users_limiter: anyio.CapacityLimiter | None
) -> DataLoader[int, int]:
    """Posts ask for users, from their thread."""

    def users(ids: list[int]) -> list[int]:
        return ids

    def posts(ids: list[int]) -> list[int]:
        return anyio.from_thread.run(users_loader.load_many, ids)

    users_loader = DataLoader(in_thread(users, limiter=users_limiter))
    return DataLoader(in_thread(posts, limiter=posts_limiter))


async def test_a_thread_that_waits_for_the_last_thread_is_a_deadlock() -> None:
    limiter = anyio.CapacityLimiter(1)
    async with rescued(limiter), LoaderScope():
        posts = loaders(limiter, limiter)
        with pytest.raises(LoadDeadlockError):
            await posts.load(1)
        with pytest.raises(LoadDeadlockError):
            await posts.load(2)


async def test_with_two_threads_there_is_none() -> None:
    limiter = anyio.CapacityLimiter(2)
    async with rescued(limiter), LoaderScope():
        assert await loaders(limiter, limiter).load_many([1, 2]) == [1, 2]


async def test_nor_is_it_hidden_by_split_on_error() -> None:
    limiter = anyio.CapacityLimiter(1)

    def users(ids: list[int]) -> list[int]:
        raise NotImplementedError

    def posts(ids: list[int]) -> list[int]:
        return anyio.from_thread.run(users_loader.load_many, ids)

    async with rescued(limiter), LoaderScope():
        users_loader = DataLoader(in_thread(users, limiter=limiter))
        splits = split_on_error(in_thread(posts, limiter=limiter), on=KeyError)
        with pytest.raises(LoadDeadlockError):
            await DataLoader(splits).load(1)


async def test_nor_with_a_limiter_for_each() -> None:
    limiter = anyio.CapacityLimiter(1)
    async with rescued(limiter), LoaderScope():
        assert await loaders(limiter, anyio.CapacityLimiter(1)).load_many([1, 2]) == [1, 2]


@pytest.mark.parametrize("threads", [2, 3])
async def test_as_many_requests_as_there_are_threads_all_get_an_answer(threads: int) -> None:
    """Each in a scope of its own, and all with the default limiter."""
    limiter = THREADS()
    limiter.total_tokens = threads
    ends: list[object] = []

    async def request(key: int) -> None:
        async with LoaderScope():
            try:
                ends.append(await loaders(None, None).load(key))
            except LoadDeadlockError:
                ends.append("deadlock")

    async with rescued(limiter), anyio.create_task_group() as tg:
        for key in range(threads):
            tg.start_soon(request, key)
    assert len(ends) == threads
    assert ends.count("deadlock") < threads or threads == 1


async def test_threads_that_wait_for_loads_leave_batch_functions_theirs() -> None:
    """As all endpoints of a server may do that are no coroutines."""
    limiter = to_thread.current_default_thread_limiter()
    limiter.total_tokens = 3

    @batch_loader
    @in_thread
    def double(keys: list[int]) -> list[int]:
        return [key * 2 for key in keys]

    found: list[int] = []

    async def request(key: int) -> None:
        async with LoaderScope():
            found.append(await to_thread.run_sync(lambda: anyio.from_thread.run(double.load, key)))

    async with rescued(limiter), anyio.create_task_group() as tg:
        for key in range(6):
            tg.start_soon(request, key)
    assert sorted(found) == [0, 2, 4, 6, 8, 10]


async def test_a_blocking_function_that_waits_for_its_own_batch() -> None:
    limiter = anyio.CapacityLimiter(2)

    def again(ids: list[int]) -> list[int]:
        return anyio.from_thread.run(loader.load_many, ids)

    async with rescued(limiter), LoaderScope():
        loader = DataLoader(in_thread(again, limiter=limiter))
        with pytest.raises(LoadDeadlockError):
            await loader.load(1)


async def test_a_limiter_of_loaders_and_threads_alike() -> None:
    limiter = anyio.CapacityLimiter(1)

    def users(ids: list[int]) -> list[int]:
        return ids

    async def posts(ids: list[int]) -> list[int]:
        return await users_loader.load_many(ids)

    async with rescued(limiter), LoaderScope():
        users_loader = DataLoader(in_thread(users, limiter=limiter))
        with pytest.raises(LoadDeadlockError):
            await DataLoader(posts, limiter=limiter).load(1)


def test_what_runs_in_threads_shows_what_it_runs() -> None:
    def fetch(keys: list[int]) -> list[int]:
        raise NotImplementedError

    assert repr(in_thread(fetch)).endswith("fetch>")


async def test_a_function_that_holds_a_token_may_wait_for_who_needs_none_or_another_one() -> None:
    """Tokens are out, but not all of those who hold them wait for more."""
    limiter = anyio.CapacityLimiter(2)
    begun, gate = anyio.Event(), anyio.Event()

    async def slow(keys: list[int]) -> list[int]:
        begun.set()
        await gate.wait()
        return keys

    async def inner(keys: list[int]) -> list[int]:
        return keys

    async def outer(keys: list[int]) -> list[int]:
        handle = inner_loader.load(keys[0])
        async with anyio.create_task_group() as tg:
            tg.start_soon(handle.wait)
            await anyio.lowlevel.checkpoint()
            gate.set()
        return [await handle]

    async with LoaderScope():
        slow_loader = DataLoader(slow, limiter=limiter)
        outer_loader = DataLoader(outer, limiter=limiter)
        inner_loader = DataLoader(inner, limiter=limiter)
        async with anyio.create_task_group() as tg:
            tg.start_soon(slow_loader.load(1).wait)
            await begun.wait()
            assert await outer_loader.load(2) == 2
