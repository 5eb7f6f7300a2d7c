"""What a loader has cached, here and in the second level: what is remembered, and what forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

from ._batch import Batch, LoadHandle, batch_of, settled_handle
from ._cache import NO_KEY, check_hashable, evict
from ._dispatcher import Dispatcher, ambient
from ._errors import LoadCancelledError
from ._options import Options
from ._place import Place
from ._results import log_exception, outcome_of
from ._values import SecondLevel
from .hooks import Hooks

__all__ = ("Cached",)


def _finds_nothing(_key: object) -> None:
    return None


class Cached(Place):
    """
    The part of a loader that has the cache.

    :param front: the public object
    :param function: the batch function, for whose values a value cache is
    :param options: what it was told
    :param cache_map: where handles are cached, instead of a dict
    """

    __slots__ = (
        "_defers",
        "_keeps_map",
        "cache",
        "find",
        "forgets",
        "key_of",
        "second_level",
    )

    def __init__(
        self,
        front: Any,
        function: Any,
        options: Options,
        cache_map: MutableMapping[Any, LoadHandle[Any]] | None,
    ) -> None:
        super().__init__(front, options)
        self.cache: MutableMapping[Any, LoadHandle[Any]] | None = None
        if options.cache:
            self.cache = {} if cache_map is None else cache_map
        self._keeps_map = cache_map is not None
        self.forgets = options.cache == "pending"
        self._defers = options.defer_hits
        #: Makes the key under which a load is looked for, if that is not the load's own.
        self.key_of: Callable[[Any], Any] | None = options.get_cache_key
        #: Finds what is cached under a key, if a hit needs nothing but to be counted.
        self.find: Callable[[Any], LoadHandle[Any] | None] = _finds_nothing
        self.second_level: SecondLevel | None = None
        if options.value_cache is not None:
            self.second_level = SecondLevel(options.value_cache, self, function)

    def listen(self, hooks: Hooks | None) -> None:
        super().listen(hooks)
        plain = hooks is None and self.key_of is None and not self._defers
        self.find = self.cache.get if plain and self.cache is not None else _finds_nothing

    def attach(self, scope: Dispatcher) -> None:
        super().attach(scope)
        if self.second_level is not None:
            self.second_level.attach(scope)

    @property
    def finds_hits(self) -> bool:
        """Whether ``find`` does."""
        return self.find is not _finds_nothing

    def close(self) -> None:
        if self.cache is not None and not self._keeps_map:
            self.cache = {}
            self.listen(self.hooks)

    def count_cached(self) -> int:
        try:
            return 0 if self.cache is None else len(self.cache)
        except Exception:
            log_exception(f"cache_map of {self.name} raised, and cannot be counted")
            return 0

    def clear(self, key: Any) -> None:
        self.check_place()
        self._clear([key])

    def clear_many(self, keys: Iterable[Any]) -> None:
        self.check_place()
        self._clear(list(keys))

    def _clear(self, keys: list[Any]) -> None:
        if self.cache is None and self.second_level is None:
            return
        cache_keys = []
        try:
            for key in keys:
                cache_key = self.cache_key(key)
                check_hashable(self.name, key, cache_key)
                cache_keys.append(cache_key)
                if self.cache is not None:
                    self.cache.pop(cache_key, None)
        finally:
            self._doom(cache_keys)

    def clear_all(self) -> None:
        self.check_place()
        scope = None if self.second_level is None else self.scope  # nothing else asks for batches
        self.forget_all({} if scope is None else scope.batches())

    def forget_all(self, batches: Mapping[Any, Iterable[Batch]]) -> None:
        """
        Forget all keys, those that are on their way too.

        :param batches: those of the scope that are not done, by their loaders
        """
        if self.second_level is not None:
            known = [] if self.cache is None else list(self.cache)
            self._doom(
                [*known, *self._keys_of(batches.get(self, ())), *self.second_level.on_their_way()]
            )
        if self.cache is not None:
            self.cache.clear()

    def _keys_of(self, batches: Iterable[Batch]) -> Iterator[Any]:
        """Return the cache keys of batches: none of these need be remembered."""
        for batch in batches:
            for key in batch.keys:
                try:
                    cache_key = self.cache_key(key)
                    check_hashable(self.name, key, cache_key)
                except Exception:
                    continue  # which its load will hear of
                yield cache_key

    def _doom(self, cache_keys: list[Any]) -> None:
        if self.second_level is not None and cache_keys:
            self.second_level.doom(cache_keys)

    def prime(self, key: Any, value: Any, force: bool) -> None:
        if self.scope is None and ambient.get() is not None:
            self.admit()  # or what it holds of this scope could reach another one
        self.check_place()
        cache = self.cache
        if cache is None and self.second_level is None:
            return
        if key is None:
            raise TypeError(f"{self.name}.prime() takes a key, not None; {NO_KEY}")
        cache_key = self.cache_key(key)
        check_hashable(self.name, key, cache_key)
        entry = None if cache is None else cache.get(cache_key)
        if entry is not None and not force:
            return
        if force:
            self._doom([cache_key])
        outcome = outcome_of(value)
        batch = None if entry is None else batch_of(entry)
        taken = entry is not None and batch is not None and batch.take_out(entry, outcome)
        if cache is not None and self.forgets:
            if entry is not None:  # which may be of a function that has read what was there before
                evict(cache, cache_key, entry)
        elif cache is not None and not taken:
            cache[cache_key] = settled_handle(key, outcome)

    def peek(self, key: Any) -> LoadHandle[Any] | None:
        self.check_place()
        if self.cache is None:
            return None
        cache_key = self.cache_key(key)
        check_hashable(self.name, key, cache_key)
        return self.cache.get(cache_key)

    # What a batch asks of its loader

    def cache_key(self, key: Any) -> Any:
        make = self.options.get_cache_key
        return key if make is None else make(key)

    def keeps_error(self, error: Any) -> bool:
        keep = self.options.cache_errors
        if isinstance(keep, bool) or isinstance(error, LoadCancelledError):
            return keep is True and not isinstance(error, LoadCancelledError)
        try:
            return bool(keep(error))
        except Exception:
            log_exception(f"cache_errors of {self.name} raised; the error is not cached")
            return False

    def evict(self, pairs: Iterable[tuple[Any, LoadHandle[Any]]]) -> None:
        if self.cache is None:
            return
        for cache_key, entry in pairs:
            try:
                evict(self.cache, cache_key, entry)
            except Exception:
                log_exception(f"cache_map of {self.name} raised, and may hold a stale key")
