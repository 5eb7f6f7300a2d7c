"""``DataLoader``: the public calls. What they decide stands in ``_batch``."""

from __future__ import annotations

from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    MutableMapping,
    Sequence,
)
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypedDict, TypeVar, cast, overload

import anyio

from ._batch import Batch, new_handle
from ._cache import ValueCache, check_hashable, evict
from ._dispatcher import Dispatcher, ambient
from ._errors import LoaderNotOpenError
from ._handle import (
    NOBODY,
    Failure,
    LoadHandle,
    LoadManyHandle,
    bare_handle,
    outcome_of,
    running_batch,
)
from ._results import log_exception
from ._statistics import LoaderStatistics
from .hooks import BatchOpened, Hook, Hooks, LoadHit, LoadQueued, watches
from .schedules import Manual, Schedule, quiescent

if TYPE_CHECKING:
    import asyncio
    import sys

    import anyio.abc
    import trio
    from anyio import CapacityLimiter

    if sys.version_info >= (3, 12):
        from typing import Self, Unpack
    else:
        from typing_extensions import Self, Unpack

    class _AsyncioTaskGroup(Protocol):
        """``asyncio.TaskGroup``, which Python 3.10 has not."""

        def create_task(
            self, coro: Coroutine[Any, Any, Any], *, name: str | None = None
        ) -> asyncio.Task[Any]: ...

    TaskGroup = anyio.abc.TaskGroup | trio.Nursery | _AsyncioTaskGroup

__all__ = ("DataLoader", "IterableFn", "MappingFn", "StreamFn")

K = TypeVar("K")
V = TypeVar("V")

# One alias for each kind, and overloads from the most special to the most general: a mapping is an
# iterable too, of its keys. Values with and without errors apart, as checkers infer V from either.
MappingFn = Callable[[list[K]], Awaitable[Mapping[Any, V | Exception] | Mapping[Any, V]]]
IterableFn = Callable[[list[K]], Awaitable[Iterable[V | Exception] | Iterable[V]]]
StreamFn = Callable[
    [list[K]], AsyncIterator[tuple[Any, V | Exception]] | AsyncIterator[tuple[Any, V]]
]

if TYPE_CHECKING:  # only checkers need these, and making them takes half a millisecond

    class _Options(TypedDict, total=False):
        batch: bool
        max_batch_size: int | None
        cache: bool
        schedule: Schedule | None
        defer_hits: bool
        deduplicate: bool
        cache_errors: bool | Callable[[Exception], bool]
        limiter: CapacityLimiter | None
        value_cache: ValueCache[Any, Any] | None
        name: str | None
        hooks: Sequence[Hook]

    class LoaderOptions(_Options, total=False):
        """The options of a loader that can be stated once for all scopes."""

        get_cache_key: Callable[[Any], Any] | None
        on_missing: Callable[[Any], Any] | None

    class OwnOptions(_Options, total=False):
        """The options of a single loader whose types do not follow from its batch function."""

        task_group: TaskGroup | None
        cache_map: MutableMapping[Any, LoadHandle[Any]] | None


# Looked up once, as a bound method is made for each look at an imported object's.
_running_batch = running_batch.get
_watches = watches.get

_CO_ASYNC_GENERATOR = 0x200

#: Stands for "not given" in the signature below, so that a class attribute can be the default.
_default: Any = ...

#: ``_token`` of a loader that takes no loads as it is; equal to no event loop.
_CLOSED: Any = object()


def _nowhere() -> object:
    return None


def _in_scope(dispatcher: Dispatcher) -> object:
    """Return the running event loop, but only where the scope of ``dispatcher`` is ambient."""
    return dispatcher.backend.current() if ambient.get() is dispatcher else None


