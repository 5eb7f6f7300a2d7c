"""Raising an error again grows no traceback, and it leads into the batch function (contract 4.3)."""

from __future__ import annotations

import traceback
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from anyloader import (
    DataLoader,
)
from support import Recorder

pytestmark = pytest.mark.anyio

# --- 3: tracebacks ---


def functions(exc: BaseException) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(exc.__traceback__)]


async def raise_in_depth(keys: list[int]) -> list[Any]:
    async def query() -> list[Any]:
        raise ConnectionError("lost")

    await checkpoint()
    return await query()


async def return_what_was_raised(keys: list[int]) -> list[Any]:
    try:
        return await raise_in_depth(keys)
    except ConnectionError as exc:
        return [exc] * len(keys)


async def stream_what_was_raised(keys: list[int]) -> AsyncGenerator[tuple[int, Any], None]:
    for key, exc in zip(keys, await return_what_was_raised(keys)):
        yield key, exc


@pytest.mark.parametrize("fetch", [raise_in_depth, return_what_was_raised, stream_what_was_raised])
async def test_raising_an_error_many_times_does_not_grow_its_traceback(fetch: Any) -> None:
    """And it leads from who awaits right into the batch function."""
    depths: list[int] = []
    paths: list[list[str]] = []

    async def await_it(load: Any) -> None:
        with pytest.raises(ConnectionError) as caught:
            await load
        paths.append(functions(caught.value))
        depths.append(len(paths[-1]))

    async with DataLoader[int, Any](fetch) as loader:
        handle, many = loader.load(1), loader.load_many([1, 2])
        async with anyio.create_task_group() as tg:
            for _ in range(5):
                tg.start_soon(await_it, handle)
                tg.start_soon(await_it, many)
        for _ in range(5):
            await await_it(handle)
            await await_it(many)

    assert len(depths) == 20
    assert len(set(depths)) == 1
    for path in paths:
        assert path[0] == "await_it"
        assert path[-2:] == ["raise_in_depth", "query"]
        assert "settle" not in path


async def test_a_batch_that_fails_by_another_loaders_error_shows_both_functions() -> None:
    async def outer(keys: list[int]) -> list[Any]:
        return await inner_loader.load_many(keys)

    async with DataLoader(raise_in_depth) as inner_loader:
        async with DataLoader(outer) as loader:
            depths = []
            for _ in range(3):
                with pytest.raises(ConnectionError) as caught:
                    await loader.load(1)
                path = functions(caught.value)
                depths.append(len(path))
                assert path.index("outer") < path.index("raise_in_depth") < path.index("query")
            assert len(set(depths)) == 1


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
async def test_an_error_object_shared_by_many_batches_does_not_grow(cache: bool) -> None:
    error = LookupError("there is only one")
    depths = []
    async with DataLoader(Recorder[int, Any](lambda key: error), cache=cache) as loader:
        for key in range(8):
            with pytest.raises(LookupError) as caught:
                await loader.load(key)
            assert caught.value is error
            depths.append(len(functions(error)))
    assert len(set(depths)) == 1


async def test_a_primed_error_does_not_grow() -> None:
    error = LookupError("primed")
    depths = []
    async with DataLoader(Recorder[int, Any](abs)) as loader:
        loader.prime(1, error)
        for _ in range(8):
            with pytest.raises(LookupError):
                await loader.load(1)
            depths.append(len(functions(error)))
    assert len(set(depths)) == 1


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
