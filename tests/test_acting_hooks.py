"""A hook may load, prime, dispatch or end its scope in the middle of things (contract 4.4)."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from anyloader import (
    DataLoader,
    LoadCancelledError,
    LoaderClosedError,
    LoaderScope,
    LoadHandle,
    schedules,
)
from anyloader.hooks import (
    BatchCancelled,
    BatchOpened,
    BatchSealed,
    LoadQueued,
)
from support import Recorder, wait_all_tasks_blocked
from support.abandonment import MANUAL, Endless, give_up
from support.loads import double, outcomes

pytestmark = pytest.mark.anyio


async def test_a_hook_may_load() -> None:
    extra: list[LoadHandle[int]] = []

    def load_once(event: object) -> None:
        if isinstance(event, BatchOpened) and not extra:
            extra.append(loader.load(-5))

    recorder = Recorder[int, int](abs)
    loader = DataLoader(recorder, cache=False, deduplicate=True, hooks=[load_once])
    async with loader:
        assert await loader.load_many([-1, -5]) == [1, 5]
        assert [await load for load in extra] == [5]
    assert recorder.calls == [[-5, -1]]


async def test_a_hook_may_load_as_the_only_batch_is_sealed() -> None:
    extra: list[LoadHandle[int]] = []

    def load_once(event: object) -> None:
        if isinstance(event, BatchSealed) and not extra:
            extra.append(other.load(5))

    first, second = Recorder[int, int](abs), Recorder[int, int](abs)
    async with LoaderScope(hooks=[load_once]) as scope:
        other = scope.get(second)
        assert await scope.get(first).load(-1) == 1
        assert await extra[0] == 5
    assert (first.calls, second.calls) == ([[-1]], [[5]])


async def test_a_hook_may_cancel_a_scope_that_is_being_left() -> None:
    told: list[str] = []

    def cancel_all(event: object) -> None:
        if isinstance(event, BatchCancelled):
            told.append(event.loader)
            scope.cancel("enough")

    async def one(keys: list[int]) -> list[int]:
        return keys

    async def two(keys: list[int]) -> list[int]:
        return keys

    async with LoaderScope(hooks=[cancel_all]) as scope:
        loads = scope.get(one).load(1), scope.get(two).load(2)
    assert [load.status for load in loads] == [LoadHandle.Status.CANCELLED] * 2
    assert len(told) == 2


async def test_a_hook_may_cancel_a_scope_that_is_being_cancelled() -> None:
    def cancel_all(event: object) -> None:
        if isinstance(event, BatchCancelled):
            scope.cancel("enough")

    async def one(keys: list[int]) -> list[int]:
        return keys

    async def two(keys: list[int]) -> list[int]:
        return keys

    async with LoaderScope(hooks=[cancel_all]) as scope:
        loads = scope.get(one).load(1), scope.get(two).load(2)
        scope.cancel("for the first time")
    assert [load.status for load in loads] == [LoadHandle.Status.CANCELLED] * 2


@pytest.mark.virtual_time
async def test_a_hook_that_primes_what_a_load_is_about_to_share_leaves_nobody_waiting() -> None:
    def hook(event: object) -> None:
        if isinstance(event, LoadQueued) and event.shared:
            loader.prime(1, 100, force=True)

    async with DataLoader(double, hooks=[hook]) as loader:
        first, second = loader.load(1), loader.load(1)
        assert await outcomes(first, second) == [100, 100]


@pytest.mark.virtual_time
async def test_a_hook_that_dispatches_what_a_load_is_about_to_share_leaves_nobody_waiting() -> None:
    # The only load of the key was given up, so that sending the batch drops it.
    def hook(event: object) -> None:
        if isinstance(event, LoadQueued) and event.shared:
            loader.dispatch()

    async with DataLoader(double, hooks=[hook], schedule=schedules.manual()) as loader:
        first = loader.load(1)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await first
        assert await outcomes(loader.load(1)) == [2]


@pytest.mark.virtual_time
async def test_a_hook_may_dispatch_at_a_deduplicated_load() -> None:
    def hook(event: object) -> None:
        if isinstance(event, LoadQueued) and event.shared:
            loader.dispatch()

    async with DataLoader(double, hooks=[hook], cache=False, deduplicate=True) as loader:
        first, second = loader.load(1), loader.load(1)
        assert await outcomes(first, second) == [2, 2]


@pytest.mark.virtual_time
async def test_a_hook_may_dispatch_at_a_deduplicated_load_many() -> None:
    def hook(event: object) -> None:
        if isinstance(event, LoadQueued) and event.shared:
            loader.dispatch()

    options: Any = {"cache": False, "deduplicate": True, "schedule": schedules.manual()}
    async with DataLoader(double, hooks=[hook], **options) as loader:
        many = loader.load_many([1, 1])
        assert loader.statistics().queued == 1
        assert await outcomes(many) == [[2, 2]]
        assert "0 keys queued, 0 batches running" in repr(loader)


@pytest.mark.virtual_time
async def test_a_hook_that_ends_the_scope_as_a_batch_opens_leaves_nobody_waiting() -> None:
    def hook(event: object) -> None:
        if isinstance(event, BatchOpened):
            scope.cancel("enough")

    async with LoaderScope(hooks=[hook]) as scope:
        loader = scope.get(double)
        with pytest.raises(LoaderClosedError):
            loader.load(1)


@pytest.mark.virtual_time
async def test_a_hook_that_ends_the_scope_amid_a_load_many_lets_none_of_its_keys_in() -> None:
    def hook(event: object) -> None:
        if isinstance(event, LoadQueued):
            scope.cancel("enough")

    sent: list[int] = []

    async def fetch(keys: list[int]) -> list[int]:
        sent.extend(keys)
        return keys

    async with LoaderScope(hooks=[hook]) as scope:
        loader = scope.get(fetch)
        try:
            many = loader.load_many([1, 2, 3])
        except LoaderClosedError:
            pass
        else:
            (outcome,) = await outcomes(many)
            assert isinstance(outcome, LoadCancelledError)
        await anyio.wait_all_tasks_blocked()
    assert sent == []


@pytest.mark.virtual_time
@pytest.mark.parametrize("many", [False, True])
async def test_a_hook_that_fills_a_batch_as_it_opens_does_not_make_it_too_big(many: bool) -> None:
    batches: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        batches.append(keys)
        return keys

    def hook(event: object) -> None:
        if isinstance(event, BatchOpened):
            loader.load(99)

    async with DataLoader(fetch, hooks=[hook], max_batch_size=1) as loader:
        if many:
            assert await outcomes(loader.load_many([1, 2])) == [[1, 2]]
        else:
            assert await outcomes(loader.load(1)) == [1]
    assert max(map(len, batches)) == 1


@pytest.mark.virtual_time
async def test_a_hook_that_loads_amid_a_load_many_does_not_make_a_batch_too_big() -> None:
    batches: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        batches.append(keys)
        return keys

    def hook(event: object) -> None:
        if isinstance(event, LoadQueued) and event.key == 1:
            loader.load(99)

    async with DataLoader(fetch, hooks=[hook], max_batch_size=3) as loader:
        assert await loader.load_many([1, 2, 3, 4]) == [1, 2, 3, 4]
    assert max(map(len, batches)) == 3


@pytest.mark.virtual_time
@pytest.mark.parametrize("size", [1, None])
async def test_a_hook_that_primes_a_sealed_batch_away_harms_no_load(size: int | None) -> None:
    def hook(event: object) -> None:
        if isinstance(event, BatchSealed):
            loader.prime(1, 100, force=True)

    async with DataLoader(double, hooks=[hook], max_batch_size=size) as loader:
        handle = loader.load(1)
        loader.dispatch()
        assert await outcomes(handle) == [100]


@pytest.mark.virtual_time
async def test_a_hook_that_ends_the_scope_as_a_batch_is_sealed_harms_no_load() -> None:
    def hook(event: object) -> None:
        if isinstance(event, BatchSealed):
            scope.cancel("enough")

    async with LoaderScope(hooks=[hook]) as scope:
        loader = scope.get(double)
        handle = loader.load(1)
        loader.dispatch()
        assert isinstance((await outcomes(handle))[0], LoadCancelledError)


@pytest.mark.virtual_time
async def test_dispatching_what_nobody_wants_in_a_group_that_has_ended_does_nothing() -> None:
    loader: Any = None
    async with anyio.create_task_group() as tg:
        loader = DataLoader(double, task_group=tg, schedule=schedules.manual())
        handle = loader.load(1)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await handle
    loader.dispatch()


@pytest.mark.virtual_time
@pytest.mark.parametrize("options", [{}, {"cache": False}], ids=["cached", "uncached"])
@pytest.mark.parametrize("many", [False, True])
async def test_a_hook_that_loads_at_the_last_key_of_a_batch_does_not_make_it_too_big(
    options: Any, many: bool
) -> None:
    batches: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        batches.append(keys)
        return keys

    def hook(event: object) -> None:
        if isinstance(event, LoadQueued) and event.key == 1:
            others.append(loader.load(99))

    others: list[Any] = []
    async with DataLoader(fetch, hooks=[hook], max_batch_size=1, **options) as loader:
        load: Any = loader.load_many([1]) if many else loader.load(1)
        assert await outcomes(load, *others) == [[1] if many else 1, 99]
    assert sorted(batches) == [[1], [99]]


@pytest.mark.virtual_time
async def test_a_hook_that_ends_the_scope_at_the_last_key_of_a_batch_harms_no_load() -> None:
    class One(DataLoader[int, int]):
        max_batch_size = 1

        async def batch_load_fn(self, keys: list[int], /) -> list[int]:
            return keys

    def hook(event: object) -> None:
        if isinstance(event, LoadQueued):
            scope.cancel("enough")

    async with LoaderScope(hooks=[hook]) as scope:
        load = scope.get(One).load(1)
        assert isinstance((await outcomes(load))[0], LoadCancelledError)


async def test_a_hook_may_settle_a_batch_that_has_just_got_its_token() -> None:
    def prime(event: object) -> None:
        if isinstance(event, BatchSealed):
            loader.prime(1, 10, force=True)

    limiter = anyio.CapacityLimiter(1)
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, limiter=limiter, hooks=[prime]) as loader:
        assert await loader.load(1) == 10
        assert limiter.borrowed_tokens == 0
        assert await loader.load(-2) == 2
    assert recorder.calls == [[-2]]


async def test_a_hook_that_loads_at_a_seal_does_not_make_the_next_batch_too_heavy() -> None:
    extra: list[LoadHandle[int]] = []

    def load_once(event: object) -> None:
        if isinstance(event, BatchSealed) and not extra:
            extra.append(loader.load(2))

    recorder = Recorder[int, int](abs)
    loader = DataLoader(recorder, max_batch_weight=4, weigh=abs, hooks=[load_once])
    async with loader:
        assert await outcomes(loader.load(-2), loader.load(-3)) == [2, 3]
        assert await outcomes(*extra) == [2]
    assert sorted(recorder.calls) == [[-3], [-2], [2]]


async def test_a_hook_that_primes_as_a_load_many_is_given_up_keeps_no_batch() -> None:
    def prime(event: object) -> None:
        if isinstance(event, BatchCancelled):
            loader.prime(4, 4, force=True)

    function = Endless()
    loader = DataLoader(function, schedule=MANUAL, max_batch_size=3, hooks=[prime])
    async with loader:
        many, other = loader.load_many([1, 2, 3, 4]), loader.load(5)
        await wait_all_tasks_blocked()
        await give_up(many)
        loader.dispatch()
        await wait_all_tasks_blocked()
        assert (function.calls, function.cancelled) == ([[1, 2, 3], [5]], [[1, 2, 3]])
        await give_up(other)
        await wait_all_tasks_blocked()
        assert function.cancelled == [[1, 2, 3], [5]]
