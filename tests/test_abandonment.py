"""Contract 5.2: what happens to loads of which every await was cancelled."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable
from random import Random
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import DataLoader, LoadCancelledError, LoadHandle, schedules
from support import Recorder, run_seeds, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio

MANUAL = schedules.manual()
PENDING, CANCELLED = LoadHandle.Status.PENDING, LoadHandle.Status.CANCELLED


async def give_up(*loads: Awaitable[object]) -> None:
    """Await these loads and be cancelled."""
    for load in loads:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await load
        assert scope.cancelled_caught


class Endless:
    """A batch function that runs until it is cancelled, and then until ``cleaned`` is set."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.cancelled: list[list[int]] = []
        self.ended: list[list[int]] = []
        self.cleaned = anyio.Event()
        self.cleaned.set()

    async def __call__(self, keys: list[int]) -> list[int]:
        self.calls.append(keys)
        try:
            await anyio.sleep_forever()
        except BaseException:
            self.cancelled.append(keys)
            with anyio.CancelScope(shield=True):
                await self.cleaned.wait()
            raise
        finally:
            self.ended.append(keys)
        return keys


class Waiters:
    """Tasks that each await one load, and can be cancelled one by one."""

    def __init__(self, tg: anyio.abc.TaskGroup, outcomes: list[object] | None = None) -> None:
        self._tg = tg
        self.outcomes: list[object] = [] if outcomes is None else outcomes

    def __call__(self, load: Awaitable[object]) -> anyio.CancelScope:
        scope = anyio.CancelScope()
        self._tg.start_soon(self._wait, load, scope)
        return scope

    async def _wait(self, load: Awaitable[object], scope: anyio.CancelScope) -> None:
        with scope:
            try:
                self.outcomes.append(await load)
            except LoadCancelledError as exc:
                self.outcomes.append(exc)


# --- a load is abandoned when it was awaited and every await of it was cancelled ---


@pytest.mark.parametrize("how", ["await", "wait()"])
async def test_abandoned_keys_leave_the_batch_when_it_is_sealed(how: str) -> None:
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, schedule=MANUAL) as loader:
        first, second = loader.load(1), loader.load(2)
        await give_up(first if how == "await" else first.wait())
        assert (first.status, loader.statistics().queued) == (PENDING, 2)
        loader.dispatch()
        assert (first.status, loader.statistics().queued) == (CANCELLED, 1)
        assert await second == 2
        with pytest.raises(LoadCancelledError):
            await first
        assert loader.peek(1) is None
        assert await loader.load_many([2]) == [2]
    assert recorder.calls == [[2]]


async def test_abandoned_keys_leave_under_the_default_schedule() -> None:
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder) as loader, anyio.create_task_group() as tg:
        scope = Waiters(tg)(loader.load(0))
        for key in range(1, 10):
            if key == 5:
                scope.cancel()
            loader.load(key)
            await checkpoint()
        await wait_all_tasks_blocked()
    assert recorder.calls == [list(range(1, 10))]


async def test_a_batch_of_abandoned_loads_is_never_sent() -> None:
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, schedule=MANUAL) as loader:
        await give_up(loader.load(1), loader.load_many([2, 3]))
        loader.dispatch()
        await wait_all_tasks_blocked()
        assert recorder.calls == []
        assert loader.statistics().cached == loader.statistics().queued == 0
        again = loader.load_many([1, 2])
        loader.dispatch()
        assert await again == [1, 2]
    assert recorder.calls == [[1, 2]]


async def test_a_load_never_awaited_is_not_abandoned() -> None:
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, schedule=MANUAL) as loader:
        loads = [loader.load(1), loader.load(3)]
        many = loader.load_many([2])
        await give_up(loads[1])
        loader.dispatch()
        await wait_all_tasks_blocked()
        assert recorder.calls == [[1, 2]]
        assert loads[0].return_value == 1
        assert await many == [2]


async def test_a_load_never_awaited_keeps_a_running_batch() -> None:
    recorder = Recorder[int, int](abs, gate=anyio.Event())
    async with DataLoader(recorder) as loader:
        handle = loader.load(1)
        many = loader.load_many([2])
        await wait_all_tasks_blocked()
        await give_up(loader.load(1), loader.load_many([2]))
        await give_up(many)
        assert recorder.gate
        recorder.gate.set()
        await wait_all_tasks_blocked()
        assert handle.return_value == 1
        assert await many == [2]


