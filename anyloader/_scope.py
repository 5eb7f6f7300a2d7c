"""``LoaderScope``: one request, job or message, with its loaders found instead of passed around."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar, Token
from functools import update_wrapper
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast, get_origin, overload

from ._dispatcher import Dispatcher, ambient
from ._errors import LoaderNotOpenError
from ._handle import LoadHandle, LoadManyHandle
from ._loader import DataLoader, IterableFn, MappingFn, StreamFn
from ._statistics import LoaderStatistics
from .hooks import Hook

if TYPE_CHECKING:
    import sys

    from ._loader import LoaderOptions, TaskGroup

    if sys.version_info >= (3, 12):
        from typing import Self, Unpack
    else:
        from typing_extensions import Self, Unpack

__all__ = ("BatchLoader", "LoaderScope", "batch_loader", "current_scope")

K = TypeVar("K")
V = TypeVar("V")
L = TypeVar("L", bound=DataLoader[Any, Any])

_current: ContextVar[LoaderScope | None] = ContextVar("anyloader_current_scope", default=None)


class LoaderScope:
    """
    The life of the loaders of one request, job or message::

        async with LoaderScope() as scope:
            user = await scope.get(fetch_users).load(1)

    All its loaders run in one task group, and it is ambient: in the block, and in tasks started
    there, :func:`current_scope` returns it, ``@batch_loader`` functions use it, and a loader made
    anywhere without arguments binds to it at its first load. Scopes can be nested.

    Entering is no checkpoint. Leaving keeps the rules of a loader's ``async with``: batches that
    some task awaits finish, all others are cancelled, and nothing of the scope outlives the block;
    if the body raised or was cancelled, all batches are cancelled and its exception comes out as it
    is. A loader of a scope that has ended refuses every load, so that what one request has loaded
    cannot reach another one.

    :param task_group: an anyio ``TaskGroup``, a trio ``Nursery`` or an ``asyncio.TaskGroup`` to run
        in, instead of a task group of its own
    :param hooks: called with what all loaders of the scope do, after each one's own hooks
    :raises TypeError: if ``task_group`` is none of these, or ``hooks`` no sequence of callables
    """

    def __init__(self, task_group: TaskGroup | None = None, *, hooks: Sequence[Hook] = ()) -> None:
        if not isinstance(hooks, (tuple, list)) or not all(map(callable, hooks)):
            raise TypeError(f"hooks must be a sequence of callables, not {hooks!r}")
        self._hooks = hooks
        self._dispatcher: Dispatcher | None = None
        self._task_group = task_group
        if task_group is not None:
            Dispatcher(task_group)  # refuses what is no task group
        self._loaders: dict[Any, DataLoader[Any, Any]] = {}
        #: All that were ever bound here, for the statistics.
        self._bound: list[Any] = []
        self._reset: tuple[Token[Any], Token[Any]] | None = None

    async def __aenter__(self) -> Self:
        """:raises RuntimeError: if the scope was entered before"""
        if self._dispatcher is not None:
            raise RuntimeError(
                "a LoaderScope can be entered once; make a new one for each request, job or message"
            )
        self._dispatcher = dispatcher = Dispatcher(self._task_group, self._hooks)
        self._bound = dispatcher.loaders
        self._reset = (ambient.set(dispatcher), _current.set(self))
        await dispatcher.enter()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        try:
            await cast(Dispatcher, self._dispatcher).leave(exc_val)
        finally:
            reset = cast("tuple[Token[Any], Token[Any]]", self._reset)
            self._reset = None
            ambient.reset(reset[0])
            _current.reset(reset[1])

    @overload
    def get(self, source: BatchLoader[K, V]) -> DataLoader[K, V]: ...
    @overload
    def get(self, source: type[L]) -> L: ...
    @overload
    def get(self, source: MappingFn[K, V]) -> DataLoader[K, V]: ...
    @overload
    def get(self, source: IterableFn[K, V]) -> DataLoader[K, V]: ...
    @overload
    def get(self, source: StreamFn[K, V]) -> DataLoader[K, V]: ...
    def get(self, source: Any) -> Any:
        """
        Return the scope's one loader of a class, a batch function or a ``@batch_loader`` function.

        It is made at the first call. Not a checkpoint.

        :param source: a subclass of :class:`DataLoader` that can be made without arguments, a batch
            function, or what :func:`batch_loader` made of one
        :raises TypeError: if ``source`` is nothing of the kind
        :raises LoaderNotOpenError: if the scope was not entered
        :raises LoaderClosedError: if the scope has ended
        :raises RuntimeError: if called from another thread or event loop
        """
        dispatcher = self._dispatcher
        if dispatcher is None:
            raise LoaderNotOpenError("this LoaderScope was not entered; use `async with` on it")
        dispatcher.admit_to("this LoaderScope")
        source = get_origin(source) or source  # of a generic class that was given its arguments
        try:
            loader = self._loaders.get(source)
        except TypeError:
            raise TypeError(f"scope.get() takes {_SOURCES}, not {source!r}") from None
        if loader is None:
            loader = _make_loader(source)
            loader._attach(dispatcher)
            self._loaders[source] = loader
        return loader

    def clear_all(self) -> None:
        """
        Forget all that the loaders of this scope have cached, as their ``clear_all`` does.

        :raises RuntimeError: if called from another thread or event loop
        """
        if self._dispatcher is not None and self._dispatcher.state != "closed":
            self._dispatcher.check_thread()
        for loader in self._bound:
            loader._forget_all()

    def cancel(self, why: str) -> None:
        """
        Cancel all batches, and refuse loads from now on: nobody wants an answer any more.

        Whoever awaits a load gets :class:`LoadCancelledError`. The body of the block goes on.

        :param why: for the message of the errors
        :raises RuntimeError: if called from another thread or event loop
        """
        if self._dispatcher is not None:
            self._dispatcher.cancel(why)

    def statistics(self) -> LoaderStatistics:
        """Return what all loaders of the scope together have done so far."""
        each = [loader.statistics() for loader in self._bound]
        return LoaderStatistics(*map(sum, zip(*each)))

    def __repr__(self) -> str:
        state = "not entered" if self._dispatcher is None else self._dispatcher.state
        return f"<LoaderScope: {state}, {len(self._bound)} loaders>"


def current_scope() -> LoaderScope:
    """
    Return the ambient scope, the innermost one around the calling code.

    :raises LoaderNotOpenError: if there is none
    """
    scope = _current.get()
    if scope is None:
        raise LoaderNotOpenError("there is no LoaderScope here; use `async with LoaderScope()`")
    return scope


class BatchLoader(Generic[K, V]):
    """
    A batch function with its options; :func:`batch_loader` makes it.

    Calling it calls the function. All other methods are those of the ambient scope's loader for it,
    ``current_scope().get(function)``, and can raise what :func:`current_scope` and
    :meth:`LoaderScope.get` raise.
    """

    def __init__(self, function: Callable[[list[K]], Any], options: LoaderOptions) -> None:
        self._function = function
        self._options = options
        self.make_loader()  # refuses wrong options here, where they stand
        update_wrapper(cast(Any, self), cast(Any, function))

    def make_loader(self) -> DataLoader[K, V]:
        """Return a new loader, which is not open yet."""
        return DataLoader(self._function, **self._options)

    def __call__(self, keys: list[K]) -> Any:
        """Call the batch function itself."""
        return self._function(keys)

    def _loader(self) -> DataLoader[K, V]:
        return current_scope().get(self)

    def load(self, key: K) -> LoadHandle[V]:
        """See :meth:`DataLoader.load`."""
        return self._loader().load(key)

    def load_many(self, keys: Iterable[K], *, return_exceptions: bool = False) -> LoadManyHandle[V]:
        """See :meth:`DataLoader.load_many`."""
        return self._loader().load_many(keys, return_exceptions=return_exceptions)

    def clear(self, key: K) -> DataLoader[K, V]:
        """See :meth:`DataLoader.clear`."""
        return self._loader().clear(key)

    def clear_many(self, keys: Iterable[K]) -> DataLoader[K, V]:
        """See :meth:`DataLoader.clear_many`."""
        return self._loader().clear_many(keys)

    def clear_all(self) -> DataLoader[K, V]:
        """See :meth:`DataLoader.clear_all`."""
        return self._loader().clear_all()

    def prime(self, key: K, value: V | Exception, *, force: bool = False) -> DataLoader[K, V]:
        """See :meth:`DataLoader.prime`."""
        return self._loader().prime(key, value, force=force)

    def prime_many(
        self, mapping: Mapping[K, V | Exception], *, force: bool = False
    ) -> DataLoader[K, V]:
        """See :meth:`DataLoader.prime_many`."""
        return self._loader().prime_many(mapping, force=force)

    def peek(self, key: K) -> LoadHandle[V] | None:
        """See :meth:`DataLoader.peek`."""
        return self._loader().peek(key)

    def dispatch(self) -> None:
        """See :meth:`DataLoader.dispatch`."""
        self._loader().dispatch()

    def __repr__(self) -> str:
        return f"<BatchLoader of {self._function!r}>"


class _Decorator(Protocol):
    @overload
    def __call__(self, function: MappingFn[K, V], /) -> BatchLoader[K, V]: ...
    @overload
    def __call__(self, function: IterableFn[K, V], /) -> BatchLoader[K, V]: ...
    @overload
    def __call__(self, function: StreamFn[K, V], /) -> BatchLoader[K, V]: ...


@overload
def batch_loader(function: MappingFn[K, V], /) -> BatchLoader[K, V]: ...
@overload
def batch_loader(function: IterableFn[K, V], /) -> BatchLoader[K, V]: ...
@overload
def batch_loader(function: StreamFn[K, V], /) -> BatchLoader[K, V]: ...
@overload
def batch_loader(**options: Unpack[LoaderOptions]) -> _Decorator: ...
def batch_loader(function: Any = None, /, **options: Any) -> Any:
    """
    State the options of a batch function's loaders once, beside its definition::

        @batch_loader(max_batch_size=100)
        async def fetch_users(ids: list[int]) -> list[User]: ...

        async with LoaderScope():
            user = await fetch_users.load(1)

    :param function: the batch function, where no options are given
    :param options: those of :class:`DataLoader`, but for ``task_group`` and ``cache_map``: each
        scope has a loader of its own, and what these would share must not be shared
    :raises TypeError: if an option is unknown or has the wrong type
    :raises ValueError: if ``max_batch_size`` is less than 1
    """
    unknown = options.keys() - DataLoader.__annotations__.keys()
    if unknown:
        raise TypeError(
            f"@batch_loader has no option {', '.join(sorted(unknown))}; "
            f"it takes {', '.join(DataLoader.__annotations__)}"
        )
    if function is None:
        return lambda function: BatchLoader(function, cast("LoaderOptions", options))
    return BatchLoader(function, {})


_SOURCES = "a DataLoader class, a batch function or a @batch_loader function"


def _make_loader(source: Any) -> DataLoader[Any, Any]:
    make = source
    if isinstance(source, BatchLoader):
        return source.make_loader()
    if isinstance(source, type):
        if issubclass(source, DataLoader):
            loader: DataLoader[Any, Any] = make()
            return loader
    elif callable(source):
        return DataLoader(make)
    raise TypeError(f"scope.get() takes {_SOURCES}, not {source!r}")
