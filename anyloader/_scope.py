"""``LoaderScope``: one request, job or message, with its loaders found instead of passed around."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar, Token
from functools import partial, update_wrapper
from inspect import unwrap
from types import CodeType, MethodType, TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast, overload

from ._backend import running_backend
from ._batch import LoadHandle, LoadManyHandle
from ._dataloader import DataLoader
from ._dispatcher import Dispatcher, ambient
from ._errors import LoaderNotOpenError
from ._options import RULES, Options, unknown_options
from ._portal import Portal
from ._results import article, counted
from ._sources import (
    check_arguments,
    make_loader,
    refuse_positional,
    say_arguments,
    source_key,
)
from ._statistics import LoaderStatistics
from .hooks import Hook, users_lines

if TYPE_CHECKING:
    from ._limits import LimiterOption
    from ._options import (
        BindIterableFn,
        BindMappingFn,
        BindStreamFn,
        IterableMethod,
        LoaderOptions,
        MappingMethod,
        StreamMethod,
        TaskGroup,
        Unpack,
    )

    if sys.version_info >= (3, 11):
        from typing import Self
    else:
        from typing_extensions import Self

    if sys.version_info >= (3, 13):
        from typing import ParamSpec
    else:
        from typing_extensions import ParamSpec

    P = ParamSpec("P")
    S = TypeVar("S")
    # What a function takes besides its keys; anything, where a BatchLoader does not say.
    A = ParamSpec("A", default=...)
else:
    from typing import ParamSpec

    A = ParamSpec("A")

__all__ = ("BatchLoader", "LoaderScope", "batch_loader", "current_scope")

K = TypeVar("K")
V = TypeVar("V")
V2 = TypeVar("V2")
T = TypeVar("T")
L = TypeVar("L", bound=DataLoader[Any, Any])

_IN_THREAD = (
    ". A thread that was started without the context of its caller, as executors do, knows no scope: take "
    "the loader from it before, by scope.get(), and call anyio.from_thread.run(loader.load, key, "
    "token=token) there, with token = anyio.lowlevel.current_token() taken in the event loop"
)

# A program has a few loaders of one function in a scope (with other options, in a test). So many of
# the same code are made at each call, and none of them ever has more than one key.
_MANY_OF_ONE_CODE = 5

_NO_HOOKS: Sequence[Hook] = ()


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
    :param limiter: bounds all batches of the scope together, for instance where they share one
        database session: an ``anyio.CapacityLimiter`` or :func:`limit`. A batch function that awaits a
        load of a batch which needs the last token that it holds itself gets
        :class:`LoadDeadlockError`
    :param hooks: called with what all loaders of the scope do, after each one's own hooks
    :param shared: serve ``@batch_loader(shared=True)`` functions for all scopes inside this one
    :param inside: the entered scope around this one, where it is not ambient: servers run a lifespan,
        which holds the shared scope, in another context than the requests. It takes the place of the
        ambient one
    :raises TypeError: if an argument has the wrong type
    """

    def __init__(
        self,
        task_group: TaskGroup | None = None,
        *,
        limiter: LimiterOption | None = None,
        hooks: Sequence[Hook] = _NO_HOOKS,
        shared: bool = False,
        inside: LoaderScope | None = None,
    ) -> None:
        if hooks is not _NO_HOOKS or limiter is not None:  # or all is as it is for most requests
            for name, value in (("hooks", hooks), ("limiter", limiter)):
                if not RULES[name].fits(value):
                    raise TypeError(f"{name} must be {RULES[name].expected}, not {value!r}")
        if not isinstance(shared, bool):
            raise TypeError(f"shared must be True or False, not {shared!r}")
        if inside is not None and not isinstance(inside, LoaderScope):
            raise TypeError(f"inside must be a LoaderScope, not {article(inside)}")
        self._inside = inside
        self._made_with = task_group, hooks, limiter, shared
        self.is_shared = shared
        if task_group is not None:
            Dispatcher(task_group)  # refuses what is no task group
        self._dispatcher: Dispatcher | None = None
        self._loaders: dict[Any, DataLoader[Any, Any]] = {}
        #: Those of ``@batch_loader`` functions, by function and arguments.
        self._families: dict[Any, dict[Any, DataLoader[Any, Any]]] = {}
        #: By the code of functions the functions made of it, to see that one is made at each call.
        self._made_of: dict[CodeType, dict[Any, DataLoader[Any, Any]]] = {}
        self._reset: Token[Any] | None = None
        self._portal: Portal | None = None

    async def __aenter__(self) -> Self:
        """
        :raises RuntimeError: if the scope was entered before
        :raises LoaderNotOpenError: if that which it is to be inside of was not entered
        """
        self._check_new()
        inside = None if self._inside is None else self._inside._entered()
        self._dispatcher = dispatcher = Dispatcher(*self._made_with, self)
        if inside is not None:
            dispatcher.outer, self._inside = inside, None
        self._reset = ambient.set(dispatcher)
        await dispatcher.enter()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        dispatcher = cast(Dispatcher, self._dispatcher)
        try:
            await dispatcher.leave(exc_val)
        finally:
            self._loaders.clear()
            self._families.clear()
            self._made_of.clear()
            reset: Any = self._reset
            self._reset = None
            try:
                ambient.reset(reset)
            except ValueError:
                # Left in another context than it was entered in, as an abandoned async generator is.
                if ambient.get() is dispatcher:
                    ambient.set(dispatcher.outer)

    async def open(self) -> Self:
        """
        Enter, where one task opens the scope and another one closes it: fixtures, notebooks.

        A task of its own holds the scope, until :meth:`aclose` or the end of the event loop. It is
        ambient for the caller from now on. Everywhere else use ``async with``, which closes it for
        sure. A checkpoint; it is open afterwards even if the caller is being cancelled, but for asyncio's own
        ``task.cancel()``, which ends it again.

        :raises RuntimeError: if the scope was entered before
        :raises LoaderNotOpenError: if that which it is to be inside of was not entered
        """
        self._check_new()
        portal = Portal(self)
        await portal.open()  # fails if another task was first
        self._portal = portal
        ambient.set(self._dispatcher)
        return self

    async def aclose(self) -> None:
        """
        Leave what :meth:`open` has entered, by the rules of ``async with``; later calls do nothing.

        In any task of the event loop. A checkpoint. If the caller is cancelled, all batches are, and
        they are waited for.

        :raises LoaderNotOpenError: if the scope was not opened by :meth:`open`
        :raises RuntimeError: if called from another thread or event loop, or by a batch function of the
            scope, which would wait for itself
        """
        if self._portal is None:
            raise LoaderNotOpenError("this LoaderScope was not opened; use open(), or `async with`")
        dispatcher = cast(Dispatcher, self._dispatcher)
        dispatcher.check_thread()
        if dispatcher.runs_here():
            raise RuntimeError(
                "a batch function cannot wait for the end of the scope that it runs in; use "
                "scope.cancel(), or close it elsewhere"
            )
        try:
            await self._portal.close()
        finally:
            if ambient.get() is dispatcher:
                ambient.set(dispatcher.outer)

    def _check_new(self) -> None:
        if self._dispatcher is not None:
            raise RuntimeError(
                "a LoaderScope can be entered once; make a new one for each request, job or message"
            )

    @overload
    def get(
        self, source: BatchLoader[K, V, P], /, *args: P.args, **arguments: P.kwargs
    ) -> DataLoader[K, V]: ...
    @overload
    def get(self, source: type[L], /, **arguments: Any) -> L: ...
    @overload
    def get(
        self, source: BindMappingFn[K, P, V], /, *args: P.args, **arguments: P.kwargs
    ) -> DataLoader[K, V | None]: ...
    @overload
    def get(
        self, source: BindIterableFn[K, P, V], /, *args: P.args, **arguments: P.kwargs
    ) -> DataLoader[K, V]: ...
    @overload
    def get(
        self, source: BindStreamFn[K, P, V], /, *args: P.args, **arguments: P.kwargs
    ) -> DataLoader[K, V | None]: ...
    def get(self, source: Any, /, *args: Any, **arguments: Any) -> Any:
        """
        Return the scope's one loader of a class, a batch function or a ``@batch_loader`` function.

        It is made at the first call. Not a checkpoint.

        :param source: a subclass of :class:`DataLoader`, a batch function, or what
            :func:`batch_loader` made of one. Equal bound methods and equal partials are one source
        :param arguments: one loader is made for each set of them. A function gets them as keywords,
            after its keys; a class as arguments of its constructor or, if it has none of its own, of
            its batch function
        :param args: for type checkers; arguments are given by name
        :raises TypeError: if ``source`` is nothing of the kind, or does not take these arguments, or
            one of them cannot be hashed
        :raises LoaderNotOpenError: if the scope was not entered
        :raises LoaderClosedError: if the scope has ended
        :raises RuntimeError: if called from another thread or event loop
        """
        refuse_positional("scope.get()", args)
        dispatcher = self._entered()
        dispatcher.admit_to("this LoaderScope")
        if isinstance(source, BatchLoader):
            if arguments:
                source = source.bind(**arguments)
            if source._is_shared and not dispatcher.is_shared:
                return source._scope().get(source)
            loaders = self._families.setdefault(source._family, {})
            key: Any = frozenset(source._arguments.items())
        else:
            loaders = self._loaders
            key = source_key(source, arguments)
        loader = loaders.get(key)
        if loader is None:
            loader = loaders[key] = self._made(dispatcher, source, arguments)
        return loader

    def _made(
        self, dispatcher: Dispatcher, source: Any, arguments: Mapping[str, Any]
    ) -> DataLoader[Any, Any]:
        token = ambient.set(dispatcher)  # its constructor may prime, and shall find this scope
        try:
            decorated = isinstance(source, BatchLoader)
            loader = source.make_loader() if decorated else make_loader(source, arguments)
            self._count(source._function if decorated else source, loader, decorated)
        finally:
            ambient.reset(token)
        if loader.__anyloader__.scope is None:
            loader.__anyloader__.attach(dispatcher)
        return loader

    def _count(self, function: Any, loader: DataLoader[Any, Any], decorated: bool) -> None:
        """Warn where a scope is asked for a new function at each call."""
        while isinstance(function, partial):
            function = function.func
        code = getattr(unwrap(function), "__code__", None)  # a decorator's is that of many
        if code is None:
            return
        made = self._made_of.setdefault(code, {})
        if function in made:  # with other arguments
            return
        made[function] = loader
        if len(made) != _MANY_OF_ONE_CODE + 1:
            return
        # A function that decorates one for each table is no mistake, if these are used.
        if decorated and any(other.statistics().loads > 1 for other in made.values()):
            return
        here = (code.co_filename, code.co_firstlineno, "")
        path, line, _ = (*users_lines(sys._getframe(1), 1), here)[0]
        warnings.warn_explicit(
            f"{len(made)} loaders of one scope were made of the function in line "
            f"{code.co_firstlineno} of {code.co_filename}, which is made anew for each call, so "
            "their loads do not batch; define it once and bind() its arguments",
            RuntimeWarning,
            path,
            line,
        )

    def _entered(self) -> Dispatcher:
        if self._dispatcher is None:
            raise LoaderNotOpenError("this LoaderScope was not entered; use `async with` on it")
        return self._dispatcher

    def set(self, var: ContextVar[T], value: T) -> None:
        """
        Set a context variable for the batch functions of this scope that are called from now on.

        For what is known only once the scope is open: the session or user of the request, from a
        dependency that ran later. A scope inside of this one does not take it over: set it there, too.

        :param var: the variable; its value in the calling code does not change
        :raises LoaderNotOpenError: if the scope was not entered
        :raises LoaderClosedError: if the scope has ended
        :raises RuntimeError: if called from another thread or event loop
        """
        if not isinstance(var, ContextVar):
            raise TypeError(f"scope.set() takes a ContextVar and its value, not {article(var)}")
        dispatcher = self._entered()
        dispatcher.admit_to("this LoaderScope")
        dispatcher.context.run(var.set, value)

    def be_inside(self, scope: LoaderScope) -> None:
        """
        Make ``scope`` the one around this one, which is not entered yet, if it has none so far.

        Where it is around anyway, so may be others that are nearer, as that of the request around a
        mounted application.
        """
        around = ambient.get()
        while around is not None and around is not scope._dispatcher:
            around = around.outer
        if around is None:
            self._inside = self._inside or scope

    def loaders(self) -> tuple[DataLoader[Any, Any], ...]:
        """Return the loaders of this scope that are in use, in the order of their first use."""
        if self._dispatcher is None:
            return ()
        fronts = [loader.front() for loader in self._dispatcher.loaders()]
        return tuple(front for front in fronts if front is not None)

    def dispatch(self) -> None:
        """
        Send what is queued now in all loaders of this scope, as their ``dispatch`` does.

        :raises LoaderClosedError: if the task group takes no more tasks
        :raises RuntimeError: if called from another thread or event loop
        """
        dispatcher = self._entered()
        dispatcher.check_thread()
        for loader in dispatcher.loaders():
            loader.dispatch_all()

    def clear_all(self) -> None:
        """
        Forget all that the loaders of this scope have cached, as their ``clear_all`` does.

        :raises RuntimeError: if called from another thread or event loop
        """
        if self._dispatcher is not None and self._dispatcher.state != "closed":
            self._dispatcher.check_thread()
            batches = self._dispatcher.batches()
            for loader in self._dispatcher.loaders():
                loader.forget_all(batches)

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
        return LoaderStatistics() if self._dispatcher is None else self._dispatcher.statistics()

    def __repr__(self) -> str:
        state = "not entered" if self._dispatcher is None else self._dispatcher.state
        n = 0 if self._dispatcher is None else len(self._dispatcher.loaders())
        return f"<LoaderScope: {state}, {counted(n, 'loader')}>"


