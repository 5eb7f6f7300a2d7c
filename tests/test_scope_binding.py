"""A loader binds to the ambient scope at its first load, and serves no other one (contract 1, 7)."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import (
    DataLoader,
    LoaderClosedError,
    LoaderNotOpenError,
    LoaderScope,
    current_scope,
)
from support import wait_all_tasks_blocked
from support.scopes import SOURCES, Squares, calls, double, negate, triple

# --- task_group= ---


def open_group(kind: str) -> AbstractAsyncContextManager[Any]:
    if kind == "trio":
        return pytest.importorskip("trio").open_nursery()  # type: ignore[no-any-return]
    if kind == "asyncio":
        return asyncio.TaskGroup()  # type: ignore[attr-defined,no-any-return,unused-ignore]  # pyright: ignore
    return anyio.create_task_group()


pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


# --- A loader binds to the ambient scope at its first load ---


@pytest.mark.parametrize("make", [Squares, lambda: DataLoader(double)])
@pytest.mark.parametrize("early", [True, False])
async def test_a_loader_made_without_arguments_binds_at_its_first_load(
    make: Callable[[], DataLoader[int, int]], early: bool
) -> None:
    loader = make() if early else None
    async with LoaderScope() as scope:
        loader = loader or make()
        assert "not open" in repr(loader)
        assert scope.statistics().loads == 0
        await loader.load(3)
        assert "open" in repr(loader)
        assert scope.statistics().loads == 1
    with pytest.raises(LoaderClosedError):
        loader.load(3)
    assert "closed" in repr(loader)


def test_a_loader_made_where_no_loop_runs_binds_at_its_first_load(
    shuffled_backend: str,
) -> None:
    loader = DataLoader(double)
    scope = LoaderScope()

    async def main() -> int:
        async with scope:
            return await loader.load(1)

    assert anyio.run(main, backend=shuffled_backend.split("+")[0]) == 2


async def test_a_loader_binds_to_the_innermost_scope_that_is_not_left() -> None:
    outermost, inner, never = DataLoader(double), DataLoader(double), DataLoader(double)
    async with LoaderScope() as scope:
        async with LoaderScope() as nested:
            await inner.load(1)
            assert (nested.statistics().loads, scope.statistics().loads) == (1, 0)
        await outermost.load(1)
        assert scope.statistics().loads == 1
    with pytest.raises(LoaderNotOpenError):
        never.load(1)


async def test_load_many_and_its_like_bind_too() -> None:
    many, some = DataLoader(double), DataLoader(triple)
    async with LoaderScope() as scope:
        assert await many.load_many([1, 2]) == [2, 4]
        some.prime(1, 5)
        assert await some.load(1) == 5
        assert scope.statistics().loads == 3
    for loader in (many, some):
        with pytest.raises(LoaderClosedError):
            loader.load_many([1])


async def test_a_load_with_neither_scope_nor_group_is_refused_and_leaves_no_trace() -> None:
    loader = DataLoader(double)
    for _ in range(2):
        with pytest.raises(LoaderNotOpenError, match=r"async with.*task_group.*LoaderScope"):
            loader.load(1)
        with pytest.raises(LoaderNotOpenError):
            loader.load_many([1])
    async with LoaderScope():
        assert await loader.load(2) == 4
    assert calls == [("double", [2])]


async def test_a_bound_loader_cannot_be_entered() -> None:
    loader = DataLoader(double)
    async with LoaderScope():
        await loader.load(1)
        with pytest.raises(RuntimeError, match="open already"):
            await loader.__aenter__()
        assert await loader.load(2) == 4


async def test_a_bound_loader_is_not_served_from_where_no_scope_is() -> None:
    loader = DataLoader(double)
    bound, checked = anyio.Event(), anyio.Event()

    async def outsider() -> None:
        await bound.wait()
        with pytest.raises(LoaderNotOpenError, match=r"scope\.get"):
            loader.load(1)
        checked.set()

    async with anyio.create_task_group() as tg:
        tg.start_soon(outsider)
        async with LoaderScope():
            await loader.load(1)
            bound.set()
            await checked.wait()
            assert await loader.load(1) == 2


# --- One scope's loader is not another one's ---


LEAKS: list[Callable[[DataLoader[int, int]], object]] = [
    lambda loader: loader.load(1),
    lambda loader: loader.load_many([1]),
    lambda loader: loader.peek(1),
]

TOUCHES: list[Callable[[DataLoader[int, int]], object]] = [
    lambda loader: loader.prime(1, 13),
    lambda loader: loader.prime(1, 13, force=True),
    lambda loader: loader.prime_many({1: 13}, force=True),
    lambda loader: loader.clear(1),
    lambda loader: loader.clear_many([1]),
    lambda loader: loader.clear_all(),
    lambda loader: loader.dispatch(),
]


@pytest.mark.parametrize("leak", LEAKS)
async def test_a_loader_of_an_ended_scope_refuses_the_next(
    leak: Callable[[DataLoader[int, int]], object],
) -> None:
    loader = DataLoader(double)
    async with LoaderScope():
        await loader.load(1)
    async with LoaderScope():
        with pytest.raises(LoaderClosedError, match="for each request"):
            leak(loader)
    with pytest.raises(LoaderClosedError):
        leak(loader)


@pytest.mark.parametrize("use", [*LEAKS, *TOUCHES])
async def test_a_loader_of_an_open_scope_refuses_another_one(
    use: Callable[[DataLoader[int, int]], object],
) -> None:
    loader = DataLoader(double)
    bound, checked = anyio.Event(), anyio.Event()

    async def first_request() -> None:
        async with LoaderScope():
            await loader.load(1)
            queued = loader.load(2)
            bound.set()
            await checked.wait()
            assert await queued == 4
            assert await loader.load(1) == 2

    async def second_request() -> None:
        async with LoaderScope() as scope:
            await bound.wait()
            with pytest.raises(LoaderNotOpenError, match=r"make a loader.*scope\.get\(\)"):
                use(loader)
            assert await scope.get(double).load(1) == 2
            checked.set()

    async with anyio.create_task_group() as tg:
        tg.start_soon(first_request)
        tg.start_soon(second_request)
    assert calls.count(("double", [1])) == 2


async def test_what_was_primed_in_one_scope_does_not_reach_another_one() -> None:
    """A loader that one request only primed is not bound, and yet holds data of that request."""
    loader = DataLoader(double)
    async with LoaderScope():
        loader.prime(1, 1_000)
    async with LoaderScope():
        try:
            assert await loader.load(1) == 2
        except LoaderClosedError:
            pass


async def test_what_was_primed_outside_of_all_scopes_is_there_in_the_scope() -> None:
    loader = DataLoader(double).prime(1, 1_000)
    async with LoaderScope():
        assert await loader.load(1) == 1_000


@pytest.mark.parametrize("source", SOURCES)
async def test_the_next_scope_starts_afresh(source: Any) -> None:
    for _ in range(2):
        async with LoaderScope() as scope:
            await scope.get(source).load(1)
    assert [keys for _, keys in calls] == [[1], [1]]


async def test_settled_handles_stay_readable_after_the_scope() -> None:
    async with LoaderScope() as scope:
        handle = scope.get(double).load(1)
        await handle
    assert await handle == 2
    assert handle.return_value == 2


@pytest.mark.parametrize("source", SOURCES)
async def test_nothing_refers_to_a_scope_that_has_ended(source: Any) -> None:
    loader, bound = DataLoader(double), DataLoader(triple)
    async with LoaderScope() as scope:
        handle = scope.get(source).load(1)
        await handle
        await bound.load(1)
        ended = weakref.ref(scope), weakref.ref(scope.get(source))
    del scope
    # A task keeps the frame that it suspended in; the next one shows that nothing else does.
    await checkpoint()
    gc.collect()
    assert [ref() for ref in ended] == [None, None]
    assert "not open" in repr(loader)
    assert "closed" in repr(bound)
    await handle


# --- Tasks and a scope that they outlive ---


async def test_a_task_that_outlives_its_scope_is_refused() -> None:
    bound, fresh = DataLoader(double), DataLoader(triple)
    ended = anyio.Event()

    async def outlives() -> None:
        await bound.load(1)
        await ended.wait()
        assert "closed" in repr(current_scope())
        for late in (bound, fresh, negate):
            with pytest.raises(LoaderClosedError):
                late.load(1)
        with pytest.raises(LoaderClosedError):
            current_scope().get(Squares)
        # It can open a scope of its own; what was refused left no trace.
        async with LoaderScope() as scope:
            assert current_scope() is scope
            assert await fresh.load(1) == 3
            with pytest.raises(LoaderClosedError):
                bound.load(1)

    async with anyio.create_task_group() as tg:
        async with LoaderScope():
            tg.start_soon(outlives)
            await wait_all_tasks_blocked()
        ended.set()


async def test_a_context_copied_in_a_scope_is_no_way_back_into_it() -> None:
    done: list[int] = []

    async def later() -> None:
        with pytest.raises(LoaderClosedError):
            negate.load(1)
        done.append(1)

    async with anyio.create_task_group() as tg:
        async with LoaderScope():
            tg.start_soon(later)  # there is no checkpoint in here, so it runs later
        with pytest.raises(LoaderNotOpenError):
            negate.load(1)
    assert done == [1]
