"""``scope.dispatch()`` and ``scope.loaders()`` (contract 7)."""

from __future__ import annotations

from typing import Any

import pytest

from anyloader import DataLoader, LoaderNotOpenError, LoaderScope, schedules
from support import Recorder, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio


async def test_dispatch_sends_what_all_loaders_of_the_scope_have_queued() -> None:
    fetches = [Recorder[int, int](int) for _ in range(3)]
    async with LoaderScope() as scope:
        loaders = [DataLoader(fetch, schedule=schedules.manual()) for fetch in fetches]
        handles = [loader.load(key) for loader in loaders[:2] for key in (1, 2)]
        await wait_all_tasks_blocked()
        assert [fetch.calls for fetch in fetches] == [[], [], []]
        scope.dispatch()
        assert [await handle for handle in handles] == [1, 2, 1, 2]
    assert [fetch.calls for fetch in fetches] == [[[1, 2]], [[1, 2]], []]


async def test_with_nothing_queued_it_does_nothing() -> None:
    fetch = Recorder[int, int](int)
    async with LoaderScope() as scope:
        scope.dispatch()
        assert await scope.get(fetch).load(1) == 1
        scope.dispatch()
        await wait_all_tasks_blocked()
    assert fetch.calls == [[1]]


async def test_it_leaves_other_scopes_alone() -> None:
    fetch = Recorder[int, int](int)
    async with LoaderScope() as outer:
        handle = DataLoader(fetch, schedule=schedules.manual()).load(1)
        async with LoaderScope() as inner:
            inner.dispatch()
            await wait_all_tasks_blocked()
            assert fetch.calls == []
        outer.dispatch()
        assert await handle == 1


async def test_loaders_gives_those_of_the_scope() -> None:
    fetch = Recorder[int, int](int)
    async with LoaderScope() as scope:
        assert [*scope.loaders()] == []
        first = scope.get(fetch)
        second = DataLoader(fetch)
        await second.load(1)
        async with LoaderScope() as inner:
            assert [*inner.loaders()] == []
        found = [*scope.loaders()]
        assert len(found) == 2
        assert any(each is first for each in found)
        assert any(each is second for each in found)


async def test_a_scope_that_was_not_entered() -> None:
    scope = LoaderScope()
    assert [*scope.loaders()] == []
    try:
        scope.dispatch()
    except LoaderNotOpenError:
        pass


# --- a loader is in its scope once ---


@pytest.mark.parametrize("nested", [False, True])
async def test_a_loader_that_primes_in_its_constructor_is_attached_once(nested: bool) -> None:
    class Users(DataLoader[int, Any]):
        def __init__(self) -> None:
            super().__init__()
            self.prime(0, "root")

        async def batch_load_fn(self, keys: list[int]) -> list[Any]:
            return keys

    events: list[Any] = []
    async with LoaderScope(hooks=[events.append]) as scope:
        if nested:
            async with LoaderScope() as inner:
                users = scope.get(Users)
                assert [*inner.loaders()] == []
        users = scope.get(Users)
        assert [await users.load(0), await users.load(1)] == ["root", 1]
        statistics = scope.statistics()
        assert (statistics.loads, statistics.batches, statistics.cached) == (2, 1, 2)
        assert len([*scope.loaders()]) == 1
    assert len(events) == len({*map(repr, events)}) == 6