def current_scope() -> LoaderScope:
    """
    Return the ambient scope, the innermost one around the calling code.

    :raises LoaderNotOpenError: if there is none
    """
    dispatcher = ambient.get()
    if dispatcher is None:
        raise LoaderNotOpenError(
            "there is no LoaderScope here; use `async with LoaderScope()`. In a web application "
            "LoaderScopeMiddleware opens one for each request, and over a WebSocket each message opens "
            f"its own{_IN_THREAD if running_backend() is None else ''}"
        )
    scope: LoaderScope | None = dispatcher.front
    if scope is None:  # it has ended, and this runs in a task that was left behind
        scope = LoaderScope()
        scope._dispatcher = dispatcher
    return scope


class BatchLoader(Generic[K, V, A]):
    """
    A batch function with its options; :func:`batch_loader` makes it.

    Calling it calls the function. All other methods are those of the ambient scope's loader for it,
    ``current_scope().get(function)``, and can raise what :func:`current_scope` and
    :meth:`LoaderScope.get` raise. Beside a method it is bound as the method would be,
    ``repository.users.load(1)``, and above ``@classmethod`` to the class.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        options: LoaderOptions,
        arguments: Mapping[str, Any] | None = None,
        family: object = None,
    ) -> None:
        if not callable(function) and not isinstance(function, classmethod):
            raise TypeError(
                f"the batch function of @batch_loader must be callable, not {function!r}"
            )
        self._function = function
        self._options = options
        self._arguments = arguments or {}
        #: What is equal for those that differ in their arguments only.
        self._family = family or self
        update_wrapper(cast(Any, self), cast(Any, function))

    def make_loader(self) -> DataLoader[K, V]:
        """Return a new loader, which is not open yet."""
        function = self._function
        make = cast("Callable[..., DataLoader[K, V]]", DataLoader)
        if not self._arguments:
            return make(function, **self._loader_options())
        loader = make(partial(function, **self._arguments), **self._loader_options())
        return say_arguments(loader, self._arguments)

    def _loader_options(self) -> Any:
        return {name: value for name, value in self._options.items() if name != "shared"}

    @property
    def _is_shared(self) -> bool:
        return bool(cast("dict[str, Any]", self._options).get("shared"))

    def __call__(self, keys: list[K], /, *args: A.args, **kwargs: A.kwargs) -> Any:
        """Call the batch function itself."""
        return self._function(keys, *args, **{**self._arguments, **kwargs})

    def __get__(self, instance: Any, owner: type | None = None) -> BatchLoader[K, V, A]:
        function: Any = self._function
        is_bound = isinstance(function, (MethodType, staticmethod, partial))
        if is_bound or not hasattr(function, "__get__"):
            return self
        if instance is None and not isinstance(function, classmethod):
            return self
        bound = function.__get__(instance, owner)
        # Made anew at each look, but equal for one object, as its methods are.
        return BatchLoader(bound, self._options, self._arguments, (self._family, bound))

    def __class_getitem__(cls, types: Any) -> Any:  # without A, where it has no default
        if isinstance(types, tuple) and len(types) == 2:
            types = (*types, ...)
        return cast(Any, super()).__class_getitem__(types)

    def bind(self, *args: A.args, **arguments: A.kwargs) -> BoundBatchLoader[K, V]:
        """
        Return this function with some arguments, which it gets as keywords after its keys::

            books = await fetch_books.bind(first=3).load(author_id)

        A scope has one loader for each set of arguments. ``clear`` and the like of the function itself
        reach those of all arguments.

        :param arguments: hashable, and such as the function takes; type checkers know them
        :param args: for type checkers; arguments are given by name
        :raises TypeError: if the function does not take them, or one of them cannot be hashed, or it has
            a ``value_cache``, which would mix up the values of other arguments
        """
        refuse_positional("bind()", args)
        bound = {**self._arguments, **arguments}
        check_arguments(self._function, bound, self._options.get("value_cache"), "bind()")
        return BoundBatchLoader(self._function, self._options, bound, self._family)

    def _loader(self) -> DataLoader[K, V]:
        return self._scope().get(cast("BatchLoader[K, V]", self))

    def _scope(self) -> LoaderScope:
        scope = None if self._is_shared else current_scope()
        if scope is None:
            dispatcher = ambient.get()
            while dispatcher is not None and not dispatcher.is_shared:
                dispatcher = dispatcher.outer
            if dispatcher is None or dispatcher.front is None:
                raise LoaderNotOpenError(
                    f"{getattr(self, '__qualname__', 'this function')} is shared, and there is no shared "
                    "scope here; enter `async with LoaderScope(shared=True)` once, around all others"
                )
            scope = cast(LoaderScope, dispatcher.front)
        return scope

    def _all_loaders(self) -> list[DataLoader[K, V]]:
        """Return the loaders to forget something: those of all arguments, if this has none itself."""
        mine = self._loader()
        if self._arguments:
            return [mine]
        family = self._scope()._families[self._family].values()
        return [mine, *(loader for loader in family if loader is not mine)]

    def load(self, key: K) -> LoadHandle[V]:
        """See :meth:`DataLoader.load`."""
        return self._loader().load(key)

    @overload
    def load_required(self: BatchLoader[K, V2 | None], key: K) -> LoadHandle[V2]: ...
    @overload
    def load_required(self, key: K) -> LoadHandle[V]: ...
    def load_required(self, key: K) -> LoadHandle[Any]:
        """See :meth:`DataLoader.load_required`."""
        return self._loader().load_required(key)

    def load_many(self, keys: Iterable[K], *, return_exceptions: bool = False) -> LoadManyHandle[V]:
        """See :meth:`DataLoader.load_many`."""
        return self._loader().load_many(keys, return_exceptions=return_exceptions)

    @overload
    def load_many_required(
        self: BatchLoader[K, V2 | None], keys: Iterable[K]
    ) -> LoadManyHandle[V2]: ...
    @overload
    def load_many_required(self, keys: Iterable[K]) -> LoadManyHandle[V]: ...
    def load_many_required(self, keys: Iterable[K]) -> LoadManyHandle[Any]:
        """See :meth:`DataLoader.load_many_required`."""
        return self._loader().load_many_required(keys)

    def clear(self, key: K) -> DataLoader[K, V]:
        """See :meth:`DataLoader.clear`; under all arguments, if none were bound."""
        mine, *others = self._all_loaders()
        for other in others:
            other.clear(key)
        return mine.clear(key)

    def clear_many(self, keys: Iterable[K]) -> DataLoader[K, V]:
        """See :meth:`DataLoader.clear_many`; under all arguments, if none were bound."""
        keys = list(keys)
        mine, *others = self._all_loaders()
        for other in others:
            other.clear_many(keys)
        return mine.clear_many(keys)

    def clear_all(self) -> DataLoader[K, V]:
        """See :meth:`DataLoader.clear_all`; under all arguments, if none were bound."""
        mine, *others = self._all_loaders()
        for other in others:
            other.clear_all()
        return mine.clear_all()

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


class BoundBatchLoader(BatchLoader[K, V]):
    """
    A batch function with some arguments; :meth:`BatchLoader.bind` makes it.

    As no type can lose the names of arguments that are bound already, a second ``bind`` takes any. A class
    of its own, as mypy takes nothing for known where ``...`` stands for arguments.
    """


class _Decorator(Protocol):
    """What decorates where an absent key gives ``None``: functions, then methods."""

    @overload
    def __call__(self, function: BindMappingFn[K, P, V], /) -> BatchLoader[K, V | None, P]: ...
    @overload
    def __call__(self, function: BindIterableFn[K, P, V], /) -> BatchLoader[K, V, P]: ...
    @overload
    def __call__(self, function: BindStreamFn[K, P, V], /) -> BatchLoader[K, V | None, P]: ...
    @overload
    def __call__(self, function: MappingMethod[S, K, P, V], /) -> BatchLoader[K, V | None, P]: ...
    @overload
    def __call__(self, function: IterableMethod[S, K, P, V], /) -> BatchLoader[K, V, P]: ...
    @overload
    def __call__(self, function: StreamMethod[S, K, P, V], /) -> BatchLoader[K, V | None, P]: ...


class _WithMissing(Protocol):
    """What decorates where ``on_missing`` says what an absent key gives."""

    @overload
    def __call__(self, function: BindMappingFn[K, P, V], /) -> BatchLoader[K, V, P]: ...
    @overload
    def __call__(self, function: BindIterableFn[K, P, V], /) -> BatchLoader[K, V, P]: ...
    @overload
    def __call__(self, function: BindStreamFn[K, P, V], /) -> BatchLoader[K, V, P]: ...
    @overload
    def __call__(self, function: MappingMethod[S, K, P, V], /) -> BatchLoader[K, V, P]: ...
    @overload
    def __call__(self, function: IterableMethod[S, K, P, V], /) -> BatchLoader[K, V, P]: ...
    @overload
    def __call__(self, function: StreamMethod[S, K, P, V], /) -> BatchLoader[K, V, P]: ...


class _Indexing(Protocol):
    @overload
    def __call__(self, function: BindIterableFn[K, P, V], /) -> BatchLoader[K, V | None, P]: ...
    @overload
    def __call__(self, function: IterableMethod[S, K, P, V], /) -> BatchLoader[K, V | None, P]: ...


class _Grouping(Protocol):
    @overload
    def __call__(self, function: BindIterableFn[K, P, V], /) -> BatchLoader[K, list[V], P]: ...
    @overload
    def __call__(self, function: IterableMethod[S, K, P, V], /) -> BatchLoader[K, list[V], P]: ...


@overload
def batch_loader(function: BindMappingFn[K, P, V], /) -> BatchLoader[K, V | None, P]: ...
@overload
def batch_loader(function: BindIterableFn[K, P, V], /) -> BatchLoader[K, V, P]: ...
@overload
def batch_loader(function: BindStreamFn[K, P, V], /) -> BatchLoader[K, V | None, P]: ...
@overload
def batch_loader(function: MappingMethod[S, K, P, V], /) -> BatchLoader[K, V | None, P]: ...
@overload
def batch_loader(function: IterableMethod[S, K, P, V], /) -> BatchLoader[K, V, P]: ...
@overload
def batch_loader(function: StreamMethod[S, K, P, V], /) -> BatchLoader[K, V | None, P]: ...
@overload
def batch_loader(
    *, group_by: Callable[[Any], Any], shared: bool = ..., **options: Unpack[LoaderOptions]
) -> _Grouping: ...
@overload
def batch_loader(
    *,
    on_missing: Callable[[Any], Any],
    index_by: Callable[[Any], Any] | None = ...,
    shared: bool = ...,
    **options: Unpack[LoaderOptions],
) -> _WithMissing: ...
@overload
def batch_loader(
    *, index_by: Callable[[Any], Any], shared: bool = ..., **options: Unpack[LoaderOptions]
) -> _Indexing: ...
@overload
def batch_loader(*, shared: bool = ..., **options: Unpack[LoaderOptions]) -> _Decorator: ...
def batch_loader(function: Any = None, /, **options: Any) -> Any:
    """
    State the options of a batch function's loaders once, beside its definition::

        @batch_loader(max_batch_size=100)
        async def fetch_users(ids: list[int]) -> list[User]: ...

        async with LoaderScope():
            user = await fetch_users.load(1)

    :param function: the batch function, or a method, where no options are given
    :param shared: one loader for all scopes inside the nearest ``LoaderScope(shared=True)``, as in front
        of a model that all requests use; its ``cache`` has to be ``False`` or ``"pending"``
    :param options: those of :class:`DataLoader`, but for ``task_group`` and ``cache_map``: each
        scope has a loader of its own, and what these would share must not be shared
    :raises TypeError: if an option is unknown or has the wrong type, or a shared loader would remember
    :raises ValueError: if a size or weight is too small
    """
    shared = options.get("shared", False)
    named = {name: value for name, value in options.items() if name != "shared"}
    if named.keys() - RULES.keys():
        raise unknown_options("@batch_loader", named.keys() - RULES.keys())
    Options(
        DataLoader, {"name": "@batch_loader", **named}
    )  # refuses wrong options where they stand
    if not isinstance(shared, bool):
        raise TypeError(f"shared of @batch_loader must be True or False, not {shared!r}")
    if shared and options.get("cache", True) is True:
        raise TypeError(
            "a shared @batch_loader must not remember what one request has loaded for all others; give "
            'it cache=False or cache="pending"'
        )
    if function is None:
        return partial(_decorated, options)
    return _decorated(options, function)  # type checkers know none here, but nothing drops them


def _decorated(options: Any, function: Any) -> BatchLoader[Any, Any]:
    return BatchLoader(function, options)
