"""Batch functions that are async generators: one key is settled at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from ._batch import Batch, batch_of
from ._results import article, missing_value, outcome_of, wrong_result

__all__ = ("run_stream",)


async def run_stream(batch: Batch, keys: list[Any], stream: AsyncIterator[object]) -> None:
    """Settle the loads of each key as the stream gives it, and at its end those it did not give."""
    if not batch.loader.streams:
        # The function did not look like an async generator, so it was given every key. A generator
        # that has not made its first step can be thrown away.
        distinct = batch.distinct_keys()
        if len(distinct) != len(keys):
            await _close(stream)
            stream = batch.function(distinct)
    try:
        async for pair in stream:
            if not batch.is_done:
                _settle_pair(batch, pair)
    finally:
        await _close(stream)
    if not batch.is_done:
        _settle_rest(batch)


async def _close(stream: Any) -> None:
    aclose = getattr(stream, "aclose", None)
    if aclose is not None:
        await aclose()


def _settle_pair(batch: Batch, pair: object) -> None:
    """
    Settle all loads of one key.

    :raises BatchResultError: if ``pair`` is no pair, or its key is unknown or was given before
    """
    index = batch.index or {}
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise _wrong_pair(
            batch, f"yielded {article(pair)}, which is no pair: yield (key, value)", pair
        )
    key, value = pair
    entry = None
    for cache_key in _as_cache_keys(batch, key):
        try:
            entry = index.get(cache_key)
        except TypeError:  # not hashable, so the key, not its cache key
            continue
        if entry is not None:
            break
    if entry is None:
        raise _wrong_pair(batch, "yielded a key which was not asked for", key)
    if batch_of(entry) is None:
        raise _wrong_pair(batch, "yielded a key twice", key)
    outcomes = [(entry, outcome_of(value))]
    batch.forget(outcomes)
    batch.settle_some(outcomes)
    if not batch.live and not batch.is_done and batch.settled < len(index):
        batch.cancel("all its other loads were given up", None)


def _as_cache_keys(batch: Batch, key: Any) -> Iterator[Any]:
    """A stream may give cache keys, as a mapping does, or the keys as it was given them."""
    yield key
    yield batch.loader.cache_key(key)


def _wrong_pair(batch: Batch, problem: str, pair: object) -> Exception:
    return wrong_result(batch.loader, batch.keys, problem, pair)


def _settle_rest(batch: Batch) -> None:
    """The stream has ended: what it did not give is missing."""
    # All that runs code of the user comes before anything changes.
    rest = [
        (entry, outcome_of(missing_value(batch.loader, entry.key)))
        for entry in (batch.index or {}).values()
        if batch_of(entry) is not None
    ]
    batch.settle_all(rest)
