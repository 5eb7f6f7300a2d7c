"""Of a running batch all loads were given up, or some of them (contract 5.2)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import (
    DataLoader,
)
from support import Recorder, run_seeds, wait_all_tasks_blocked
from support.abandonment import CANCELLED, MANUAL, Endless, Waiters, give_up
from support.loads import cancel_once_blocked, outcome

pytestmark = pytest.mark.anyio

# --- when all loads of a running batch are abandoned ---


async def _set_when_all_wait(event: anyio.Event) -> None:
    await wait_all_tasks_blocked()
    event.set()


async def test_the_function_is_cancelled_and_joined() -> None:
    function = Endless()
    function.cleaned = anyio.Event()
    async with anyio.create_task_group() as tg:
        async with DataLoader(function) as loader:
            loads = [loader.load(1), loader.load(2)]
            await wait_all_tasks_blocked()
            await give_up(loads[0])
            await wait_all_tasks_blocked()
            assert function.cancelled == []
            await give_up(loads[1])
            await wait_all_tasks_blocked()
            assert (function.cancelled, function.ended) == ([[1, 2]], [])
            tg.start_soon(_set_when_all_wait, function.cleaned)
        assert function.ended == [[1, 2]]


async def test_a_foreign_group_joins_the_function_and_goes_on() -> None:
    function = Endless()
    async with anyio.create_task_group() as tg:
        loader = DataLoader(function, task_group=tg)
        handle = loader.load(1)
        await wait_all_tasks_blocked()
        function.cleaned = anyio.Event()
        await give_up(handle)
        await wait_all_tasks_blocked()
        assert (function.cancelled, function.ended) == ([[1]], [])
        assert not tg.cancel_scope.cancel_called
        function.cleaned.set()
    assert function.ended == [[1]]


async def test_the_next_load_starts_afresh_while_the_old_function_cleans_up() -> None:
    gate = anyio.Event()
    events: list[str] = []

    async def fetch(keys: list[int]) -> list[int]:
        events.append(f"start {keys}")
        if len(events) > 1:
            return keys
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await gate.wait()
            events.append(f"end {keys}")
        return keys

    async with DataLoader(fetch) as loader:
        old = loader.load_many([1, 2])
        await wait_all_tasks_blocked()
        await give_up(old)
        assert loader.peek(1) is loader.peek(2) is None
        assert await loader.load(1) == 1
        assert events == ["start [1, 2]", "start [1]"]
        gate.set()
        await wait_all_tasks_blocked()
        assert events[2:] == ["end [1, 2]"]
        assert await loader.load(1) == 1
        assert len(events) == 3


async def test_only_the_entries_of_the_abandoned_batch_are_evicted() -> None:
    recorder = Recorder[int, int](abs, gate=anyio.Event())
    async with DataLoader(recorder) as loader:
        loader.prime(3, 3)
        old = loader.load_many([1, 2])
        await wait_all_tasks_blocked()
        newer = loader.clear(1).load(1)
        loader.prime(2, -2, force=True)
        await give_up(old)
        assert [loader.peek(key) is None for key in (1, 2, 3)] == [False] * 3
        assert loader.peek(1) is newer
        assert recorder.gate
        recorder.gate.set()
        assert await loader.load_many([1, 2, 3]) == [1, -2, 3]
    assert recorder.calls == [[1, 2], [1]]


async def test_an_abandoned_load_of_a_batch_that_goes_on_is_served_and_cached() -> None:
    recorder = Recorder[int, int](abs, gate=anyio.Event())
    async with DataLoader(recorder) as loader:
        one, two = loader.load(1), loader.load(2)
        await wait_all_tasks_blocked()
        await give_up(one)
        assert recorder.gate
        recorder.gate.set()
        assert await two == 2
        assert await one == await loader.load(1) == 1
    assert recorder.calls == [[1, 2]]


async def test_what_a_cancelled_function_returns_is_dropped() -> None:
    calls: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[str]:
        calls.append(keys)
        if len(calls) == 1:
            await anyio.sleep_forever()
        return ["fresh"]

    async def stubborn(keys: list[int]) -> list[str]:
        try:
            return await fetch(keys)
        except anyio.get_cancelled_exc_class():
            return ["late"]  # not how one treats a cancellation

    async with DataLoader(stubborn) as loader:
        old = loader.load(1)
        await wait_all_tasks_blocked()
        await give_up(old)
        fresh = loader.load(1)
        await wait_all_tasks_blocked()
        assert (old.status, await fresh, await loader.load(1)) == (CANCELLED, "fresh", "fresh")


async def test_a_batch_abandoned_while_it_waits_for_its_limiter_never_runs() -> None:
    recorder = Recorder[int, int](abs)
    limiter = anyio.CapacityLimiter(1)
    await limiter.acquire()
    async with DataLoader(recorder, limiter=limiter) as loader:
        handle, many = loader.load(1), loader.load_many([1, 2])
        await wait_all_tasks_blocked()
        await give_up(handle, many)
        limiter.release()
        await wait_all_tasks_blocked()
        assert loader.peek(1) is loader.peek(2) is None
        assert (recorder.calls, limiter.borrowed_tokens) == ([], 0)
        assert await loader.load(1) == 1


async def test_priming_the_rest_away_does_not_make_abandoned_loads_wanted() -> None:
    recorder = Recorder[int, int](abs)
    limiter = anyio.CapacityLimiter(1)
    await limiter.acquire()
    async with DataLoader(recorder, limiter=limiter) as loader:
        primed, abandoned = loader.load(1), loader.load(2)
        await wait_all_tasks_blocked()
        loader.prime(1, -1, force=True)
        await give_up(abandoned)
        limiter.release()
        await wait_all_tasks_blocked()
        assert await primed == -1
        assert abandoned.status is CANCELLED
    assert recorder.calls == []


async def test_giving_up_a_load_many_leaves_a_batch_that_has_none_of_its_keys_alone() -> None:
    recorder = Recorder[int, int](abs, gate=anyio.Event())
    async with DataLoader(recorder, schedule=MANUAL, max_batch_size=2) as loader:
        outcomes: list[object] = []
        async with anyio.create_task_group() as tg:
            waiter = Waiters(tg, outcomes)
            waiter(loader.load(9))
            many = loader.load_many([1, 2])
            loader.prime(1, -1, force=True)
            scope = waiter(many)
            await wait_all_tasks_blocked()
            scope.cancel()
            await wait_all_tasks_blocked()
            assert recorder.gate
            recorder.gate.set()
        assert outcomes == [9]


@pytest.mark.parametrize("when", ["sealed", "started"])
def test_a_waiter_cancelled_in_the_step_in_which_its_batch_moves_on_counts_once(
    shuffled_backend: str, when: str
) -> None:
    async def main() -> object:
        recorder = Recorder[int, int](abs, gate=anyio.Event())
        limiter = anyio.CapacityLimiter(1)
        await limiter.acquire()
        outcomes: list[object] = []
        async with DataLoader(recorder, schedule=MANUAL, limiter=limiter) as loader:
            async with anyio.create_task_group() as tg:
                waiter = Waiters(tg, outcomes)
                first = waiter(loader.load(1))
                waiter(loader.load(1))
                earlier = waiter(loader.load(2))
                if when == "started":
                    loader.dispatch()
                await wait_all_tasks_blocked()
                earlier.cancel()
                await wait_all_tasks_blocked()
                first.cancel()
                loader.dispatch()
                limiter.release()
                await wait_all_tasks_blocked()
                assert recorder.gate
                recorder.gate.set()
        return outcomes

    assert run_seeds(shuffled_backend, range(20), main) == [1]


# --- cascades ---


@pytest.mark.parametrize("others", [False, True])
async def test_abandonment_cascades_through_batch_functions_that_load(others: bool) -> None:
    function = Endless()

    async def fetch(keys: list[int]) -> list[int]:
        async with anyio.create_task_group() as tg:
            for key in keys:
                tg.start_soon(inner.load, -key)
        return keys

    async with DataLoader(function, schedule=MANUAL) as inner, DataLoader(fetch) as outer:
        if others:
            inner.load(-1)
        handle = outer.load_many([1, 2])
        await wait_all_tasks_blocked()
        inner.dispatch()
        await wait_all_tasks_blocked()
        assert len(function.calls) == 1
        await give_up(handle)
        await wait_all_tasks_blocked()
        assert function.cancelled == ([] if others else function.calls)
        assert outer.statistics().running == outer.statistics().cached == 0
        assert inner.statistics().running == others


async def test_a_load_that_a_cancelled_function_never_awaited_goes_on() -> None:
    recorder = Recorder[int, int](abs, gate=anyio.Event())

    async def fetch(keys: list[int]) -> list[int]:
        inner.load_many(keys)
        await anyio.sleep_forever()
        return keys

    async with DataLoader(recorder) as inner, DataLoader(fetch) as outer:
        handle = outer.load(1)
        await wait_all_tasks_blocked()
        await give_up(handle)
        await wait_all_tasks_blocked()
        assert recorder.gate
        recorder.gate.set()
        await wait_all_tasks_blocked()
        assert await inner.load(1) == 1
    assert recorder.calls == [[1]]


# --- with other options ---


async def test_abandoned_keys_count_towards_the_size_until_the_seal() -> None:
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, schedule=MANUAL, max_batch_size=2) as loader:
        await give_up(loader.load(1))
        assert await loader.load(2) == 2
    assert recorder.calls == [[2]]


@pytest.mark.parametrize("deduplicate", [False, True])
@pytest.mark.parametrize("given_up", [0, 1])
async def test_duplicates_without_a_cache_are_given_up_one_by_one(
    deduplicate: bool, given_up: int
) -> None:
    recorder = Recorder[int, int](abs)
    async with DataLoader(
        recorder, schedule=MANUAL, cache=False, deduplicate=deduplicate
    ) as loader:
        loads = [loader.load(1), loader.load(1)]
        both = [loader.load(2), loader.load_many([2])]
        await give_up(loads.pop(given_up), *both)
        loader.dispatch()
        assert await loads[0] == 1
        await wait_all_tasks_blocked()
    assert recorder.calls == [[1]]


async def test_with_deduplication_all_loads_of_a_key_must_be_abandoned() -> None:
    function = Endless()
    async with DataLoader(function, cache=False, deduplicate=True) as loader:
        loads = [loader.load(1), loader.load(1), loader.load_many([1])]
        await wait_all_tasks_blocked()
        for load in loads:
            assert function.cancelled == []
            await give_up(load)
            await wait_all_tasks_blocked()
        assert function.cancelled == [[1]]


async def test_an_abandoned_stream_is_closed_and_joined() -> None:
    events: list[str] = []
    cleaned = anyio.Event()

    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, int], None]:
        try:
            await anyio.sleep_forever()
            yield 1, 1
        finally:
            events.append("cancelled")
            with anyio.CancelScope(shield=True):
                await cleaned.wait()
            events.append("closed")

    async with anyio.create_task_group() as tg:
        async with DataLoader(stream) as loader:
            loads = [loader.load(1), loader.load(1), loader.load_many([1, 2])]
            await wait_all_tasks_blocked()
            for load in loads:
                assert events == []
                await give_up(load)
                await wait_all_tasks_blocked()
            assert events == ["cancelled"]
            assert loader.statistics().cached == 0
            tg.start_soon(_set_when_all_wait, cleaned)
        assert events == ["cancelled", "closed"]


async def test_abandoned_keys_leave_a_stream_too() -> None:
    calls: list[list[int]] = []

    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, int], None]:
        calls.append(keys)
        for key in keys:
            yield key, key

    async with DataLoader(stream, schedule=MANUAL) as loader:
        abandoned, wanted = loader.load(1), loader.load(2)
        await give_up(abandoned)
        loader.dispatch()
        assert await wanted == 2
    assert calls == [[2]]


async def test_a_load_many_of_a_key_cleared_and_loaded_again_does_not_keep_a_stream() -> None:
    events: list[str] = []

    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, int], None]:
        yield 1, 1
        try:
            await anyio.sleep_forever()
        finally:
            events.append("cancelled")

    async with DataLoader(stream) as loader:
        before = loader.load_many([1])
        loader.clear(1)
        after, rest = loader.load_many([1]), loader.load(2)
        assert await before == await after == [1]
        await give_up(rest)
        await wait_all_tasks_blocked()
        assert events == ["cancelled"]


# --- any sequence of events ---


async def _any_events(seed: int) -> None:
    """Compare with the rule itself: a key is sent if some load of it is wanted at the seal, and the
    function runs until none of the loads of what was sent is wanted.
    """
    random = Random(seed)
    function = Endless()
    async with DataLoader(function, schedule=MANUAL) as loader, anyio.create_task_group() as tg:
        waiter = Waiters(tg)
        loads: list[tuple[Any, set[int]]] = []
        awaits: dict[int, list[anyio.CancelScope]] = {}
        lost: set[int] = set()

        def wanted(load: int) -> bool:
            return load not in lost and (load not in awaits or bool(awaits[load]))

        async def one_event(new_loads: bool) -> None:
            kind = random.choice("lm" * new_loads + "aaccc")
            if kind == "l":
                key = random.randrange(4)
                loads.append((loader.load(key), {key}))
            elif kind == "m":
                keys = set(random.sample(range(4), random.randint(1, 3)))
                loads.append((loader.load_many(keys), keys))
            elif loads:
                number = random.randrange(len(loads))
                if kind == "a" and number not in lost:
                    awaits.setdefault(number, []).append(waiter(loads[number][0]))
                elif awaits.get(number):
                    awaits[number].pop(random.randrange(len(awaits[number]))).cancel()
                await wait_all_tasks_blocked()

        for _ in range(random.randrange(20)):
            await one_event(True)
        expected = {key for number, (_, keys) in enumerate(loads) if wanted(number) for key in keys}
        lost.update(number for number, (_, keys) in enumerate(loads) if keys - expected)
        loader.dispatch()
        await wait_all_tasks_blocked()
        assert [set(keys) for keys in function.calls] == ([expected] if expected else [])
        while function.calls and not function.cancelled and random.random() > 0.02:
            await one_event(False)
            some = any(wanted(number) for number in range(len(loads)))
            assert bool(function.cancelled) is not some
        tg.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(30))
async def test_any_events(seed: int) -> None:
    await _any_events(seed)


@pytest.mark.parametrize("running", [True, False], ids=["while it runs", "after it ran"])
async def test_a_key_that_was_cancelled_can_be_loaded_later(running: bool) -> None:
    gate = anyio.Event()
    fetch = Recorder[int, int](abs, gate=gate)
    async with DataLoader(fetch) as loader:
        async with anyio.create_task_group() as tg:
            tg.start_soon(loader.load, -1)
            await wait_all_tasks_blocked()
            if not running:
                gate.set()
                await wait_all_tasks_blocked()
            tg.cancel_scope.cancel()
        gate.set()
        assert await outcome(loader.load(-1)) == 1


async def test_a_query_is_cancelled_once_its_last_waiter_is_gone() -> None:
    events: list[str] = []
    scope = anyio.CancelScope()

    async def fetch(keys: list[int]) -> list[int]:
        events.append("query")
        try:
            await anyio.sleep_forever()
        finally:
            events.append("cancelled")
        return keys

    async def wait() -> None:
        with scope:
            await loader.load(1)

    async with DataLoader(fetch) as loader:
        async with anyio.create_task_group() as tg:
            tg.start_soon(wait)
            await wait_all_tasks_blocked()
            assert events == ["query"]
            await cancel_once_blocked(scope)
            assert events == ["query", "cancelled"]


async def test_a_batch_has_cleaned_up_before_the_session_around_it_is_closed() -> None:
    events: list[str] = []

    async def fetch(keys: list[int]) -> list[int]:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(5):
                    await checkpoint()
                events.append("cleaned up")
        return keys

    @contextmanager
    def session() -> Iterator[None]:
        try:
            yield
        finally:
            events.append("session closed")

    with pytest.raises(ConnectionError):
        with session():
            async with DataLoader(fetch) as loader:
                loader.load(1)
                await wait_all_tasks_blocked()
                raise ConnectionError
    assert events == ["cleaned up", "session closed"]
