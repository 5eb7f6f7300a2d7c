"""Scopes: one request, one set of loaders (contract 7, and the ambient binding of 1)."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from typing import Any, Generic, TypeVar, cast

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import (
    BatchLoader,
    DataLoader,
    LoadCancelledError,
    LoaderClosedError,
    LoaderNotOpenError,
    LoaderScope,
    LoadHandle,
    batch_loader,
    current_scope,
    schedules,
)
from support import Recorder, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio

T = TypeVar("T")

calls: list[tuple[str, list[int]]] = []
caller: ContextVar[str] = ContextVar("caller", default="nobody")


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


async def double(keys: list[int]) -> list[int]:
    calls.append(("double", keys))
    return [key * 2 for key in keys]


async def triple(keys: list[int]) -> dict[int, int]:
    calls.append(("triple", keys))
    return {key: key * 3 for key in keys}


class Squares(DataLoader[int, int]):
    max_batch_size = 2

    async def batch_load_fn(self, keys: list[int]) -> list[int]:
        calls.append(("squares", keys))
        return [key * key for key in keys]


@batch_loader
async def negate(keys: list[int]) -> list[int]:
    """Give the opposite."""
    calls.append(("negate", keys))
    return [-key for key in keys]


@batch_loader(max_batch_size=2, cache=False, name="halves")
async def halve(keys: list[int]) -> list[float]:
    calls.append(("halve", keys))
    return [key / 2 for key in keys]


SOURCES: list[Any] = [Squares, double, negate]


class Slow:
    """A batch function that runs until it is let go, or cancelled, and records how it ended."""

    def __init__(self) -> None:
        self.go_on = anyio.Event()
        self.log: list[str] = []

    async def __call__(self, keys: list[int]) -> list[int]:
        self.log.append("started")
        try:
            await self.go_on.wait()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await checkpoint()
                self.log.append("cancelled")
            raise
        self.log.append("finished")
        return [key * 2 for key in keys]


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


# --- @batch_loader ---


async def test_a_batch_loader_uses_the_loader_of_the_ambient_scope() -> None:
    async with LoaderScope() as outer:
        assert await negate.load(1) == -1
        async with LoaderScope() as inner:
            assert await negate.load(1) == -1
            assert inner.statistics().loads == 1
        assert await outer.get(negate).load(1) == -1
    assert calls == [("negate", [1]), ("negate", [1])]


async def test_a_batch_loader_states_the_options_of_its_loaders() -> None:
    async with LoaderScope() as scope:
        assert await halve.load_many([1, 1, 3]) == [0.5, 0.5, 1.5]
        assert scope.get(halve).name == "halves"
    assert sorted(calls) == [("halve", [1, 1]), ("halve", [3])]


async def test_a_batch_loader_offers_what_a_loader_does() -> None:
    async with LoaderScope() as scope:
        loader = scope.get(negate)
        assert negate.prime(1, 10) is loader
        assert negate.prime_many({2: 20, 3: 30}) is loader
        handle = negate.peek(1)
        assert handle is not None
        assert await handle == 10
        assert await negate.load_many([1, 2, 3]) == [10, 20, 30]
        assert negate.clear(1) is loader
        assert negate.clear_many([2]) is loader
        assert [negate.peek(key) is None for key in (1, 2, 3)] == [True, True, False]
        assert negate.clear_all() is loader
        assert negate.peek(3) is None
        negate.prime(4, 40).prime(4, 41, force=True)
        many = negate.load_many([4, 5], return_exceptions=True)
        negate.dispatch()
        assert await many == [41, -5]
    assert calls == [("negate", [5])]


async def test_a_batch_loader_raises_and_does_not_force_unless_told_to() -> None:
    @batch_loader
    async def fetch(keys: list[int]) -> list[int | Exception]:
        return [KeyError(key) for key in keys]

    async with LoaderScope():
        with pytest.raises(KeyError):
            await fetch.load_many([1])
        fetch.prime(2, 20)
        fetch.prime(2, 30)
        assert await fetch.load(2) == 20
        fetch.prime_many({2: 30})
        assert await fetch.load(2) == 20


async def test_a_batch_loader_is_still_its_function() -> None:
    assert await negate([1, 2]) == [-1, -2]
    assert vars(negate)["__name__"] == "negate"
    assert negate.__doc__ == "Give the opposite."
    assert "negate" in repr(negate)


USES: list[Callable[[], object]] = [
    lambda: negate.load(1),
    lambda: negate.load_many([1]),
    lambda: negate.prime(1, 1),
    lambda: negate.prime_many({1: 1}),
    lambda: negate.peek(1),
    lambda: negate.clear(1),
    lambda: negate.clear_many([1]),
    lambda: negate.clear_all(),
    lambda: negate.dispatch(),
]


@pytest.mark.parametrize("use", USES)
async def test_a_batch_loader_without_a_scope_is_refused(use: Callable[[], object]) -> None:
    with pytest.raises(LoaderNotOpenError, match="async with LoaderScope"):
        use()


def test_wrong_options_fail_where_they_stand() -> None:
    with pytest.raises(ValueError, match="max_batch_size"):
        batch_loader(max_batch_size=0)(double)
    with pytest.raises(TypeError, match="cache"):
        batch_loader(cache=cast(Any, 1))(double)
    options: dict[str, Any] = {"max_size": 1}
    with pytest.raises(TypeError, match=r"max_size.*max_batch_size"):
        batch_loader(**options)
    for shared in ("task_group", "cache_map"):
        options = {shared: None}
        with pytest.raises(TypeError, match=shared):
            batch_loader(**options)
    with pytest.raises(TypeError, match="callable"):
        batch_loader(cast(Any, 1))
    with pytest.raises(TypeError):
        BatchLoader(cast(Any, None), {})


async def test_streams_and_mappings_can_be_batch_loaders() -> None:
    @batch_loader(on_missing=lambda key: key + 0.5)
    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, float], None]:
        for key in keys[1:]:
            yield key, float(key)

    async with LoaderScope():
        assert await stream.load_many([1, 2, 3]) == [1.5, 2.0, 3.0]
        assert await batch_loader(triple).load(3) == 9


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


# --- Exit rules: as for a loader, over all loaders of the scope ---


@pytest.mark.virtual_time
async def test_leaving_finishes_what_is_awaited_and_cancels_the_rest() -> None:
    awaited, unwanted = Slow(), Slow()
    results: list[int] = []

    async def waiter(handle: LoadHandle[int]) -> None:
        results.append(await handle)

    async def let_go() -> None:
        await anyio.sleep(1)
        results.append(0)
        awaited.go_on.set()

    async with anyio.create_task_group() as tg:
        async with LoaderScope() as scope:
            tg.start_soon(waiter, scope.get(awaited).load(1))
            abandoned = scope.get(unwanted).load(1)
            await wait_all_tasks_blocked()
            assert (awaited.log, unwanted.log) == (["started"], ["started"])
            tg.start_soon(let_go)
        assert awaited.log == ["started", "finished"]
        assert unwanted.log == ["started", "cancelled"]
        with pytest.raises(LoadCancelledError):
            await abandoned
    assert results == [0, 2]


async def test_leaving_sends_at_once_what_is_awaited_and_not_yet_sent() -> None:
    manual = DataLoader(double, schedule=schedules.manual())
    results: list[int] = []

    async def waiter(handle: LoadHandle[int]) -> None:
        results.append(await handle)

    async with anyio.create_task_group() as tg:
        async with LoaderScope():
            tg.start_soon(waiter, manual.load(1))
            await wait_all_tasks_blocked()
            assert not calls
        await wait_all_tasks_blocked()
    assert results == [2]


async def test_leaving_does_not_send_what_nobody_awaits() -> None:
    async with LoaderScope() as scope:
        handle = scope.get(double).load(1)
    assert not calls
    with pytest.raises(LoadCancelledError):
        await handle


async def test_while_a_scope_is_left_only_its_batch_functions_may_load() -> None:
    go_on, refused = anyio.Event(), anyio.Event()
    log: list[str] = []

    async def nested(keys: list[int]) -> list[int]:
        await go_on.wait()
        return await negate.load_many(keys)

    async def waiter() -> None:
        log.append(str(await current_scope().get(nested).load(1)))

    async def somebody(scope: LoaderScope) -> None:
        await wait_all_tasks_blocked()
        assert "closing" in repr(scope)
        for attempt in (lambda: negate.load(2), lambda: scope.get(triple)):
            with pytest.raises(LoaderClosedError):
                attempt()
        log.append("refused")
        refused.set()
        go_on.set()

    async with anyio.create_task_group() as tg:
        async with LoaderScope() as scope:
            tg.start_soon(waiter)
            await wait_all_tasks_blocked()
            tg.start_soon(somebody, scope)
        await wait_all_tasks_blocked()
    assert log == ["refused", "-1"]


async def test_an_exception_of_the_body_comes_out_bare_and_cancels_all_batches() -> None:
    class TeapotError(Exception):
        pass

    slow = Slow()
    errors: list[BaseException] = []

    async def waiter(handle: LoadHandle[int]) -> None:
        try:
            await handle
        except LoadCancelledError as exc:
            errors.append(exc)

    teapot = TeapotError()
    async with anyio.create_task_group() as tg:
        with pytest.raises(TeapotError, check=lambda exc: exc is teapot):
            async with LoaderScope() as scope:
                tg.start_soon(waiter, scope.get(slow).load(1))
                await wait_all_tasks_blocked()
                raise teapot
        assert slow.log == ["started", "cancelled"]
    assert len(errors) == 1


@pytest.mark.virtual_time
async def test_a_timeout_around_a_scope_cancels_its_batches() -> None:
    slow = Slow()
    with anyio.move_on_after(1) as timeout:
        async with LoaderScope() as scope:
            await scope.get(slow).load(1)
    assert timeout.cancelled_caught
    assert slow.log == ["started", "cancelled"]


async def test_a_failing_batch_function_reaches_its_loads_and_not_the_scope() -> None:
    async def fail(keys: list[int]) -> list[int]:
        raise ZeroDivisionError

    async with LoaderScope() as scope:
        handle = scope.get(fail).load(1)
        with pytest.raises(ZeroDivisionError):
            await handle
        assert await scope.get(double).load(1) == 2


# --- task_group= ---


def open_group(kind: str) -> AbstractAsyncContextManager[Any]:
    if kind == "trio":
        return pytest.importorskip("trio").open_nursery()  # type: ignore[no-any-return]
    if kind == "asyncio":
        return asyncio.TaskGroup()  # type: ignore[attr-defined,no-any-return,unused-ignore]  # pyright: ignore
    return anyio.create_task_group()


@pytest.fixture(params=["anyio", "trio", "asyncio"])
def kind(request: pytest.FixtureRequest, anyio_backend: tuple[str, dict[str, Any]]) -> str:
    """Name a kind of task group that there is on this backend."""
    if request.param not in ("anyio", anyio_backend[0]):
        pytest.skip(f"{anyio_backend[0]} has no such group")
    if request.param == "asyncio" and not hasattr(asyncio, "TaskGroup"):
        pytest.skip("this Python has no asyncio.TaskGroup")
    return str(request.param)


async def test_a_scope_can_run_in_a_foreign_group(kind: str) -> None:
    bound = DataLoader(double)
    async with open_group(kind) as group:
        async with LoaderScope(task_group=group) as scope:
            assert current_scope() is scope
            assert await bound.load(1) == 2
            assert await scope.get(Squares).load(3) == 9
            assert await negate.load(3) == -3
        for late in (bound, scope, negate):
            with pytest.raises((LoaderClosedError, LoaderNotOpenError)):
                late.get(double) if isinstance(late, LoaderScope) else late.load(1)
        # The group lives on, and takes another scope.
        async with LoaderScope(task_group=group) as scope:
            assert await scope.get(triple).load(1) == 3


async def test_exit_rules_hold_in_a_foreign_group(kind: str) -> None:
    awaited, unwanted, log = Slow(), Slow(), []

    async def waiter(handle: LoadHandle[int]) -> None:
        log.append(await handle)

    async def let_go() -> None:
        await wait_all_tasks_blocked()
        awaited.go_on.set()

    async with anyio.create_task_group() as tg, open_group(kind) as group:
        async with LoaderScope(task_group=group) as scope:
            tg.start_soon(waiter, scope.get(awaited).load(1))
            scope.get(unwanted).load(1)
            await wait_all_tasks_blocked()
            tg.start_soon(let_go)
        assert awaited.log == ["started", "finished"]
        assert unwanted.log == ["started", "cancelled"]
    assert log == [2]


async def test_an_exception_comes_out_bare_in_a_foreign_group(kind: str) -> None:
    slow = Slow()
    async with open_group(kind) as group:
        with pytest.raises(ZeroDivisionError):
            async with LoaderScope(task_group=group) as scope:
                scope.get(slow).load(1)
                await wait_all_tasks_blocked()
                raise ZeroDivisionError
        assert slow.log == ["started", "cancelled"]


@pytest.mark.virtual_time
async def test_a_scope_does_not_hold_a_foreign_group_open(kind: str) -> None:
    scope = None
    with anyio.fail_after(1):
        async with open_group(kind) as group:
            scope = LoaderScope(task_group=group)
            await scope.__aenter__()
            assert await scope.get(double).load(1) == 2
    with pytest.raises(LoaderClosedError):
        scope.get(double).load(2)
    await scope.__aexit__(None, None, None)


@pytest.mark.parametrize("wrong", [1, "group", anyio.create_task_group, object()])
def test_what_is_no_task_group_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"TaskGroup.*Nursery"):
        LoaderScope(task_group=wrong)


# --- clear_all, statistics, cancel ---


async def test_clear_all_forgets_what_all_loaders_of_the_scope_have_cached() -> None:
    bound = DataLoader(double)
    async with LoaderScope() as scope:
        loads: list[Callable[[int], LoadHandle[Any]]] = [
            bound.load,
            scope.get(Squares).load,
            scope.get(triple).load,
            negate.load,
        ]
        for expected in (4, 4, 8):
            for load in loads:
                await load(1)
            assert len(calls) == expected
            if len(calls) == 4 and scope.statistics().hits:
                scope.clear_all()
                assert scope.statistics().cached == 0


async def test_clear_all_leaves_other_scopes_alone() -> None:
    async with LoaderScope() as outer:
        await negate.load(1)
        async with LoaderScope() as inner:
            await negate.load(1)
            inner.clear_all()
            assert negate.peek(1) is None
            assert outer.get(negate).peek(1) is not None


async def test_clear_all_works_from_outside_of_the_scope() -> None:
    """Whoever holds the scope may clear it; a loader bound by a load is no exception."""
    bound = DataLoader(double)
    filled, cleared = anyio.Event(), anyio.Event()
    scope = LoaderScope()

    async def housekeeping() -> None:
        await filled.wait()
        scope.clear_all()
        cleared.set()

    async with anyio.create_task_group() as tg:
        tg.start_soon(housekeeping)
        async with scope:
            await bound.load(1)
            await negate.load(1)
            filled.set()
            await cleared.wait()
            assert scope.statistics().cached == 0
    scope.clear_all()


async def test_statistics_are_the_sums_over_all_loaders_of_the_scope() -> None:
    bound, slow = DataLoader(double), Slow()
    scope = LoaderScope()
    assert scope.statistics() == DataLoader(double).statistics()
    async with scope:
        await bound.load_many([1, 2])
        await bound.load(1)
        await negate.load_many([1, 2, 3])
        handle = scope.get(slow).load(5)
        await wait_all_tasks_blocked()
        scope.get(slow).load(5)
        scope.get(triple).load(5)
        each: list[DataLoader[int, Any]] = [
            bound,
            scope.get(negate),
            scope.get(slow),
            scope.get(triple),
        ]
        now = scope.statistics()
        for name in ("loads", "hits", "shared", "keys", "batches", "queued", "running", "cached"):
            total = sum(getattr(loader.statistics(), name) for loader in each)
            assert getattr(now, name) == total, name
        assert (now.loads, now.hits, now.shared) == (9, 1, 1)
        assert (now.keys, now.batches) == (6, 3)
        assert (now.queued, now.running, now.cached) == (1, 1, 7)
    assert scope.statistics().loads == 9
    with pytest.raises(LoadCancelledError):
        await handle


async def test_cancel_settles_all_loads_and_refuses_more_and_the_body_goes_on() -> None:
    slow, manual = Slow(), DataLoader(double, schedule=schedules.manual())
    errors: list[str] = []

    async def waiter(handle: LoadHandle[int]) -> None:
        with pytest.raises(LoadCancelledError) as caught:
            await handle
        errors.append(str(caught.value))

    async with anyio.create_task_group() as tg:
        async with LoaderScope() as scope:
            tg.start_soon(waiter, scope.get(slow).load(1))
            tg.start_soon(waiter, manual.load(1))
            settled = scope.get(triple).load(1)
            await settled
            await wait_all_tasks_blocked()
            scope.cancel("the client left")
            await wait_all_tasks_blocked()
            assert slow.log == ["started", "cancelled"]
            assert len(errors) == 2
            assert all("the client left" in error for error in errors)
            attempts: list[Callable[[], object]] = [
                lambda: manual.load(2),
                lambda: negate.load(1),
                lambda: scope.get(slow).load(1),
            ]
            for attempt in attempts:
                with pytest.raises(LoaderClosedError):
                    attempt()
            assert await settled == 3
            scope.cancel("again")
        scope.cancel("after the end")
    assert not [name for name, _ in calls if name == "double"]


async def test_cancel_before_entering_does_nothing() -> None:
    scope = LoaderScope()
    scope.cancel("too early")
    async with scope:
        assert await scope.get(double).load(1) == 2


async def test_repr_shows_the_state() -> None:
    scope = LoaderScope()
    assert repr(scope) == "<LoaderScope: not entered, 0 loaders>"
    async with scope:
        scope.get(double)
        assert repr(scope) == "<LoaderScope: open, 1 loaders>"
    assert "closed" in repr(scope)


# --- 2.7: the context of batch functions ---


async def test_batch_functions_see_the_context_in_which_the_scope_was_entered() -> None:
    seen: list[tuple[str, LoaderScope]] = []

    async def see(keys: list[int]) -> list[int]:
        seen.append((caller.get(), current_scope()))
        caller.set("a batch function")
        return keys

    bound = DataLoader(see, cache=False)
    scope = LoaderScope()
    caller.set("who entered")
    async with scope:

        async def load(name: str) -> None:
            caller.set(name)
            await scope.get(see).load(ord(name))
            await bound.load(1)

        caller.set("the body")
        for names in ("ab", "cd"):
            async with anyio.create_task_group() as tg:
                for name in names:
                    tg.start_soon(load, name)
        assert caller.get() == "the body"
    assert seen == [("who entered", scope)] * 4


async def test_a_batch_function_of_an_outer_scope_sees_the_outer_scope() -> None:
    seen: list[LoaderScope] = []

    async def see(keys: list[int]) -> list[int]:
        seen.append(current_scope())
        return await negate.load_many(keys)

    async with LoaderScope() as outer, LoaderScope() as inner:
        assert await outer.get(see).load(1) == -1
        assert seen == [outer]
        assert inner.statistics().loads == 0


async def test_recorders_of_two_concurrent_scopes_are_kept_apart() -> None:
    """Concurrent requests, same keys: each gets a batch of its own."""
    fetch: Recorder[int, int] = Recorder(lambda key: key)

    async def request() -> None:
        async with LoaderScope() as scope:
            await scope.get(fetch).load_many([1, 2])

    async with anyio.create_task_group() as tg:
        for _ in range(3):
            tg.start_soon(request)
    assert fetch.calls == [[1, 2]] * 3
