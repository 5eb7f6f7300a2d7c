"""What a batch that fails takes out of the cache, and by which key (contract 4.2)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import anyio
import pytest

from anyloader import (
    DataLoader,
    LoadHandle,
    LoadManyHandle,
)
from support import Recorder, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio


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


async def test_with_the_cache_off_a_failed_batch_has_nothing_to_evict(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fetch(keys: list[int]) -> list[int]:
        raise ValueError

    async with DataLoader(fetch, cache=False) as loader:
        with pytest.raises(ValueError):
            await loader.load(1)
    assert caplog.records == []


async def test_with_the_cache_off_a_cache_key_is_of_no_use_to_a_batch() -> None:
    async with DataLoader(Recorder[int, int](abs), cache=False, get_cache_key=str) as loader:
        first, second = loader.load(-1), loader.load(-2)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await first
        assert await second == 2


async def test_an_error_that_ends_its_batch_is_not_left_in_a_cache_map() -> None:
    """While the scope is left, as nobody awaits the rest of a load_many that has failed."""
    sent = anyio.Event()

    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, Exception], None]:
        await sent.wait()
        yield 1, KeyError("one")
        await anyio.sleep_forever()

    async def load(many: LoadManyHandle[Any]) -> None:
        with pytest.raises(KeyError):
            await many
        ended.append("load")

    ended: list[str] = []
    cache_map: dict[Any, LoadHandle[Any]] = {}
    loader = DataLoader(stream, cache_map=cache_map, get_cache_key=str, cache_errors=False)
    async with anyio.create_task_group() as tg:
        async with loader:
            tg.start_soon(load, loader.load_many([1, 2]))
            await wait_all_tasks_blocked()
            tg.start_soon(set_when_all_wait, sent)
    assert (ended, cache_map) == (["load"], {})


async def set_when_all_wait(event: anyio.Event) -> None:
    await wait_all_tasks_blocked()
    event.set()
