"""``DataLoader``: what users call and derive from. What it does stands in ``_loader``."""

from __future__ import annotations

from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    MutableMapping,
    Sequence,
)
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from ._batch import LoadHandle, LoadManyHandle
from ._dispatcher import Dispatcher
from ._loader import Loader
from ._options import RULES, Options, default_name
from ._statistics import LoaderStatistics
from .schedules import quiescent

if TYPE_CHECKING:
    import sys

    from ._limits import LimiterOption
    from ._options import IterableFn, MappingFn, OwnOptions, StreamFn, TaskGroup, Unpack
    from ._values import ValueCache
    from .hooks import Hook

    if sys.version_info >= (3, 11):
        from typing import Self
    else:
        from typing_extensions import Self

__all__ = ("DataLoader",)

K = TypeVar("K")
V = TypeVar("V")
K2 = TypeVar("K2")
V2 = TypeVar("V2")


class _NotMade:
    """Stands for the inside of a loader whose ``__init__`` was not called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # who only looks at the class asks for these
            raise AttributeError(name)
        raise TypeError(
            "a subclass of DataLoader has an __init__ that does not call super().__init__(), which "
            "has to come first"
        )


_NOT_MADE = _NotMade()

#: Where constructors stand that need no argument for a class with a batch function of its own.
_NEED_NOTHING = (__name__, f"{__package__}.compat")


class _Signature:
    """
    What ``inspect.signature`` sees of a class of loaders.

    The options by name; and none for a subclass that needs no arguments, or frameworks that make one
    by its signature, as FastAPI does, would ask their clients for each option.
    """

    def __get__(self, instance: object, owner: Any) -> Any:
        import inspect  # takes long to import

        defines = instance is None and owner.batch_load_fn is not DataLoader.batch_load_fn
        if defines and getattr(owner.__init__, "__module__", "") in _NEED_NOTHING:
            return inspect.Signature()
        if instance is not None or owner.__init__ is not DataLoader.__init__:
            raise AttributeError("__signature__")
        defaults = {name: getattr(owner, name) for name in RULES}
        options = {"task_group": None, **defaults, "cache_map": None, "name": None}
        first = inspect.Parameter(
            "batch_load_fn", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None
        )
        others = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
            for name, default in options.items()
        ]
        return inspect.Signature([first, *others])


class DataLoader(Generic[K, V]):
    """
    Turns many ``load(key)`` calls into few calls of a batch function, with a cache.

    :param batch_load_fn: called with a list of keys; an async function or anything else that
        returns an awaitable of one value per key, of a mapping from key (or cache key) to value, or
        of rows (see ``index_by``), or an async generator of ``(key, value)`` pairs. A value that is an
        ``Exception`` fails its key alone. A subclass can define it as a method instead
    :param task_group: an anyio ``TaskGroup``, a trio ``Nursery`` or an ``asyncio.TaskGroup`` to
        run in. Without it the loader is opened by ``async with``, or by its first load in a
        :class:`LoaderScope`
    :param batch: ``False`` means batches of one key
    :param max_batch_size: the most keys that one call is given; ``None`` for no limit
    :param max_batch_weight: the most weight that one call is given, by ``weigh``; a key that is
        heavier goes alone
    :param weigh: called with a key; returns its weight, a finite number >= 0
    :param max_queue_size: the most keys that may wait to be sent; a load of one more raises
        :class:`LoaderBusyError`
    :param cache: ``False`` means that every load is fetched, duplicates of one batch included;
        ``"pending"`` that a load is shared until it has settled, and then forgotten
    :param get_cache_key: makes the hashable key under which a key is cached
    :param cache_map: where handles are cached: any mutable mapping, such as a ``cachetools`` cache
    :param schedule: when a batch leaves, one of :mod:`anyloader.schedules` or an async function of
        one's own; ``quiescent()`` by default
    :param defer_hits: a hit settles together with the batch that is open, so that what is loaded
        next, after hits and after misses, meets in one batch; with none open it opens one
    :param deduplicate: send equal keys of one batch once: with the cache off, and where a key was
        cleared and loaded again before it was sent
    :param cache_errors: whether the error of a single key is cached, or a predicate that is given
        the error and says so. The error of a whole batch never is
    :param on_missing: called with a key that a mapping, rows or a stream did not give; returns its
        value, or an exception for the load to raise. ``None`` by default, or what the mapping's own
        ``__missing__`` gives
    :param index_by: the batch function returns rows in any order, and this is called with a row and
        returns its key: one row for each key
    :param group_by: the same, for a list of rows for each key; an empty one if there are none
    :param limiter: bounds how many batch functions run at once, and can be shared between loaders: an
        ``anyio.CapacityLimiter`` of this event loop, or :func:`limit`. A batch goes on taking keys
        until there is a token for it
    :param value_cache: a second level, shared between processes; see :class:`ValueCache`
    :param hooks: called with what happens; see :mod:`anyloader.hooks`
    :param name: for messages and task names; by default the name of the function or class
    :raises TypeError: if an argument has the wrong type, or is unknown
    :raises ValueError: if a size or weight is too small

    A subclass can set each of these, but for ``task_group`` and ``cache_map``, as a class attribute,
    which is the default then. They are read once, here. All other names are a subclass's to use.

    **Opening.** A loader runs in its own ``async with``; else in ``task_group``; else in the
    :class:`LoaderScope` that is ambient at its first load, for good. Entering is no checkpoint.

    **Leaving** waits for the batches that some task awaits and cancels all others. It lets other
    tasks run if there ever was a batch, but is a checkpoint for cancellation only if it has to wait;
    if that is cancelled, all batches are. If the body raised or was cancelled, all batches are
    cancelled, and the exception comes out as it is. What was cleared is deleted from the value cache once
    more in any case, for which up to two seconds are taken.

    **Threads.** All calls belong in the event loop in which the loader was opened.
    """

    batch: bool = True
    max_batch_size: int | None = None
    max_batch_weight: float | None = None
    weigh: Callable[..., float] | None = None
    max_queue_size: int | None = None
    cache: bool | Literal["pending"] = True
    get_cache_key: Callable[..., Any] | None = None
    # Any, as subclasses may make it an attribute or a method, and checkers allow the one or the other.
    schedule: Any = quiescent()
    defer_hits: bool = False
    deduplicate: bool = False
    cache_errors: bool | Callable[..., bool] = True
    on_missing: Callable[..., Any] | None = None
    index_by: Callable[..., Any] | None = None
    group_by: Callable[..., Any] | None = None
    limiter: LimiterOption | None = None
    value_cache: ValueCache[Any, Any] | None = None
    name: str = ""
    hooks: Sequence[Hook] = ()

    if TYPE_CHECKING:
        __anyloader__: Any
        __signature__: Any
    else:  # not annotated at run time, as the options are
        # A slot, as an attribute that stands on the class too is slow to read.
        __slots__ = {
            "__anyloader__": "The inside of the loader, and the one name that is ours on an instance.",
            "__dict__": "",
            "__weakref__": "",
        }

        def __new__(cls, *_args: object, **_options: object) -> Self:
            loader = super().__new__(cls)
            loader.__anyloader__ = _NOT_MADE
            return loader

        __signature__ = _Signature()

    # Those that need no option come first: who gives **options of unknown names gets these.
    @overload
    def __init__(
        self: DataLoader[K2, V2 | None],
        batch_load_fn: MappingFn[K2, V2],
        *,
        on_missing: None = ...,
        index_by: None = ...,
        group_by: None = ...,
        **options: Unpack[OwnOptions],
    ) -> None: ...
    @overload
    def __init__(
        self,
        batch_load_fn: IterableFn[K, V],
        *,
        on_missing: None = ...,
        index_by: None = ...,
        group_by: None = ...,
        **options: Unpack[OwnOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: DataLoader[K2, V2 | None],
        batch_load_fn: StreamFn[K2, V2],
        *,
        on_missing: None = ...,
        index_by: None = ...,
        group_by: None = ...,
        **options: Unpack[OwnOptions],
    ) -> None: ...
    @overload
    def __init__(
        self,
        batch_load_fn: MappingFn[K, V],
        *,
        on_missing: Callable[[K], V | Exception],
        **options: Unpack[OwnOptions],
    ) -> None: ...
    @overload
    def __init__(
        self,
        batch_load_fn: IterableFn[K, V],
        *,
        on_missing: Callable[[K], V | Exception],
        index_by: Callable[[V], Any] | None = ...,
        **options: Unpack[OwnOptions],
    ) -> None: ...
    @overload
    def __init__(
        self,
        batch_load_fn: StreamFn[K, V],
        *,
        on_missing: Callable[[K], V | Exception],
        **options: Unpack[OwnOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: DataLoader[K2, V2 | None],
        batch_load_fn: IterableFn[K2, V2],
        *,
        index_by: Callable[[V2], Any],
        on_missing: None = ...,
        **options: Unpack[OwnOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: DataLoader[K2, list[V2]],
        batch_load_fn: IterableFn[K2, V2],
        *,
        group_by: Callable[[V2], Any],
        **options: Unpack[OwnOptions],
    ) -> None: ...
    @overload
    def __init__(
        self,
        batch_load_fn: None = None,
        *,
        on_missing: Callable[[Any], Any] | None = ...,
        index_by: Callable[[Any], Any] | None = ...,
        group_by: Callable[[Any], Any] | None = ...,
        **options: Unpack[OwnOptions],
    ) -> None: ...
    def __init__(
        self,
        batch_load_fn: Any = None,
        *,
        task_group: TaskGroup | None = None,
        cache_map: MutableMapping[Any, LoadHandle[Any]] | None = None,
        **options: Any,
    ) -> None:
        kind = type(self)
        if batch_load_fn is None and kind.batch_load_fn is DataLoader.batch_load_fn:
            raise TypeError(
                "DataLoader needs a batch function: give it one as its first argument, or define "
                "an async method batch_load_fn in a subclass"
            )
        if not options.get("name") and not self.name:
            derived = kind.__qualname__ if batch_load_fn is None else default_name(batch_load_fn)
            options["name"] = kind.__qualname__ if kind is not DataLoader else derived
        name = options.get("name") or self.name
        if not callable(self.batch_load_fn if batch_load_fn is None else batch_load_fn):
            raise TypeError(f"batch_load_fn of {name} must be callable, not {batch_load_fn!r}")
        if hasattr(kind, "cache_map"):
            raise TypeError(
                f"cache_map of {name} must not be an attribute of the class, whose loaders would share "
                "their handles; give one to each loader, super().__init__(cache_map=...)"
            )
        if cache_map is not None and not isinstance(cache_map, MutableMapping):
            raise TypeError(
                f"cache_map of {name} must be a MutableMapping or None, not {cache_map!r}"
            )
        loader = Loader(self, batch_load_fn, Options(self, options), cache_map)
        if batch_load_fn is not None:
            options["batch_load_fn"] = batch_load_fn
        # To be read, like the defaults on the class: from now on nobody asks for them here.
        self.__dict__.update(options)
        self.__anyloader__ = loader
        if task_group is not None:
            loader.attach(Dispatcher(task_group))

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

    async def __aenter__(self) -> Self:
        await self.__anyloader__.enter()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.__anyloader__.scope.leave(exc_val)

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
        :raises LoaderBusyError: if ``max_queue_size`` keys wait to be sent; nothing is queued then
        :raises RuntimeError: if called from another thread or event loop
        :raises RecursionError: near the end of the stack; nothing is queued then
        """
        loader: Any = self.__anyloader__
        # What most loads are: a hit that needs nothing but to be counted, or a key with nothing to it.
        if loader.running() is loader.token:
            try:
                entry: LoadHandle[V] | None = loader.find(key)
            except TypeError:
                pass
            else:
                if entry is None:
                    if loader.is_plain and key is not None:
                        new: LoadHandle[V] = loader.enqueue(key, key, None)
                        return new
                elif entry._batch is None:
                    loader.counts.hits += 1
                    return entry
        handle: LoadHandle[V] = loader.load(key)
        return handle

    @overload
    def load_required(self: DataLoader[K, V2 | None], key: K) -> LoadHandle[V2]: ...
    @overload
    def load_required(self, key: K) -> LoadHandle[V]: ...
    def load_required(self, key: K) -> LoadHandle[Any]:
        """
        Ask for the value of a key that has to be there.

        As :meth:`load`, with which it shares cache and batch, but a value of ``None`` is an error: the
        handle raises :class:`KeyNotFoundError`.

        :param key: as for :meth:`load`
        :raises Exception: what :meth:`load` raises
        """
        handle: LoadHandle[Any] = self.__anyloader__.load_required(key)
        return handle

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
        :raises LoaderBusyError: if more than ``max_queue_size`` keys would wait to be sent
        :raises RuntimeError: if called from another thread or event loop
        :raises RecursionError: near the end of the stack
        """
        many: LoadManyHandle[V] = self.__anyloader__.load_many(keys, return_exceptions)
        return many

    @overload
    def load_many_required(
        self: DataLoader[K, V2 | None], keys: Iterable[K]
    ) -> LoadManyHandle[V2]: ...
    @overload
    def load_many_required(self, keys: Iterable[K]) -> LoadManyHandle[V]: ...
    def load_many_required(self, keys: Iterable[K]) -> LoadManyHandle[Any]:
        """
        Ask for the values of many keys that have to be there.

        As :meth:`load_many`, but the first key, in their order, whose value is ``None`` raises
        :class:`KeyNotFoundError`.

        :param keys: any iterable
        :raises Exception: what :meth:`load_many` raises
        """
        many: LoadManyHandle[Any] = self.__anyloader__.load_many(keys, False, required=True)
        return many

    def dispatch(self) -> None:
        """
        Send what is queued now, without waiting for the schedule.

        Does nothing if nothing is queued. The batch function is called by a task of its own, so not
        before this returns.

        :raises LoaderClosedError: if the task group takes no more tasks; what was queued fails with
            the same error
        :raises RuntimeError: if called from another thread or event loop
        """
        self.__anyloader__.dispatch()

    # The cache

    def clear(self, key: K) -> Self:
        """
        Forget one key; who loads it next fetches it anew.

        Loads on their way are not affected and get the old result, which is not cached any more. In
        the value cache it is deleted by a task that starts now, and again when the scope is left, in
        whatever way; until that is done, no batch of this loader asks for it there.

        :param key: as for :meth:`load`
        :raises TypeError: if the key cannot be hashed
        :raises LoaderNotOpenError: if it is bound to a :class:`LoaderScope` that is not ambient
        :raises LoaderClosedError: if that scope has ended
        :raises RuntimeError: if called from another thread or event loop
        """
        self.__anyloader__.clear(key)
        return self

    def clear_many(self, keys: Iterable[K]) -> Self:
        """
        Forget some keys, as :meth:`clear` does.

        :param keys: any iterable
        :raises Exception: what :meth:`clear` raises; keys before that one are forgotten
        """
        self.__anyloader__.clear_many(keys)
        return self

    def clear_all(self) -> Self:
        """
        Forget all keys, as :meth:`clear` does.

        In the value cache it reaches the keys that this loader has cached, and those that are on their
        way: what their batches have read before stays nowhere. It does not reach what only others have
        stored, nor what this loader has stored and forgotten: with ``cache=False`` and ``"pending"``,
        or by an earlier ``clear`` of a key on its way (until the scope is left, which deletes it once
        more). Name those keys to :meth:`clear_many`.

        :raises LoaderNotOpenError: if it is bound to a :class:`LoaderScope` that is not ambient
        :raises LoaderClosedError: if that scope has ended
        :raises RuntimeError: if called from another thread or event loop
        """
        self.__anyloader__.clear_all()
        return self

    def prime(self, key: K, value: V | Exception, *, force: bool = False) -> Self:
        """
        Put a value into the cache, unless the key is there already, pending or settled.

        With the cache off it does nothing in there.

        :param value: the value as it is, which nobody awaits; or an ``Exception`` for loads to raise
        :param force: replace what is there. A key that is still queued is taken out of its batch,
            and those who wait for it get the value; one in flight goes on for those who wait for it.
            In the value cache the key is deleted, as by :meth:`clear`
        :raises TypeError: if the key is ``None`` or cannot be hashed
        :raises LoaderNotOpenError: if it is bound to a :class:`LoaderScope` that is not ambient
        :raises LoaderClosedError: if that scope has ended
        :raises RuntimeError: if called from another thread or event loop
        """
        self.__anyloader__.prime(key, value, force)
        return self

    def prime_many(self, mapping: Mapping[K, V | Exception], *, force: bool = False) -> Self:
        """
        Put values into the cache, each as :meth:`prime` does.

        :param mapping: from key to value, or to an ``Exception``
        :param force: as for :meth:`prime`
        :raises Exception: what :meth:`prime` raises; keys before that one are primed
        """
        for key, value in mapping.items():
            self.__anyloader__.prime(key, value, force)
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
        handle: LoadHandle[V] | None = self.__anyloader__.peek(key)
        return handle

    def statistics(self) -> LoaderStatistics:
        """Return what the loader has done so far."""
        statistics: LoaderStatistics = self.__anyloader__.statistics()
        return statistics

    def __repr__(self) -> str:
        description: str = self.__anyloader__.describe(type(self).__name__)
        return description
