"""Cost grows with the work and no faster.

Counted are the lines and the calls of C functions that Python runs, at n and at 4 n; no clock.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import DataLoader, LoaderScope
from support import Recorder, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio

#: What may stand between four times the work and four times the steps.
MOST = 5.0

Work = Callable[[int], Awaitable[None]]


class Steps:
    """Counts while it is entered; what is before and after does not count."""

    def __init__(self) -> None:
        self.number = 0

    def _line(self, frame: object, event: str, arg: object) -> Any:
        self.number += 1
        return self._line

    def _call(self, frame: object, event: str, arg: object) -> None:
        self.number += event == "c_call"

    def __enter__(self) -> None:
        self._before = sys.gettrace(), sys.getprofile()
        sys.settrace(self._line)
        sys.setprofile(self._call)

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(self._before[0])
        sys.setprofile(self._before[1])


async def steps(work: Work, n: int) -> int:
    counter = Steps()
    with counter:
        await work(n)
    return counter.number


async def growth(work: Work, n: int) -> float:
    await work(2)  # what is made once is made here
    few = await steps(work, n)
    return await steps(work, 4 * n) / few


async def fetch(keys: list[int]) -> list[int]:
    return keys


async def stream(keys: list[int]) -> AsyncIterator[tuple[int, int]]:
    for key in keys:
        await checkpoint()
        yield key, key


async def one_by_one(handles: Sequence[Any]) -> None:
    for handle in handles:
        await handle


WORK: dict[str, tuple[Work, int]] = {}


def shape(n: int) -> Callable[[Work], Work]:
    def add(work: Work) -> Work:
        WORK[work.__name__] = (work, n)
        return work

    return add


# --- inside of a block ---


@shape(50)
async def waiters_on_one_key(n: int) -> None:
    async with DataLoader(fetch) as loader, anyio.create_task_group() as tg:
        for _ in range(n):
            tg.start_soon(loader.load(1).wait)


@shape(50)
async def waiters_on_one_handle(n: int) -> None:
    async with DataLoader(fetch) as loader, anyio.create_task_group() as tg:
        handle = loader.load(1)
        for _ in range(n):
            tg.start_soon(handle.wait)


@shape(100)
async def keys_in_one_batch(n: int) -> None:
    async with DataLoader(fetch) as loader:
        await one_by_one([loader.load(key) for key in range(n)])


@shape(50)
async def batches_in_one_scope(n: int) -> None:
    async with LoaderScope(), anyio.create_task_group() as tg:
        for _ in range(n):
            tg.start_soon(DataLoader(fetch).load(1).wait)


@shape(50)
async def batches_in_one_scope_one_after_the_other(n: int) -> None:
    async with LoaderScope():
        loader = DataLoader(fetch)
        for key in range(n):
            await loader.load(key)


@shape(25)
async def a_chain_of_functions(n: int) -> None:
    """Each of n functions, with a loader of its own, loads from the next."""

    def function(number: int) -> Any:
        async def link(keys: list[int]) -> list[int]:
            return await loaders[number + 1].load_many(keys) if number < n else keys

        return link

    async with LoaderScope():
        loaders = [DataLoader[int, int](function(number)) for number in range(n + 1)]
        await loaders[0].load(1)


@shape(50)
async def all_cleared_after_each_load_with_a_second_level(n: int) -> None:
    async with DataLoader(fetch, value_cache=Values(), cache="pending") as loader:
        for key in range(n):
            await loader.load(key)
            loader.clear_all()


@shape(25)
async def a_stream_and_load_manys(n: int) -> None:
    async with DataLoader(stream) as loader, anyio.create_task_group() as tg:
        for number in range(n):
            tg.start_soon(loader.load_many, range(3 * number, 3 * number + 3))


@shape(50)
async def a_stream_and_loads(n: int) -> None:
    async with DataLoader(stream) as loader, anyio.create_task_group() as tg:
        for number in range(n):
            tg.start_soon(loader.load, number)


@shape(50)
async def a_list_and_load_manys(n: int) -> None:
    async with DataLoader(fetch) as loader, anyio.create_task_group() as tg:
        for number in range(n):
            tg.start_soon(loader.load_many, range(3 * number, 3 * number + 3))


@shape(100)
async def values_forced_into_a_batch_that_waits(n: int) -> None:
    limiter = anyio.CapacityLimiter(1)
    async with DataLoader(fetch, limiter=limiter) as loader:
        async with limiter:
            many = loader.load_many(range(n))
            for _ in range(8):
                await checkpoint()
            loader.prime_many({key: key for key in range(n)}, force=True)
        assert len(await many) == n


class Values:
    async def get_many(self, keys: Sequence[int]) -> Mapping[int, int]:
        return {}

    async def set_many(self, items: Mapping[int, int]) -> None:
        pass

    async def delete_many(self, keys: Sequence[int]) -> None:
        pass


@shape(100)
async def keys_cleared_while_batches_are_out(n: int) -> None:
    """There are as many batches as keys to forget."""
    limiter = anyio.CapacityLimiter(1)
    options: Any = {"limiter": limiter, "batch": False, "value_cache": Values()}
    async with DataLoader(fetch, **options) as loader:
        async with limiter:
            loader.load_many(range(n // 4))
            loader.clear_many(range(n))
        loader.clear_all()


@shape(40)
async def keys_cleared_while_they_are_stored(n: int) -> None:
    """Each batch stores one of them, and others come meanwhile."""

    class Slow(Values):
        async def set_many(self, items: Mapping[int, int]) -> None:
            await gate.wait()

    gate = anyio.Event()
    options: Any = {"batch": False, "value_cache": Slow()}
    async with DataLoader(fetch, **options) as loader:
        await loader.load_many(range(n))
        loader.clear_many(range(n))
        for key in range(n, 2 * n):
            await loader.load(key)
        gate.set()


class Deletes(Values):
    """Looks at each key that it is to delete, as Redis does."""

    async def delete_many(self, keys: Sequence[int]) -> None:
        for key in keys:
            hash(key)


@shape(50)
async def keys_cleared_while_others_are_deleted(n: int) -> None:
    class Slow(Deletes):
        async def delete_many(self, keys: Sequence[int]) -> None:
            await super().delete_many(keys)
            await gate.wait()

    gate = anyio.Event()
    async with DataLoader(fetch, value_cache=Slow()) as loader:
        for key in range(n):
            loader.clear(key)
            await checkpoint()
        gate.set()


@shape(200)
async def keys_cleared_that_cannot_be_deleted(n: int) -> None:
    class Broken(Deletes):
        async def delete_many(self, keys: Sequence[int]) -> None:
            await super().delete_many(keys)
            raise ConnectionError

    async with DataLoader(fetch, value_cache=Broken()) as loader:
        for key in range(n):
            loader.clear(key)
            await checkpoint()


@shape(50)
async def waiters_that_give_up(n: int) -> None:
    limiter = anyio.CapacityLimiter(1)
    async with limiter, DataLoader(fetch, limiter=limiter) as loader:
        async with anyio.create_task_group() as tg:
            for key in range(n):
                tg.start_soon(loader.load(key).wait)
            for _ in range(4):
                await checkpoint()
            tg.cancel_scope.cancel()


# --- leaving ---


@shape(50)
async def leaving_batches_of_one(n: int) -> None:
    async with anyio.create_task_group() as tg:
        options: Any = {"batch": False, "limiter": anyio.CapacityLimiter(1)}
        async with DataLoader(fetch, **options) as loader:
            for key in range(n):
                tg.start_soon(loader.load(key).wait)


@shape(50)
async def leaving_a_stream_awaited_one_by_one(n: int) -> None:
    async with anyio.create_task_group() as tg:
        async with DataLoader(stream) as loader:
            tg.start_soon(one_by_one, [loader.load(key) for key in range(n)])
            await checkpoint()
            await checkpoint()


@shape(40)
async def leaving_while_waiters_give_up_one_a_round(n: int) -> None:
    gate = anyio.Event()

    async def gated(keys: list[int]) -> list[int]:
        await gate.wait()
        return keys

    scopes = [anyio.CancelScope() for _ in range(n)]

    async def waits(scope: anyio.CancelScope, handle: Any) -> None:
        with scope:
            await handle

    async def gives_up() -> None:
        for _ in range(8):
            await checkpoint()
        for scope in scopes:
            scope.cancel()
            await checkpoint()

    async with anyio.create_task_group() as tg:
        async with DataLoader(gated) as loader:
            for key, scope in enumerate(scopes):
                tg.start_soon(waits, scope, loader.load(key))
            tg.start_soon(gives_up)
            await checkpoint()


def chain(depth: int) -> DataLoader[int, int]:
    async def deeper(keys: list[int]) -> list[int]:
        return [0 if key == 0 else await loader.load(key - 1) for key in keys]

    loader = DataLoader(deeper)
    return loader


@shape(25)
async def a_deep_chain_in_the_block(n: int) -> None:
    async with chain(n) as loader:
        await loader.load(n)


@shape(25)
async def leaving_a_deep_chain(n: int) -> None:
    async with anyio.create_task_group() as tg:
        async with chain(n) as loader:
            tg.start_soon(loader.load(n).wait)


@shape(25)
async def cancelling_a_deep_chain_and_leaving(n: int) -> None:
    reached = anyio.Event()

    async def deeper(keys: list[int]) -> list[int]:
        if keys == [0]:
            reached.set()
            await anyio.sleep_forever()
        return await loader.load_many([key - 1 for key in keys])

    async with DataLoader(deeper) as loader:
        async with anyio.create_task_group() as tg:
            tg.start_soon(loader.load(n).wait)
            await reached.wait()
            tg.cancel_scope.cancel()


@shape(30)
async def loads_beside_a_running_chain(n: int) -> None:
    """n functions await the head of a chain of n."""
    reached = anyio.Event()
    go_on = anyio.Event()

    async def deeper(keys: list[int]) -> list[int]:
        if keys == [0]:
            reached.set()
            await go_on.wait()
            return keys
        return await links.load_many([key - 1 for key in keys])

    async def head(keys: list[int]) -> list[int]:
        await links.load(n)
        return keys

    async with LoaderScope():
        links, heads = DataLoader(deeper), DataLoader(head, batch=False)
        links.load(n)
        await reached.wait()
        async with anyio.create_task_group() as tg:
            for key in range(n):
                tg.start_soon(heads.load(key).wait)
            for _ in range(12):
                await checkpoint()
            go_on.set()


@shape(40)
async def a_function_with_many_awaits_under_a_limiter(n: int) -> None:
    """The tokens are all taken by others, so that each await has to be looked into."""
    limiter = anyio.CapacityLimiter(n)
    gate = anyio.Event()

    async def gated(keys: list[int]) -> list[int]:
        await gate.wait()
        return keys

    async def outer(keys: list[int]) -> list[int]:
        async with anyio.create_task_group() as tg:
            for key in range(n):
                tg.start_soon(inner.load(1_000 + key).wait)
            for _ in range(8):
                await checkpoint()
            gate.set()
        return keys

    async with LoaderScope():
        inner = DataLoader(gated, batch=False, limiter=limiter)
        inner.load_many(range(n))
        for _ in range(8):
            await checkpoint()
        await DataLoader(outer).load(1)


@pytest.mark.parametrize("name", WORK)
async def test_four_times_the_work_takes_at_most_five_times_the_steps(name: str) -> None:
    work, n = WORK[name]
    assert await growth(work, n) <= MOST


@pytest.mark.parametrize("order", ["the last one", "from the first", "from the last"])
async def test_the_deadlock_search_in_a_dense_graph_grows_with_its_edges(order: str) -> None:
    """Each of m functions awaits all lower ones: m * (m - 1) / 2 edges."""

    async def dense(m: int) -> None:
        loaders: list[DataLoader[int, int]] = []

        def function(lower: int) -> Any:
            async def fetch(keys: list[int]) -> list[int]:
                async with anyio.create_task_group() as tg:
                    for loader in loaders[:lower]:
                        tg.start_soon(loader.load(1).wait)
                return keys

            return fetch

        async with LoaderScope():
            loaders.extend(DataLoader[int, int](function(number)) for number in range(m))
            first = {"the last one": loaders[-1:], "from the first": loaders}
            async with anyio.create_task_group() as tg:
                for loader in first.get(order, loaders[::-1]):
                    tg.start_soon(loader.load(1).wait)

    def edges(m: int) -> int:
        return m * (m - 1) // 2

    await dense(3)
    few, many = 20, 40
    ratio = await steps(dense, many) / await steps(dense, few)
    assert ratio <= 1.25 * edges(many) / edges(few)


async def test_a_thing_that_is_quadratic_is_found_out() -> None:
    async def quadratic(n: int) -> None:
        for _ in range(n):
            for _ in range(n):
                pass

    assert await growth(quadratic, 50) > MOST


@contextmanager
def counting(steps: list[str]) -> Iterator[None]:
    """Note the lines of this package that run, each turn of a loop anew."""

    def trace_lines(frame: FrameType, event: str, arg: object) -> Any:
        steps.append(frame.f_code.co_name)
        return trace_lines

    def trace_calls(frame: FrameType, event: str, arg: object) -> Any:
        ours = frame.f_globals.get("__package__") == "anyloader"
        return trace_lines if ours else None

    before = sys.gettrace()
    sys.settrace(trace_calls)
    try:
        yield
    finally:
        sys.settrace(before)


async def steps_of_cancelling(n: int, load: Callable[[DataLoader[int, int], int], Any]) -> int:
    """Cancel ``n`` waiting tasks; say in how many steps."""
    steps: list[str] = []

    async def wait(one: Any) -> None:
        await one

    async with DataLoader(Recorder[int, int](abs, gate=anyio.Event())) as loader:
        async with anyio.create_task_group() as tg:
            for key in range(n):
                tg.start_soon(wait, load(loader, key))
            await wait_all_tasks_blocked()
            with anyio.CancelScope(shield=True), counting(steps):
                tg.cancel_scope.cancel()
                await wait_all_tasks_blocked()
        assert loader.statistics().running == 0
    return len(steps)


def of_one_key(loader: DataLoader[int, int], key: int) -> Any:
    return loader.load(0)


def one_handle(loader: DataLoader[int, int], key: int) -> Any:
    return loader.peek(0) or loader.load(0)


def many_of_one(loader: DataLoader[int, int], key: int) -> Any:
    return loader.load_many([key])


@pytest.mark.parametrize(
    "load",
    [DataLoader.load, of_one_key, one_handle, many_of_one],
    ids=["a key each", "one key", "one handle", "a load_many each"],
)
async def test_cancelling_n_waiters_takes_steps_in_proportion_to_n(load: Any) -> None:
    few, many = await steps_of_cancelling(50, load), await steps_of_cancelling(200, load)
    assert few > 50
    assert many < 5 * few


async def steps_of_clearing(n: int) -> int:
    """Clear a scope of ``n`` loaders, each of which has a batch; say in how many steps."""
    steps: list[str] = []
    async with LoaderScope() as scope:
        for key in range(n):
            DataLoader(fetch, value_cache=Values()).load(key)
        with counting(steps):
            scope.clear_all()
    return len(steps)


async def test_clearing_a_scope_takes_steps_in_proportion_to_its_loaders() -> None:
    few, many = await steps_of_clearing(50), await steps_of_clearing(200)
    assert few > 50
    assert many < 5 * few


async def test_clearing_a_loader_without_a_value_cache_looks_at_no_batches() -> None:
    counts = []
    for n in (1, 50):
        steps: list[str] = []
        async with LoaderScope():
            loaders = [DataLoader(fetch) for _ in range(n)]
            for loader in loaders:
                loader.load(1)
            with counting(steps):
                loaders[0].clear_all()
        counts.append(len(steps))
    assert counts[0] == counts[1] > 0
