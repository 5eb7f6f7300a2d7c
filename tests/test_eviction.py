"""What a batch that fails takes out of the cache, and by which key (contract 4.2)."""

from __future__ import annotations

import anyio
import pytest

from anyloader import (
    DataLoader,
)
from support import Recorder

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
