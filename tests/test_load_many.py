"""``load_many``: the order of its results, its first error, and what it wants (contract 1)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from anyloader import (
    DataLoader,
    schedules,
)
from support import Recorder, wait_all_tasks_blocked
from support.handles import tens

pytestmark = pytest.mark.anyio


async def test_load_many_takes_any_iterable_once() -> None:
    async with DataLoader(tens) as loader:
        assert await loader.load_many(key for key in (3, 1, 3, 2)) == [30, 10, 30, 20]
        assert await loader.load_many({5: "a", 4: "b"}) == [50, 40]
        assert await loader.load_many([]) == []


async def test_load_many_gives_results_in_the_order_of_its_keys() -> None:
    """Though some are hits, some pending, and some new, in several batches."""
    async with DataLoader(tens, max_batch_size=2) as loader:
        await loader.load(4)
        loader.load(2)
        assert await loader.load_many([5, 4, 3, 2, 1, 4]) == [50, 40, 30, 20, 10, 40]


async def test_load_many_raises_the_error_of_the_first_failing_key() -> None:
    """First in the order of the keys, though another key has failed long ago."""
    gates = {key: anyio.Event() for key in (1, -2, -3)}

    async def gated(keys: list[int]) -> list[int | Exception]:
        await gates[keys[0]].wait()
        return await tens(keys)

    async with DataLoader(gated, batch=False) as loader:
        many = loader.load_many([1, -2, -3])
        seen: list[str] = []

        async def wait_for_many() -> None:
            with pytest.raises(ValueError, match="-2"):
                await many
            seen.append("raised")

        async with anyio.create_task_group() as tg:
            tg.start_soon(wait_for_many)
            for key in (-3, 1, -2):
                await wait_all_tasks_blocked()
                seen.append(f"{key} may end")
                gates[key].set()
        assert seen == ["-3 may end", "1 may end", "-2 may end", "raised"]


async def test_load_many_of_settled_keys_raises_the_error_of_the_first_failing_key() -> None:
    async with DataLoader(tens) as loader:
        await loader.load_many([-3, -2, 1], return_exceptions=True)
        for _ in range(2):
            with pytest.raises(ValueError, match="-2"):
                await loader.load_many([1, -2, -3])


async def test_load_many_puts_errors_in_place() -> None:
    async with DataLoader(tens, max_batch_size=2) as loader:
        many = loader.load_many([-1, 2, 3, -4], return_exceptions=True)
        first, *values, last = await many
    assert values == [20, 30]
    assert isinstance(first, ValueError)
    assert isinstance(last, ValueError)
    assert (str(first), str(last)) == ("-1", "-4")


async def test_load_many_puts_the_error_of_a_batch_in_place() -> None:
    error = OSError()

    async def fail_for_2(keys: list[int]) -> list[int]:
        if 2 in keys:
            raise error
        return keys

    async with DataLoader(fail_for_2, batch=False) as loader:
        assert await loader.load_many([1, 2, 3], return_exceptions=True) == [1, error, 3]
        with pytest.raises(OSError) as caught:
            await loader.load_many([1, 2, 3])
        assert caught.value is error


async def test_keys_can_come_from_any_iterable() -> None:
    def keys() -> Iterator[int]:
        yield from (1, 2)

    async with DataLoader(Recorder[int, int](abs)) as loader:
        assert await loader.load_many(keys()) == [1, 2]
        assert await loader.load_many([]) == []


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


async def test_load_many_says_what_it_takes() -> None:
    async with DataLoader(Recorder[int, int](abs)) as loader:
        keys: Any = 5
        with pytest.raises(TypeError, match="takes an iterable of keys, not an int"):
            loader.load_many(keys)


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


@pytest.mark.virtual_time
@pytest.mark.parametrize("keys", [[2, 3], [3]], ids=str)
async def test_a_load_many_that_the_cache_refused_wants_nothing(keys: list[int]) -> None:
    """What it has queued is taken back; the others of the batch can still be given up."""

    class Picky(dict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            if key == 3:
                raise ValueError("not this one")
            super().__setitem__(key, value)

    ended: list[list[int]] = []

    async def fetch(sent: list[int]) -> list[int]:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(sent)
        return sent

    async with DataLoader(fetch, cache_map=Picky()) as loader:
        load = loader.load(1)
        with pytest.raises(ValueError, match="not this one"):
            loader.load_many(keys)
        with anyio.move_on_after(1):
            await load
        await wait_all_tasks_blocked()
        assert ended == [[1]]


@pytest.mark.virtual_time
async def test_an_uncached_load_many_that_fills_a_batch_with_a_given_up_load_is_sent() -> None:
    calls: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        calls.append(keys)
        return keys

    manual = schedules.manual()
    async with DataLoader(fetch, cache=False, max_batch_size=2, schedule=manual) as loader:
        load = loader.load(1)
        with anyio.move_on_after(0):
            await load
        with anyio.fail_after(1):
            assert await loader.load_many([2]) == [2]
    assert calls == [[2]]


@pytest.mark.virtual_time
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
