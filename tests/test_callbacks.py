"""What calls back into its loader, or raises, where it is in the middle of something."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from anyloader import DataLoader, LoadCancelledError, LoaderClosedError, LoaderScope, schedules
from anyloader.hooks import BatchOpened, BatchSealed, LoadQueued

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]


async def double(keys: list[int]) -> list[int]:
    return [k * 2 for k in keys]


async def settled(*handles: Any) -> list[Any]:
    out: list[Any] = []
    for handle in handles:
        try:
            with anyio.fail_after(0.2):
                out.append(await handle)
        except TimeoutError:
            out.append("hangs")
        except Exception as exc:
            out.append(exc)
    return out


async def test_a_hook_that_primes_what_a_load_is_about_to_share_leaves_nobody_waiting() -> None:
    def hook(event: object) -> None:
        if isinstance(event, LoadQueued) and event.shared:
            loader.prime(1, 100, force=True)

    async with DataLoader(double, hooks=[hook]) as loader:
        first, second = loader.load(1), loader.load(1)
        assert await settled(first, second) == [100, 100]


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
        assert await settled(loader.load(1)) == [2]


async def test_a_hook_may_dispatch_at_a_deduplicated_load() -> None:
    def hook(event: object) -> None:
        if isinstance(event, LoadQueued) and event.shared:
            loader.dispatch()

    async with DataLoader(double, hooks=[hook], cache=False, deduplicate=True) as loader:
        first, second = loader.load(1), loader.load(1)
        assert await settled(first, second) == [2, 2]


async def test_a_hook_may_dispatch_at_a_deduplicated_load_many() -> None:
    def hook(event: object) -> None:
        if isinstance(event, LoadQueued) and event.shared:
            loader.dispatch()

    options: Any = {"cache": False, "deduplicate": True, "schedule": schedules.manual()}
    async with DataLoader(double, hooks=[hook], **options) as loader:
        many = loader.load_many([1, 1])
        assert loader.statistics().queued == 1
        assert await settled(many) == [[2, 2]]
        assert "0 keys queued, 0 batches running" in repr(loader)


async def test_a_hook_that_ends_the_scope_as_a_batch_opens_leaves_nobody_waiting() -> None:
    def hook(event: object) -> None:
        if isinstance(event, BatchOpened):
            scope.cancel("enough")

    async with LoaderScope(hooks=[hook]) as scope:
        loader = scope.get(double)
        with pytest.raises(LoaderClosedError):
            loader.load(1)


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
            (outcome,) = await settled(many)
            assert isinstance(outcome, LoadCancelledError)
        await anyio.wait_all_tasks_blocked()
    assert sent == []


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
            assert await settled(loader.load_many([1, 2])) == [[1, 2]]
        else:
            assert await settled(loader.load(1)) == [1]
    assert max(map(len, batches)) == 1


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


class Lazy:
    """A proxy such as Django's SimpleLazyObject, whose class is that of what it stands for."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise LookupError("what it stands for is not there")


async def test_a_value_is_not_looked_into() -> None:
    lazy: Any = Lazy()

    async def fetch(keys: list[int]) -> list[Any]:
        return [1, lazy, 3]

    async with DataLoader(fetch) as loader:
        one, other, three = await settled(loader.load(1), loader.load(2), loader.load(3))
        loader.prime(4, lazy)
        assert await loader.load(4) is lazy
    assert one == 1
    assert other is lazy
    assert three == 3


async def test_a_missing_value_is_not_looked_into() -> None:
    lazy: Any = Lazy()

    async def fetch(keys: list[int]) -> Any:
        yield 1, 1
        yield 2, lazy

    async with DataLoader(fetch, on_missing=lambda key: lazy) as loader:
        for outcome in (await settled(loader.load(1), loader.load(2), loader.load(3)))[1:]:
            assert outcome is lazy


