"""Scopes: one request, one set of loaders (contract 7, and the ambient binding of 1)."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any, Generic, TypeVar, cast

import anyio
import pytest

from anyloader import (
    DataLoader,
    LoaderClosedError,
    LoaderNotOpenError,
    LoaderScope,
    current_scope,
)
from support import wait_all_tasks_blocked
from support.scopes import SOURCES, Squares, calls, double, negate, triple

pytestmark = pytest.mark.anyio

T = TypeVar("T")


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


# --- Ambient ---


async def test_a_scope_is_ambient_in_its_block_and_nowhere_else() -> None:
    with pytest.raises(LoaderNotOpenError, match="LoaderScope"):
        current_scope()
    async with LoaderScope() as scope:
        assert current_scope() is scope
    with pytest.raises(LoaderNotOpenError, match="LoaderScope"):
        current_scope()


async def test_a_scope_is_ambient_in_tasks_started_in_it_and_in_its_batch_functions() -> None:
    seen: list[LoaderScope] = []

    async def see(keys: list[int]) -> list[int]:
        seen.append(current_scope())
        return keys

    async def task() -> None:
        seen.append(current_scope())
        await scope.get(see).load(1)

    async with anyio.create_task_group() as outer, LoaderScope() as scope:
        outer.start_soon(task)
        async with anyio.create_task_group() as inner:
            inner.start_soon(task)
        await wait_all_tasks_blocked()
    assert seen == [scope] * 3


async def test_tasks_not_started_in_a_scope_do_not_see_it() -> None:
    entered = anyio.Event()

    async def task() -> None:
        await entered.wait()
        with pytest.raises(LoaderNotOpenError):
            current_scope()

    async with anyio.create_task_group() as tg:
        tg.start_soon(task)
        async with LoaderScope():
            entered.set()
            await wait_all_tasks_blocked()


async def test_the_ambient_scope_is_reset_when_the_body_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        async with LoaderScope():
            raise ZeroDivisionError
    with pytest.raises(LoaderNotOpenError):
        current_scope()


# --- Nesting ---


@pytest.mark.parametrize("source", SOURCES)
async def test_nested_scopes_have_loaders_of_their_own(source: Any) -> None:
    async with LoaderScope() as outer:
        await outer.get(source).load(1)
        async with LoaderScope() as inner:
            assert current_scope() is inner
            assert inner.get(source) is not outer.get(source)
            await inner.get(source).load(1)
        assert current_scope() is outer
        await outer.get(source).load(1)
    assert [keys for _, keys in calls] == [[1], [1]]


async def test_loaders_of_an_outer_scope_serve_an_inner_one() -> None:
    bound = DataLoader(double)
    async with LoaderScope() as outer:
        await bound.load(1)
        async with LoaderScope() as inner:
            assert await bound.load(2) == 4
            assert await outer.get(triple).load(2) == 6
            assert inner.statistics().loads == 0
        assert await bound.load(3) == 6


async def test_loaders_of_an_inner_scope_do_not_serve_the_outer_one() -> None:
    bound = DataLoader(double)
    async with LoaderScope():
        async with LoaderScope():
            await bound.load(1)
        with pytest.raises(LoaderClosedError):
            bound.load(1)


async def test_a_loader_of_its_own_block_does_not_use_the_ambient_scope() -> None:
    async with LoaderScope() as scope:
        async with DataLoader(double) as loader:
            await loader.load(1)
        with pytest.raises(LoaderClosedError):
            loader.load(2)
        assert scope.statistics().loads == 0


async def test_a_loader_in_a_group_does_not_use_the_ambient_scope() -> None:
    async with anyio.create_task_group() as tg:
        async with LoaderScope() as scope:
            loader = DataLoader(double, task_group=tg)
            assert await loader.load(1) == 2
            assert scope.statistics().loads == 0
        assert await loader.load(2) == 4


# --- get ---


@pytest.mark.parametrize("source", SOURCES)
async def test_get_gives_one_loader_for_each_source(source: Any) -> None:
    async with LoaderScope() as scope:
        loader: DataLoader[int, int] = scope.get(source)
        assert scope.get(source) is loader
        assert isinstance(loader, source if isinstance(source, type) else DataLoader)
        assert await loader.load_many([1, 2]) == await scope.get(source).load_many([1, 2])
        assert len(calls) == 1
        assert len({id(scope.get(source)) for source in SOURCES}) == len(SOURCES)


async def test_a_bound_method_is_one_source_however_often_it_is_looked_up() -> None:
    class Database:
        async def fetch(self, keys: list[int]) -> list[int]:
            return keys

    database, other = Database(), Database()
    async with LoaderScope() as scope:
        assert scope.get(database.fetch) is scope.get(database.fetch)
        assert scope.get(database.fetch) is not scope.get(other.fetch)


async def test_get_makes_the_loader_at_first_use() -> None:
    made: list[int] = []

    class Counted(Squares):
        def __init__(self) -> None:
            made.append(1)
            super().__init__()

    async with LoaderScope() as scope:
        assert not made
        scope.get(Counted)
        scope.get(Counted)
        assert len(made) == 1


async def test_subclasses_keep_their_options() -> None:
    async with LoaderScope() as scope:
        assert await scope.get(Squares).load_many([1, 2, 3]) == [1, 4, 9]
    assert sorted(calls) == [("squares", [1, 2]), ("squares", [3])]


async def test_loads_of_several_tasks_share_the_batches_of_the_scope() -> None:
    async def task(key: int) -> None:
        assert await current_scope().get(double).load(key) == 2 * key
        assert await negate.load(key) == -key

    async with LoaderScope(), anyio.create_task_group() as tg:
        for key in range(5):
            tg.start_soon(task, key)
    assert [(name, sorted(keys)) for name, keys in calls] == [
        ("double", [0, 1, 2, 3, 4]),
        ("negate", [0, 1, 2, 3, 4]),
    ]


@pytest.mark.parametrize("source", [None, 1, "users", int, list, DataLoader(double), [double]])
async def test_get_refuses_what_is_no_loader_and_says_what_it_takes(source: Any) -> None:
    async with LoaderScope() as scope:
        with pytest.raises(TypeError, match="DataLoader class, a batch function or a @batch_load"):
            scope.get(source)
        assert await scope.get(double).load(1) == 2


async def test_get_of_a_class_that_cannot_be_made_without_arguments_leaves_no_trace() -> None:
    class Named(Squares):
        def __init__(self, region: str) -> None:
            super().__init__(name=region)

    async with LoaderScope() as scope:
        for refused in (Named, DataLoader):
            with pytest.raises(TypeError):
                scope.get(refused)
        assert scope.statistics().loads == 0
        assert "0 loaders" in repr(scope)


async def test_a_generic_class_can_be_given_with_its_arguments() -> None:
    class Table(DataLoader[int, T], Generic[T]):
        async def batch_load_fn(self, keys: list[int]) -> list[T]:
            return [cast(T, key) for key in keys]

    async with LoaderScope() as scope:
        loader = scope.get(Table[int])
        assert isinstance(loader, Table)
        assert await loader.load(1) == 1
        with pytest.raises(TypeError):
            scope.get(DataLoader[int, int])


async def test_a_partial_of_a_generic_class_with_its_arguments_is_one_of_the_class() -> None:
    async with LoaderScope() as scope:
        source: Any = partial(DataLoader[int, int], double)
        loader = scope.get(source)
        assert await loader.load(1) == 2
        assert scope.get(cast(Any, partial(DataLoader, double))) is loader


async def test_get_before_the_scope_is_entered_is_refused() -> None:
    scope = LoaderScope()
    with pytest.raises(LoaderNotOpenError, match="async with"):
        scope.get(double)
    async with scope:
        assert await scope.get(double).load(1) == 2


@pytest.mark.parametrize("source", SOURCES)
async def test_get_after_the_end_is_refused(source: Any) -> None:
    async with LoaderScope() as scope:
        scope.get(source)
    for late in (*SOURCES, triple):
        with pytest.raises(LoaderClosedError):
            scope.get(late)


async def test_entering_twice_is_refused_and_leaves_the_scope_as_it_is() -> None:
    async with LoaderScope() as scope:
        with pytest.raises(RuntimeError, match="entered once"):
            await scope.__aenter__()
        assert current_scope() is scope
        assert await scope.get(double).load(1) == 2
    with pytest.raises(RuntimeError, match="entered once"):
        await scope.__aenter__()
    with pytest.raises(LoaderNotOpenError):
        current_scope()


async def test_get_from_another_thread_is_refused() -> None:
    errors: list[Exception] = []

    def elsewhere() -> None:
        for act in (lambda: scope.get(double), lambda: scope.cancel("from afar")):
            try:
                act()
            except RuntimeError as exc:
                errors.append(exc)

    async with LoaderScope() as scope:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert len(errors) == 2
        assert all("anyio.from_thread.run" in str(error) for error in errors)
        assert await scope.get(double).load(1) == 2
