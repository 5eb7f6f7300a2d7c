"""
The inside of a ``DataLoader``: how a load finds its entry, or the batch that its key joins.

It stands apart from the public class, which users derive from, so that no name in here can meet one of
theirs. It holds that object by a weak reference only: a loader that nobody has any more is gone at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from functools import partial
from inspect import CO_ASYNC_GENERATOR
from typing import Any, Protocol

from ._backend import prove_stack_room
from ._batch import (
    NOBODY,
    Batch,
    LoadHandle,
    LoadManyHandle,
    batch_of,
    extend,
    new_handle,
    outcome_in,
    running_batch,
    settled_handle,
    withdraw,
)
from ._cache import NO_KEY, check_hashable
from ._cached import Cached
from ._limits import gates_for
from ._options import Options
from ._required import not_found, required_maker
from ._results import article
from ._statistics import LoaderStatistics
from ._threads import thread_limiter
from ._weights import check_queue, make_room, weight_of
from .hooks import BatchOpened, Hooks, warn_unbatched, watches

__all__ = ("Loader",)


class Claim(Protocol):
    """How a load that is not just one load of its key takes part in an entry."""

    def __call__(self, batch: Batch | None, entry: LoadHandle[Any], /) -> LoadHandle[Any]:
        """
        Return the handle of the load.

        :param batch: that will settle the entry; ``None`` if it has settled
        """
        ...

    def deferred(
        self, key: Any, batch: Batch, /
    ) -> tuple[LoadHandle[Any], LoadManyHandle[Any] | None]:
        """Return the handle of a hit that waits for a batch, and the load_many that has it."""
        ...


class _ForMany:
    def __init__(self, many: LoadManyHandle[Any]) -> None:
        self._many = many

    def __call__(self, batch: Batch | None, entry: LoadHandle[Any]) -> LoadHandle[Any]:
        if batch is not None:
            batch.join(self._many, [entry])
        return entry

    def deferred(self, key: Any, batch: Batch) -> tuple[LoadHandle[Any], LoadManyHandle[Any]]:
        return new_handle(key, batch, NOBODY), self._many


class _Required:
    def __init__(self, key: Any, make: Callable[[], LoadHandle[Any]]) -> None:
        self._key = key
        self._make = make

    def __call__(self, batch: Batch | None, entry: LoadHandle[Any]) -> LoadHandle[Any]:
        if batch is None:
            return settled_handle(self._key, outcome_in(entry), self._make)
        return batch.share(entry, new_handle(self._key, batch, None, self._make))

    def deferred(self, key: Any, batch: Batch) -> tuple[LoadHandle[Any], None]:
        return new_handle(key, batch, None, self._make), None


class Loader(Cached):
    """
    :param front: the public object
    :param function: the batch function, or ``None`` if it is a method of ``front``
    :param options: what it was told
    :param cache_map: where handles are cached, instead of a dict
    """

    __slots__ = (
        "_arguments",
        "_deduplicates",
        "_function",
        "_gates",
        "_is_bounded",
        "_is_indexed",
        "_limiters",
        "_most",
        "_open_for_hits",
        "_required",
        "gives_rows",
        "group_by",
        "index_by",
        "is_plain",
        "on_missing",
        "open",
        "streams",
    )

    def __init__(
        self,
        front: Any,
        function: Any,
        options: Options,
        cache_map: MutableMapping[Any, LoadHandle[Any]] | None = None,
    ) -> None:
        self._function = function
        self._arguments: Mapping[str, Any] = {}
        super().__init__(front, type(front) if function is None else function, options, cache_map)
        #: Whether batches are fed by an async generator, as far as one can tell before calling it.
        self.streams = _is_async_generator_function(
            front.batch_load_fn if function is None else function
        )
        self.on_missing = options.on_missing
        self.index_by, self.group_by = options.index_by, options.group_by
        self.gives_rows = self.index_by is not None or self.group_by is not None
        self._most = options.max_batch_size if options.batch else 1
        #: Whether the open batch is asked for a key that the cache does not have.
        self._deduplicates = options.deduplicate or (self.cache is None and self.streams)
        if self.cache is None and not self._deduplicates:
            self.key_of = None
        #: Whether something has to be looked at before a key comes in, or noted with it.
        self._is_bounded = self._most is not None or bool(options.weigh or options.max_queue_size)
        self._is_indexed = self.key_of is not None or self._deduplicates
        #: Limiters in the event loop of the loader; found when the first batch needs them.
        self._gates: Any = None
        self._limiters: tuple[Any, ...] = ()
        self._required: Any = None
        #: Whether a key that ``find`` does not find is new, without further questions.
        self.is_plain = False
        #: The batch that the next key joins; and the next deferred hit, if not that one.
        self.open: Batch | None = None
        self._open_for_hits: Batch | None = None
        hooks = (*options.hooks, warn_unbatched()) if sys.flags.dev_mode else tuple(options.hooks)
        self.listen(Hooks(hooks) if hooks else None)

    def listen(self, hooks: Hooks | None) -> None:
        super().listen(hooks)
        self.is_plain = self.finds_hits and not self._deduplicates

    def bind_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Give these to the batch function, a method, with each call."""
        self._arguments = arguments

    def load(self, key: Any, claim: Claim | None = None) -> LoadHandle[Any]:
        """
        :param claim: makes the handle of a load from its entry, and the batch of that if it is pending
        """
        if self.running() is not self.token:
            self.admit()
        if key is None:
            raise TypeError(f"{self.name}.load() takes a key, not None; {NO_KEY}")
        cache_key = key if self.key_of is None else self.key_of(key)
        cache = self.cache
        try:
            entry = None if cache is None else cache.get(cache_key)
        except TypeError:
            check_hashable(self.name, key, cache_key)
            raise
        if entry is None and self._deduplicates:
            entry = self._find_queued(key, cache_key)
        if entry is None:
            return self.enqueue(key, cache_key, claim)
        return self._reuse(key, entry, claim)

    def load_required(self, key: Any) -> LoadHandle[Any]:
        if self._required is None:
            self._required = required_maker(self.name)
        return self.load(key, _Required(key, self._required))

    def _find_queued(self, key: Any, cache_key: Any) -> LoadHandle[Any] | None:
        """Return the entry of an equal key in the open batch, where these are sent once."""
        check_hashable(self.name, key, cache_key)
        index = getattr(self.open, "index", None) or {}
        entry: LoadHandle[Any] | None = index.get(cache_key)
        if entry is None or batch_of(entry) is None:  # primed since, and out of the batch
            return None
        if self.cache is not None:
            self.cache[cache_key] = entry  # cleared since, but not sent yet
        return entry

    def _reuse(self, key: Any, entry: LoadHandle[Any], claim: Claim | None) -> LoadHandle[Any]:
        batch = entry._batch
        handle = entry
        if batch is not None:
            batch.scope.check_thread()
            self.counts.shared += 1
            handle = claim(batch, entry) if claim else batch.share(entry, new_handle(key, batch))
        elif self._defers:
            handle = self._defer(key, entry, claim)
        else:
            self.counts.hits += 1
            if claim is not None:
                handle = claim(None, entry)
        # Last, as a hook may settle the entry, or send its batch.
        if self.hooks is not None:
            self.tell(key, batch, shared=True)
        return handle

    def _defer(self, key: Any, hit: LoadHandle[Any], claim: Claim | None) -> LoadHandle[Any]:
        batch = self.open
        # One that waits for a token is nothing for hits, which need none.
        if batch is None or batch.pulse is not batch.scope:
            batch = self._open_for_hits or self.open_batch()
        self.counts.hits += 1
        deferred = (new_handle(key, batch), None) if claim is None else claim.deferred(key, batch)
        batch.defer(hit, *deferred)
        return deferred[0]

    def enqueue(self, key: Any, cache_key: Any, claim: Claim | None) -> LoadHandle[Any]:
        """The one way in for a key."""
        batch = self._make_room(key) if self._is_bounded else self.open
        if batch is None:
            batch = self.open_batch()
        entry = handle = batch.add(key, None if claim is None else NOBODY)
        if claim is not None:
            handle = claim(batch, entry)
        try:
            if self._is_indexed:
                self._index(batch, cache_key, entry)
            if self.cache is not None:
                self.cache[cache_key] = entry
        except BaseException as exc:
            batch.refuse(entry, exc)
            raise
        if running_batch.get() is not None:
            batch.note_origin()
        if self._is_bounded or self.hooks is not None:
            self._key_added(key, batch)
        return handle

    def _make_room(self, key: Any) -> Batch | None:
        """
        Let a batch leave that could not take the key as well; return the open one, if there is one.

        :raises LoaderBusyError: if too many keys wait to be sent
        """
        options = self.options
        if options.max_queue_size is not None:
            check_queue(self, 1)
        if options.weigh is not None:
            make_room(self, weight_of(self, key))
        if self.open is not None:
            prove_stack_room()  # it may have to be sent
            if self._most is not None and self.open.size >= self._most:
                self.seal(self.open, "full")  # its last key is just being hashed, and that loads
        return self.open

    def _index(self, batch: Batch, cache_key: Any, entry: LoadHandle[Any]) -> None:
        if self.key_of is not None:
            if batch.cache_keys is None:
                batch.cache_keys = {}
            batch.cache_keys[entry] = cache_key
        if self._deduplicates:
            if batch.index is None:
                batch.index = {}
            batch.index[cache_key] = entry

    def _key_added(self, key: Any, batch: Batch) -> None:
        """Tell of a new key, and send the batch if it is full."""
        options = self.options
        full = (self._most is not None and batch.size >= self._most) or (
            options.max_batch_weight is not None and batch.weight >= options.max_batch_weight
        )
        try:
            if self.hooks is not None:
                if full:
                    self.batch_left(batch)  # first, as a hook may load
                self.tell(key, batch, shared=False)
        finally:  # a hook may be interrupted
            if full:
                self.seal(batch, "full")

    def open_batch(self) -> Batch:
        for watch in watches.get():
            watch.add(self)
        scope: Any = self.scope
        front: Any = self.front()
        function = front.batch_load_fn if self._function is None else self._function
        if self._arguments:
            function = partial(function, **self._arguments)
        if self._gates is None:
            limiters = (self.options.limiter, thread_limiter(function), scope.limiter)
            self._gates, self._limiters = gates_for(self.name, *limiters)
        batch = Batch(self, scope, self.options.schedule, function, front, self._gates)
        # First a task, then a key: a group that takes no more tasks leaves no trace.
        scope.open(batch)
        if self.open is None:
            self.open = batch
        else:
            self._open_for_hits = batch
        if self.hooks is not None:
            self.hooks.tell(BatchOpened, self.name, batch.number)
            if not batch.is_open:  # the hook has filled it, sent it or ended its scope
                return self.open or self.open_batch()
        return batch

    def seal(self, batch: Batch, reason: str) -> None:
        if batch.is_open:  # no hook that heard of its last key has dispatched it
            batch.scope.seal(batch, reason)

    def dispatch(self) -> None:
        self.check_place()
        self.dispatch_all()

    def dispatch_all(self) -> None:
        for batch in (self.open, self._open_for_hits):
            if batch is not None and (batch.added or batch.deferred):
                self.seal(batch, "dispatch")

    # Many loads

    def load_many(
        self, keys: Iterable[Any], return_exceptions: bool, required: bool = False
    ) -> LoadManyHandle[Any]:
        if self.running() is not self.token:
            self.admit()
        if not isinstance(keys, Iterable):
            raise TypeError(
                f"{self.name}.load_many() takes an iterable of keys, not {article(keys)}"
            )
        keys = list(keys)
        if type(None) in set(map(type, keys)):
            raise TypeError(
                f"{self.name}.load_many() takes keys, and one of them is None; {NO_KEY}"
            )
        refuse = partial(not_found, self.name) if required else None
        many: LoadManyHandle[Any] = LoadManyHandle(return_exceptions, refuse)
        cache_keys = keys if self.key_of is None else list(map(self.key_of, keys))
        found = self._look_up_all(keys, cache_keys)
        if not any(found):
            if self._enqueue_all(keys, many):
                return many
        elif self.finds_hits and all(found) and not any(map(batch_of, found)):
            self.counts.hits += len(found)
            extend(many, found)
            return many
        if self.options.max_queue_size is not None:
            new: Any = [key for key, entry in zip(cache_keys, found) if entry is None]
            if self.cache is not None or self._deduplicates:
                queued = getattr(self.open, "index", None) or {}
                new = [key for key in set(new) if key not in queued]
            check_queue(self, len(new))
        if self.options.weigh is not None:
            for key in keys:
                weight_of(self, key)
        self._load_each(keys, cache_keys, many)
        return many

    def _look_up_all(self, keys: list[Any], cache_keys: list[Any]) -> list[Any]:
        """:raises TypeError: if one of the keys cannot be hashed"""
        try:
            if self.cache is not None:
                return list(map(self.cache.get, cache_keys))
            if self._deduplicates:
                set(cache_keys)
        except TypeError:
            for key, cache_key in zip(keys, cache_keys):
                check_hashable(self.name, key, cache_key)
            raise
        return [None] * len(keys)

    def _load_each(self, keys: list[Any], cache_keys: list[Any], many: LoadManyHandle[Any]) -> None:
        claim = _ForMany(many)
        handles: list[LoadHandle[Any]] = []
        new: list[LoadHandle[Any]] = []
        try:
            for key, cache_key in zip(keys, cache_keys):
                entry = None if self.cache is None else self.cache.get(cache_key)
                if entry is None and self._deduplicates:
                    entry = self._find_queued(key, cache_key)
                if entry is None:
                    new.append(entry := self.enqueue(key, cache_key, claim))
                else:
                    entry = self._reuse(key, entry, claim)
                handles.append(entry)
        except BaseException as exc:
            _take_back(many, new, exc)
            raise
        extend(many, handles)

    def _enqueue_all(self, keys: list[Any], many: LoadManyHandle[Any]) -> bool:
        """Take keys that are all new, if each is there once and nothing looks at each of them."""
        cache = self.cache
        if type(cache) is not dict or self.key_of is not None or self._deduplicates or not keys:
            return False
        if self.options.weigh is not None or self.options.max_queue_size is not None:
            return False
        if len(set(keys)) < len(keys):
            return False
        handles = [new_handle(key, None, NOBODY) for key in keys]
        done = 0
        while done < len(handles):
            batch = (self._make_room(None) if self._is_bounded else self.open) or self.open_batch()
            if self.hooks is not None or batch.pulse is not batch.scope:
                break
            room = len(handles) if self._most is None else self._most - batch.size
            part = handles[done : done + room]
            if len(part) == room and self._most is not None:
                prove_stack_room()  # it will have to be sent
            batch.add_all(part, many)
            try:
                cache.update(zip(keys[done : done + room], part))
            except BaseException as exc:
                _take_back(many, handles, exc)
                raise
            extend(many, part)
            done += room
            if len(part) == room and self._most is not None:
                self.seal(batch, "full")
        if done < len(handles):
            self._load_each(keys[done:], keys[done:], many)
        return True

    # What can be seen from outside

    def statistics(self) -> LoaderStatistics:
        batch = self.open
        added, queued = (0, 0) if batch is None else (batch.added, batch.size)
        return self.counts.snapshot(added, queued, self.count_cached())

    def batch_left(self, batch: Batch) -> None:
        """``batch`` takes no more keys."""
        if self.open is batch:
            self.open = None
            self.counts.added += len(batch.entries)
        elif self._open_for_hits is batch:
            self._open_for_hits = None


def _take_back(
    many: LoadManyHandle[Any], entries: Iterable[LoadHandle[Any]], error: BaseException
) -> None:
    """The cache, or a key, has refused one of many: what was queued before is wanted by nobody."""
    withdraw(many)
    for entry in entries:
        batch = batch_of(entry)
        if batch is not None:  # a hook may have settled it
            batch.refuse(entry, error)


def _is_async_generator_function(function: object) -> bool:
    while isinstance(function, partial):
        function = function.func
    call = getattr(type(function), "__call__")  # noqa: B004, B009 - of the class, not the instance
    # What inspect.isasyncgenfunction asks a function, asked of all that can be called.
    for candidate in (function, call):
        code = getattr(getattr(candidate, "__func__", candidate), "__code__", None)
        if getattr(code, "co_flags", 0) & CO_ASYNC_GENERATOR:
            return True
    return False
