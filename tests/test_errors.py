"""Section 4 of the contract: who gets which error, and that nobody waits for ever."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import traceback
from collections import UserDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from functools import partial
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
    LoaderNotOpenError,
    LoadHandle,
    schedules,
)
from support import BACKENDS, Recorder, backend_options, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio


class Fatal(BaseException):
    """As KeyboardInterrupt, but no test runner reacts to it."""


async def outcome(load: Awaitable[Any]) -> Any:
    """Give the value of a load, or the error that it raised; a hang is cut short."""
    with anyio.fail_after(5):
        try:
            return await load
        except Exception as exc:
            return exc


def odd_fail(key: int) -> Any:
    return LookupError(key) if key % 2 else key


def leaves(exc: BaseException) -> list[BaseException]:
    """Give the errors in an exception group, or the one error that is in none."""
    inner = getattr(exc, "exceptions", None)
    return [exc] if inner is None else [leaf for child in inner for leaf in leaves(child)]


# --- 1: a value that is an exception ---


async def test_an_exception_as_value_fails_its_key_alone() -> None:
    async with DataLoader(Recorder(odd_fail)) as loader:
        one, two, three = loader.load(1), loader.load(2), loader.load(3)
        assert await two == 2
        for handle in one, three:
            with pytest.raises(LookupError) as caught:
                await handle
            assert caught.value.args == (handle.key,)


async def test_a_base_exception_that_is_no_exception_is_a_value() -> None:
    value = KeyboardInterrupt()
    async with DataLoader(Recorder[int, Any](lambda key: value)) as loader:
        assert await loader.load(1) is value


class Retriable(LookupError):
    pass


def answer_or_errors(key: int) -> Any:
    return {0: "value", 1: LookupError(1), 2: Retriable(2)}[key]


CACHE_ERRORS: dict[str, tuple[Any, list[bool]]] = {
    "True": (True, [True, True, True]),
    "False": (False, [True, False, False]),
    "predicate": (lambda exc: not isinstance(exc, Retriable), [True, True, False]),
    "truthy": (lambda exc: [] if isinstance(exc, Retriable) else [1], [True, True, False]),
}


def in_list(keys: list[int]) -> Any:
    return Recorder(answer_or_errors)(keys)


async def in_mapping(keys: list[int]) -> Any:
    return {key: answer_or_errors(key) for key in keys}


async def in_stream(keys: list[int]) -> Any:
    for key in keys:
        yield key, answer_or_errors(key)


async def in_on_missing(keys: list[int]) -> Any:
    return {}


async def in_on_missing_of_stream(keys: list[int]) -> Any:
    if not keys:
        yield


@pytest.mark.parametrize("policy", CACHE_ERRORS)
@pytest.mark.parametrize(
    "fetch", [in_list, in_mapping, in_stream, in_on_missing, in_on_missing_of_stream]
)
async def test_cache_errors_says_which_errors_are_cached(fetch: Any, policy: str) -> None:
    cache_errors, cached = CACHE_ERRORS[policy]
    loader = DataLoader[int, Any](fetch, cache_errors=cache_errors, on_missing=answer_or_errors)
    async with loader:
        handles = [loader.load(key) for key in range(3)]
        await loader.load_many(range(3), return_exceptions=True)
        assert [loader.peek(key) is handle for key, handle in enumerate(handles)] == cached


async def test_a_cached_error_is_raised_again_and_another_is_loaded_again() -> None:
    fetch = Recorder(answer_or_errors)
    keep = CACHE_ERRORS["predicate"][0]
    async with DataLoader(fetch, cache_errors=keep) as loader:
        first = await loader.load_many(range(3), return_exceptions=True)
        second = await loader.load_many(range(3), return_exceptions=True)
    assert fetch.calls == [[0, 1, 2], [2]]
    assert [new is old for new, old in zip(second, first)] == [True, True, False]


async def test_an_error_not_cached_leaves_a_newer_entry_alone() -> None:
    gate = anyio.Event()

    async def broken_at_first(keys: list[int]) -> list[Any]:
        if gate.is_set():
            return ["new"]
        await gate.wait()
        return [LookupError(1)]

    async with DataLoader(broken_at_first, cache_errors=False) as loader:
        old = loader.load(1)
        await wait_all_tasks_blocked()
        new = loader.clear(1).load(1)
        gate.set()
        assert isinstance(await outcome(old), LookupError)
        assert loader.peek(1) is new
        assert await new == "new"


@pytest.mark.parametrize("fetch", [in_list, in_mapping, in_stream, in_on_missing_of_stream])
async def test_a_key_cleared_and_loaded_again_while_queued_keeps_no_error(fetch: Any) -> None:
    async with DataLoader[int, Any](
        fetch, cache_errors=False, on_missing=answer_or_errors
    ) as loader:
        old = loader.load(1)
        new = loader.clear(1).load(1)
        assert [type(await outcome(load)) for load in (old, new)] == [LookupError] * 2
        assert loader.peek(1) is None


async def test_a_predicate_that_raises_hurts_no_load(caplog: pytest.LogCaptureFixture) -> None:
    def predicate(exc: Exception) -> bool:
        raise ZeroDivisionError

    error = LookupError(1)
    fetch = Recorder[int, Any](lambda key: error if key == 1 else key)
    async with DataLoader(fetch, cache_errors=predicate) as loader:
        one, two = loader.load(1), loader.load(2)
        assert await outcome(one) is error
        assert await outcome(two) == 2
        assert loader.peek(1) is None
        assert loader.peek(2) is two
        assert await loader.load(3) == 3
    assert ["cache_errors" in record.getMessage() for record in caplog.records] == [True]


# --- 2: a batch function that raises ---


async def test_a_raising_batch_function_fails_every_load_with_the_same_object() -> None:
    error = ConnectionError("lost")

    async def fetch(keys: list[int]) -> list[Any]:
        await checkpoint()
        raise error

    async with DataLoader(fetch, cache_errors=True) as loader:
        loads = [loader.load(1), loader.load(2), loader.load(1)]
        many = loader.load_many([2, 3])
        errors = loader.load_many([3, 1], return_exceptions=True)
        assert [await outcome(load) is error for load in (*loads, many)] == [True] * 4
        assert [exc is error for exc in await errors] == [True] * 2
        assert [handle.exception is error for handle in loads] == [True] * 3


async def test_a_raising_batch_function_evicts_exactly_its_entries() -> None:
    """Neither those of another batch, nor one cleared and loaded, or primed, since."""
    broken = anyio.Event()
    calls: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[Any]:
        calls.append(list(keys))
        if len(calls) == 2:
            await broken.wait()
            raise ConnectionError
        return [f"{key} of call {len(calls)}" for key in keys]

    async with DataLoader(fetch, schedule=schedules.manual()) as loader:
        other = loader.load(0)
        loader.dispatch()
        assert await other == "0 of call 1"
        failing = loader.load_many([1, 2, 3, 4], return_exceptions=True)
        loader.dispatch()
        await wait_all_tasks_blocked()
        cleared = loader.clear(2).load(2)
        loader.clear(3).prime(3, "primed")
        loader.prime(4, "forced", force=True)
        broken.set()
        assert [type(error) for error in await failing] == [ConnectionError] * 4
        assert loader.peek(0) is other
        assert loader.peek(1) is None
        assert loader.peek(2) is cleared
        assert await loader.load(3) == "primed"
        assert await loader.load(4) == "forced"
        again = loader.load(1)
        loader.dispatch()
        assert (await cleared, await again) == ("2 of call 3", "1 of call 3")
    assert calls == [[0], [1, 2, 3, 4], [2, 1]]


async def test_a_failed_schedule_fails_its_batch_and_the_key_can_be_loaded_again() -> None:
    error = ConnectionError("lost")
    errors = [error]

    async def schedule(batch: schedules.BatchView) -> None:
        if errors:
            raise errors.pop()

    async with DataLoader(Recorder[int, int](abs), schedule=schedule) as loader:
        assert await outcome(loader.load(-1)) is error
        assert await loader.load(-1) == 1


async def test_a_cache_map_that_raises_on_eviction_leaves_nobody_waiting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Stubborn(UserDict[Any, Any]):
        def pop(self, *args: Any) -> Any:
            raise ZeroDivisionError

    async def fetch(keys: list[int]) -> list[int]:
        raise ConnectionError

    async with DataLoader(fetch, cache_map=Stubborn()) as loader:
        for load in loader.load(1), loader.load_many([2, 1]):
            assert type(await outcome(load)) is ConnectionError
    assert ["cache_map" in record.getMessage() for record in caplog.records] == [True] * 2


# --- 3: tracebacks ---


def functions(exc: BaseException) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(exc.__traceback__)]


async def raise_in_depth(keys: list[int]) -> list[Any]:
    async def query() -> list[Any]:
        raise ConnectionError("lost")

    await checkpoint()
    return await query()


async def return_what_was_raised(keys: list[int]) -> list[Any]:
    try:
        return await raise_in_depth(keys)
    except ConnectionError as exc:
        return [exc] * len(keys)


async def stream_what_was_raised(keys: list[int]) -> AsyncGenerator[tuple[int, Any], None]:
    for key, exc in zip(keys, await return_what_was_raised(keys)):
        yield key, exc


@pytest.mark.parametrize("fetch", [raise_in_depth, return_what_was_raised, stream_what_was_raised])
async def test_raising_an_error_many_times_does_not_grow_its_traceback(fetch: Any) -> None:
    """And it leads from who awaits right into the batch function."""
    depths: list[int] = []
    paths: list[list[str]] = []

    async def await_it(load: Any) -> None:
        with pytest.raises(ConnectionError) as caught:
            await load
        paths.append(functions(caught.value))
        depths.append(len(paths[-1]))

    async with DataLoader[int, Any](fetch) as loader:
        handle, many = loader.load(1), loader.load_many([1, 2])
        async with anyio.create_task_group() as tg:
            for _ in range(5):
                tg.start_soon(await_it, handle)
                tg.start_soon(await_it, many)
        for _ in range(5):
            await await_it(handle)
            await await_it(many)

    assert len(depths) == 20
    assert len(set(depths)) == 1
    for path in paths:
        assert path[0] == "await_it"
        assert path[-2:] == ["raise_in_depth", "query"]
        assert "settle" not in path


async def test_a_batch_that_fails_by_another_loaders_error_shows_both_functions() -> None:
    async def outer(keys: list[int]) -> list[Any]:
        return await inner_loader.load_many(keys)

    async with DataLoader(raise_in_depth) as inner_loader:
        async with DataLoader(outer) as loader:
            depths = []
            for _ in range(3):
                with pytest.raises(ConnectionError) as caught:
                    await loader.load(1)
                path = functions(caught.value)
                depths.append(len(path))
                assert path.index("outer") < path.index("raise_in_depth") < path.index("query")
            assert len(set(depths)) == 1


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
async def test_an_error_object_shared_by_many_batches_does_not_grow(cache: bool) -> None:
    error = LookupError("there is only one")
    depths = []
    async with DataLoader(Recorder[int, Any](lambda key: error), cache=cache) as loader:
        for key in range(8):
            with pytest.raises(LookupError) as caught:
                await loader.load(key)
            assert caught.value is error
            depths.append(len(functions(error)))
    assert len(set(depths)) == 1


async def test_a_primed_error_does_not_grow() -> None:
    error = LookupError("primed")
    depths = []
    async with DataLoader(Recorder[int, Any](abs)) as loader:
        loader.prime(1, error)
        for _ in range(8):
            with pytest.raises(LookupError):
                await loader.load(1)
            depths.append(len(functions(error)))
    assert len(set(depths)) == 1


# --- 4: never a hang ---


class OnlyOnce:
    """A batch function that once does something bad, and after that its work."""

    def __init__(self, bad: Callable[[], Awaitable[object]]) -> None:
        self.bad: Callable[[], Awaitable[object]] | None = bad

    async def __call__(self, keys: list[int]) -> list[int]:
        bad, self.bad = self.bad, None
        if bad is not None:
            await bad()
        return [key * 10 for key in keys]


async def raise_cancelled() -> None:
    raise asyncio.CancelledError("stray")


async def cancel_this_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await checkpoint()


async def cancel_this_task_and_swallow_it() -> None:
    """So that only ``Task.cancelling()`` remembers it."""
    try:
        await cancel_this_task()
    except asyncio.CancelledError:
        await checkpoint()
    raise asyncio.CancelledError("stray")


async def raise_trio_cancelled() -> None:
    import trio

    caught: list[BaseException] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as exc:
            caught.append(exc)
    raise caught[0]


STRAY: dict[str, list[Any]] = {
    "asyncio": [raise_cancelled, cancel_this_task, cancel_this_task_and_swallow_it],
    "trio": [raise_trio_cancelled],
}
STRAY_CANCELLATIONS = pytest.mark.parametrize(
    "number", range(3), ids=["raised", "of its own task", "swallowed once"]
)


def stray(backend: str, number: int) -> Any:
    if number >= len(STRAY[backend]):
        pytest.skip("asyncio's")
    return STRAY[backend][number]


async def check_stray_cancellation(loader: DataLoader[int, int]) -> None:
    """Every waiter is settled with the cause, and the loader works as before."""
    cancelled = anyio.get_cancelled_exc_class()
    outcomes: list[Any] = []

    async def wait_for(load: Any) -> None:
        outcomes.append(await outcome(load))

    handle = loader.load(1)
    async with anyio.create_task_group() as tg:
        for load in handle, loader.load(2), loader.load(1), loader.load_many([2, 3]):
            tg.start_soon(wait_for, load)
    assert [type(error) for error in outcomes] == [LoadCancelledError] * 4
    assert [type(error.__cause__) for error in outcomes] == [cancelled] * 4
    assert handle.status is LoadHandle.Status.CANCELLED
    assert loader.peek(1) is None
    await checkpoint()  # the group that the loader runs in has not been cancelled
    assert await outcome(loader.load_many([1, 2])) == [10, 20]
    await checkpoint()
    assert await outcome(loader.load(3)) == 30


@STRAY_CANCELLATIONS
@pytest.mark.parametrize("limiter", [False, True], ids=["no limiter", "limiter"])
async def test_a_stray_cancellation_settles_everybody(
    number: int, limiter: bool, anyio_backend_name: str
) -> None:
    fetch = OnlyOnce(stray(anyio_backend_name, number))
    async with DataLoader(fetch, limiter=anyio.CapacityLimiter(1) if limiter else None) as loader:
        await check_stray_cancellation(loader)


@STRAY_CANCELLATIONS
async def test_a_stray_cancellation_does_not_cancel_a_foreign_group(
    number: int, anyio_backend_name: str
) -> None:
    fetch = OnlyOnce(stray(anyio_backend_name, number))
    async with anyio.create_task_group() as tg:
        loader = DataLoader(fetch, task_group=tg)
        await check_stray_cancellation(loader)
        assert not tg.cancel_scope.cancel_called


@STRAY_CANCELLATIONS
async def test_a_stray_cancellation_of_a_schedule_settles_everybody(
    number: int, anyio_backend_name: str
) -> None:
    once = OnlyOnce(stray(anyio_backend_name, number))

    async def schedule(batch: schedules.BatchView) -> None:
        await once([])

    fetch = Recorder[int, int](lambda key: key * 10)
    async with DataLoader(fetch, schedule=schedule) as loader:
        await check_stray_cancellation(loader)


@pytest.mark.only_on("asyncio")
async def test_a_cancellation_that_a_batch_function_never_met_hurts_nobody() -> None:
    """It asks for its own cancellation and returns before that can be delivered."""

    async def fetch(keys: list[int]) -> list[int]:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return [key * 10 for key in keys]

    async with DataLoader(fetch) as loader:
        for key in 1, 2, 3:
            assert await outcome(loader.load(key)) == key * 10
            await checkpoint()
            await checkpoint()


@pytest.mark.only_on("asyncio")
async def test_cancelling_the_task_of_a_batch_function_from_outside_settles_everybody() -> None:
    tasks: list[asyncio.Task[Any] | None] = []

    async def note_the_task() -> None:
        tasks.append(asyncio.current_task())
        await anyio.sleep_forever()

    async def cancel_it() -> None:
        await wait_all_tasks_blocked()
        assert tasks[0] is not None
        tasks[0].cancel()

    async with DataLoader(OnlyOnce(note_the_task)) as loader, anyio.create_task_group() as tg:
        tg.start_soon(cancel_it)
        await check_stray_cancellation(loader)


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


# --- 5: errors nobody awaited ---


async def test_errors_nobody_awaited_make_no_noise(
    leftovers: list[str], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    """Neither of one key nor of a batch, neither of a load nor of a load_many."""
    caplog.set_level(logging.DEBUG)

    async def broken(keys: list[int]) -> list[int]:
        raise ConnectionError

    async def result_of_another_kind(keys: list[int]) -> Any:
        return "no list"

    for fetch in Recorder(odd_fail), broken, result_of_another_kind:
        async with DataLoader[int, Any](fetch) as loader:
            loader.load(1)
            loader.load_many([3, 5])
            kept = loader.load(7)
            await wait_all_tasks_blocked()
            assert kept.status is not LoadHandle.Status.PENDING
            del kept, loader
    gc.collect()
    await checkpoint()
    assert leftovers == []
    assert [record for record in caplog.records if "selector" not in record.getMessage()] == []
    assert list(recwarn) == []


async def test_loads_that_nobody_awaits_and_that_never_leave_make_no_noise(
    leftovers: list[str], recwarn: pytest.WarningsRecorder
) -> None:
    async with DataLoader(Recorder(odd_fail), schedule=schedules.manual()) as loader:
        loader.load(1)
        loader.load_many([3, 5])
    gc.collect()
    assert leftovers == []
    assert list(recwarn) == []


# --- 6: keys ---


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
async def test_load_none_raises_and_leaves_no_trace(cache: bool) -> None:
    fetch = Recorder[Any, int](lambda key: key * 10)
    async with DataLoader(fetch, cache=cache, name="users") as loader:
        before = loader.statistics()
        with pytest.raises(TypeError, match=r"users.*None"):
            loader.load(None)
        with pytest.raises(TypeError, match=r"users.*None"):
            loader.load_many([1, None])
        assert loader.statistics() == before
        assert await loader.load(2) == 20
    assert fetch.calls == [[2]]


def first_letter(key: Any) -> Any:
    return key[:1]


CALLS_WITH_A_KEY: dict[str, Callable[[DataLoader[Any, Any], Any], object]] = {
    "load": lambda loader, key: loader.load(key),
    "load_many": lambda loader, key: loader.load_many(["fine", key]),
    "prime": lambda loader, key: loader.prime(key, 1),
    "clear": lambda loader, key: loader.clear(key),
    "clear_many": lambda loader, key: loader.clear_many([key]),
    "peek": lambda loader, key: loader.peek(key),
}


@pytest.mark.parametrize("call", CALLS_WITH_A_KEY)
@pytest.mark.parametrize("get_cache_key", [None, first_letter], ids=["key", "cache key"])
async def test_an_unhashable_key_is_named_with_the_way_out(call: str, get_cache_key: Any) -> None:
    fetch = Recorder[Any, int](len)
    async with DataLoader(fetch, get_cache_key=get_cache_key, name="users") as loader:
        before = loader.statistics()
        with pytest.raises(TypeError, match=r"users.*\['key', 'two'\].*get_cache_key"):
            CALLS_WITH_A_KEY[call](loader, ["key", "two"])
        assert loader.statistics() == before
        assert await loader.load("abc") == 3
    assert fetch.calls == [["abc"]]


@pytest.mark.parametrize("call", CALLS_WITH_A_KEY)
async def test_the_text_about_an_unhashable_key_is_bounded(call: str) -> None:
    async with DataLoader(Recorder[Any, int](len)) as loader:
        with pytest.raises(TypeError) as caught:
            CALLS_WITH_A_KEY[call](loader, ["k" * 1000] * 1000)
    assert len(str(caught.value)) < 500


async def test_an_unhashable_key_is_fine_with_the_cache_off() -> None:
    fetch = Recorder[list[int], int](sum)
    async with DataLoader(fetch, cache=False) as loader:
        one, many = loader.load([1, 2]), loader.load_many([[3], [3]])
        assert (await one, await many) == (3, [3, 3])
        loader.prime([1, 2], 0).clear([1, 2]).clear_many([[3]])
        assert loader.peek([1, 2]) is None
    assert fetch.calls == [[[1, 2], [3], [3]]]


async def test_an_unhashable_key_is_fine_with_a_hashable_cache_key() -> None:
    fetch = Recorder[list[int], int](sum)
    async with DataLoader(fetch, get_cache_key=tuple) as loader:
        assert await loader.load_many([[1, 2], [1, 2], [3]]) == [3, 3, 3]
        assert await loader.load([3]) == 3
    assert fetch.calls == [[[1, 2], [3]]]


async def one_stream(keys: list[Any]) -> AsyncGenerator[tuple[Any, int], None]:
    for key in keys:
        yield key, len(key)


@pytest.mark.parametrize("deduplicate", [True, False], ids=["deduplicate", "stream"])
async def test_where_keys_are_compared_an_unhashable_one_is_named_with_the_cache_off(
    deduplicate: bool,
) -> None:
    fn: Any = Recorder[Any, int](len) if deduplicate else one_stream
    async with DataLoader[Any, int](fn, cache=False, deduplicate=deduplicate) as loader:
        before = loader.statistics()
        for call in "load", "load_many":
            with pytest.raises(TypeError, match=r"\['key', 'two'\].*get_cache_key"):
                CALLS_WITH_A_KEY[call](loader, ["key", "two"])
            after = loader.statistics()
            assert (after.queued, after.running) == (before.queued, before.running)
        assert await loader.load_many(["abc", "abc"]) == [3, 3]


# --- 7: foreign threads and loops ---


CALLS: dict[str, Callable[[DataLoader[int, int]], object]] = {
    "load": lambda loader: loader.load(1),
    "load of a hit": lambda loader: loader.load(0),
    "load_many": lambda loader: loader.load_many([1, 2]),
    "prime": lambda loader: loader.prime(1, 1),
    "prime_many": lambda loader: loader.prime_many({1: 1}),
    "clear": lambda loader: loader.clear(0),
    "clear_many": lambda loader: loader.clear_many([0]),
    "clear_all": lambda loader: loader.clear_all(),
    "peek": lambda loader: loader.peek(0),
    "dispatch": lambda loader: loader.dispatch(),
}


Elsewhere = Callable[..., Awaitable[object]]


async def check_refusal(loader: DataLoader[int, int], elsewhere: Elsewhere, call: str) -> None:
    """The call is refused, and what is cached, queued and counted stays as it was."""
    loader.prime(0, 0)
    queued = loader.load(5)
    before = loader.statistics()
    with pytest.raises(RuntimeError) as caught:
        await elsewhere(CALLS[call], loader)
    assert not isinstance(caught.value, (LoaderNotOpenError, LoaderClosedError))
    message = str(caught.value)
    assert "anyio.from_thread.run(loader.load, key, token=token)" in message
    assert "another event loop" in message
    assert loader.statistics() == before
    assert loader.peek(0) is not None
    assert loader.peek(1) is None
    many = loader.load_many([1, 2])
    loader.dispatch()
    assert (await outcome(queued), await outcome(many)) == (50, [10, 20])


def tens() -> Recorder[int, int]:
    return Recorder(lambda key: key * 10)


MANUAL = schedules.manual()  # so that nothing changes while the other thread is at work


@pytest.mark.parametrize("call", CALLS)
async def test_a_call_from_a_foreign_thread_is_refused(call: str) -> None:
    async with DataLoader(tens(), schedule=MANUAL) as loader:
        await check_refusal(loader, anyio.to_thread.run_sync, call)
    async with anyio.create_task_group() as tg:
        loader = DataLoader(tens(), task_group=tg, schedule=MANUAL)
        await check_refusal(loader, anyio.to_thread.run_sync, call)


def in_a_loop_of_its_own(backend: str, fn: Callable[..., Any], *args: Any) -> Any:
    """To be called in a thread: run a plain function inside an event loop made for it."""

    async def main() -> Any:
        return fn(*args)

    library, options = backend_options(backend)
    return anyio.run(main, backend=library, backend_options=options)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("other", BACKENDS)
async def test_a_call_from_another_event_loop_is_refused(call: str, other: str) -> None:
    def elsewhere(*args: Any) -> Awaitable[object]:
        return anyio.to_thread.run_sync(partial(in_a_loop_of_its_own, other, *args))

    async with DataLoader(tens(), schedule=MANUAL) as loader:
        await check_refusal(loader, elsewhere, call)


@pytest.mark.parametrize("call", ["load", "load_many"])
@pytest.mark.parametrize("other", BACKENDS)
async def test_a_handle_is_not_awaited_in_another_event_loop(other: str, call: str) -> None:
    """To be refused is not to give up the load; once settled, it is read there too."""
    gate = anyio.Event()

    async def wait_for(load: Any) -> Any:
        return await load

    def await_elsewhere(load: Any) -> Any:
        library, options = backend_options(other)
        return anyio.run(wait_for, load, backend=library, backend_options=options)

    async with DataLoader(Recorder[int, int](abs, gate=gate)) as loader:
        load: Any = loader.load(-1) if call == "load" else loader.load_many([-1])
        await wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match="another event loop"):
            await anyio.to_thread.run_sync(await_elsewhere, load)
        gate.set()
        assert await outcome(load) in (1, [1])
        assert await anyio.to_thread.run_sync(await_elsewhere, load) in (1, [1])


async def test_the_way_that_the_message_shows_works() -> None:
    def work() -> tuple[int, threading.Thread]:
        return anyio.from_thread.run(loader.load, 1), threading.current_thread()

    async with DataLoader(tens()) as loader:
        value, thread = await anyio.to_thread.run_sync(work)
    assert value == 10
    assert thread is not threading.current_thread()
