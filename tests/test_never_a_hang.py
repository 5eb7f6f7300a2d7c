"""Whatever ends a batch function, every waiter is settled (contract 4.4)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from anyloader import (
    DataLoader,
    LoadCancelledError,
    LoaderClosedError,
    schedules,
)
from support import Recorder, wait_all_tasks_blocked
from support.loads import outcome

pytestmark = pytest.mark.anyio


class Fatal(BaseException):
    """As KeyboardInterrupt, but no test runner reacts to it."""


def leaves(exc: BaseException) -> list[BaseException]:
    """Give the errors in an exception group, or the one error that is in none."""
    inner = getattr(exc, "exceptions", None)
    return [exc] if inner is None else [leaf for child in inner for leaf in leaves(child)]


async def test_a_base_exception_settles_everybody_before_it_goes_through() -> None:
    events: list[Any] = []
    error = Fatal("out of here")

    async def fetch(keys: list[int]) -> list[int]:
        await checkpoint()
        raise error

    async def wait_for(load: Any) -> None:
        with anyio.CancelScope(shield=True):
            events.append(await outcome(load))

    loader = DataLoader(fetch)
    async with anyio.create_task_group() as tg:
        with pytest.raises(Fatal) as caught:
            async with loader:
                for load in loader.load(1), loader.load(2), loader.load_many([1, 2]):
                    tg.start_soon(wait_for, load)
                await anyio.sleep_forever()
        assert caught.value is error
        assert loader.peek(1) is None
    assert [type(event) for event in events] == [LoadCancelledError] * 3
    assert [event.__cause__ for event in events] == [error] * 3


async def test_a_base_exception_goes_through_a_foreign_group() -> None:
    events: list[Any] = []
    error = Fatal("out of here")
    cache: dict[Any, Any] = {}

    async def fetch(keys: list[int]) -> list[int]:
        raise error

    async def wait_for(load: Any) -> None:
        with anyio.CancelScope(shield=True):
            events.append(await outcome(load))

    async with anyio.create_task_group() as outside:
        with pytest.raises(BaseException) as caught:
            async with anyio.create_task_group() as tg:
                loader = DataLoader(fetch, task_group=tg, cache_map=cache)
                outside.start_soon(wait_for, loader.load(1))
                await anyio.sleep_forever()
        assert leaves(caught.value) == [error]
    assert [type(event) for event in events] == [LoadCancelledError]
    assert events[0].__cause__ is error
    assert cache == {}


STOPPING: list[Exception] = [StopIteration("value"), StopAsyncIteration("value")]


@pytest.mark.parametrize("error", STOPPING, ids=["StopIteration", "StopAsyncIteration"])
@pytest.mark.parametrize("make", [list, iter, tuple], ids=["list", "iterator", "tuple"])
async def test_stop_iteration_among_the_values_fails_its_key_alone(
    error: Exception, make: Any
) -> None:
    async def fetch(keys: list[int]) -> Any:
        return make([error if key == 2 else key for key in keys])

    async with DataLoader[int, Any](fetch) as loader:
        one, two, three = loader.load(1), loader.load(2), loader.load(3)
        assert (await outcome(one), await outcome(three)) == (1, 3)
        assert two.exception is error
        many = loader.load_many([1, 2, 3], return_exceptions=True)
        assert await outcome(many) == [1, error, 3]
        for load in two, loader.load_many([1, 2, 3]):
            caught = await outcome(load)
            # Python lets no StopIteration out of a coroutine.
            assert error in (caught, caught.__cause__)


@pytest.mark.parametrize("error", STOPPING, ids=["StopIteration", "StopAsyncIteration"])
async def test_a_batch_function_that_raises_stop_iteration_settles_everybody(
    error: Exception,
) -> None:
    def plain(keys: list[int]) -> Any:
        raise error

    async def fetch(keys: list[int]) -> Any:
        raise error

    for fn in plain, fetch:
        async with DataLoader[int, Any](fn) as loader:
            for load in loader.load(1), loader.load_many([1, 2]):
                assert type(await outcome(load)) in (RuntimeError, type(error))
            assert loader.peek(1) is None


async def no_argument() -> list[int]:
    return []


async def two_arguments(keys: list[int], more: object) -> list[int]:
    return []


async def keyword_only(*, keys: list[int]) -> list[int]:
    return []


@pytest.mark.parametrize("fn", [no_argument, two_arguments, keyword_only, dict.fromkeys, Fatal])
async def test_a_bad_signature_settles_everybody(fn: Any) -> None:
    async with DataLoader[int, Any](fn) as loader:
        for load in loader.load(1), loader.load(2), loader.load_many([1, 3]):
            assert isinstance(await outcome(load), TypeError)


async def test_a_get_cache_key_that_raises_in_a_batch_settles_everybody() -> None:
    """Mappings are read by cache key, also with the cache off."""

    def cache_key(key: int) -> int:
        raise ZeroDivisionError

    async def fetch(keys: list[int]) -> dict[int, int]:
        return {}

    async with DataLoader(fetch, get_cache_key=cache_key, cache=False) as loader:
        assert type(await outcome(loader.load(1))) is ZeroDivisionError


@pytest.mark.parametrize("why", ["cancelled", "body raises", "never sent", "waits for limiter"])
async def test_a_dying_scope_settles_waiters_outside_it(why: str) -> None:
    outcomes: list[Any] = []
    cache: dict[Any, Any] = {}
    limiter = anyio.CapacityLimiter(1)
    if why == "waits for limiter":
        limiter.acquire_nowait()
    schedule = schedules.manual() if why == "never sent" else schedules.quiescent()

    async def fetch(keys: list[int]) -> list[int]:
        await anyio.sleep_forever()
        return []

    async def wait_for(load: Any) -> None:
        outcomes.append(await outcome(load))

    loader = DataLoader(fetch, cache_map=cache, limiter=limiter, schedule=schedule)
    async with anyio.create_task_group() as tg:
        with anyio.CancelScope() as scope, suppress(ConnectionError):
            async with loader:
                for load in loader.load(1), loader.load(1), loader.load_many([1, 2]):
                    tg.start_soon(wait_for, load)
                await wait_all_tasks_blocked()
                if why == "body raises":
                    raise ConnectionError
                scope.cancel()
                await checkpoint()
    assert [type(one) for one in outcomes] == [LoadCancelledError] * 3
    expected = ConnectionError if why == "body raises" else anyio.get_cancelled_exc_class()
    assert [type(one.__cause__) for one in outcomes] == [expected] * 3
    assert cache == {}
    async with DataLoader(Recorder[int, int](abs), cache_map=cache) as other:
        assert await outcome(other.load(1)) == 1


@pytest.mark.parametrize("kind", ["running", "never sent", "queued"])
async def test_a_dying_foreign_group_settles_waiters_outside_it(kind: str) -> None:
    outcomes: list[Any] = []
    cache: dict[Any, Any] = {}

    async def fetch(keys: list[int]) -> list[int]:
        await anyio.sleep_forever()
        return []

    async def wait_for(load: Any) -> None:
        outcomes.append(await outcome(load))

    loaders: list[DataLoader[int, int]] = []
    schedule = schedules.window(1000) if kind == "queued" else schedules.quiescent()
    async with anyio.create_task_group() as tg:
        async with anyio.create_task_group() as dying:
            loader = DataLoader(fetch, cache_map=cache, task_group=dying, schedule=schedule)
            loaders.append(loader)
            for load in loader.load(1), loader.load(1), loader.load_many([1, 2]):
                tg.start_soon(wait_for, load)
            if kind != "never sent":  # its task has not made its first step
                await wait_all_tasks_blocked()
            dying.cancel_scope.cancel()
    assert [type(one) for one in outcomes] == [LoadCancelledError] * 3
    assert cache == {}
    if kind != "never sent":
        expected = anyio.get_cancelled_exc_class()
        assert [type(one.__cause__) for one in outcomes] == [expected] * 3
    with pytest.raises(LoaderClosedError):
        loaders[0].load(1)


@pytest.mark.only_on("asyncio")
async def test_a_failing_asyncio_group_settles_waiters_outside_it() -> None:
    """It cancels tasks before their first step, so that no ``finally`` in them runs."""
    new_group: Any = getattr(asyncio, "TaskGroup", None)
    if new_group is None:
        pytest.skip("asyncio.TaskGroup is new in Python 3.11")
    outcomes: list[Any] = []
    cache: dict[Any, Any] = {}

    async def wait_for(load: Any) -> None:
        outcomes.append(await outcome(load))

    async with anyio.create_task_group() as tg:
        with pytest.raises(Exception) as caught:
            async with new_group() as dying:
                loader = DataLoader(Recorder[int, int](abs), cache_map=cache, task_group=dying)
                for load in loader.load(1), loader.load_many([1, 2]):
                    tg.start_soon(wait_for, load)
                raise ConnectionError
        assert [type(exc) for exc in leaves(caught.value)] == [ConnectionError]
    assert [type(one) for one in outcomes] == [LoadCancelledError] * 2
    assert cache == {}


async def raises_cancelled() -> None:
    cancelled = anyio.get_cancelled_exc_class()
    raise cancelled.__new__(cancelled)


async def cancels_its_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await checkpoint()


@pytest.mark.parametrize("end", [raises_cancelled, cancels_its_task])
async def test_a_cancelled_batch_function_hangs_nobody_and_poisons_no_key(
    end: Callable[[], Awaitable[None]], anyio_backend_name: str
) -> None:
    if anyio_backend_name == "trio" and end is cancels_its_task:
        pytest.skip("asyncio's")
    calls: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        calls.append(keys)
        if len(calls) == 1:
            await end()
        return keys

    async with DataLoader(fetch) as loader:
        assert type(await outcome(loader.load(1))) is LoadCancelledError
        assert await outcome(loader.load(1)) == 1
    assert calls == [[1], [1]]


async def test_a_base_exception_of_a_batch_function_hangs_nobody() -> None:
    got: list[Any] = []

    async def fetch(keys: list[int]) -> list[int]:
        raise Fatal

    async def wait() -> None:
        with anyio.CancelScope(shield=True):
            got.append(type(await outcome(loader.load(1))))

    with pytest.raises(Fatal):
        async with DataLoader(fetch) as loader:
            async with anyio.create_task_group() as tg:
                tg.start_soon(wait)
    assert got == [LoadCancelledError]


async def test_a_wrong_signature_of_the_batch_function_hangs_nobody() -> None:
    async def fetch() -> list[int]:
        return []

    fn: Any = fetch
    async with DataLoader[int, int](fn) as loader:
        assert isinstance(await outcome(loader.load(1)), TypeError)
