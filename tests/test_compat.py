"""``anyloader.compat``: aiodataloader's behaviours, but for those that the documentation names."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyloader import LoadCancelledError, LoaderNotOpenError, LoaderScope
from anyloader.compat import DataLoader, LoadFuture
from support import BACKENDS, Recorder, backend_options, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio

PYDANTIC_RESOLVE = Path(__file__).parents[1] / "docs" / "how-to" / "pydantic_resolve_app.py"


def same(key: Any) -> Any:
    return key


def odd_fails(key: int) -> Any:
    return ValueError(f"odd: {key}") if key % 2 else key


class Noted(Exception):
    pass


# --- the constructor ---


async def test_arguments_can_be_positional() -> None:
    fetch = Recorder[str, str](same)
    cache: dict[Any, Any] = {}
    loader = DataLoader(fetch, True, 2, True, str.lower, cache)
    async with LoaderScope():
        assert await loader.load_many(["A", "a", "B", "C"]) == ["A", "A", "B", "C"]
    assert sorted(fetch.calls) == [["A", "B"], ["C"]]
    assert set(cache) == {"a", "b", "c"}


async def test_the_loop_is_ignored_with_a_warning_that_points_at_the_caller() -> None:
    loop: Any = object()
    with pytest.warns(DeprecationWarning, match="loop is ignored") as warnings:
        DataLoader(Recorder[int, int](same), None, None, None, None, None, loop)
    assert [warning.filename for warning in warnings] == [__file__]


async def test_none_stands_for_the_class_attribute() -> None:
    class Pairs(DataLoader[int, int]):
        max_batch_size = 2
        cache = False

        async def batch_load_fn(self, keys: list[int]) -> list[int]:
            calls.append(keys)
            return keys

    calls: list[list[int]] = []
    async with LoaderScope():
        await Pairs(None, None, None, None).load_many([1, 1, 2])
    assert sorted(calls) == [[1, 1], [2]]


async def test_a_subclass_can_define_get_cache_key() -> None:
    class Folding(DataLoader[str, str]):
        def get_cache_key(self, key: str) -> str:
            return key.lower()

        async def batch_load_fn(self, keys: list[str]) -> list[str]:
            return keys

    async with LoaderScope():
        assert await Folding().load_many(["A", "a"]) == ["A", "A"]


async def test_options_of_anyloader_are_taken_by_name() -> None:
    async def nothing(keys: list[int]) -> Any:
        return {}

    async with LoaderScope():
        assert await DataLoader(nothing, on_missing=lambda key: -key).load(1) == -1


def test_a_loader_is_named_after_its_function_and_a_subclass_after_itself() -> None:
    class Own(DataLoader[int, int]):
        pass

    function: Any = odd_fails
    loaders = DataLoader(function), DataLoader(function, name="other"), Own(function)
    assert [loader.name for loader in loaders] == ["odd_fails", "other", Own.__qualname__]


def test_a_loader_can_be_made_before_there_is_a_loop() -> None:
    DataLoader(Recorder[int, int](same))


@pytest.mark.parametrize("size", [0, -1])
def test_a_max_batch_size_below_one_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="max_batch_size"):
        DataLoader(Recorder[int, int](same), max_batch_size=size)


async def test_without_a_scope_a_load_is_refused() -> None:
    with pytest.raises(LoaderNotOpenError):
        DataLoader(Recorder[int, int](same)).load(1)


# --- aiodataloader's own behaviours ---


async def test_loads_of_one_step_share_a_batch() -> None:
    fetch = Recorder[int, int](same)
    async with LoaderScope():
        loader = DataLoader(fetch)
        one, two = loader.load(1), loader.load(2)
        assert [await one, await two] == [1, 2]
        assert await loader.load_many([]) == []
    assert fetch.calls == [[1, 2]]


async def test_a_batch_function_can_be_a_partial() -> None:
    async def fetch(names: dict[int, str], keys: list[int]) -> list[str | None]:
        return [names.get(key) for key in keys]

    async with LoaderScope():
        assert await DataLoader(partial(fetch, {1: "one"})).load_many([1, 2]) == ["one", None]


async def test_one_key_is_fetched_once_until_it_is_cleared() -> None:
    fetch = Recorder[str, str](same)
    async with LoaderScope():
        loader = DataLoader(fetch)
        await loader.load_many(["A", "B", "A"])
        await loader.load_many(["A", "C"])
        assert loader.clear("A").clear("never loaded") is loader
        await loader.load_many(["A", "B"])
        await loader.clear_all().load("B")
    assert fetch.calls == [["A", "B"], ["C"], ["A"], ["B"]]


async def test_batch_false_means_batches_of_one() -> None:
    fetch = Recorder[int, int](same)
    async with LoaderScope():
        await DataLoader(fetch, batch=False).load_many([1, 2])
    assert sorted(fetch.calls) == [[1], [2]]


async def test_priming_overwrites_nothing_and_takes_errors() -> None:
    fetch = Recorder[str, str](same)
    error: Any = Noted()
    async with LoaderScope():
        loader = DataLoader(fetch)
        loader.prime("A", "X").prime("A", "Y").prime("B", error)
        assert await loader.load("A") == "X"
        with pytest.raises(Noted):
            await loader.load("B")
    assert fetch.calls == []


async def test_the_error_of_a_key_is_cached_and_fails_no_other() -> None:
    fetch = Recorder[int, Any](odd_fails)
    async with LoaderScope():
        loader = DataLoader(fetch)
        one, two = loader.load(1), loader.load(2)
        assert await two == 2
        for _ in range(2):
            with pytest.raises(ValueError, match="odd: 1"):
                await one
            with pytest.raises(ValueError, match="odd: 1"):
                await loader.load(1)
    assert fetch.calls == [[1, 2]]


async def test_the_error_of_a_batch_fails_all_and_is_not_cached() -> None:
    error = Noted()
    calls: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        calls.append(keys)
        if len(calls) == 1:
            raise error
        return keys

    async with LoaderScope():
        loader = DataLoader(fetch)
        for load in loader.load(1), loader.load(2):
            with pytest.raises(Noted) as info:
                await load
            assert info.value is error
        assert await loader.load(1) == 1
    assert calls == [[1, 2], [1]]


@pytest.mark.parametrize("result", [None, [1]], ids=["nothing", "too few"])
async def test_a_wrong_result_is_a_type_error(result: Any) -> None:
    async def fetch(keys: list[int]) -> Any:
        return result

    async with LoaderScope():
        with pytest.raises(TypeError):
            await DataLoader[int, int](fetch).load_many([1, 2])


async def test_a_batch_function_may_use_another_loader() -> None:
    deep = Recorder[str, str](same)

    async def fetch(keys: list[str]) -> list[str]:
        return await loader.load_many(keys)

    async with LoaderScope():
        loader = DataLoader(deep)
        a, b = DataLoader(fetch), DataLoader(fetch)
        loads = a.load("a1"), b.load("b1"), a.load("a2")
        assert [await load for load in loads] == ["a1", "b1", "a2"]
    assert sorted(map(sorted, deep.calls)) == [["a1", "a2", "b1"]]


async def test_none_is_no_key_and_load_many_takes_an_iterable() -> None:
    none: Any = None
    async with LoaderScope():
        loader = DataLoader(Recorder[int, int](same))
        with pytest.raises(TypeError):
            loader.load(none)
        with pytest.raises(TypeError):
            loader.load_many(none)


# --- futures ---


async def test_a_load_can_be_looked_at_as_a_future() -> None:
    gate = anyio.Event()
    async with LoaderScope():
        loader = DataLoader(Recorder[int, Any](odd_fails, gate=gate))
        good, bad, both = loader.load(2), loader.load(1), loader.load_many([2, 1])
        all_three: list[LoadFuture[Any]] = [good, bad, both]
        assert [load.done() for load in all_three] == [False] * 3
        for load in all_three:
            for look in load.result, load.exception:
                with pytest.raises(asyncio.InvalidStateError):
                    look()
        gate.set()
        assert await good == 2
        assert [load.done() for load in all_three] == [True] * 3
        assert [good.result(), good.exception(), good.cancelled()] == [2, None, False]
        assert str(bad.exception()) == str(both.exception()) == "odd: 1"
        with pytest.raises(ValueError, match="odd: 1"):
            both.result()
        place = loader.load_many([2, 1], return_exceptions=True).result()
        assert [type(value) for value in place] == [int, ValueError]
        assert repr(good) == f"<LoadFuture of {loader.peek(2)!r}>"


async def test_a_load_many_is_done_with_its_first_error_unless_errors_stand_in_place() -> None:
    async with LoaderScope():
        loader = DataLoader(Recorder[int, Any](odd_fails))
        with pytest.raises(ValueError, match="odd: 1"):
            await loader.load(1)
        raising = loader.load_many([1, 2])
        in_place = loader.load_many([1, 2], return_exceptions=True)
        assert [raising.done(), in_place.done()] == [True, False]
        assert [type(value) for value in await in_place] == [ValueError, int]


async def test_a_load_that_was_cancelled_by_its_scope_has_an_error() -> None:
    async with LoaderScope() as scope:
        load = DataLoader(Recorder[int, int](same)).load(1)
        scope.cancel("enough")
    assert isinstance(load.exception(), LoadCancelledError)
    assert not load.cancelled()


@pytest.mark.only_on("asyncio")
async def test_asyncio_takes_a_load_for_a_future() -> None:
    fetch = Recorder[int, Any](odd_fails)
    async with LoaderScope():
        loader = DataLoader(fetch)
        assert asyncio.isfuture(loader.load(0))
        assert await asyncio.gather(loader.load(0), loader.load_many([2, 4])) == [0, [2, 4]]
        assert await asyncio.wait_for(loader.load(6), 5) == 6
        assert await asyncio.shield(loader.load(8)) == 8
        load: Any = loader.load(10)
        done, pending = await asyncio.wait([load])
        assert (done, pending) == ({load}, set())
        results = await asyncio.gather(loader.load(1), loader.load(2), return_exceptions=True)
        assert [type(result) for result in results] == [ValueError, int]
    assert fetch.calls == [[0, 2, 4], [6], [8], [10], [1]]


@pytest.mark.only_on("asyncio")
async def test_callbacks_are_called_with_the_future_also_if_it_is_done() -> None:
    gate = anyio.Event()
    called: list[Any] = []
    async with LoaderScope():
        loader = DataLoader(Recorder[int, Any](odd_fails, gate=gate))
        load = loader.load(1)
        load.add_done_callback(called.append)
        load.add_done_callback(called.append)
        load.add_done_callback(print)
        assert load.remove_done_callback(print) == 1
        assert load.get_loop() is asyncio.get_running_loop()
        await wait_all_tasks_blocked()
        assert called == []
        gate.set()
        await wait_all_tasks_blocked()
        assert called == [load, load]
        load.add_done_callback(called.append)
        assert called == [load, load]
        await wait_all_tasks_blocked()
        assert called == [load, load, load]


@pytest.mark.only_on("asyncio")
async def test_cancelling_a_future_cancels_nobody_else_of_its_key() -> None:
    gate = anyio.Event()
    called: list[Any] = []
    async with LoaderScope():
        loader = DataLoader(Recorder[int, int](same, gate=gate))
        first, second, third = loader.load(1), loader.load(1), loader.load(1)
        second.add_done_callback(called.append)
        await wait_all_tasks_blocked()
        assert [first.cancel(), first.cancel(), second.cancel()] == [True, False, True]
        assert [first.done(), first.cancelled()] == [True, True]
        await wait_all_tasks_blocked()
        assert called == [second]
        gate.set()
        assert await third == 1
        for load in first, second:
            with pytest.raises(asyncio.CancelledError):
                load.result()
            with pytest.raises(asyncio.CancelledError):
                load.exception()
            with pytest.raises(asyncio.CancelledError):
                await load
        assert third.cancel() is False


@pytest.mark.only_on("asyncio")
async def test_a_timeout_or_a_cancelled_future_leaves_others_of_the_key_alone() -> None:
    gate = anyio.Event()
    fetch = Recorder[int, int](same, gate=gate)
    async with LoaderScope():
        loader = DataLoader(fetch)
        load = loader.load(1)
        waiting = asyncio.create_task(_wait(load))
        await wait_all_tasks_blocked()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(loader.load(1), 0)
        other = loader.load(1)
        assert load.cancel()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting  # it awaits the very future that was cancelled
        assert await other == await loader.load(1) == 1
    assert fetch.calls == [[1]]


async def _wait(load: LoadFuture[int]) -> int:
    return await load


@pytest.mark.only_on("asyncio")
async def test_cancelling_a_gather_gives_its_loads_up() -> None:
    cancelled: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append(keys)
        return keys

    async with LoaderScope():
        loader = DataLoader(fetch)
        both = asyncio.gather(loader.load(1), loader.load(2))
        await wait_all_tasks_blocked()
        both.cancel()
        with pytest.raises(asyncio.CancelledError):
            await both
        await wait_all_tasks_blocked()
        assert cancelled == [[1, 2]]


# --- pydantic-resolve ---


@pytest.fixture(scope="module")
def pydantic_resolve_output() -> str:
    pytest.importorskip("pydantic_resolve")
    done = subprocess.run(
        [sys.executable, str(PYDANTIC_RESOLVE)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pydantic_resolve_runs_on_it(pydantic_resolve_output: str) -> None:
    assert pydantic_resolve_output.splitlines() == [
        "owners [1, 2]",
        "tags [0, 1, 2]",
        "0 Ada []",
        "1 Grace ['new']",
        "2 Ada ['new', 'new']",
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_moving_takes_one_import_and_one_scope(backend: str) -> None:
    """A loader that was made at import time, and one for each request."""
    calls: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        calls.append(keys)
        return keys

    async def request() -> list[int]:
        loader = DataLoader(fetch)
        return [await load for load in [loader.load(1), loader.load(2)]]

    async def main() -> None:
        for _ in range(2):
            async with LoaderScope():
                assert await request() == [1, 2]

    name, options = backend_options(backend)
    anyio.run(main, backend=name, backend_options=options)
    assert calls == [[1, 2], [1, 2]]
