"""What a scope has loaded is free as soon as it has ended (contract 1).

Whatever tasks, timers and contexts were started in it and go on.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from contextvars import copy_context
from typing import Any

import anyio
import pytest

from anyloader import DataLoader, LoaderScope, batch_loader, compat
from support import wait_all_tasks_blocked

pytestmark = pytest.mark.anyio


class Row:
    """Something that can be seen to go."""


class Rows:
    """A batch function that calls ``on_call`` and remembers which of its rows are alive."""

    def __init__(self, on_call: Callable[[], object] = lambda: None) -> None:
        self.on_call = on_call
        self._seen: list[weakref.ref[Row]] = []

    async def __call__(self, keys: list[int]) -> list[Row]:
        self.on_call()
        rows = [Row() for _ in keys]
        self._seen.extend(map(weakref.ref, rows))
        return rows

    async def stream(self, keys: list[int]) -> AsyncIterator[tuple[int, Row]]:
        for key, row in zip(keys, await self(keys)):
            yield key, row

    @property
    def alive(self) -> int:
        assert self._seen
        gc.collect()
        return sum(row() is not None for row in self._seen)


def scopes() -> int:
    """How many there are inside, ended ones too."""
    gc.collect()
    return sum(type(thing).__name__ == "Dispatcher" for thing in gc.get_objects())


async def load_in(block: AbstractAsyncContextManager[Any], loader: Any) -> None:
    async with block:
        await loader.load_many(range(50))
        await loader.load(1)


async def in_own_block(fetch: Any) -> None:
    loader = DataLoader[int, Row](fetch)
    await load_in(loader, loader)


async def in_scope(fetch: Any) -> None:
    await load_in(LoaderScope(), DataLoader[int, Row](fetch))


async def in_scope_by_get(fetch: Any) -> None:
    async with LoaderScope() as scope:
        await scope.get(fetch).load_many(range(50))


async def in_batch_loader(fetch: Any) -> None:
    await load_in(LoaderScope(), batch_loader(fetch))


async def in_compat(fetch: Any) -> None:
    await load_in(LoaderScope(), compat.DataLoader[int, Row](fetch))


async def in_nested_scopes(fetch: Any) -> None:
    async with LoaderScope() as outer, LoaderScope():
        await outer.get(fetch).load_many(range(50))
        await DataLoader[int, Row](fetch).load_many(range(50))


async def in_foreign_group(fetch: Any) -> None:
    async with anyio.create_task_group() as tg:
        await DataLoader[int, Row](fetch, task_group=tg).load_many(range(50))


PLACES = {
    function.__name__: function
    for function in (
        *(in_own_block, in_scope, in_scope_by_get, in_batch_loader, in_compat, in_nested_scopes),
        in_foreign_group,
    )
}
every_place = pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
Place = Callable[[Any], Any]


# --- something that was started there goes on ---


@every_place
@pytest.mark.parametrize("streams", [False, True])
async def test_a_task_that_a_batch_function_started(place: Place, streams: bool) -> None:
    async with anyio.create_task_group() as application:
        rows = Rows(lambda: application.start_soon(anyio.sleep_forever))
        await place(rows.stream if streams else rows)
        await wait_all_tasks_blocked()
        assert rows.alive == 0
        application.cancel_scope.cancel()


@every_place
async def test_a_context_that_a_batch_function_copied(place: Place) -> None:
    contexts: list[Any] = []
    rows = Rows(lambda: contexts.append(copy_context()))
    await place(rows)
    assert contexts
    assert rows.alive == 0


async def test_a_context_that_was_copied_in_the_scope() -> None:
    rows = Rows()
    async with LoaderScope() as scope:
        await scope.get(rows).load(1)
        context = copy_context()
        await DataLoader(rows).load_many(range(20))
    del scope
    assert rows.alive == 0
    assert len(context) > 0


async def test_a_task_that_was_started_in_the_scope() -> None:
    rows = Rows()
    async with anyio.create_task_group() as application:
        async with LoaderScope() as scope:
            await scope.get(rows).load_many(range(20))
            application.start_soon(anyio.sleep_forever)
            await DataLoader(rows).load_many(range(20))
        del scope
        await wait_all_tasks_blocked()
        assert rows.alive == 0
        application.cancel_scope.cancel()


@every_place
@pytest.mark.only_on("asyncio")
async def test_a_timer_that_a_batch_function_set(place: Place) -> None:
    timers: list[asyncio.TimerHandle] = []
    rows = Rows(lambda: timers.append(asyncio.get_running_loop().call_later(300, print)))
    await place(rows)
    assert rows.alive == 0
    for timer in timers:
        timer.cancel()


async def test_the_same_after_a_body_that_raised() -> None:
    rows = Rows()
    async with anyio.create_task_group() as application:
        with pytest.raises(OSError, match="body"):
            async with LoaderScope() as scope:
                await scope.get(rows).load_many(range(20))
                application.start_soon(anyio.sleep_forever)
                raise OSError("body")
        del scope  # pyright: ignore[reportPossiblyUnboundVariable]
        await wait_all_tasks_blocked()
        assert rows.alive == 0
        application.cancel_scope.cancel()


# --- somebody holds the scope, or a loader ---


async def test_a_scope_that_has_ended_holds_nothing() -> None:
    rows = Rows()
    held = LoaderScope()
    async with held:
        await held.get(rows).load_many(range(20))
        await DataLoader(rows).load_many(range(20))
    assert rows.alive == 0
    assert repr(held)
    assert held.statistics().loads == 40


async def test_a_loader_whose_scope_has_ended_holds_nothing() -> None:
    rows = Rows()
    async with DataLoader(rows) as own, LoaderScope() as scope:
        loaders = [own, scope.get(rows), DataLoader(rows)]
        for loader in loaders:
            await loader.load_many(range(20))
    assert rows.alive == 0
    assert [loader.statistics().loads for loader in loaders] == [20] * 3


async def test_a_handle_that_somebody_holds_stays_readable() -> None:
    rows = Rows()
    async with LoaderScope() as scope:
        handle = scope.get(rows).load(1)
        await scope.get(rows).load_many(range(20))
    del scope
    assert rows.alive == 1
    assert type(await handle) is Row


# --- a loader that nobody can reach any more ---


@pytest.mark.parametrize("make", [DataLoader, compat.DataLoader])
async def test_a_scope_does_not_keep_loaders_that_nobody_can_reach(make: Any) -> None:
    rows = Rows()
    async with LoaderScope() as scope:
        for _ in range(20):
            await make(rows).load_many(range(10))
        assert rows.alive <= 10, "of the last one at most"
        assert scope.statistics().loads == 200, "what they did still counts"


async def test_nor_those_whose_loads_nobody_awaited_once_they_are_through() -> None:
    rows = Rows()
    async with LoaderScope():
        for _ in range(5):
            DataLoader(rows).load_many(range(10))
        await wait_all_tasks_blocked()
        assert rows.alive <= 10


async def test_a_loader_is_kept_by_its_pending_loads() -> None:
    rows = Rows()
    async with LoaderScope():
        handle = DataLoader(rows).load(1)
        gc.collect()
        assert type(await handle) is Row


async def test_what_scope_get_gave_stays_with_the_scope() -> None:
    rows = Rows()
    async with LoaderScope() as scope:
        first = await scope.get(rows).load(1)
        gc.collect()
        assert await scope.get(rows).load(1) is first


# --- chains of scopes ---


class Hook:
    def __call__(self, event: object) -> None:
        pass


async def test_a_job_that_was_started_in_the_scope_of_the_job_before() -> None:
    """Each of them opens a scope in the context of an ended one; none is kept."""
    hooks: list[weakref.ref[Hook]] = []
    alive: list[int] = []
    rows = Rows()

    async def job(left: int) -> None:
        hook = Hook()
        hooks.append(weakref.ref(hook))
        async with LoaderScope(hooks=[hook]):
            del hook
            await DataLoader(rows).load(1)
            if left:
                tg.start_soon(job, left - 1)
        if not left:
            await wait_all_tasks_blocked()
            gc.collect()
            alive.append(sum(each() is not None for each in hooks))
            alive.append(scopes() - before)

    before = scopes()
    async with anyio.create_task_group() as tg:
        tg.start_soon(job, 30)
    assert max(alive) <= 2
    assert rows.alive == 0


@pytest.mark.only_on("asyncio")
async def test_a_job_that_a_timer_started() -> None:
    hooks: list[weakref.ref[Hook]] = []
    over = anyio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def job(left: int) -> None:
        hook = Hook()
        hooks.append(weakref.ref(hook))
        async with LoaderScope(hooks=[hook]):
            del hook
            await DataLoader(Rows()).load(1)
            loop = asyncio.get_running_loop()
            if left:
                loop.call_soon(lambda: tasks.append(asyncio.create_task(job(left - 1))))
        if not left:
            over.set()

    await job(30)
    await over.wait()
    await asyncio.gather(*tasks)
    tasks.clear()
    gc.collect()
    assert sum(each() is not None for each in hooks) <= 2
