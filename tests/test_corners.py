"""Corners that no other test comes by; each is a promise all the same."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import AsyncExitStack
from types import coroutine
from typing import Any

import anyio
import pytest

from anyloader import (
    BatchResultError,
    DataLoader,
    LoadCancelledError,
    LoaderClosedError,
    LoaderScope,
    LoaderStatistics,
    LoadHandle,
    in_thread,
    schedules,
)
from anyloader.hooks import BatchCancelled, BatchFinished, BatchOpened, LoadHit, ValueCacheFailed
from anyloader.integrations.asgi import LoaderScopeMiddleware
from anyloader.testing import max_batches
from support import Recorder, backend_options, run_seeds, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio


async def test_an_illegal_move_of_a_batch_raises_and_changes_nothing() -> None:
    async with DataLoader(Recorder[int, int](abs)) as loader:
        handle = loader.load(1)
        batch = handle._batch
        assert batch is not None
        with pytest.raises(RuntimeError, match="cannot start while open"):
            batch.start()
        assert batch.is_open
        assert await handle == 1


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.TaskGroup is new in Python 3.11")
def test_a_loader_made_without_a_loop_finds_it_at_its_first_load() -> None:
    group: Any = getattr(asyncio, "TaskGroup")()  # noqa: B009 - unknown to checkers of 3.10
    loader = DataLoader(Recorder[int, int](abs), task_group=group)
    with pytest.raises(RuntimeError, match="no event loop is running"):
        loader.load(1)

    async def main() -> int:
        async with group:
            return await loader.load(-1)

    assert asyncio.run(main()) == 1


@pytest.mark.virtual_time
async def test_a_batch_opened_while_leaving_waits_for_no_window() -> None:
    begun = anyio.Event()

    async def slow(keys: list[int]) -> list[int]:
        begun.set()
        await anyio.sleep(1)
        return await late.load_many(keys)

    async with anyio.create_task_group() as tg:
        async with LoaderScope():
            late = DataLoader(Recorder[int, int](abs), schedule=schedules.window(1_000))
            tg.start_soon(DataLoader(slow).load, -1)
            await begun.wait()
        assert anyio.current_time() == 1


@pytest.mark.only_on("asyncio")
async def test_a_worker_that_was_cancelled_natively_passes_its_next_batch_on() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return keys

    async with DataLoader(fetch) as loader:
        assert [await loader.load(key) for key in range(5)] == [0, 1, 2, 3, 4]


async def test_what_a_cancelled_stream_still_gives_is_dropped() -> None:
    given: list[int] = []

    class Stream:
        """Has no ``aclose``, and takes its time to notice that nobody wants it any more."""

        def __init__(self, keys: list[int]) -> None:
            self._keys = iter(keys)

        def __aiter__(self) -> AsyncIterator[tuple[int, int]]:
            return self

        async def __anext__(self) -> tuple[int, int]:
            for key in self._keys:
                with anyio.CancelScope(shield=True):
                    await gate.wait()
                given.append(key)
                return key, key
            raise StopAsyncIteration

    gate = anyio.Event()
    function: Any = Stream
    loader = DataLoader[int, int](function)
    async with anyio.create_task_group() as tg, loader:
        tg.start_soon(loader.load_many, [1, 2])
        await wait_all_tasks_blocked()
        tg.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await wait_all_tasks_blocked()  # until the load_many has been given up
        gate.set()
    assert given == [1, 2]
    assert loader.statistics().cached == 0


async def test_throw_takes_a_class_or_an_instance() -> None:
    async with DataLoader(Recorder[int, int](abs)) as loader:
        await loader.load(1)
        for arguments in (ValueError,), (ValueError("x"),), (ValueError, ValueError("x")):
            with pytest.raises(ValueError) as caught:
                loader.load(1).throw(*arguments)
            assert str(caught.value) == ("" if arguments == (ValueError,) else "x")
        with pytest.raises(ValueError, match="x"):
            loader.load(1).throw(ValueError, ValueError("x"), None)


@pytest.mark.only_on("asyncio")
async def test_closing_a_handle_that_another_task_drives_leaves_that_alone() -> None:
    async with DataLoader(Recorder[int, int](abs)) as loader, anyio.create_task_group() as tg:
        handle = loader.load(1)
        handle.send(None)  # as a task would that was made of the handle

        async def close() -> None:
            handle.close()

        tg.start_soon(close)
        await wait_all_tasks_blocked()
        with pytest.raises(StopIteration) as stop:
            handle.send(None)
        assert stop.value.value == 1


async def test_a_mapping_that_refuses_a_look_with_a_type_error_of_its_own_is_heard() -> None:
    class Picky(dict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            raise TypeError("not today")

    async with DataLoader(Recorder[int, int](abs), cache_map=Picky()) as loader:
        for call in loader.load, lambda key: loader.load_many([key]):
            with pytest.raises(TypeError, match="not today"):
                call(1)


async def test_a_result_whose_repr_raises_is_named_by_its_type() -> None:
    class Mute:
        def __repr__(self) -> str:
            raise RuntimeError

    async def fetch(keys: list[int]) -> Any:
        return Mute()

    async with DataLoader[int, int](fetch) as loader:
        with pytest.raises(BatchResultError, match=r"<Mute instance at"):
            await loader.load(1)


async def test_prime_with_the_cache_off_changes_nothing() -> None:
    async with DataLoader(Recorder[int, int](abs), cache=False) as loader:
        assert await loader.prime(-1, 5).clear(-1).clear_all().load(-1) == 1
        assert loader.peek(-1) is None


async def test_schedules_say_what_they_are() -> None:
    made = schedules.quiescent(max_rounds=7), schedules.rounds(2), schedules.window(0.5)
    assert [repr(s) for s in (schedules.quiescent(), *made, schedules.manual())] == [
        "quiescent(max_rounds=100)",
        "quiescent(max_rounds=7)",
        "rounds(2)",
        "window(0.5)",
        "manual()",
    ]


async def test_a_scope_that_was_cancelled_refuses_loads_and_settles_waiters() -> None:
    async with LoaderScope() as scope:
        loader = scope.get(Recorder[int, int](abs, gate=anyio.Event())).prime(0, 0)
        handle, queued = loader.load(1), loader.load(2)
        await wait_all_tasks_blocked()
        later = loader.load(3)
        scope.cancel("enough")
        for load in handle, queued, later:
            with pytest.raises(LoadCancelledError, match="enough"):
                await load
        for key in 4, 0:
            with pytest.raises(LoaderClosedError):
                loader.load(key)


async def test_keys_can_come_from_any_iterable() -> None:
    def keys() -> Iterator[int]:
        yield from (1, 2)

    async with DataLoader(Recorder[int, int](abs)) as loader:
        assert await loader.load_many(keys()) == [1, 2]
        assert await loader.load_many([]) == []


@pytest.mark.only_on("asyncio")
async def test_a_native_cancellation_never_met_does_not_reach_a_foreign_group() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return keys

    cancelled: list[bool] = []
    async with anyio.create_task_group() as tg:
        loader = DataLoader(fetch, task_group=tg)
        assert await loader.load(1) == 1
        await wait_all_tasks_blocked()
        cancelled.append(tg.cancel_scope.cancel_called)
    assert cancelled == [False]  # and the body came so far


@pytest.mark.only_on("asyncio")
async def test_a_native_cancellation_met_by_another_one_does_not_end_the_scope() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        raise asyncio.CancelledError

    async with LoaderScope() as loaders:
        gate = anyio.Event()
        other = loaders.get(Recorder[int, int](abs, gate=gate)).load(-1)
        with pytest.raises(LoadCancelledError):
            await loaders.get(fetch).load(1)
        await wait_all_tasks_blocked()
        gate.set()
        assert await other == 1


def test_leaving_a_scope_waits_for_a_task_that_has_not_begun(shuffled_backend: str) -> None:
    async def fetch(keys: list[int]) -> list[int]:
        raise AssertionError("nobody awaits this")

    async def main() -> list[str]:
        names: list[str | None] = []
        async with anyio.create_task_group() as tg:
            async with LoaderScope(tg) as loaders:
                loaders.get(fetch).load(1)
            names += [task.name for task in anyio.get_running_tasks()]
        return [name for name in names if name and name.startswith("anyloader")]

    assert run_seeds(shuffled_backend, range(20), main) == []


async def test_leaving_a_scope_in_a_given_group_can_be_cancelled() -> None:
    async with anyio.create_task_group() as tg, anyio.create_task_group() as waiters:
        with anyio.CancelScope() as scope:
            async with LoaderScope(tg) as loaders:
                loader = loaders.get(Recorder[int, int](abs, gate=anyio.Event()))
                waiters.start_soon(loader.load(1).wait)
                await wait_all_tasks_blocked()
                waiters.start_soon(cancel_later, scope)
        assert scope.cancelled_caught


async def cancel_later(scope: anyio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


class Exit(BaseException):
    pass


async def test_two_functions_that_end_by_no_exception_come_out_in_a_group() -> None:
    gate = anyio.Event()

    async def fetch(keys: list[int]) -> list[int]:
        with anyio.CancelScope(shield=True):
            await gate.wait()
        raise Exit

    loads: list[LoadHandle[int]] = []
    with pytest.raises(BaseException) as caught:
        async with DataLoader(fetch, max_batch_size=1) as loader:
            loads += loader.load(1), loader.load(2)
            await wait_all_tasks_blocked()
            gate.set()
            await anyio.sleep_forever()  # the first of the two ends the body
    assert [type(exc) for exc in getattr(caught.value, "exceptions", ())] == [Exit, Exit]
    assert [load.status for load in loads] == [LoadHandle.Status.CANCELLED] * 2


@pytest.mark.only_on("asyncio")
async def test_a_load_many_of_which_a_batch_is_done_can_be_made_a_task() -> None:
    gate = anyio.Event()

    async def fetch(keys: list[int]) -> list[int]:
        if keys == [2]:
            await gate.wait()
        return keys

    async with DataLoader(fetch, max_batch_size=1) as loader:
        many = loader.load_many([1, 2])
        await wait_all_tasks_blocked()
        task = asyncio.create_task(many)
        await wait_all_tasks_blocked()
        gate.set()
        assert await task == [1, 2]


async def test_a_refused_load_many_takes_back_a_batch_that_was_full() -> None:
    class Refusing(dict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            if key == 3:
                raise MemoryError
            super().__setitem__(key, value)

    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, cache_map=Refusing(), max_batch_size=2) as loader:
        with pytest.raises(MemoryError):
            loader.load_many([1, 2, 3])
        await wait_all_tasks_blocked()
        assert await loader.load(4) == 4
    assert recorder.calls == [[4]]


async def test_what_was_cleared_before_the_opening_is_deleted_by_the_first_batch() -> None:
    class Values:
        def __init__(self) -> None:
            self.items = {1: 100}

        async def get_many(self, keys: Any) -> Any:
            return {key: self.items[key] for key in keys if key in self.items}

        async def set_many(self, items: Any) -> None:
            self.items.update(items)

        async def delete_many(self, keys: Any) -> None:
            for key in keys:
                self.items.pop(key, None)

    loader = DataLoader(Recorder[int, int](abs), value_cache=Values()).clear(1)
    async with loader:
        assert await loader.load(1) == 1


async def test_a_deletion_that_fails_on_the_way_out_is_told_as_of_no_batch() -> None:
    class Values:
        async def get_many(self, keys: Any) -> Any:
            return {}

        async def set_many(self, items: Any) -> None:
            pass

        async def delete_many(self, keys: Any) -> None:
            raise OSError

    told: list[Any] = []
    loader = DataLoader(Recorder[int, int](abs), value_cache=Values(), hooks=[told.append])
    async with loader:
        loader.clear(1)
    assert [(type(event), event.batch, event.operation) for event in told] == [
        (ValueCacheFailed, 0, "delete_many")
    ]


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


@pytest.mark.virtual_time
@pytest.mark.parametrize("many", [False, True], ids=["load", "load_many"])
async def test_a_shared_load_that_a_batch_function_awaits_later_keeps_its_batch(many: bool) -> None:
    """The scope is left meanwhile, and nobody awaits that batch right then."""

    async def slow(keys: list[int]) -> list[int]:
        await anyio.sleep(3)
        return keys

    async def outer(keys: list[int]) -> list[int]:
        load: Any = inner.load_many([1]) if many else inner.load(1)
        shared.set()
        await anyio.sleep(1)
        await load
        return [1]

    shared = anyio.Event()
    results: list[int] = []

    async def wait_for(load: LoadHandle[int]) -> None:
        results.append(await load)

    async with anyio.create_task_group() as tg:
        async with LoaderScope() as scope:
            inner = scope.get(slow)
            inner.load(1)
            await wait_all_tasks_blocked()
            tg.start_soon(wait_for, scope.get(outer).load(2))
            await shared.wait()
    assert results == [1]


@pytest.mark.parametrize("fails", ["a key", "the batch"])
async def test_what_remains_after_a_key_was_given_up_is_evicted_by_its_own_cache_key(
    fails: str,
) -> None:
    async def fetch(keys: list[int]) -> list[int | Exception]:
        if fails == "the batch":
            raise ValueError
        return [ValueError() for _ in keys]

    async with DataLoader(fetch, get_cache_key=abs, cache_errors=False) as loader:
        first, second = loader.load(-1), loader.load(-2)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await first
        with pytest.raises(ValueError):
            await second
        assert loader.peek(1) is loader.peek(2) is None


async def test_a_refused_load_many_is_taken_back_once() -> None:
    class Refusing(dict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            if key == 3:
                raise MemoryError
            super().__setitem__(key, value)

    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, cache_map=Refusing(), hooks=[lambda event: None]) as loader:
        with pytest.raises(MemoryError):
            loader.load_many([1, 1, 2, 3])
        load = loader.load(4)
        assert loader.statistics().queued == 1
        assert await load == 4
    assert recorder.calls == [[4]]


async def test_a_stream_need_not_have_an_aclose() -> None:
    class Stream:
        def __init__(self, keys: list[int]) -> None:
            self._keys = iter(keys[:1])

        def __aiter__(self) -> AsyncIterator[tuple[int, int]]:
            return self

        async def __anext__(self) -> tuple[int, int]:
            for key in self._keys:
                return key, abs(key)
            raise StopAsyncIteration

    function: Any = Stream
    async with DataLoader[int, int](function) as loader:
        assert await loader.load_many([-1, -2]) == [1, None]


@pytest.mark.parametrize("name", ["asyncio", "trio.lowlevel"])
def test_a_loader_can_be_made_where_a_library_was_never_imported(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    class Group:
        start_soon = None

    monkeypatch.delitem(sys.modules, name, raising=False)
    group: Any = Group()
    assert "0 keys queued" in repr(DataLoader(Recorder[int, int](abs), task_group=group))


@pytest.mark.virtual_time
async def test_what_a_value_cache_finds_too_late_settles_nothing() -> None:
    class Values:
        async def get_many(self, keys: Any) -> Any:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(2)
            return dict.fromkeys(keys, 0)

        async def set_many(self, items: Any) -> None:
            pass

        async def delete_many(self, keys: Any) -> None:
            pass

    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, value_cache=Values()) as loader:
        load = loader.load(1)
        with anyio.move_on_after(1):
            await load
        assert load.status is LoadHandle.Status.CANCELLED
        await anyio.sleep(2)
        assert load.status is LoadHandle.Status.CANCELLED
        assert loader.peek(1) is None
    assert recorder.calls == []


@pytest.mark.virtual_time
@pytest.mark.parametrize("many", [False, True], ids=["load", "load_many"])
async def test_an_await_that_a_batch_function_gave_up_is_no_part_of_a_cycle(many: bool) -> None:
    async def first(keys: list[int]) -> list[int]:
        with anyio.move_on_after(1):
            if many:
                await two.load_many(keys)
            else:
                await two.load(keys[0])
        await anyio.sleep(3)
        return keys

    async def second(keys: list[int]) -> list[int]:
        await anyio.sleep(2)
        return await one.load_many(keys)  # which does not wait for this any more

    async with LoaderScope() as scope:
        one, two = scope.get(first), scope.get(second)
        one.load(1)
        await wait_all_tasks_blocked()
        assert await two.load(1) == 1


@pytest.mark.virtual_time
async def test_leaving_a_scope_in_a_given_group_waits_for_cleanup_though_it_is_cancelled() -> None:
    ended: list[str] = []

    async def fetch(keys: list[int]) -> list[int]:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(2)
            ended.append("cleaned up")
        return keys

    async with anyio.create_task_group() as tg, anyio.create_task_group() as waiters:
        with anyio.move_on_after(1):
            async with LoaderScope(tg) as scope:
                waiters.start_soon(scope.get(fetch).load(1).wait)
                await wait_all_tasks_blocked()
        assert ended == ["cleaned up"]


async def test_the_traceback_of_an_error_begins_in_the_batch_function() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        raise ValueError

    async with DataLoader(fetch) as loader:
        load = loader.load(1)
        await load.wait()
        error = load.exception
        assert error is not None
        traceback = error.__traceback__
        assert traceback is not None
        assert traceback.tb_frame.f_code is fetch.__code__
        assert traceback.tb_next is None


async def test_a_scope_that_was_not_entered_has_nothing_to_forget() -> None:
    scope = LoaderScope()
    scope.clear_all()
    scope.cancel("for nothing")
    async with scope:
        assert await scope.get(Recorder[int, int](abs)).load(-1) == 1
    scope.clear_all()


async def test_what_is_given_up_or_taken_out_after_the_seal_is_not_sent() -> None:
    limiter = anyio.CapacityLimiter(1)
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, limiter=limiter) as loader:
        await limiter.acquire_on_behalf_of(recorder)
        first, second, third = loader.load(1), loader.load(2), loader.load(3)
        loader.dispatch()
        await wait_all_tasks_blocked()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await first
        loader.prime(2, 20, force=True)
        limiter.release_on_behalf_of(recorder)
        assert [await second, await third] == [20, 3]
    assert recorder.calls == [[3]]


async def test_a_batch_opened_while_leaving_keeps_a_schedule_that_counts_rounds() -> None:
    begun, gate = anyio.Event(), anyio.Event()
    recorder = Recorder[int, int](abs)

    async def outer(keys: list[int]) -> list[int]:
        begun.set()
        await gate.wait()
        first = inner.load(-1)
        for _ in range(2):
            await anyio.lowlevel.checkpoint()
        second = inner.load(-2)
        return [await first + await second]

    async with anyio.create_task_group() as tg:
        async with LoaderScope() as scope:
            inner = DataLoader(recorder, schedule=schedules.rounds(0))
            inner.load_many([])
            tg.start_soon(scope.get(outer).load(1).wait)
            await begun.wait()
            gate.set()
    assert sorted(recorder.calls) == [[-2], [-1]]


async def test_a_load_many_that_the_value_cache_answers_does_not_wait_for_its_batch() -> None:
    class Values:
        async def get_many(self, keys: Any) -> Any:
            return {key: key * 100 for key in keys if key == 1}

        async def set_many(self, items: Any) -> None:
            pass

        async def delete_many(self, keys: Any) -> None:
            pass

    gate = anyio.Event()
    async with DataLoader(Recorder[int, int](abs, gate=gate), value_cache=Values()) as loader:
        many, other = loader.load_many([1]), loader.load(2)
        with anyio.fail_after(5):
            assert await many == [100]
        gate.set()
        assert await other == 2


async def test_with_the_cache_off_a_failed_batch_has_nothing_to_evict(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fetch(keys: list[int]) -> list[int]:
        raise ValueError

    async with DataLoader(fetch, cache=False) as loader:
        with pytest.raises(ValueError):
            await loader.load(1)
    assert caplog.records == []


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


async def test_a_load_many_that_fails_at_once_still_loads_its_other_keys() -> None:
    """It was not given up."""
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder) as loader:
        many = loader.prime(1, ValueError()).load_many([1, -2])
        loader.load(-3)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await loader.load(-4)  # so that the seal looks who is wanted
        with pytest.raises(ValueError):
            await many
        await wait_all_tasks_blocked()
    assert recorder.calls == [[-2, -3]]


async def test_handles_of_a_load_many_know_their_keys() -> None:
    async with DataLoader(Recorder[int, int](abs)) as loader:
        loader.load_many([1, 2])
        handles = [loader.peek(key) for key in (1, 2)]
        assert [handle and handle.key for handle in handles] == [1, 2]


async def test_a_scope_without_loaders_has_statistics_of_nothing() -> None:
    async with LoaderScope() as scope:
        assert scope.statistics() == LoaderStatistics()


@pytest.mark.only_on("asyncio")
@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 does not count cancellations")
async def test_a_task_whose_block_was_ended_by_a_batch_function_is_not_cancelled_any_more() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        raise Exit

    with pytest.raises(Exit):
        async with DataLoader(fetch) as loader:
            loader.load(1)
            await anyio.sleep_forever()
    task: Any = asyncio.current_task()
    assert task.cancelling() == 0


async def test_a_handle_that_was_primed_while_queued_stays_in_the_cache() -> None:
    async with DataLoader(Recorder[int, int](abs)) as loader:
        load = loader.load(1)
        assert loader.prime(1, 10, force=True).peek(1) is load
        assert await load == 10


async def test_a_batch_that_nobody_wants_at_its_seal_asks_for_no_token() -> None:
    limiter = anyio.CapacityLimiter(1)
    async with DataLoader(Recorder[int, int](abs), limiter=limiter) as loader, limiter:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await loader.load(1)
        await wait_all_tasks_blocked()
        assert limiter.statistics().tasks_waiting == 0


async def test_a_loader_keeps_its_own_hooks_after_a_block_that_counted_its_batches() -> None:
    told: list[object] = []
    async with DataLoader(Recorder[int, int](abs), hooks=[told.append]) as loader:
        with max_batches(1):
            await loader.load(1)
        told.clear()
        await loader.load(1)
    assert told == [LoadHit(loader.name, 1)]


class Gated:
    """A value cache that has the key 1, and tells so when the gate is open."""

    def __init__(self) -> None:
        self.gate = anyio.Event()
        self.asked: list[list[int]] = []

    async def get_many(self, keys: Any) -> Any:
        self.asked.append(list(keys))
        await self.gate.wait()
        return {key: 100 for key in keys if key == 1}

    async def set_many(self, items: Any) -> None:
        pass

    async def delete_many(self, keys: Any) -> None:
        pass


async def test_leaving_does_not_wait_for_a_batch_when_the_value_cache_gave_what_was_awaited() -> (
    None
):
    values = Gated()
    got: list[int] = []

    async def wait_for(load: LoadHandle[int]) -> None:
        got.append(await load)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tg:
            recorder = Recorder[int, int](abs, gate=anyio.Event())
            async with DataLoader(recorder, value_cache=values) as loader:
                tg.start_soon(wait_for, loader.load(1))
                loader.load(2)
                await wait_all_tasks_blocked()
                tg.start_soon(set_later, values.gate)
    assert got == [100]


async def set_later(event: anyio.Event) -> None:
    await wait_all_tasks_blocked()
    event.set()


async def test_load_many_says_what_it_takes() -> None:
    async with DataLoader(Recorder[int, int](abs)) as loader:
        keys: Any = 5
        with pytest.raises(TypeError, match="takes an iterable of keys, not an int"):
            loader.load_many(keys)


async def test_throw_keeps_the_traceback_that_it_is_given() -> None:
    try:
        raise ValueError
    except ValueError as exc:
        given = exc.__traceback__
    async with DataLoader(Recorder[int, int](abs)) as loader:
        await loader.load(1)
        for arguments in (ValueError, ValueError(), given), (ValueError().with_traceback(given),):
            with pytest.raises(ValueError) as caught:
                loader.load(1).throw(*arguments)
            traceback = caught.tb
            while traceback.tb_next is not None:
                traceback = traceback.tb_next
            assert traceback is given


async def test_a_load_many_settles_by_a_key_that_is_primed() -> None:
    got: list[list[int]] = []

    async def wait_for(many: Any) -> None:
        got.append(await many)

    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, schedule=schedules.manual()) as loader:
        async with anyio.create_task_group() as tg:
            tg.start_soon(wait_for, loader.load_many([1]))
            loader.load(2)
            await wait_all_tasks_blocked()
            loader.prime(1, 10, force=True)
            await wait_all_tasks_blocked()
            assert got == [[10]]


async def test_a_load_many_that_was_given_up_at_the_seal_can_be_wanted_again() -> None:
    gate = anyio.Event()
    recorder = Recorder[int, int](abs, gate=gate)

    async def give_up(load: Any) -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await load

    async with DataLoader(recorder) as loader:
        many, other, third = loader.load_many([1]), loader.load(1), loader.load(2)
        await give_up(many)
        await give_up(third)  # which leaves the batch at the seal
        await wait_all_tasks_blocked()
        async with anyio.create_task_group() as tg:
            tg.start_soon(lambda: many)
            await wait_all_tasks_blocked()
            await give_up(other)
            gate.set()
        assert await many == [1]


@pytest.mark.only_on("asyncio")
async def test_a_full_batch_passes_no_more_rounds() -> None:
    async def rounds_until_called(schedule: schedules.Schedule) -> int:
        recorder = Recorder[int, int](abs)
        async with DataLoader(recorder, max_batch_size=2, schedule=schedule) as loader:
            loader.load(1)
            await anyio.lowlevel.checkpoint()
            loader.load(2)
            rounds = 0
            while not recorder.calls:
                await anyio.lowlevel.checkpoint()
                rounds += 1
        return rounds

    assert await rounds_until_called(schedules.quiescent()) == 1
    assert await rounds_until_called(schedules.rounds(50)) == 1


async def test_a_function_that_swallows_its_cancellation_costs_no_later_batch() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        if keys == [0]:
            try:
                await anyio.sleep_forever()
            except BaseException:
                pass
        return keys

    async with DataLoader(fetch, max_batch_size=1) as loader:
        async with anyio.create_task_group() as tg:
            tg.start_soon(loader.load(0).wait)
            await wait_all_tasks_blocked()
            tg.cancel_scope.cancel()
        loads = []
        for key in range(1, 20):
            loads.append(loader.load(key))
            await anyio.lowlevel.checkpoint()
        assert [await load for load in loads] == list(range(1, 20))


@pytest.mark.parametrize(("number", "kind"), [(1, iter), (3, tuple)], ids=["too few", "too many"])
async def test_values_are_counted_where_that_can_be_done(number: int, kind: Any) -> None:
    async def fetch(keys: list[int]) -> Any:
        return kind([1, 2, 3][:number])

    async with DataLoader[int, int](fetch) as loader:
        with pytest.raises(BatchResultError, match=rf"returned {number} values? for 2 keys"):
            await loader.load_many([1, 2])


async def test_with_the_cache_off_a_cache_key_is_of_no_use_to_a_batch() -> None:
    async with DataLoader(Recorder[int, int](abs), cache=False, get_cache_key=str) as loader:
        first, second = loader.load(-1), loader.load(-2)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await first
        assert await second == 2


async def test_a_loader_whose_block_has_ended_can_be_primed_in_a_scope() -> None:
    async with LoaderScope():
        async with DataLoader(Recorder[int, int](abs)) as loader:
            pass
        handle = loader.prime(1, 10).peek(1)
        assert handle is not None
        assert await handle == 10


async def test_leaving_hears_of_a_key_that_is_primed_meanwhile() -> None:
    limiter = anyio.CapacityLimiter(1)
    recorder = Recorder[int, int](abs)
    got: list[int] = []

    async def wait_for(load: LoadHandle[int]) -> None:
        got.append(await load)

    async def prime_later(loader: DataLoader[int, int]) -> None:
        await wait_all_tasks_blocked()
        loader.prime(1, 10, force=True)

    with anyio.fail_after(5):
        async with limiter, anyio.create_task_group() as tg:
            async with DataLoader(recorder, limiter=limiter) as loader:
                tg.start_soon(wait_for, loader.load(1))
                loader.load(2)
                await wait_all_tasks_blocked()
                tg.start_soon(prime_later, loader)
    assert got == [10]
    assert recorder.calls == []


@pytest.mark.only_on("asyncio")
async def test_a_task_can_drive_a_handle_once_more_after_an_error() -> None:
    async with DataLoader(Recorder[int, int](abs)) as loader:
        handle = loader.load(-1)
        handle.send(None)
        with pytest.raises(ValueError):
            handle.throw(ValueError())
        handle.send(None)
        await wait_all_tasks_blocked()
        with pytest.raises(StopIteration) as stop:
            handle.send(None)
        assert stop.value.value == 1


def test_a_function_in_a_thread_keeps_its_name() -> None:
    def blocking(keys: list[int]) -> list[int]:
        return keys

    function: Any = in_thread(blocking)
    assert function.__name__ == "blocking"
    assert DataLoader(function).name.endswith("blocking")


async def test_a_scope_forgets_nothing_for_another_thread() -> None:
    async with LoaderScope() as scope:
        loader = scope.get(Recorder[int, int](abs))
        await loader.load(1)
        with pytest.raises(RuntimeError, match="another thread"):
            await anyio.to_thread.run_sync(scope.clear_all)
        assert loader.peek(1) is not None


@pytest.mark.virtual_time
async def test_a_batch_is_kept_for_the_sake_of_one_that_is_kept_for_another() -> None:
    """The last of the three was opened first."""

    async def fetch_c(keys: list[int]) -> list[int]:
        await anyio.sleep(3)
        return keys

    async def fetch_b(keys: list[int]) -> list[int]:
        load = c.load(1)
        await anyio.sleep(2)
        return [await load]

    async def fetch_a(keys: list[int]) -> list[int]:
        load = b.load(1)
        await anyio.sleep(1)
        return [await load]

    got: list[int] = []

    async def wait_for(load: LoadHandle[int]) -> None:
        got.append(await load)

    async with anyio.create_task_group() as tg:
        async with LoaderScope() as scope:
            a, b, c = scope.get(fetch_a), scope.get(fetch_b), scope.get(fetch_c)
            c.load(1)
            b.load(1)
            tg.start_soon(wait_for, a.load(1))
            await wait_all_tasks_blocked()
    assert got == [1]


@pytest.mark.parametrize("given", [False, True], ids=["own block", "given group"])
def test_a_plain_callback_of_the_loop_can_load(given: bool) -> None:
    """In one that anyio did not start, so that nothing says which library it is but the task."""
    loads: list[LoadHandle[int]] = []

    async def main() -> None:
        async with anyio.create_task_group() as tg, AsyncExitStack() as stack:
            loader = DataLoader(
                Recorder[int, int](abs), max_batch_size=1, task_group=tg if given else None
            )
            if not given:
                await stack.enter_async_context(loader)

            def load() -> None:
                loads.extend([loader.load(-1), loader.load(-2)])

            asyncio.get_running_loop().call_soon(load)
            await wait_all_tasks_blocked()
            assert [await load for load in loads] == [1, 2]

    asyncio.run(main())


async def test_the_error_of_an_unhashable_key_has_its_cause() -> None:
    async with DataLoader(Recorder[list[int], int](sum)) as loader:
        with pytest.raises(TypeError) as caught:
            loader.load([1])
        assert type(caught.value.__cause__) is TypeError


@pytest.mark.virtual_time
async def test_a_batch_remembers_all_that_it_is_wanted_for() -> None:
    """Two functions have loaded from it, and the first of them is awaited."""

    async def fetch(keys: list[int]) -> list[int]:
        await anyio.sleep(3)
        return keys

    async def awaited(keys: list[int]) -> list[int]:
        load = inner.load(1)
        await anyio.sleep(1)
        return [await load]

    async def other(keys: list[int]) -> list[int]:
        await anyio.sleep(0.1)
        inner.load(1)
        return keys

    got: list[int] = []

    async def wait_for(load: LoadHandle[int]) -> None:
        got.append(await load)

    async with anyio.create_task_group() as tg:
        async with LoaderScope() as scope:
            inner = scope.get(fetch)
            tg.start_soon(wait_for, scope.get(awaited).load(1))
            scope.get(other).load(1)
            await anyio.sleep(0.5)
    assert got == [1]


@pytest.mark.only_on("trio")
async def test_several_tasks_of_a_nursery_can_drive_one_handle() -> None:
    import trio

    gate = anyio.Event()
    async with DataLoader(Recorder[int, int](abs, gate=gate)) as loader:
        handle: Any = loader.load(1)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(lambda: handle)
            await wait_all_tasks_blocked()
            gate.set()
        assert await handle == 1


async def test_a_load_refused_as_the_group_has_ended_ends_those_that_are_queued() -> None:
    loader: Any = None
    queued: Any = None
    async with anyio.create_task_group() as tg:
        loader = DataLoader(
            Recorder[int, int](abs), task_group=tg, schedule=schedules.manual(), cache=False
        )
        queued = loader.load(1)
    assert queued.status.name == "PENDING"
    with pytest.raises(LoaderClosedError):
        loader.load(2)
    assert queued.status.name == "FAILED"


@pytest.mark.virtual_time
async def test_leaving_waits_for_a_batch_of_which_a_deferred_hit_is_awaited() -> None:
    ended: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        await anyio.sleep(1)
        ended.append(keys)
        return keys

    async with anyio.create_task_group() as tg:
        async with DataLoader(fetch, defer_hits=True) as loader:
            loader.prime(1, 1)
            loader.load(2)
            tg.start_soon(loader.load(1).wait)
            await wait_all_tasks_blocked()
    assert ended == [[2]]


async def test_hooks_hear_how_many_keys_of_a_stream_failed() -> None:
    told: list[Any] = []

    async def stream(keys: list[int]) -> AsyncIterator[tuple[int, int | Exception]]:
        for key in keys:
            yield key, ValueError() if key == 1 else key

    async with DataLoader(stream, hooks=[told.append]) as loader:
        await loader.load_many([1, 2, 3], return_exceptions=True)
        await wait_all_tasks_blocked()
    assert [event.errors for event in told if isinstance(event, BatchFinished)] == [1]


needs_task_group = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="asyncio.TaskGroup is new in Python 3.11"
)


def asyncio_group() -> Any:
    return getattr(asyncio, "TaskGroup")()  # noqa: B009 - unknown to checkers of 3.10


needs_eager_tasks = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="eager tasks are new in Python 3.12"
)


def run_with_eager_tasks(main: Callable[[], Awaitable[None]]) -> None:
    """Run it where the first step of a task is made inside the call that makes the task."""
    backend, options = backend_options("asyncio+eager")
    anyio.run(main, backend=backend, backend_options=options)


async def test_a_task_of_a_failed_batch_cannot_load_in_a_scope_that_is_being_left() -> None:
    failed, refused = anyio.Event(), anyio.Event()

    async def outlives_its_batch() -> None:
        await failed.wait()
        with pytest.raises(LoaderClosedError):
            scope.get(Recorder[int, int](abs))
        refused.set()

    async def fails(keys: list[int]) -> list[int]:
        tg.start_soon(outlives_its_batch)
        raise ValueError

    async def awaited(keys: list[int]) -> list[int]:
        failing = scope.get(fails).load(1)
        await failing.wait()
        failed.set()
        await refused.wait()
        return keys

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tg:
            async with LoaderScope() as scope:
                tg.start_soon(scope.get(awaited).load(1).wait)
                await wait_until_queued(scope)
    assert refused.is_set()


async def wait_until_queued(scope: LoaderScope) -> None:
    """Let the tasks that were just started make their first step, but no batch go."""
    while not scope.statistics().running:
        await anyio.lowlevel.checkpoint()


async def test_a_load_many_that_failed_at_once_fails_again() -> None:
    """While other keys of the same batch are pending."""
    async with DataLoader(Recorder[int, int](abs), schedule=schedules.manual()) as loader:
        many = loader.load_many([1, 2])
        errors: list[Exception] = []

        async def wait_for() -> None:
            try:
                await many
            except ValueError as exc:
                errors.append(exc)

        async with anyio.create_task_group() as tg:
            tg.start_soon(wait_for)
            await wait_all_tasks_blocked()
            loader.prime(1, ValueError(), force=True)
        await wait_for()
        assert len(errors) == 2


async def call_middleware(app: Any, *messages: str) -> None:
    """Call an application in the middleware, by a client that says this and then no more."""
    said = [{"type": f"http.{message}"} for message in reversed(messages)]

    async def receive() -> Any:
        if not said:
            await anyio.sleep_forever()
        return said.pop()

    async def send(message: Any) -> None:
        raise AssertionError

    middleware = LoaderScopeMiddleware(app, cancel_on_disconnect=True)
    await middleware({"type": "http"}, receive, send)


async def test_a_request_whose_client_has_gone_ends_without_a_cancellation() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await anyio.sleep_forever()

    returned: list[bool] = []
    with anyio.CancelScope() as scope:
        await call_middleware(app, "request", "disconnect")
        returned.append(True)
    assert returned
    assert not scope.cancelled_caught


async def test_what_cancels_a_request_from_outside_comes_out_of_it() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        around.cancel()
        await anyio.sleep_forever()

    with anyio.CancelScope() as around:
        await call_middleware(app, "request")
        pytest.fail("returned")
    assert around.cancelled_caught


@pytest.mark.only_on("asyncio")
async def test_a_native_cancellation_of_a_request_comes_out_of_it() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await anyio.sleep_forever()

    task = asyncio.create_task(call_middleware(app, "request"))
    await wait_all_tasks_blocked()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_loader_that_no_loop_is_known_of_yet_can_be_primed() -> None:
    class Group:
        start_soon = None

    group: Any = Group()

    def make() -> DataLoader[int, int]:
        return DataLoader(Recorder[int, int](abs), task_group=group)

    loader = await anyio.to_thread.run_sync(make)
    primed = loader.clear_all().prime(1, 10).clear(2).peek(1)
    assert primed is not None
    assert primed.return_value == 10


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


async def test_each_stream_that_a_function_makes_is_closed() -> None:
    """Though it makes one too many, as only its result shows that it should get each key once."""
    closed: list[list[int]] = []

    class Stream:
        def __init__(self, keys: list[int]) -> None:
            self._keys = keys
            self._left = iter(keys)

        def __aiter__(self) -> AsyncIterator[tuple[int, int]]:
            return self

        async def __anext__(self) -> tuple[int, int]:
            for key in self._left:
                return key, abs(key)
            raise StopAsyncIteration

        async def aclose(self) -> None:
            closed.append(self._keys)

    function: Any = Stream
    async with DataLoader[int, int](function, cache=False) as loader:
        assert await loader.load_many([-1, -1]) == [1, 1]
        await wait_all_tasks_blocked()
    assert closed == [[-1, -1], [-1]]


async def test_what_a_stream_gave_before_it_was_cancelled_is_stored() -> None:
    class Values:
        def __init__(self) -> None:
            self.stored: dict[int, int] = {}

        async def get_many(self, keys: Any) -> Any:
            return {}

        async def set_many(self, items: Any) -> None:
            self.stored.update(items)

        async def delete_many(self, keys: Any) -> None:
            pass

    gate, values = anyio.Event(), Values()

    async def stream(keys: list[int]) -> AsyncIterator[tuple[int, int]]:
        yield 1, 10
        with anyio.CancelScope(shield=True):
            await gate.wait()
        yield 2, 20

    async with LoaderScope() as scope:
        loader = DataLoader(stream, value_cache=values)
        first, second = loader.load(1), loader.load(2)
        assert await first == 10
        scope.cancel("enough")
        gate.set()
    assert second.status is LoadHandle.Status.CANCELLED
    assert values.stored == {1: 10}


@needs_eager_tasks
def test_a_batch_does_not_leave_before_its_key_is_in() -> None:
    recorder = Recorder[int, int](abs)

    async def main() -> None:
        async with asyncio_group() as group:
            loader = DataLoader(recorder, task_group=group, schedule=schedules.rounds(0))
            with anyio.fail_after(5):
                assert await loader.load_many([1, 2]) == [1, 2]

    run_with_eager_tasks(main)
    assert recorder.calls == [[1, 2]]


@needs_eager_tasks
def test_a_batch_that_a_failing_group_cancels_adds_no_error_of_its_own() -> None:
    loads: list[LoadHandle[int]] = []

    async def main() -> None:
        async with asyncio_group() as group:
            loads.append(DataLoader(Recorder[int, int](abs), task_group=group).load(1))
            raise ValueError

    with pytest.raises(BaseException) as caught:
        run_with_eager_tasks(main)
    assert [type(exc) for exc in getattr(caught.value, "exceptions", ())] == [ValueError]
    assert loads[0].status is LoadHandle.Status.CANCELLED


async def test_a_batch_that_is_given_to_a_task_which_is_being_cancelled_goes_with_it() -> None:
    recorder = Recorder[int, int](abs)
    loads: list[LoadHandle[int]] = []
    with anyio.CancelScope() as scope:
        async with DataLoader(recorder, schedule=schedules.rounds(0)) as loader:
            await loader.load(1)
            await wait_all_tasks_blocked()
            scope.cancel()  # the task too, which waits for its next batch
            loads.append(loader.load(2))
            with anyio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
    assert loads[0].status is LoadHandle.Status.CANCELLED
    assert recorder.calls == [[1]]


@pytest.mark.only_on("asyncio")
@needs_task_group
async def test_a_group_that_fails_takes_no_loads_but_lets_a_batch_finish() -> None:
    gate, cleaned_up = anyio.Event(), anyio.Event()

    async def fetch(keys: list[int]) -> list[int]:
        try:
            await gate.wait()
        except asyncio.CancelledError:
            await cleaned_up.wait()
        return keys

    async def fail() -> None:
        raise ValueError

    handles: list[LoadHandle[int]] = []
    with pytest.raises(BaseException) as caught:
        async with asyncio_group() as group:
            loader = DataLoader(fetch, task_group=group, schedule=schedules.manual())
            handles.append(loader.load(1))
            loader.dispatch()
            await wait_all_tasks_blocked()
            group.create_task(fail())
            try:
                await anyio.sleep_forever()
            finally:
                with pytest.raises(LoaderClosedError):
                    loader.load(2)
                cleaned_up.set()
    assert [type(exc) for exc in getattr(caught.value, "exceptions", ())] == [ValueError]
    assert handles[0].return_value == 1


async def test_a_refused_load_many_wants_nothing_of_what_others_have_queued() -> None:
    class Refusing(dict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            if key == 2:
                raise MemoryError
            super().__setitem__(key, value)

    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, cache_map=Refusing()) as loader:
        first = loader.load(1)
        with pytest.raises(MemoryError):
            loader.load_many([1, 2])
        with anyio.CancelScope() as scope:
            scope.cancel()
            await first
        await wait_all_tasks_blocked()
    assert recorder.calls == []


async def test_a_loader_that_is_opened_in_a_block_is_counted_whoever_loads() -> None:
    """The task that loads was started before, so that it is in no such block itself."""
    opened = anyio.Event()
    loaders: list[DataLoader[int, int]] = []

    async def load() -> None:
        await opened.wait()
        await loaders[0].load(1)

    async with anyio.create_task_group() as tg:
        tg.start_soon(load)
        with pytest.raises(AssertionError, match="expected at most 0 batches, got 1"):
            with max_batches(0):
                async with DataLoader(Recorder[int, int](abs)) as loader:
                    loaders.append(loader)
                    opened.set()
                    await wait_all_tasks_blocked()


async def test_a_loader_that_has_loaded_nothing_cannot_be_entered_again() -> None:
    loader = DataLoader(Recorder[int, int](abs))
    async with loader:
        with pytest.raises(RuntimeError, match="entered once"):
            await loader.__aenter__()
        assert await loader.load(-1) == 1


async def test_a_key_joins_the_batch_that_a_hook_has_opened_last() -> None:
    once: list[object] = []

    def load_three(event: object) -> None:
        if isinstance(event, BatchOpened) and not once:
            once.append(event)
            for key in (-2, -3, -4):
                loader.load(key)

    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, max_batch_size=2, hooks=[load_three]) as loader:
        assert await loader.load(-1) == 1
        await wait_all_tasks_blocked()
    assert sorted(recorder.calls) == [[-4, -1], [-2, -3]]


async def test_a_scope_that_has_ended_can_be_cleared_from_anywhere() -> None:
    async with LoaderScope() as scope:
        loader = scope.get(Recorder[int, int](abs))
        await loader.load(1)
    await anyio.to_thread.run_sync(scope.clear_all)
    assert loader.statistics().cached == 0


def test_a_loader_whose_loop_has_ended_can_be_looked_into() -> None:
    loader = DataLoader(Recorder[int, int](abs))

    async def main() -> None:
        async with loader:
            await loader.load(-1)

    asyncio.run(main())
    assert loader.statistics().keys == 1
    assert loader.peek(-1) is None  # what it had loaded went with its scope
    assert loader.prime(-1, 2).clear_all().peek(-1) is None


async def test_a_batch_is_not_sent_if_what_was_wanted_of_it_is_primed() -> None:
    """The other key was given up while the batch waited for its token."""
    limiter = anyio.CapacityLimiter(1)
    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, limiter=limiter) as loader:
        await limiter.acquire_on_behalf_of(recorder)
        first, second = loader.load(1), loader.load(2)
        loader.dispatch()
        await wait_all_tasks_blocked()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await first
        loader.prime(2, 20, force=True)
        assert first.status is LoadHandle.Status.CANCELLED
        limiter.release_on_behalf_of(recorder)
        assert await second == 20
        await wait_all_tasks_blocked()
    assert recorder.calls == []


@coroutine
def step_by_step(steps: Any) -> Generator[Any, Any, Any]:
    """Await a coroutine as a task does: by its methods."""
    method, argument = steps.send, None
    while True:
        try:
            yielded = method(argument)
        except StopIteration as stop:
            return stop.value
        try:
            method, argument = steps.send, (yield yielded)
        except BaseException as exc:
            method, argument = steps.throw, exc


async def test_several_tasks_can_take_the_steps_of_one_handle() -> None:
    gate = anyio.Event()
    got: list[int] = []

    async def wait_for(handle: Any) -> None:
        got.append(await step_by_step(handle))

    async with DataLoader(Recorder[int, int](abs, gate=gate)) as loader:
        async with anyio.create_task_group() as tg:
            handle = loader.load(-1)
            for _ in range(3):
                tg.start_soon(wait_for, handle)
            await wait_all_tasks_blocked()
            gate.set()
    assert got == [1, 1, 1]


@pytest.mark.only_on("asyncio")
async def test_a_function_that_was_given_up_may_end_by_a_cancellation_of_its_own() -> None:
    gate, cleaned_up = anyio.Event(), anyio.Event()

    async def fetch(keys: list[int]) -> list[int]:
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            pass
        with anyio.CancelScope(shield=True):
            await cleaned_up.wait()
        raise asyncio.CancelledError  # such as that of a future which it has cancelled itself

    async with LoaderScope() as loaders:
        other = loaders.get(Recorder[int, int](abs, gate=gate)).load(-1)
        with anyio.CancelScope() as scope:
            load = loaders.get(fetch).load(1)
            await wait_all_tasks_blocked()
            scope.cancel()
            await load
        await wait_all_tasks_blocked()
        cleaned_up.set()
        await wait_all_tasks_blocked()
        gate.set()
        assert await other == 1


@pytest.mark.only_on("asyncio")
@pytest.mark.filterwarnings("ignore:coroutine 'Dispatcher._work' was never awaited")  # by anyio
async def test_a_scope_in_a_given_group_can_be_left_though_a_task_never_began() -> None:
    """It was cancelled natively in the round that it was made in, as asyncio.run() does at its end."""

    async def job() -> None:
        async with anyio.create_task_group() as tg:
            async with LoaderScope(tg) as scope:
                load = scope.get(Recorder[int, int](abs)).load(1)
                for task in asyncio.all_tasks():
                    if task.get_name().startswith("anyloader"):
                        task.cancel()
                await load

    with anyio.fail_after(5):
        await asyncio.create_task(job())