class DataLoader(Generic[K, V]):
    """
    Turns many ``load(key)`` calls into few calls of a batch function, with a cache.

    :param batch_load_fn: called with a list of keys; an async function or anything else that
        returns an awaitable of one value per key, of a mapping from (cache) key to value, or an
        async generator of ``(key, value)`` pairs. A value that is an ``Exception`` fails its key
        alone. A subclass can define it as a method instead
    :param task_group: an anyio ``TaskGroup``, a trio ``Nursery`` or an ``asyncio.TaskGroup`` to
        run in. Without it the loader is opened by ``async with``, or by its first load in a
        :class:`LoaderScope`
    :param batch: ``False`` means batches of one key
    :param max_batch_size: the most keys that one call is given; ``None`` for no limit
    :param cache: ``False`` means that every load is fetched, duplicates of one batch included
    :param get_cache_key: makes the hashable key under which a key is cached
    :param cache_map: where handles are cached: any mutable mapping, such as a ``cachetools`` cache
    :param schedule: when a batch leaves, one of :mod:`anyloader.schedules` or an async function of
        one's own; ``quiescent()`` by default
    :param defer_hits: a hit settles together with the batch that is open, so that what is loaded
        next, after hits and after misses, meets in one batch
    :param deduplicate: with the cache off, send equal keys of one batch once
    :param cache_errors: whether the error of a single key is cached, or a predicate that is given
        the error and says so. The error of a whole batch never is
    :param on_missing: called with a key that a mapping or a stream did not give; returns its value,
        or an exception for the load to raise. ``None`` by default
    :param limiter: bounds how many batch functions run at once; can be shared between loaders
    :param value_cache: a second level, shared between processes; see :class:`ValueCache`
    :param hooks: called with what happens; see :mod:`anyloader.hooks`
    :param name: for messages and task names; by default the name of the function or class
    :raises TypeError: if an argument has the wrong type
    :raises ValueError: if ``max_batch_size`` is less than 1

    A subclass can set each of these, but for ``task_group`` and ``cache_map``, as a class attribute,
    which is the default then.

    **Opening.** A loader runs in its own ``async with``; else in ``task_group``; else in the
    :class:`LoaderScope` that is ambient at its first load, for good. Entering is no checkpoint.

    **Leaving** waits for the batches that some task awaits and cancels all others. It lets other
    tasks run, but is a checkpoint for cancellation only if it has to wait; if that is cancelled, all
    batches are. If the body raised or was cancelled, all batches are cancelled, and the exception
    comes out as it is.

    **Threads.** All calls belong in the event loop in which the loader was opened.
    """

    batch: bool = True
    max_batch_size: int | None = None
    cache: bool = True
    get_cache_key: Callable[..., Any] | None = None
    # Any, as subclasses may make it an attribute or a method, and checkers allow the one or the other.
    schedule: Any = quiescent()
    defer_hits: bool = False
    deduplicate: bool = False
    cache_errors: bool | Callable[..., bool] = True
    on_missing: Callable[..., Any] | None = None
    limiter: CapacityLimiter | None = None
    value_cache: ValueCache[Any, Any] | None = None
    name: str = ""
    hooks: Sequence[Hook] = ()

    @overload
    def __init__(
        self,
        batch_load_fn: MappingFn[K, V],
        *,
        get_cache_key: Callable[[K], Any] | None = ...,
        on_missing: Callable[[K], V | Exception] | None = ...,
        **options: Unpack[OwnOptions],
    ) -> None: ...
    @overload
    def __init__(
        self,
        batch_load_fn: IterableFn[K, V],
        *,
        get_cache_key: Callable[[K], Any] | None = ...,
        on_missing: Callable[[K], V | Exception] | None = ...,
        **options: Unpack[OwnOptions],
    ) -> None: ...
    @overload
    def __init__(
        self,
        batch_load_fn: StreamFn[K, V],
        *,
        get_cache_key: Callable[[K], Any] | None = ...,
        on_missing: Callable[[K], V | Exception] | None = ...,
        **options: Unpack[OwnOptions],
    ) -> None: ...
    @overload
    def __init__(
        self,
        batch_load_fn: None = None,
        *,
        get_cache_key: Callable[[Any], Any] | None = ...,
        on_missing: Callable[[Any], Any] | None = ...,
        **options: Unpack[OwnOptions],
    ) -> None: ...
    def __init__(
        self,
        batch_load_fn: Any = None,
        *,
        task_group: TaskGroup | None = None,
        batch: bool = _default,
        max_batch_size: int | None = _default,
        cache: bool = _default,
        get_cache_key: Callable[[Any], Any] | None = _default,
        cache_map: MutableMapping[Any, LoadHandle[Any]] | None = None,
        schedule: Schedule | None = None,
        defer_hits: bool = _default,
        deduplicate: bool = _default,
        cache_errors: bool | Callable[[Exception], bool] = _default,
        on_missing: Callable[[Any], Any] | None = _default,
        limiter: CapacityLimiter | None = _default,
        value_cache: ValueCache[Any, Any] | None = _default,
        name: str | None = None,
        hooks: Sequence[Hook] = _default,
    ) -> None:
        given = {
            "batch": batch,
            "max_batch_size": max_batch_size,
            "cache": cache,
            "get_cache_key": get_cache_key,
            "schedule": _default if schedule is None else schedule,
            "defer_hits": defer_hits,
            "deduplicate": deduplicate,
            "cache_errors": cache_errors,
            "on_missing": on_missing,
            "limiter": limiter,
            "value_cache": value_cache,
            "name": _default if name is None else name,
            "hooks": hooks,
        }
        for option, value in given.items():
            if value is not _default:
                setattr(self, option, value)
        if batch_load_fn is not None:
            # On the instance, and methods of subclasses on the class: a bound method kept in here
            # would be a reference cycle.
            self.batch_load_fn = batch_load_fn  # type: ignore[method-assign]
        if not self.name:
            self.name = self._default_name(batch_load_fn)
        self._check_options(batch_load_fn, cache_map)

        #: Whether batches are fed by an async generator, as far as one can tell before calling it.
        self._streams = _is_async_generator_function(self.batch_load_fn)
        self._most = self.max_batch_size if self.batch else 1
        self._cache: MutableMapping[Any, LoadHandle[V]] | None = None
        if self.cache:
            self._cache = {} if cache_map is None else cache_map
        #: Whether what it is cached under is not the key itself.
        self._keyed = self.cache and self.get_cache_key is not None
        #: Whether, with the cache off, the open batch is asked for its keys.
        self._deduplicates = not self.cache and (self.deduplicate or self._streams)
        self._hooks: Hooks | None = Hooks(tuple(self.hooks)) if self.hooks else None
        #: Cache keys to be deleted from the value cache before it is asked again.
        self._to_delete: dict[Any, None] = {}
        #: The batch that the next key joins.
        self._open: Batch | None = None
        #: Where batches run; set once.
        self._dispatcher: Dispatcher | None = None
        #: Whether it was found, rather than given, and so has to be ambient at every load.
        self._found_scope = False
        # A load is let in without further questions if these two agree.
        self._running: Callable[[], object] = _nowhere
        self._token: object = _CLOSED
        #: What the statistics count. ``_queued``: keys of batches that take no more keys.
        self._hits = self._shared = self._queued = self._batches = self._keys = 0
        if task_group is not None:
            self._attach(Dispatcher(task_group))

    def _default_name(self, batch_load_fn: object) -> str:
        if batch_load_fn is None or type(self) is not DataLoader:
            return type(self).__qualname__
        while isinstance(batch_load_fn, partial):
            batch_load_fn = batch_load_fn.func
        return getattr(batch_load_fn, "__qualname__", type(batch_load_fn).__qualname__)

    def _check_options(self, batch_load_fn: object, cache_map: object) -> None:
        def check(option: str, value: object, fine: bool, expected: str) -> None:
            if not fine:
                raise TypeError(f"{option} of {self.name} must be {expected}, not {value!r}")

        if batch_load_fn is None and type(self).batch_load_fn is DataLoader.batch_load_fn:
            raise TypeError(
                "DataLoader needs a batch function: give it one, or define an async method "
                "batch_load_fn in a subclass"
            )
        function = self.batch_load_fn
        check("batch_load_fn", function, callable(function), "callable")
        for option in ("batch", "cache", "defer_hits", "deduplicate"):
            value = getattr(self, option)
            check(option, value, isinstance(value, bool), "True or False")
        for option in ("get_cache_key", "on_missing"):
            value = getattr(self, option)
            check(option, value, value is None or callable(value), "callable or None")
        check("schedule", self.schedule, callable(self.schedule), "an async function")
        errors = self.cache_errors
        fine = isinstance(errors, bool) or callable(errors)
        check("cache_errors", errors, fine, "True, False or a predicate")
        check("name", self.name, isinstance(self.name, str), "a str")
        limiter = self.limiter
        fine = limiter is None or isinstance(limiter, anyio.CapacityLimiter)
        check("limiter", limiter, fine, "an anyio.CapacityLimiter or None")
        methods = ("get_many", "set_many", "delete_many")
        values = self.value_cache
        fine = values is None or all(callable(getattr(values, m, None)) for m in methods)
        check("value_cache", values, fine, f"an object with {', '.join(methods)}, or None")
        fine = isinstance(self.hooks, (tuple, list)) and all(map(callable, self.hooks))
        check("hooks", self.hooks, fine, "a sequence of callables")
        fine = cache_map is None or isinstance(cache_map, MutableMapping)
        check("cache_map", cache_map, fine, "a MutableMapping or None")
        most = self.max_batch_size
        fine = most is None or (isinstance(most, int) and not isinstance(most, bool))
        check("max_batch_size", most, fine, "an int >= 1 or None")
        if most is not None and most < 1:
            raise ValueError(f"max_batch_size of {self.name} must be an int >= 1, not {most!r}")

    def batch_load_fn(
        self, keys: list[K], /
    ) -> (
        Awaitable[Iterable[V | Exception] | Mapping[Any, V | Exception]]
        | AsyncIterator[tuple[Any, V | Exception]]
    ):
        """
        Load many keys at once; to be defined by a subclass that is given no function.

        :param keys: a fresh list, in load order
        """
        raise NotImplementedError

    # Opening and closing

    def _attach(self, dispatcher: Dispatcher) -> None:
        """Run there, for good."""
        self._dispatcher = dispatcher
        if dispatcher.hooks:
            own = () if self._hooks is None else self._hooks.hooks
            self._hooks = Hooks((*own, *dispatcher.hooks))
        dispatcher.attach(self)
        for watch in watches.get():
            watch.add(self)

    @property
    def _is_manual(self) -> bool:
        return isinstance(self.schedule, Manual)

    def _bind(self, token: object) -> None:
        if token is None:
            self._running, self._token = _nowhere, _CLOSED
        else:
            dispatcher = cast(Dispatcher, self._dispatcher)
            self._token = token
            self._running = (
                partial(_in_scope, dispatcher) if self._found_scope else dispatcher.backend.current
            )

    async def __aenter__(self) -> Self:
        if self._dispatcher is not None and (self._dispatcher.entered or self._loads()):
            raise RuntimeError(
                f"{self.name} is or was open already; a loader can be entered once, for a new "
                "request make a new one"
            )
        dispatcher = Dispatcher()
        await dispatcher.enter()
        self._attach(dispatcher)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await cast(Dispatcher, self._dispatcher).leave(exc_val)

    def _admit(self) -> None:
        """Let in a load that does not surely come from where the loader is open, or refuse it."""
        dispatcher = self._dispatcher
        if dispatcher is None:
            dispatcher = ambient.get()
            if dispatcher is None:
                raise LoaderNotOpenError(
                    f"{self.name} has nowhere to run: use `async with` on it, give it a "
                    "task_group, or load inside `async with LoaderScope()`"
                )
            dispatcher.admit(self)
            self._found_scope = True
            self._attach(dispatcher)
            return
        if self._found_scope and dispatcher.state == "open":
            inner = ambient.get()
            while inner is not dispatcher:
                if inner is None:
                    raise LoaderNotOpenError(
                        f"{self.name} belongs to the LoaderScope that its first load was made in, "
                        "and this is another one; make a loader for each scope, for instance by "
                        "scope.get()"
                    )
                inner = inner.outer
        dispatcher.admit(self)

    def _check_place(self) -> None:
        """Refuse calls that touch the cache from where no load would be let in."""
        if self._running() is self._token or self._dispatcher is None:
            return
        if self._found_scope:
            self._admit()
        elif self._dispatcher.state != "closed":
            self._dispatcher.check_thread()

    # Loading

    def load(self, key: K) -> LoadHandle[V]:
        """
        Ask for the value of one key.

        A plain call, no checkpoint: the key is queued, or found in the cache, when it returns. The
        load is on its way whether or not the handle is ever awaited.

        :param key: anything but ``None``; hashable, unless ``get_cache_key`` makes it so or the
            cache is off
        :raises TypeError: if the key is ``None``, or cannot be hashed
        :raises LoaderNotOpenError: if the loader has nowhere to run
        :raises LoaderClosedError: if its scope has ended
        :raises RuntimeError: if called from another thread or event loop
        """
        # The one path that everything takes, so written for speed, without a call it can do without.
        if self._running() is not self._token:
            self._admit()
        if key is None:
            raise TypeError(f"{self.name}.load() takes a key, not None")
        cache = self._cache
        cache_key: Any = key
        entry: LoadHandle[V] | None = None
        if cache is not None:
            if self._keyed:
                cache_key = self._cache_key(key)
            try:
                entry = cache.get(cache_key)
            except TypeError:
                check_hashable(self.name, key, cache_key)
                raise
        elif self._deduplicates:
            cache_key = self._cache_key(key)
            check_hashable(self.name, key, cache_key)
            entry = None if self._open is None else self._open.find(cache_key)
        if entry is not None:
            batch = entry._batch
            if batch is not None:
                self._shared += 1
                entry = batch.share(entry, key)
            else:
                self._hits += 1
                if self._open is not None and self.defer_hits:
                    entry = self._open.defer(entry, None)
            # Last, as a hook may settle the entry, or send its batch.
            if self._hooks is not None:
                self._tell_load(key, batch, shared=True)
            return entry
        batch = self._open
        if batch is None:
            batch = self._open_batch()
        new: LoadHandle[V] = bare_handle()
        new._key = key
        new._batch = batch
        new._content = None
        if cache is not None:
            cache[cache_key] = new
        elif self._deduplicates:
            batch.remember(cache_key, new)
        batch.keys_.append(key)
        batch.entries.append(new)
        batch.live += 1
        if self._keyed:
            batch.cache_keys.append(cache_key)
        if _running_batch() is not None:
            batch.note_origin()
        if self._hooks is not None:
            self._key_added(key, batch)
        elif self._most is not None and batch.size >= self._most:
            self._seal(batch, "full")
        return new

    def _key_added(self, key: K, batch: Batch) -> None:
        full = self._most is not None and batch.size >= self._most
        if self._hooks is not None:
            if full:
                self._batch_left(batch)  # first, as a hook may load
            self._tell_load(key, batch, shared=False)
        if full:
            self._seal(batch, "full")

    def _tell_load(self, key: K, batch: Batch | None, *, shared: bool) -> None:
        hooks = cast(Hooks, self._hooks)
        if batch is None:
            hooks(LoadHit(self.name, key))
        else:
            hooks(LoadQueued(self.name, key, batch.number, shared))

    def _open_batch(self) -> Batch:
        for watch in _watches():
            watch.add(self)
        dispatcher: Any = self._dispatcher
        batch = Batch(self, dispatcher, self.schedule, self._keyed)
        # First a task, then a key: a group that takes no more tasks leaves no trace.
        dispatcher.open(batch)
        self._open = batch
        if self._hooks is not None:
            self._hooks(BatchOpened(self.name, batch.number))
            if not batch.is_open:  # the hook has filled it, sent it or ended its scope
                return self._open or self._open_batch()
        return batch

    def _seal(self, batch: Batch, reason: str) -> None:
        if batch.is_open:  # no hook that heard of its last key has dispatched it
            batch.dispatcher.seal(batch, reason)

    def load_many(self, keys: Iterable[K], *, return_exceptions: bool = False) -> LoadManyHandle[V]:
        """
        Ask for the values of many keys.

        A plain call like :meth:`load`; either all keys are let in or, if it raises, none.

        :param keys: any iterable
        :param return_exceptions: put errors in place of values, instead of raising the first one
        :raises TypeError: if ``keys`` is not iterable, or one of them is ``None`` or cannot be
            hashed
        :raises LoaderNotOpenError: if the loader has nowhere to run
        :raises LoaderClosedError: if its scope has ended
        :raises RuntimeError: if called from another thread or event loop
        """
        if self._running() is not self._token:
            self._admit()
        if not isinstance(keys, Iterable):
            raise TypeError(f"{self.name}.load_many() takes an iterable of keys, not {keys!r}")
        keys = list(keys)
        for key in keys:
            if key is None:
                raise TypeError(f"{self.name}.load_many() takes keys, and one of them is None")
        cache_keys: list[Any] = keys
        if self._keyed or self._deduplicates:
            cache_keys = [self._cache_key(key) for key in keys]
        many = LoadManyHandle[V](return_exceptions)
        if self._cache is None:
            self._load_many_uncached(keys, cache_keys, many)
        else:
            self._load_many_cached(keys, cache_keys, self._cache, many)
        return many

    def _load_many_uncached(
        self, keys: list[K], cache_keys: list[Any], many: LoadManyHandle[V]
    ) -> None:
        if self._deduplicates:
            for key, cache_key in zip(keys, cache_keys):
                check_hashable(self.name, key, cache_key)
        for key, cache_key in zip(keys, cache_keys):
            batch = self._open or self._open_batch()
            batch.join(many)
            entry = batch.find(cache_key) if self._deduplicates else None
            if entry is None:
                entry = new_handle(key, batch, NOBODY)
                if self._deduplicates:
                    batch.remember(cache_key, entry)
                batch.keys_.append(key)
                batch.entries.append(entry)
                # First, as the seal drops what is in no handle that somebody wants.
                many._handles.append(entry)
                self._key_added(key, batch)
            else:
                many._handles.append(entry)
                self._shared += 1
                if self._hooks is not None:
                    self._tell_load(key, batch, shared=True)

    def _load_many_cached(
        self,
        keys: list[K],
        cache_keys: list[Any],
        cache: MutableMapping[Any, LoadHandle[V]],
        many: LoadManyHandle[V],
    ) -> None:
        # The loop over the keys is the price of a load_many, so it is written for speed: what
        # differs between batches is fetched once per batch, and counting is left to the end.
        get = cache.get
        new = bare_handle
        handles = many._handles
        try:
            found = list(map(get, cache_keys))
        except TypeError:
            for key, cache_key in zip(keys, cache_keys):
                check_hashable(self.name, key, cache_key)
            raise
        if keys and type(cache) is dict and not any(found):
            if self._open is None:
                self._open_batch()  # now, as it may make somebody want to hear of each key
            if self._take_all_at_once(keys, cache, many):
                return
        batch: Batch | None = None
        batch_keys: list[K] = []
        entries: list[LoadHandle[V]] = []
        added: list[LoadHandle[V]] = []
        room = shared = 0
        for key, cache_key, entry in zip(keys, cache_keys, found):
            if entry is None:
                entry = get(cache_key)  # it may have come earlier in this very call
            if entry is None:
                if batch is None:
                    batch = self._open or self._open_batch()
                    batch.join(many)
                    batch_keys, entries = batch.keys_, batch.entries
                    room = -1 if self._most is None else self._most - batch.size
                entry = new()
                entry._key = key
                entry._batch = batch
                entry._content = NOBODY
                try:
                    cache[cache_key] = entry
                except BaseException as exc:
                    self._undo(cache_keys, added, many, exc)
                    raise
                handles.append(entry)
                batch_keys.append(key)
                if self._keyed:
                    batch.cache_keys.append(cache_key)
                entries.append(entry)
                added.append(entry)
                room -= 1
                if self._hooks is not None:
                    self._key_added(key, batch)
                    batch = None  # the hook may have sent it, or put keys into it
                elif not room:
                    self._seal(batch, "full")
                    batch = None
                continue
            pending = entry._batch
            if pending is not None:
                shared += 1
                pending.join(many)
            elif self.defer_hits and self._open is not None:
                entry = self._open.defer(entry, NOBODY)
                many._batches.setdefault(self._open, [])
            handles.append(entry)
            if self._hooks is not None:
                self._tell_load(key, pending, shared=True)
                batch = None  # as above
        self._shared += shared
        self._hits += len(keys) - len(added) - shared

    def _take_all_at_once(
        self, keys: list[K], cache: dict[Any, LoadHandle[V]], many: LoadManyHandle[V]
    ) -> bool:
        """Take new keys, if each of them is there once and nobody wants to hear of each."""
        if self._most is not None or self._keyed or self._hooks is not None:
            return False
        batch = cast(Batch, self._open)
        new = bare_handle
        handles: list[LoadHandle[V]] = []
        for key in keys:
            entry: LoadHandle[V] = new()
            entry._key = key
            entry._batch = batch
            entry._content = NOBODY
            handles.append(entry)
        entries = dict(zip(keys, handles))
        if len(entries) < len(keys):
            return False
        batch.join(many)
        cache.update(entries)
        many._handles = handles
        batch.keys_ += keys
        batch.entries += handles
        return True

    def _undo(
        self,
        cache_keys: list[Any],
        added: list[LoadHandle[V]],
        many: LoadManyHandle[V],
        exc: BaseException,
    ) -> None:
        """Take back what a load_many has queued before the cache refused one of its keys."""
        new = set(added)
        self._evict(pair for pair in zip(cache_keys, many._handles) if pair[1] in new)
        many._awaits = 0  # nobody will ever have it
        for entry in added:
            if entry._batch is not None:  # a hook may have settled it
                entry._batch.take_out(entry, Failure(exc, None))
        for batch in many._batches:
            batch.give_up(many)

    def dispatch(self) -> None:
        """
        Send what is queued now, without waiting for the schedule.

        Does nothing if nothing is queued. The batch function is called by a task of its own, so not
        before this returns.

        :raises LoaderClosedError: if the task group takes no more tasks; what was queued fails with
            the same error
        :raises RuntimeError: if called from another thread or event loop
        """
        self._check_place()
        if self._open is not None and self._open.added:
            self._seal(self._open, "dispatch")

    # The cache

    def clear(self, key: K) -> Self:
        """
        Forget one key; who loads it next fetches it anew.

        Loads on their way are not affected and get the old result, which is not cached any more.

        :param key: as for :meth:`load`
        :raises TypeError: if the key cannot be hashed
        :raises LoaderNotOpenError: if it is bound to a :class:`LoaderScope` that is not ambient
        :raises LoaderClosedError: if that scope has ended
        :raises RuntimeError: if called from another thread or event loop
        """
        self._check_place()
        if self._cache is not None:
            cache_key = self._cache_key(key)
            check_hashable(self.name, key, cache_key)
            self._cache.pop(cache_key, None)
            if self.value_cache is not None:
                self._delete_values([cache_key])
        return self

    def clear_many(self, keys: Iterable[K]) -> Self:
        """
        Forget some keys, as :meth:`clear` does.

        :param keys: any iterable
        :raises Exception: what :meth:`clear` raises; keys before that one are forgotten
        """
        for key in keys:
            self.clear(key)
        return self

    def clear_all(self) -> Self:
        """
        Forget all keys, as :meth:`clear` does.

        :raises LoaderNotOpenError: if it is bound to a :class:`LoaderScope` that is not ambient
        :raises LoaderClosedError: if that scope has ended
        :raises RuntimeError: if called from another thread or event loop
        """
        self._check_place()
        self._forget_all()
        return self

    def _forget_all(self) -> None:
        if self._cache is not None:
            if self.value_cache is not None:
                self._delete_values(list(self._cache))
            self._cache.clear()

    def _delete_values(self, cache_keys: list[Any]) -> None:
        """Let the next batch delete these, and those on their way not store them."""
        self._to_delete.update(dict.fromkeys(cache_keys))
        if self._dispatcher is not None:
            for batch in self._dispatcher.batches_of(self):
                batch.cleared = batch.cleared.union(cache_keys)

    def prime(self, key: K, value: V | Exception, *, force: bool = False) -> Self:
        """
        Put a value into the cache, unless the key is there already, pending or settled.

        With the cache off it does nothing.

        :param value: the value, or an ``Exception`` for loads to raise
        :param force: replace what is there. A key that is still queued is taken out of its batch,
            and those who wait for it get the value; one in flight goes on for those who wait for it
        :raises TypeError: if the key is ``None`` or cannot be hashed
        :raises LoaderNotOpenError: if it is bound to a :class:`LoaderScope` that is not ambient
        :raises LoaderClosedError: if that scope has ended
        :raises RuntimeError: if called from another thread or event loop
        """
        if self._dispatcher is None and ambient.get() is not None:
            self._admit()  # or what it holds of this scope could reach another one
        self._check_place()
        cache = self._cache
        if cache is None:
            return self
        if key is None:
            raise TypeError(f"{self.name}.prime() takes a key, not None")
        cache_key = self._cache_key(key)
        check_hashable(self.name, key, cache_key)
        entry = cache.get(cache_key)
        if entry is not None and not force:
            return self
        outcome = outcome_of(value)
        if entry is None or entry._batch is None or not entry._batch.take_out(entry, outcome):
            entry = new_handle(key, None)
            entry._content = outcome
        cache[cache_key] = entry
        return self

    def prime_many(self, mapping: Mapping[K, V | Exception], *, force: bool = False) -> Self:
        """
        Put values into the cache, each as :meth:`prime` does.

        :param mapping: from key to value, or to an ``Exception``
        :param force: as for :meth:`prime`
        :raises Exception: what :meth:`prime` raises; keys before that one are primed
        """
        for key, value in mapping.items():
            self.prime(key, value, force=force)
        return self

    def peek(self, key: K) -> LoadHandle[V] | None:
        """
        Return the cached handle of a key, pending or settled, or ``None``.

        It never loads and never counts as a hit.

        :param key: as for :meth:`load`
        :raises TypeError: if the key cannot be hashed
        :raises LoaderNotOpenError: if it is bound to a :class:`LoaderScope` that is not ambient
        :raises LoaderClosedError: if that scope has ended
        :raises RuntimeError: if called from another thread or event loop
        """
        self._check_place()
        if self._cache is None:
            return None
        cache_key = self._cache_key(key)
        check_hashable(self.name, key, cache_key)
        return self._cache.get(cache_key)

    # What can be seen from outside

    def statistics(self) -> LoaderStatistics:
        """Return what the loader has done so far."""
        outstanding = () if self._dispatcher is None else self._dispatcher.batches_of(self)
        return LoaderStatistics(
            loads=self._loads(),
            hits=self._hits,
            shared=self._shared,
            keys=self._keys,
            batches=self._batches,
            queued=sum(batch.size for batch in outstanding if batch.is_queued),
            running=sum(not batch.is_queued for batch in outstanding),
            cached=0 if self._cache is None else len(self._cache),
        )

    def _loads(self) -> int:
        still_open = 0 if self._open is None else self._open.added
        return self._hits + self._shared + self._queued + still_open

    def __repr__(self) -> str:
        now = self.statistics()
        state = "not open" if self._dispatcher is None else self._dispatcher.state
        return (
            f"<{type(self).__name__} {self.name}: {state}, {now.queued} keys queued, "
            f"{now.running} batches running, {now.cached} cached>"
        )

    # What a batch asks of its loader

    def _cache_key(self, key: Any) -> Any:
        return key if self.get_cache_key is None else self.get_cache_key(key)

    def _missing(self, key: Any) -> Any:
        return None if self.on_missing is None else self.on_missing(key)

    def _keeps_error(self, error: Exception) -> bool:
        keep = self.cache_errors
        if isinstance(keep, bool):
            return keep
        try:
            return bool(keep(error))
        except Exception:
            log_exception(f"cache_errors of {self.name} raised; the error is not cached")
            return False

    def _evict(self, pairs: Iterable[tuple[Any, LoadHandle[Any]]]) -> None:
        if self._cache is None:
            return
        for cache_key, entry in pairs:
            try:
                evict(self._cache, cache_key, entry)
            except Exception:
                log_exception(f"cache_map of {self.name} raised, and may hold a stale key")

    def _take_deletions(self) -> list[Any]:
        taken = list(self._to_delete)
        self._to_delete.clear()
        return taken

    def _batch_left(self, batch: Batch) -> None:
        """``batch`` takes no more keys."""
        if self._open is batch:
            self._open = None
            self._queued += len(batch.keys_)


def _is_async_generator_function(function: object) -> bool:
    while isinstance(function, partial):
        function = function.func
    call = getattr(type(function), "__call__")  # noqa: B004, B009 - of the class, not the instance
    # As the inspect module does, which takes long to import.
    for candidate in (function, call):
        code = getattr(getattr(candidate, "__func__", candidate), "__code__", None)
        if getattr(code, "co_flags", 0) & _CO_ASYNC_GENERATOR:
            return True
    return False