@pytest.mark.parametrize("when", ["queued", "running"])
async def test_every_await_must_be_cancelled(when: str) -> None:
    function = Endless()
    async with DataLoader(function, schedule=MANUAL) as loader, anyio.create_task_group() as tg:
        waiter, handle = Waiters(tg), loader.load(1)
        scopes = [waiter(handle), waiter(handle.wait()), waiter(handle)]
        if when == "running":
            loader.dispatch()
        await wait_all_tasks_blocked()
        for scope in scopes[:2]:
            scope.cancel()
            await wait_all_tasks_blocked()
        loader.dispatch()
        await wait_all_tasks_blocked()
        assert (function.calls, function.cancelled) == ([[1]], [])
        scopes[2].cancel()
        await wait_all_tasks_blocked()
        assert function.cancelled == [[1]]


# --- awaiting again before that revives them ---


@pytest.mark.parametrize("how", ["await", "wait()", "load_many", "other task"])
async def test_awaiting_again_revives_a_queued_load(how: str) -> None:
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, schedule=MANUAL) as loader, anyio.create_task_group() as tg:
        handle, many = loader.load(1), loader.load_many([2])
        load = many if how == "load_many" else handle
        waiter = Waiters(tg)
        for _ in range(3):
            await give_up(handle, many)
        waiter(handle.wait() if how == "wait()" else load)
        await wait_all_tasks_blocked()
        loader.dispatch()
        await wait_all_tasks_blocked()
        assert recorder.calls == ([[2]] if how == "load_many" else [[1]])
        assert waiter.outcomes == [{"wait()": None, "load_many": [2]}.get(how, 1)]


@pytest.mark.parametrize("many", [False, True])
async def test_awaiting_again_revives_a_load_of_a_running_batch(many: bool) -> None:
    function = Endless()
    async with DataLoader(function) as loader, anyio.create_task_group() as tg:
        waiter = Waiters(tg)
        loads: list[Awaitable[object]] = [
            loader.load_many([key]) if many else loader.load(key) for key in (1, 2)
        ]
        first, second = map(waiter, loads)
        await wait_all_tasks_blocked()
        first.cancel()
        await wait_all_tasks_blocked()
        again = waiter(loads[0])
        await wait_all_tasks_blocked()
        second.cancel()
        await wait_all_tasks_blocked()
        assert function.cancelled == []
        again.cancel()
        await wait_all_tasks_blocked()
        assert function.cancelled == [[1, 2]]


async def test_awaiting_again_after_the_seal_raises_and_wants_nothing() -> None:
    function = Endless()
    async with DataLoader(function, schedule=MANUAL) as loader:
        handle, many, other = loader.load(1), loader.load_many([2]), loader.load(3)
        await give_up(handle, many)
        loader.dispatch()
        await wait_all_tasks_blocked()
        for load in (handle, many):
            with pytest.raises(LoadCancelledError):
                await load
        await give_up(other)
        await wait_all_tasks_blocked()
        assert (function.calls, function.cancelled) == ([[3]], [[3]])


def test_a_waiter_that_comes_while_another_one_goes_counts_once(shuffled_backend: str) -> None:
    async def main() -> object:
        function = Endless()
        cancelled: list[list[int]] = []
        async with DataLoader(function) as loader, anyio.create_task_group() as tg:
            waiter, handle = Waiters(tg), loader.load(1)
            go = anyio.Event()

            async def later() -> None:
                await go.wait()
                await handle

            scopes = [waiter(handle), waiter(later())]
            await wait_all_tasks_blocked()
            scopes[0].cancel()
            go.set()
            await wait_all_tasks_blocked()
            scopes[1].cancel()
            await wait_all_tasks_blocked()
            cancelled += function.cancelled
        return cancelled

    assert run_seeds(shuffled_backend, range(20), main) == [[1]]


# --- load_many awaits all its loads ---


async def test_an_abandoned_load_many_abandons_all_its_loads() -> None:
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, schedule=MANUAL) as loader:
        many = loader.load_many([1, 2, 3])
        other = loader.load(4)
        await give_up(many)
        loader.dispatch()
        assert await other == 4
    assert recorder.calls == [[4]]


