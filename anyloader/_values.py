"""
The second level: a cache behind that of the loader, shared between loaders of other requests.

It is asked before the batch function, told after it, and never in its way: what it raises is told to the
hooks, the first of a row is logged, and the loads do without it.

A value that was cleared must not come back from there. So a key is *doomed* from ``clear`` on until
``delete_many`` has returned, and longer if a batch that had read the old value was still storing it:
then it is deleted once more. While it is doomed nobody asks for it, and who had read it before does not
store it.

It is deleted at once, as the next request of a client may follow before this one's scope is left; and
again when the scope is left, as what was cleared in a transaction may have been read by others before
it was committed, or by this scope before it was rolled back.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import count
from types import MethodType
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary, ref

from ._batch import Batch, LoadHandle, batch_of, outcome_in
from ._cache import check_hashable
from ._results import Failure, article, failure_of, log_exception
from .hooks import ValueCacheFailed, ValueCacheHit, ValueCacheMiss

__all__ = ("SecondLevel", "ValueCache")

K = TypeVar("K")
V = TypeVar("V")

_FAILED: Any = object()

# Of how many keys a scope deletes again what it has deleted already. A request clears fewer, and a scope
# that is as old as its program must not remember all that it ever cleared: these take about a megabyte.
_MOST_AGAIN = 10_000


class ValueCache(Protocol[K, V]):
    """
    A second level of cache, behind the one of a loader and shared between loaders or processes.

    Its keys are cache keys. It is asked once per batch for all keys of it; only what it does not
    have reaches the batch function, and is stored afterwards, unless it is an error. What it raises
    is told to the hooks and never fails a load; how long a batch waits for it is its own affair. One
    object serves one batch function.
    """

    async def get_many(self, keys: Sequence[K]) -> Mapping[K, V]:
        """Return the values that it has, and nothing for the other keys; ``None`` is a value."""
        ...

    async def set_many(self, items: Mapping[K, V]) -> None:
        """Store these values."""
        ...

    async def delete_many(self, keys: Sequence[K]) -> None:
        """Forget these keys, so that no later ``get_many`` has them."""
        ...


class _Use:
    """What is known of one value cache: whose values it has, and what failed the last time."""

    __slots__ = ("failing", "owner")

    def __init__(self, owner: object) -> None:
        self.owner = owner
        #: The operations of which the last call failed.
        self.failing: set[str] = set()


_uses: WeakKeyDictionary[Any, _Use] = WeakKeyDictionary()


def _use_of(cache: Any, name: str, function: object) -> _Use:
    """
    :raises TypeError: if the cache has the values of another batch function
    """
    owner = _code_of(function)
    try:
        use = _uses.setdefault(cache, _Use(owner))
    except TypeError:  # cannot be referred to weakly, or has no hash: nothing can be said
        return _Use(owner)
    if use.owner != owner:
        raise TypeError(
            f"the value_cache of {name} serves another batch function already, and would mix up "
            "their values; make one for each function, each with a prefix of its own"
        )
    return use


def _code_of(function: Any) -> object:
    """
    Return what two loaders of the same function have in common: its code, or its class.

    Of a method it is both: what it reads from a table that subclasses name is not the same in these.
    """
    if isinstance(function, type):
        return function
    owner = None
    while True:
        if isinstance(function, partial):
            function = function.func
        elif isinstance(function, MethodType):
            bound = function.__self__
            owner = bound if isinstance(bound, type) else type(bound)
            function = function.__func__
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            break
    return owner, getattr(function, "__code__", None) or type(function)


class SecondLevel:
    """
    How the loader of one scope uses its value cache.

    :raises TypeError: if the cache has the values of another batch function
    """

    def __init__(self, cache: Any, loader: Any, function: object) -> None:
        self._cache = cache
        self._use = _use_of(cache, loader.name, function)
        self._name = loader.name
        # It may outlive its loader, by what is still to be deleted.
        self._loader = ref(loader)
        self._counts = loader.counts
        self._clock = count(1).__next__
        #: Doomed are the keys that were cleared and that nobody deletes yet, those that somebody does
        #: (so often), and those that could not be deleted.
        self._to_delete: dict[Any, None] = {}
        self._deleting: dict[Any, int] = {}
        self._undeleted: OrderedDict[Any, None] = OrderedDict()
        #: When keys were cleared, the last one last, while there are batches that have begun before.
        self._cleared: OrderedDict[Any, int] = OrderedDict()
        #: Batches that have begun and may still store, with the time of their beginning.
        self._at_work: dict[Batch, int] = {}
        #: The cache keys of these, from when they ask on.
        self._asked: dict[Batch, list[Any]] = {}
        #: What is being stored now: when the batches began that store this cache key.
        self._storing: dict[Any, list[int]] = {}

        #: Where what was cleared is deleted: at once, and again on the way out.
        self._scope: Any = None
        #: Keys that were deleted and will be again, the last one last.
        self._deleted: OrderedDict[Any, None] = OrderedDict()
        #: Whether a task is about to do so; and whether deleting has failed the last time.
        self._is_due = self._fails = False

    def attach(self, scope: Any) -> None:
        self._scope = scope
        self._delete_soon()

    def _delete_soon(self) -> None:
        if self._to_delete and self._scope is not None and not self._is_due:
            self._is_due = True
            self._scope.delete_soon(self)

    def _tell(self, kind: Any, *fields: Any) -> None:
        loader = self._loader()
        if loader is not None and loader.hooks is not None:
            loader.hooks.tell(kind, *fields)

    def doom(self, cache_keys: Sequence[Any]) -> None:
        """These were cleared: delete them, and let nobody store what he has read before."""
        self._to_delete.update(dict.fromkeys(cache_keys))
        if self._at_work:
            now = self._clock()
            for key in cache_keys:
                self._cleared[key] = now
                self._cleared.move_to_end(key)
        self._delete_soon()

    def on_their_way(self) -> list[Any]:
        """Return the cache keys of batches at work, also those settled already, as by a stream."""
        return [key for asked in self._asked.values() for key in asked]

    async def fetch(self, batch: Batch, fetch: Callable[[Batch], Awaitable[None]]) -> None:
        """Get the values of a batch: from the cache what it has, by ``fetch`` the rest."""
        self._at_work[batch] = self._clock()
        missing: Any = None
        try:
            missing = await self._ask(batch)
            await fetch(batch)
            await self._store(batch, missing)
        except BaseException:
            missing = None  # the traceback leads here, and this to handles that hold the error
            raise
        finally:
            del self._at_work[batch]
            self._asked.pop(batch, None)
            # There may be a batch at any time, of a loader that all requests share.
            oldest = next(iter(self._at_work.values()), math.inf)
            while self._cleared and next(iter(self._cleared.values())) < oldest:
                self._cleared.popitem(last=False)

    def _was_cleared(self, cache_key: Any, since: int) -> bool:
        return self._cleared.get(cache_key, 0) > since

    async def _ask(self, batch: Batch) -> list[tuple[Any, LoadHandle[Any]]]:
        """Settle what the cache has; return the rest, by cache key, to be stored later."""
        await self.delete(batch.number)
        entries = self._by_cache_key(batch)
        if batch.is_done:
            return []
        self._asked[batch] = keys = list(dict.fromkeys(key for key, _ in entries))
        asked = [key for key in keys if not self._is_unsafe(key)]
        try:
            found = await self._find(batch, asked) if asked else {}
        except BaseException:
            entries.clear()  # the traceback leads here, and this to handles that hold the error
            raise
        if batch.is_done:
            return []
        hits = tuple(key for key in asked if key in found)
        misses = tuple(dict.fromkeys(key for key, _ in entries if key not in found))
        self._counts.value_cache_hits += len(hits)
        self._counts.value_cache_misses += len(misses)
        if hits:
            self._tell(ValueCacheHit, batch.name, batch.number, hits)
        if misses:
            self._tell(ValueCacheMiss, batch.name, batch.number, misses)
        if hits and not batch.is_done:  # a hook may have ended it
            batch.settle_found([(entry, found[key]) for key, entry in entries if key in found])
        return [(key, entry) for key, entry in entries if key not in found]

    async def _find(self, batch: Batch, asked: list[Any]) -> dict[Any, Any]:
        found = await self._try(batch.number, "get_many", self._get, asked)
        return {} if found is _FAILED else found

    async def _get(self, asked: list[Any]) -> dict[Any, Any]:
        found = await self._cache.get_many(list(asked))  # of its own: it may change it
        if not isinstance(found, Mapping):
            raise TypeError(f"get_many() must return a mapping, not {article(found)}")
        # Looked at here, as it may read its values only then.
        return {key: found[key] for key in asked if key in found}

    def _by_cache_key(self, batch: Batch) -> list[tuple[Any, LoadHandle[Any]]]:
        """
        Return the entries by their cache keys.

        With the loader's own cache off no ``load`` has looked at these, so an entry whose key cannot
        be one fails here, alone.
        """
        loader = batch.loader
        entries: list[tuple[Any, LoadHandle[Any]]] = []
        wrong: list[tuple[LoadHandle[Any], Failure]] = []
        for entry in batch.entries:
            try:
                cache_key = loader.cache_key(entry.key)
                check_hashable(batch.name, entry.key, cache_key, "ask its value cache for", "")
            except Exception as exc:
                wrong.append((entry, failure_of(exc)))
            else:
                entries.append((cache_key, entry))
        if wrong:
            batch.settle_found(wrong)
            # By f_back the tracebacks lead here, and here shall nothing lead to the errors.
            del wrong, entry  # pyright: ignore[reportPossiblyUnboundVariable]
        return entries

    async def _store(self, batch: Batch, entries: list[tuple[Any, LoadHandle[Any]]]) -> None:
        """Store the values that the batch function gave, but no errors, and nothing cleared since."""
        began = self._at_work[batch]
        items = {
            cache_key: outcome_in(entry)
            for cache_key, entry in entries
            if batch_of(entry) is None
            and type(outcome_in(entry)) is not Failure
            and not self._was_cleared(cache_key, began)
        }
        if not items:
            return
        keys = list(items)  # the cache may change what it is given
        for key in keys:
            self._storing.setdefault(key, []).append(began)
        try:
            await self._try(batch.number, "set_many", self._cache.set_many, items)
        finally:
            for key in keys:
                others = self._storing[key]
                others.remove(began)
                if not others:
                    del self._storing[key]
            # Cleared meanwhile. A deletion may have come before these values did.
            self._to_delete.update((key, None) for key in keys if self._was_cleared(key, began))
            self._delete_soon()

    def _is_unsafe(self, key: Any) -> bool:
        """Whether an old value of this key may be there, or may be put there at any moment."""
        return (
            key in self._to_delete
            or key in self._deleting
            or key in self._undeleted
            or any(self._was_cleared(key, began) for began in self._storing.get(key, ()))
        )

    async def delete(self, batch: int = 0, *, again: bool = False) -> None:
        """
        Delete what was cleared.

        What could not be deleted is tried again together with that; but one of it alone, or nothing,
        for as long as that fails: or each of many keys would be tried for each of the others.

        :param again: on the way out, whether it was deleted before or not
        """
        self._is_due = False
        try:
            if again:
                for keys in (self._deleted, self._undeleted):
                    self._to_delete.update(keys)
                    keys.clear()
            await self._delete_all(batch)
        except Exception as exc:
            # A key's, that cannot be compared to another one. Whoever cleared it is not there to be told.
            self._tell(ValueCacheFailed, self._name, batch, "delete_many", exc)

    async def _delete_all(self, batch: int) -> None:
        while True:
            todo, self._to_delete = self._to_delete, {}
            if not self._fails:
                todo.update(self._undeleted)
                self._undeleted.clear()
            elif not todo and self._undeleted:
                todo = dict([self._undeleted.popitem(last=False)])
            if not todo:
                return
            self._fails = not await self._delete(batch, todo)
            if self._fails:
                return

    async def _delete(self, batch: int, keys: dict[Any, None]) -> bool:
        """Return whether that worked."""
        for key in keys:
            self._deleting[key] = self._deleting.get(key, 0) + 1
        worked = False
        try:
            done = await self._try(batch, "delete_many", self._cache.delete_many, list(keys))
            worked = done is not _FAILED
        finally:
            for key in keys:
                left = self._deleting.pop(key) - 1
                if left:
                    self._deleting[key] = left
            if not worked:
                self._undeleted.update(keys)
        if worked and self._scope is not None and self._scope.deletes_again:
            self._deleted.update(keys)
            while len(self._deleted) > _MOST_AGAIN:
                self._deleted.popitem(last=False)
        return worked

    async def _try(
        self, batch: int, operation: str, call: Callable[[Any], Awaitable[Any]], argument: object
    ) -> Any:
        try:
            result = await call(argument)
        except Exception as exc:
            self._tell(ValueCacheFailed, self._name, batch, operation, exc)
            if operation not in self._use.failing:
                self._use.failing.add(operation)
                log_exception(
                    f"the value cache of {self._name} failed in {operation}(): {type(exc).__name__}; "
                    "loads do without it, and no more is said until it works again",
                    exc,
                )
            return _FAILED
        self._use.failing.discard(operation)
        return result