async def test_a_cache_key_that_fails_at_the_end_of_a_stream_leaves_nobody_waiting() -> None:
    ended = False

    def cache_key(key: int) -> int:
        if ended:
            raise LookupError("no cache key now")
        return key

    async def fetch(keys: list[int]) -> Any:
        nonlocal ended
        yield 1, 1
        ended = True

    async with DataLoader(fetch, get_cache_key=cache_key) as loader:
        outcomes = await settled(loader.load(1), loader.load(2))
    assert "hangs" not in outcomes


@pytest.mark.parametrize("size", [1, None])
async def test_a_hook_that_primes_a_sealed_batch_away_harms_no_load(size: int | None) -> None:
    def hook(event: object) -> None:
        if isinstance(event, BatchSealed):
            loader.prime(1, 100, force=True)

    async with DataLoader(double, hooks=[hook], max_batch_size=size) as loader:
        handle = loader.load(1)
        loader.dispatch()
        assert await settled(handle) == [100]


async def test_a_hook_that_ends_the_scope_as_a_batch_is_sealed_harms_no_load() -> None:
    def hook(event: object) -> None:
        if isinstance(event, BatchSealed):
            scope.cancel("enough")

    async with LoaderScope(hooks=[hook]) as scope:
        loader = scope.get(double)
        handle = loader.load(1)
        loader.dispatch()
        assert isinstance((await settled(handle))[0], LoadCancelledError)


async def test_dispatching_what_nobody_wants_in_a_group_that_has_ended_does_nothing() -> None:
    loader: Any = None
    async with anyio.create_task_group() as tg:
        loader = DataLoader(double, task_group=tg, schedule=schedules.manual())
        handle = loader.load(1)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await handle
    loader.dispatch()


async def test_a_cache_that_refuses_a_key_amid_a_load_many_lets_none_in_after_others_left() -> None:
    class Choosy(dict[int, Any]):
        def __setitem__(self, key: int, value: Any) -> None:
            if key == 12:
                raise LookupError("no room")
            super().__setitem__(key, value)

    batches: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        batches.append(keys)
        return keys

    cache: Any = Choosy()
    async with DataLoader(fetch, cache_map=cache, max_batch_size=3) as loader:
        given_up, kept = loader.load(1), loader.load(2)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await given_up
        with pytest.raises(LookupError):
            loader.load_many([11, 12])
        assert 11 not in cache
        assert await kept == 2
    assert batches == [[2]]


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
        assert await settled(load, *others) == [[1] if many else 1, 99]
    assert sorted(batches) == [[1], [99]]


async def test_a_predicate_that_exits_leaves_no_load_many_waiting(anyio_backend_name: str) -> None:
    if anyio_backend_name == "asyncio":
        pytest.skip("asyncio's loop itself ends by a SystemExit")
    outcomes: list[Any] = []

    async def wait_for(load: Any) -> None:
        outcomes.extend(await settled(load))

    async def fetch(keys: list[int]) -> list[Any]:
        return [ValueError(key) for key in keys]

    def leave_the_program(error: Exception) -> bool:
        raise SystemExit(3)

    async with anyio.create_task_group() as tg:
        with pytest.raises(SystemExit):
            async with DataLoader(fetch, cache_errors=leave_the_program) as loader:
                tg.start_soon(wait_for, loader.load_many([1, 2]))
                await anyio.sleep(0.05)
    assert [type(outcome) for outcome in outcomes] == [ValueError]


async def test_a_stream_that_has_given_all_cleans_up_in_peace() -> None:
    events: list[str] = []

    async def stream(keys: list[int]) -> Any:
        for key in keys:
            yield key, key
        await anyio.sleep(0.01)
        events.append("cleaned up")

    async with DataLoader(stream) as loader:
        assert [await loader.load(1), await loader.load(2)] == [1, 2]
        await anyio.sleep(0.05)
    assert events == ["cleaned up", "cleaned up"]


@pytest.mark.only_on("asyncio")
async def test_a_handle_that_is_resumed_too_early_says_so() -> None:
    async with DataLoader(double) as loader:
        load = loader.load(1)
        load.send(None)
        with pytest.raises(RuntimeError, match="resumed before it settled"):
            load.send(None)
        assert await load == 2


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
        assert isinstance((await settled(load))[0], LoadCancelledError)