async def test_an_awaited_load_many_wants_all_its_loads() -> None:
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, schedule=MANUAL) as loader, anyio.create_task_group() as tg:
        waiter = Waiters(tg)
        first = loader.load(1)
        waiter(loader.load_many([1, 2, 3]))
        await give_up(first, loader.load(2), loader.load_many([3, 4]))
        loader.dispatch()
        await wait_all_tasks_blocked()
        assert waiter.outcomes == [[1, 2, 3]]
    assert recorder.calls == [[1, 2, 3]]


async def test_an_abandoned_load_many_gives_up_all_its_batches() -> None:
    function = Endless()
    async with DataLoader(function, max_batch_size=2) as loader:
        many = loader.load_many(range(6))
        other = loader.load(3)
        await wait_all_tasks_blocked()
        await give_up(many)
        await wait_all_tasks_blocked()
        assert sorted(function.cancelled) == [[0, 1], [4, 5]]
        await give_up(other)
        await wait_all_tasks_blocked()
        assert len(function.cancelled) == 3


async def test_leaving_finishes_all_batches_of_an_awaited_load_many() -> None:
    recorder = Recorder[int, int](abs, gate=anyio.Event())
    outcomes: list[object] = []
    async with anyio.create_task_group() as tg:
        waiter = Waiters(tg, outcomes)
        async with DataLoader(recorder, max_batch_size=1) as loader:
            waiter(loader.load_many([1, 2, 3]))
            await wait_all_tasks_blocked()
            assert recorder.gate
            recorder.gate.set()
    assert outcomes == [[1, 2, 3]]


async def test_leaving_finishes_a_load_many_that_one_of_its_keys_just_woke() -> None:
    recorder = Recorder[int, int](abs)
    outcomes: list[object] = []
    async with anyio.create_task_group() as tg:
        waiter = Waiters(tg, outcomes)
        async with DataLoader(recorder, schedule=MANUAL) as loader:
            waiter(loader.load_many([1, 2]))
            await wait_all_tasks_blocked()
            loader.prime(1, -1, force=True)
    assert outcomes == [[-1, 2]]


# --- two loads of one pending key are two loads ---


def _loads(loader: DataLoader[int, int], kinds: str) -> list[Any]:
    return [loader.load_many([1]) if kind == "many" else loader.load(1) for kind in kinds.split()]


@pytest.mark.parametrize("kinds", ["one one", "one many", "many one", "many many"])
@pytest.mark.parametrize("given_up", [0, 1])
@pytest.mark.parametrize("when", ["queued", "sealed", "running"])
async def test_one_of_two_loads_given_up_leaves_the_other_alone(
    kinds: str, given_up: int, when: str
) -> None:
    function = Endless()
    limiter = anyio.CapacityLimiter(1)
    await limiter.acquire()
    async with DataLoader(function, schedule=MANUAL, limiter=limiter) as loader:
        loads = _loads(loader, kinds)
        if when != "queued":
            loader.dispatch()
        if when == "running":
            limiter.release()
            await wait_all_tasks_blocked()
        await give_up(loads.pop(given_up))
        loader.dispatch()
        if when != "running":
            limiter.release()
        await wait_all_tasks_blocked()
        assert (function.calls, function.cancelled) == ([[1]], [])
        await give_up(*loads)
        await wait_all_tasks_blocked()
        assert function.cancelled == [[1]]


@pytest.mark.parametrize("kinds", ["one one", "one many", "many one", "many many"])
async def test_a_key_leaves_with_the_last_load_that_wants_it(kinds: str) -> None:
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, schedule=MANUAL) as loader:
        loads = _loads(loader, kinds)
        loader.load(2)
        await give_up(*loads)
        loader.dispatch()
        await wait_all_tasks_blocked()
    assert recorder.calls == [[2]]


async def test_a_new_load_of_an_abandoned_key_keeps_it_in_the_batch() -> None:
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, schedule=MANUAL) as loader:
        abandoned = loader.load(1)
        await give_up(abandoned)
        new = loader.load(1)
        loader.dispatch()
        assert await new == await abandoned == 1
    assert recorder.calls == [[1]]


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
