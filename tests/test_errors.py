"""Section 4 of the contract: who gets which error, and that nobody waits for ever."""

from __future__ import annotations

import gc
import logging
from collections import UserDict
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from anyloader import (
    DataLoader,
    LoadHandle,
    schedules,
)
from support import Recorder, wait_all_tasks_blocked
from support.loads import outcome

pytestmark = pytest.mark.anyio


def odd_fail(key: int) -> Any:
    return LookupError(key) if key % 2 else key


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


@pytest.mark.virtual_time
async def test_a_predicate_that_exits_leaves_no_load_many_waiting(anyio_backend_name: str) -> None:
    if anyio_backend_name == "asyncio":
        pytest.skip("asyncio's loop itself ends by a SystemExit")
    ended: list[Any] = []

    async def wait_for(load: Any) -> None:
        ended.append(await outcome(load))

    async def fetch(keys: list[int]) -> list[Any]:
        return [ValueError(key) for key in keys]

    def leave_the_program(error: Exception) -> bool:
        raise SystemExit(3)

    async with anyio.create_task_group() as tg:
        with pytest.raises(SystemExit):
            async with DataLoader(fetch, cache_errors=leave_the_program) as loader:
                tg.start_soon(wait_for, loader.load_many([1, 2]))
                await anyio.sleep(0.05)
    assert [type(error) for error in ended] == [ValueError]


async def test_stop_iteration_among_the_values_is_the_error_of_its_key() -> None:
    error = StopIteration()
    values = {1: 1, 2: error, 3: 3}
    async with DataLoader[int, Any](Recorder(values.get)) as loader:
        many = loader.load_many([1, 2, 3], return_exceptions=True)
        assert await outcome(many) == [1, error, 3]
        assert await outcome(loader.load(3)) == 3
        assert isinstance(await outcome(loader.load(2)), (StopIteration, RuntimeError))


async def test_keys_of_a_batch_that_failed_are_fetched_again() -> None:
    calls: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        calls.append(keys)
        if len(calls) == 1:
            raise ConnectionError
        return keys

    async with DataLoader(fetch) as loader:
        assert isinstance(await outcome(loader.load(1)), ConnectionError)
        assert await outcome(loader.load(1)) == 1
    assert calls == [[1], [1]]


async def test_a_batch_that_fails_evicts_no_newer_entry() -> None:
    gate = anyio.Event()

    async def fetch(keys: list[int]) -> list[int]:
        if not gate.is_set():
            await gate.wait()
            raise ConnectionError
        return keys

    async with DataLoader(fetch) as loader:
        old = loader.load(1)
        await wait_all_tasks_blocked()
        new = loader.clear(1).load(1)
        gate.set()
        assert isinstance(await outcome(old), ConnectionError)
        assert loader.peek(1) is new
        assert await new == 1


async def test_a_load_that_fails_and_was_not_awaited_makes_no_noise(leftovers: list[str]) -> None:
    async def fetch(keys: list[int]) -> list[int]:
        raise ConnectionError

    async with DataLoader(fetch) as loader:
        loader.load(1)
        await wait_all_tasks_blocked()
        assert loader.statistics().batches == 1
    del loader
    assert leftovers == []  # and again, by the fixture, after all of this was collected
