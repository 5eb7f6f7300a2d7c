"""``@batch_loader``: options beside the function, loaders by the ambient scope (contract 7)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

import anyio
import pytest

from anyloader import (
    BatchLoader,
    LoaderNotOpenError,
    LoaderScope,
    batch_loader,
)
from support.scopes import calls, double, negate, triple

# --- task_group= ---


def open_group(kind: str) -> AbstractAsyncContextManager[Any]:
    if kind == "trio":
        return pytest.importorskip("trio").open_nursery()  # type: ignore[no-any-return]
    if kind == "asyncio":
        return asyncio.TaskGroup()  # type: ignore[attr-defined,no-any-return,unused-ignore]  # pyright: ignore
    return anyio.create_task_group()


pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


@batch_loader(max_batch_size=2, cache=False, name="halves")
async def halve(keys: list[int]) -> list[float]:
    calls.append(("halve", keys))
    return [key / 2 for key in keys]


# --- @batch_loader ---


async def test_a_batch_loader_uses_the_loader_of_the_ambient_scope() -> None:
    async with LoaderScope() as outer:
        assert await negate.load(1) == -1
        async with LoaderScope() as inner:
            assert await negate.load(1) == -1
            assert inner.statistics().loads == 1
        assert await outer.get(negate).load(1) == -1
    assert calls == [("negate", [1]), ("negate", [1])]


async def test_a_batch_loader_states_the_options_of_its_loaders() -> None:
    async with LoaderScope() as scope:
        assert await halve.load_many([1, 1, 3]) == [0.5, 0.5, 1.5]
        assert scope.get(halve).name == "halves"
    assert sorted(calls) == [("halve", [1, 1]), ("halve", [3])]


async def test_options_beside_the_function_itself_count_too() -> None:
    sizes: list[int] = []

    async def fetch(keys: list[int]) -> list[int]:
        sizes.append(len(keys))
        return keys

    made = cast(Any, batch_loader)(fetch, max_batch_size=2)
    async with LoaderScope():
        assert await made.load_many(range(3)) == [0, 1, 2]
    assert sizes == [2, 1]


async def test_a_batch_loader_offers_what_a_loader_does() -> None:
    async with LoaderScope() as scope:
        loader = scope.get(negate)
        assert negate.prime(1, 10) is loader
        assert negate.prime_many({2: 20, 3: 30}) is loader
        handle = negate.peek(1)
        assert handle is not None
        assert await handle == 10
        assert await negate.load_many([1, 2, 3]) == [10, 20, 30]
        assert negate.clear(1) is loader
        assert negate.clear_many([2]) is loader
        assert [negate.peek(key) is None for key in (1, 2, 3)] == [True, True, False]
        assert negate.clear_all() is loader
        assert negate.peek(3) is None
        negate.prime(4, 40).prime(4, 41, force=True)
        many = negate.load_many([4, 5], return_exceptions=True)
        negate.dispatch()
        assert await many == [41, -5]
    assert calls == [("negate", [5])]


async def test_a_batch_loader_raises_and_does_not_force_unless_told_to() -> None:
    @batch_loader
    async def fetch(keys: list[int]) -> list[int | Exception]:
        return [KeyError(key) for key in keys]

    async with LoaderScope():
        with pytest.raises(KeyError):
            await fetch.load_many([1])
        fetch.prime(2, 20)
        fetch.prime(2, 30)
        assert await fetch.load(2) == 20
        fetch.prime_many({2: 30})
        assert await fetch.load(2) == 20


async def test_a_batch_loader_is_still_its_function() -> None:
    assert await negate([1, 2]) == [-1, -2]
    assert vars(negate)["__name__"] == "negate"
    assert negate.__doc__ == "Give the opposite."
    assert "negate" in repr(negate)


USES: list[Callable[[], object]] = [
    lambda: negate.load(1),
    lambda: negate.load_many([1]),
    lambda: negate.prime(1, 1),
    lambda: negate.prime_many({1: 1}),
    lambda: negate.peek(1),
    lambda: negate.clear(1),
    lambda: negate.clear_many([1]),
    lambda: negate.clear_all(),
    lambda: negate.dispatch(),
]


@pytest.mark.parametrize("use", USES)
async def test_a_batch_loader_without_a_scope_is_refused(use: Callable[[], object]) -> None:
    with pytest.raises(LoaderNotOpenError, match="async with LoaderScope"):
        use()


def test_wrong_options_fail_where_they_stand() -> None:
    with pytest.raises(ValueError, match="max_batch_size"):
        batch_loader(max_batch_size=0)(double)
    with pytest.raises(TypeError, match="cache"):
        batch_loader(cache=cast(Any, 1))(double)
    options: dict[str, Any] = {"max_size": 1}
    with pytest.raises(TypeError, match=r"max_size.*max_batch_size"):
        batch_loader(**options)
    for shared in ("task_group", "cache_map"):
        options = {shared: None}
        with pytest.raises(TypeError, match=shared):
            batch_loader(**options)
    with pytest.raises(TypeError, match="callable"):
        batch_loader(cast(Any, 1))
    with pytest.raises(TypeError):
        BatchLoader(cast(Any, None), {})


async def test_streams_and_mappings_can_be_batch_loaders() -> None:
    @batch_loader(on_missing=lambda key: key + 0.5)
    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, float], None]:
        for key in keys[1:]:
            yield key, float(key)

    async with LoaderScope():
        assert await stream.load_many([1, 2, 3]) == [1.5, 2.0, 3.0]
        assert await batch_loader(triple).load(3) == 9
