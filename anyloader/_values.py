"""How a batch uses the value cache: asked before the function, told after it, never in its way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

from ._batch import Batch, BatchRules
from ._cache import ValueCache, check_hashable
from ._handle import Failure, LoadHandle
from ._results import without_our_frames
from .hooks import ValueCacheFailed, ValueCacheHit, ValueCacheMiss

__all__ = ("ask", "delete", "store")

_FAILED: Any = object()


async def ask(batch: Batch) -> list[tuple[Any, LoadHandle[Any]]]:
    """
    Settle what the value cache has; return the rest, by cache key, to be stored later.

    What was cleared is deleted there first; if that fails the next batch tries again, and until
    then these keys are neither asked for nor stored.
    """
    rules = batch.rules
    cache = cast("ValueCache[Any, Any]", rules.value_cache)
    await delete(rules, batch.number)
    entries = _by_cache_key(batch)
    if batch.is_done:
        return []
    distinct = list(dict.fromkeys(cache_key for cache_key, _ in entries))
    # Those whose deletion has failed, or that were cleared a moment ago, are still in there.
    asked = [cache_key for cache_key in distinct if cache_key not in batch.cleared]
    try:
        found = await _try(rules, batch.number, "get_many", cache.get_many, asked) if asked else {}
    except BaseException:
        entries.clear()  # the traceback leads here, and this to handles that hold the error
        raise
    if found is _FAILED:
        found = {}
    elif not isinstance(found, Mapping):
        error = TypeError(f"get_many() must return a mapping, not {found!r}")
        _tell_failure(rules, batch.number, "get_many", error)
        found = {}
    if rules._hooks is not None:
        for event, there in (ValueCacheHit, True), (ValueCacheMiss, False):
            keys = tuple(key for key in distinct if (key in found) is there)
            if keys:
                rules._hooks(event(batch.name, batch.number, keys))
    if found and not batch.is_done:
        batch.settle_some([(found[key], entry) for key, entry in entries if key in found])
    return [(key, entry) for key, entry in entries if key not in found]


def _by_cache_key(batch: Batch) -> list[tuple[Any, LoadHandle[Any]]]:
    """
    Return the entries by their cache keys.

    With the loader's own cache off no ``load`` has looked at these, so an entry whose key cannot be
    one fails here, alone.
    """
    rules = batch.rules
    entries: list[tuple[Any, LoadHandle[Any]]] = []
    wrong: list[tuple[Failure, LoadHandle[Any]]] = []
    for key, entry in zip(batch.keys_, batch.entries):
        try:
            cache_key = rules._cache_key(key)
            check_hashable(rules.name, key, cache_key, "ask its value cache for", "")
        except Exception as exc:
            exc.__traceback__ = without_our_frames(exc.__traceback__)
            wrong.append((Failure(exc, exc.__traceback__), entry))
        else:
            entries.append((cache_key, entry))
    if wrong:
        batch.settle_some(wrong)
        # By f_back the tracebacks lead here, and here shall nothing lead to the errors.
        del wrong, entry  # pyright: ignore[reportPossiblyUnboundVariable]
    return entries


async def delete(rules: BatchRules, batch: int = 0) -> None:
    """Delete what was cleared, and try again later where that fails."""
    cache = rules.value_cache
    cleared = rules._take_deletions()
    if cache is None or not cleared:
        return
    deleted: Any = _FAILED
    try:
        deleted = await _try(rules, batch, "delete_many", cache.delete_many, cleared)
    finally:
        if deleted is _FAILED:  # or cancelled
            rules._delete_values(cleared)


async def store(batch: Batch, entries: list[tuple[Any, LoadHandle[Any]]]) -> None:
    """Store the values that the batch function gave, but no errors, and nothing cleared since."""
    cache = batch.rules.value_cache
    items = {
        cache_key: entry._content
        for cache_key, entry in entries
        if type(entry._content) is not Failure and cache_key not in batch.cleared
    }
    if cache is not None and items:
        await _try(batch.rules, batch.number, "set_many", cache.set_many, items)


async def _try(
    rules: BatchRules,
    batch: int,
    operation: str,
    call: Callable[[Any], Awaitable[Any]],
    argument: object,
) -> Any:
    try:
        return await call(argument)
    except Exception as exc:
        _tell_failure(rules, batch, operation, exc)
        return _FAILED


def _tell_failure(rules: BatchRules, batch: int, operation: str, error: Exception) -> None:
    if rules._hooks is not None:
        rules._hooks(ValueCacheFailed(rules.name, batch, operation, error))
