"""A key and its entry enter in one step; no refused load leaves a trace (contract 1, 5.1).

That is whatever a ``cache_map`` does, and wherever an interrupt hits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import pytest

import anyloader
from anyloader import DataLoader, LoaderError, LoadHandle, schedules
from support import Recorder, run_shuffled, wait_all_tasks_blocked

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]


def times_ten(key: int) -> int:
    return key * 10


# --- a load_many claims what it found before anything can seal ---


@pytest.mark.parametrize("keys", [[4, 7], [4, 7, 8], [7, 4], [4, 5, 7]])
@pytest.mark.parametrize("size", [2, 3])
async def test_a_load_many_revives_a_key_that_somebody_gave_up(keys: list[int], size: int) -> None:
    fetch = Recorder[int, int](times_ten)
    async with DataLoader(fetch, max_batch_size=size) as loader:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await loader.load(7)
        assert await loader.load_many(keys) == [key * 10 for key in keys]
        assert await loader.load(7) == 70


async def test_so_do_loads_one_after_the_other() -> None:
    async with DataLoader(Recorder[int, int](times_ten), max_batch_size=2) as loader:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await loader.load(7)
        first, second = loader.load(4), loader.load(7)
        assert [await first, await second] == [40, 70]


# --- a cache_map that refuses what it has stored ---


class Journal(dict[Any, Any]):
    """Stores, and then fails to write it down."""

    def __init__(self, *broken: int) -> None:
        super().__init__()
        self.broken = set(broken)

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        if key in self.broken:
            raise OSError("disk full")


Load = Callable[[DataLoader[int, int], int], Any]
LOADS: dict[str, Load] = {
    "load": lambda loader, key: loader.load(key),
    "load_many": lambda loader, key: loader.load_many([key]),
    "load_many of several": lambda loader, key: loader.load_many([8, key, 9]),
}
every_load = pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)


@every_load
async def test_a_load_that_the_cache_refused_leaves_no_trace(load: Load) -> None:
    fetch, journal = Recorder[int, int](times_ten), Journal(1)
    async with DataLoader(fetch, cache_map=journal) as loader:
        with pytest.raises(OSError, match="disk full"):
            load(loader, 1)
        assert loader.peek(1) is None
        assert loader.statistics().queued == 0
        journal.broken.clear()
        with anyio.fail_after(5):
            assert await loader.load(1) == 10
            assert await loader.load_many([8, 9]) == [80, 90]
    assert fetch.calls == [[1], [8, 9]]


@every_load
async def test_keys_beside_it_get_their_own_values(load: Load) -> None:
    fetch, journal = Recorder[int, int](times_ten), Journal(1)
    async with DataLoader(fetch, cache_map=journal) as loader:
        before = loader.load(2)
        with pytest.raises(OSError, match="disk full"):
            load(loader, 1)
        journal.broken.clear()
        after = loader.load(3)
        with anyio.fail_after(5):
            assert [await before, await after, await loader.load(1)] == [20, 30, 10]


async def test_a_hit_deferred_after_a_refused_load_does_not_hang() -> None:
    fetch, journal = Recorder[int, int](times_ten), Journal()
    options: Any = {"cache_map": journal, "schedule": schedules.manual(), "defer_hits": True}
    async with DataLoader(fetch, **options) as loader:
        loader.prime(2, 20)
        journal.broken.add(1)
        with pytest.raises(OSError, match="disk full"):
            loader.load(1)
        hit = loader.load(2)
        loader.dispatch()
        with anyio.fail_after(5):
            assert await hit == 20
    assert fetch.calls == []


async def test_a_cache_that_refuses_every_key() -> None:
    class Refusing(dict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            raise OSError("read-only")

    fetch = Recorder[int, int](times_ten)
    async with DataLoader(fetch, cache_map=Refusing()) as loader:
        for _ in range(3):
            with pytest.raises(OSError, match="read-only"):
                loader.load(1)
            with pytest.raises(OSError, match="read-only"):
                loader.load_many([1, 2])
        await wait_all_tasks_blocked()
        assert loader.statistics().queued == 0
    assert fetch.calls == []


# --- a cache_map that does something else ---


class Meddling(dict[Any, Any]):
    """Calls a function when a key is stored."""

    meddle: Callable[[Any], object] = staticmethod(lambda key: None)

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        self.meddle(key)


@every_load
async def test_a_cache_that_dispatches(load: Load) -> None:
    cache = Meddling()
    async with DataLoader(Recorder[int, int](times_ten), cache_map=cache) as loader:
        cache.meddle = lambda key: loader.dispatch()
        before, handle, after = loader.load(2), load(loader, 1), loader.load(3)
        with anyio.fail_after(5):
            value = await handle
            assert value in (10, [10], [80, 10, 90])
            assert [await before, await after] == [20, 30]
            assert await loader.load(1) == 10


@every_load
async def test_a_cache_that_loads_another_key(load: Load) -> None:
    others: list[LoadHandle[int]] = []
    cache = Meddling()
    async with DataLoader(Recorder[int, int](times_ten), cache_map=cache) as loader:
        cache.meddle = lambda key: others.append(loader.load(key + 100)) if key < 100 else None
        before, handle, after = loader.load(2), load(loader, 1), loader.load(3)
        with anyio.fail_after(5):
            assert await handle in (10, [10], [80, 10, 90])
            assert [await before, await after] == [20, 30]
            for other in others:
                assert await other == other.key * 10


@every_load
async def test_a_cache_that_clears_what_it_stored(load: Load) -> None:
    cache = Meddling()
    async with DataLoader(Recorder[int, int](times_ten), cache_map=cache) as loader:
        cache.meddle = lambda key: loader.clear(key)
        with anyio.fail_after(5):
            assert await load(loader, 1) in (10, [10], [80, 10, 90])
            assert await loader.load(1) == 10


# --- an interrupt anywhere in a load ---

_PACKAGE = str(Path(anyloader.__file__).parent)


class Interrupt(BaseException):
    """As a ``KeyboardInterrupt``, which lands on any line."""


@contextmanager
def interrupt_at(line: int) -> Iterator[list[int]]:
    """Raise an ``Interrupt`` at the n-th line that the package runs; give how many there were."""
    seen = [0]

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if not frame.f_code.co_filename.startswith(_PACKAGE):
            return None
        if event == "line":
            seen[0] += 1
            if seen[0] == line:
                raise Interrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(before)


async def interrupted(load: Load, options: dict[str, Any], line: int) -> bool:
    """Interrupt one of three loads; all that is answered has to be right, and nothing hangs."""

    async def value_of(key: int, handle: Any) -> None:
        try:
            value = await handle
        except LoaderError:
            return
        assert value in (key * 10, [key * 10], [80, key * 10, 90]), f"line {line}: key {key}"

    was_interrupted = False
    async with DataLoader(Recorder[int, int](times_ten), **options) as loader:
        await loader.load(0)
        loads = [(2, loader.load(2))]
        with interrupt_at(line):
            try:
                loads.append((1, load(loader, 1)))
            except Interrupt:
                was_interrupted = True
        loads.append((3, loader.load(3)))
        with anyio.fail_after(5):
            for key, handle in loads:
                await value_of(key, handle)
            for key in (1, 2, 3, 8, 9):
                await value_of(key, loader.load(key))
            await value_of(7, loader.load(7))
            assert await loader.load(7) == 70
    return was_interrupted


@every_load
@pytest.mark.parametrize(
    "options", [{}, {"max_batch_size": 2}, {"cache": False}], ids=["plain", "full", "no cache"]
)
def test_an_interrupt_on_any_line_of_a_load_shifts_no_value_and_hangs_nobody(
    shuffled_backend: str, load: Load, options: dict[str, Any]
) -> None:
    line = 1
    while run_shuffled(shuffled_backend, 0, interrupted, load, options, line):
        line += 1
    assert line > 5


# --- a result whose length no longer fits ---


async def test_a_list_of_keys_that_the_function_changes_shifts_nothing() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        values = [key * 10 for key in keys]
        keys.clear()
        return values

    async with DataLoader(fetch) as loader:
        assert await loader.load_many([1, 2, 3]) == [10, 20, 30]
