"""Event loops in several threads at once: what they may share, and that nothing else mixes.

With the interpreter's lock the threads take turns, here often; in a free-threaded build they run at the
same time.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from anyio.lowlevel import checkpoint

from anyloader import (
    DataLoader,
    LoaderScope,
    batch_loader,
    in_thread,
    limit,
    schedules,
)
from anyloader.hooks import BatchSealed, BatchStarted, Event, LoadHit, LoadQueued, warn_unbatched
from anyloader.integrations.memory import MemoryValueCache
from anyloader.testing import max_batches
from support import BACKENDS, backend_options

#: Two of each kind of event loop.
THREADS = [*BACKENDS, *BACKENDS]
ROUNDS = 30

#: In which of the threads this runs.
place: ContextVar[int] = ContextVar("place")


@pytest.fixture(autouse=True)
def _taking_turns_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_threads(function: Callable[..., Any], *args: Any) -> list[Any]:
    """Run an async function in all of the threads at once, each with an event loop of its own."""
    results: dict[int, Any] = {}
    errors: list[BaseException] = []
    meeting = threading.Barrier(len(THREADS))

    async def start(number: int) -> Any:
        place.set(number)
        meeting.wait(30)
        with anyio.fail_after(30):
            return await function(*args)

    def run(number: int, name: str) -> None:
        library, options = backend_options(name)
        try:
            results[number] = anyio.run(start, number, backend=library, backend_options=options)
        except BaseException as exc:
            errors.append(exc)

    threads = [
        threading.Thread(target=run, args=arguments, daemon=True)
        for arguments in enumerate(THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    assert len(results) == len(THREADS), "a thread hangs"
    return [results[number] for number in range(len(THREADS))]


class Refused(Exception):
    pass


def test_loads_of_all_kinds_stay_in_their_thread() -> None:
    heard: list[tuple[int, Event]] = []

    def hook(event: Event) -> None:
        heard.append((place.get(), event))

    shared = limit(2)

    @batch_loader(name="fetch", limiter=shared, hooks=[hook, warn_unbatched()], max_batch_size=4)
    async def fetch(keys: list[int]) -> list[Any]:
        await checkpoint()
        return [Refused() if key == 13 else (place.get(), key) for key in keys]

    @batch_loader(limiter=shared, hooks=[hook])
    async def stream(keys: list[int]) -> AsyncIterator[tuple[int, Any]]:
        for key in keys:
            yield key, await fetch.load(key)

    @batch_loader(hooks=[hook])
    async def with_arguments(keys: list[int], *, factor: int) -> list[Any]:
        return [(place.get(), key * factor) for key in keys]

    def blocking(keys: list[int]) -> list[Any]:
        return [(place.get(), key) for key in keys]

    in_a_worker = batch_loader(in_thread(blocking))

    async def one(key: int, seen: list[Any]) -> None:
        seen.append(await fetch.load(key))

    async def request(start: int) -> int:
        here = place.get()
        async with LoaderScope() as scope:
            seen: list[Any] = []
            async with anyio.create_task_group() as tg:
                for key in range(start, start + 6):
                    tg.start_soon(one, key, seen)
            assert sorted(seen) == [(here, key) for key in range(start, start + 6)]
            assert await stream.load_many([start, 100, 101]) == [
                (here, key) for key in (start, 100, 101)
            ]
            factor = scope.get(with_arguments, factor=here)
            assert await factor.load_many([1, 2]) == [(here, here), (here, 2 * here)]
            assert await in_a_worker.load(start) == (here, start)
            with pytest.raises(Refused):
                await fetch.load(13)
            abandoned = fetch.load(200)
            with anyio.CancelScope() as cancelled:
                cancelled.cancel()
                await abandoned
            assert await fetch.load(201) == (here, 201)  # in a batch without 200
            fetch.clear(start).prime(start, "primed")
            assert await fetch.load(start) == "primed"
            statistics = scope.get(fetch).statistics()
            return statistics.loads

    async def requests() -> int:
        return sum([await request(1000 * number) for number in range(ROUNDS)])

    loads = in_threads(requests)
    assert len({*loads}) == 1
    for number in range(len(THREADS)):
        told = [event for where, event in heard if where == number]
        mine = [event for event in told if event.loader == "fetch"]
        assert sum(isinstance(event, LoadQueued | LoadHit) for event in mine) == loads[number]
        assert not any(200 in e.keys for e in mine if isinstance(e, BatchStarted))
        factors = [e.keys for e in told if isinstance(e, BatchStarted) and "factor" in e.loader]
        assert factors == [(1, 2)] * ROUNDS
    sealed = [event.batch for _, event in heard if isinstance(event, BatchSealed)]
    assert len(sealed) == len({*sealed})  # the numbers of batches


def test_a_value_cache_that_all_share_gives_each_key_its_value() -> None:
    calls: list[int] = []
    values = MemoryValueCache[int, str](30, 60)

    @batch_loader(value_cache=values)
    async def fetch(keys: Sequence[int]) -> list[str]:
        calls.append(len(keys))
        await checkpoint()
        return [f"value {key}" for key in keys]

    async def requests() -> None:
        rng = random.Random(place.get())
        for _ in range(ROUNDS):
            async with LoaderScope():
                keys = rng.sample(range(50), 20)
                assert await fetch.load_many(keys) == [f"value {key}" for key in keys]
                for key in keys[:3]:
                    fetch.clear(key)
                assert await fetch.load_many(keys) == [f"value {key}" for key in keys]

    in_threads(requests)
    assert 0 < sum(calls) < len(THREADS) * ROUNDS * 23

    async def all_of_them() -> None:
        async with LoaderScope():
            assert await fetch.load_many(range(50)) == [f"value {key}" for key in range(50)]

    anyio.run(all_of_them)
    assert "30 values" in repr(values)


def test_a_value_cache_serves_one_function_in_whatever_thread_it_is_first_used() -> None:
    async def first(keys: list[int]) -> list[int]:
        return keys

    async def second(keys: list[int]) -> list[int]:
        return keys

    async def use(cache: Any) -> str:
        function = (first, second)[place.get() % 2]
        try:
            async with DataLoader(function, value_cache=cache) as loader:
                await loader.load(1)
        except TypeError:
            return "refused"
        return function.__name__

    for _ in range(ROUNDS // 3):
        outcomes = in_threads(use, MemoryValueCache[int, int](10, None))
        assert {*outcomes} in ({"first", "refused"}, {"second", "refused"})
        assert outcomes.count("refused") == len(THREADS) // 2


def test_who_watches_a_block_hears_of_its_own_thread_only() -> None:
    @batch_loader
    async def fetch(keys: list[int]) -> list[int]:
        return keys

    async def requests() -> None:
        for number in range(ROUNDS):
            with max_batches(1):
                async with LoaderScope():
                    await fetch.load_many([number, number + 1])

    in_threads(requests)


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_share_the_loaders_of_a_portal(backend: str) -> None:
    calls: list[list[int]] = []
    inside: list[str] = []

    @batch_loader(schedule=schedules.window(0.002), hooks=[lambda event: inside.append(name())])
    async def fetch(keys: list[int]) -> list[int]:
        calls.append(keys)
        return [key * 10 for key in keys]

    def name() -> str:
        return threading.current_thread().name

    def work(portal: BlockingPortal, loader: Any, number: int) -> None:
        for key in range(ROUNDS):
            assert portal.call(loader.load, key) == key * 10
            own = 1000 * number + key
            assert portal.call(loader.load_many, [key, own]) == [key * 10, own * 10]
            with pytest.raises(RuntimeError, match=r"anyio\.from_thread"):
                loader.load(key)

    library, options = backend_options(backend)
    failed: list[BaseException] = []

    def attempt(*args: Any) -> None:
        try:
            work(*args)
        except BaseException as exc:
            failed.append(exc)

    with (
        start_blocking_portal(library, options) as portal,
        portal.wrap_async_context_manager(LoaderScope()) as scope,
    ):
        loader = portal.call(scope.get, fetch)
        threads = [
            threading.Thread(target=attempt, args=(portal, loader, number), daemon=True)
            for number in range(1, 5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failed
        loads = portal.call(loader.statistics).loads
        loop_thread = portal.call(name)
    assert loads == 4 * ROUNDS * 3
    keys = [key for call in calls for key in call]
    assert len(keys) == len({*keys}) == ROUNDS + 4 * ROUNDS  # each once
    assert {*inside} == {loop_thread}
