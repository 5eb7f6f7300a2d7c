"""
A drop-in for aiodataloader, for code that moves over step by step::

    from anyloader.compat import DataLoader  # was: from aiodataloader import DataLoader

A loader made of this class runs in the ambient :class:`~anyloader.LoaderScope`, so give each request
one, for instance by :class:`~anyloader.integrations.asgi.LoaderScopeMiddleware`. What differs from
aiodataloader stands in the documentation, in "Moving from aiodataloader".
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Generator, Iterable, MutableMapping
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from ._batch import (
    LoadHandle,
    LoadManyHandle,
    Parked,
    await_settled,
    batches_of,
    give_up,
    is_pending,
    outcome_in,
    park,
)
from ._dataloader import DataLoader as _DataLoader
from ._errors import LoaderError
from ._options import default_name
from ._results import Failure

if TYPE_CHECKING:
    from ._options import IterableFn, MappingFn, StreamFn

__all__ = ("DataLoader", "LoadFuture")

_UNKNOWN: Any = object()

K = TypeVar("K")
V = TypeVar("V")
K2 = TypeVar("K2")
V2 = TypeVar("V2")
T = TypeVar("T")


class _CallsBack(Parked):
    __slots__ = ("_function",)

    def __init__(self, function: Callable[[], None]) -> None:
        super().__init__()
        self._function = function

    def resume(self) -> None:
        self._function()


class LoadFuture(Generic[T]):
    """
    What ``load`` and ``load_many`` return: a handle that passes for an ``asyncio.Future``.

    Code that looks for a future finds one: ``asyncio.isfuture``, ``gather``, ``wait``, ``wait_for``,
    ``shield`` and ``add_done_callback`` work. Awaiting it works under trio too, and so do ``done``,
    ``cancelled``, ``result`` and ``exception``; callbacks need asyncio.

    It cannot be given a result from outside. Cancelling it gives this load up: who awaits this very
    future gets ``CancelledError``, as from asyncio's own, and nobody else who loads the key hears of
    it. Cancelling one task that awaits it leaves the others alone, other than with asyncio's own.
    """

    __slots__ = (
        "__weakref__",
        "_callbacks",
        "_cancel_message",
        "_cancelled",
        "_done",
        "_error",
        "_handle",
        "_parked",
        "_value",
        "_waiters",
    )

    #: By this asyncio knows what may be used as a future; see ``asyncio.isfuture``.
    _asyncio_future_blocking = False

    def __init__(self, handle: LoadHandle[T] | LoadManyHandle[Any]) -> None:
        self._handle: Any = handle
        self._callbacks: list[tuple[Callable[[LoadFuture[T]], object], Context]] = []
        #: Whether it is known to be done, which it is for good.
        self._done = self._cancelled = False
        #: Known when it is done, if it is one load with a value, as nearly all are.
        self._value: Any = _UNKNOWN
        self._cancel_message: object = None
        #: The tasks that await this.
        self._waiters: dict[Any, None] = {}
        #: Waits at the handle while there is somebody to tell.
        self._parked: Parked | None = None
        #: Why the handle could not be waited for.
        self._error: Exception | None = None

    def __await__(self) -> Generator[Any, Any, T]:
        if not self.done():
            yield from self._until_done()
        if self._cancelled:
            raise self._make_cancelled_error()
        value: T = yield from self._handle.__await__()
        return value

    def _until_done(self) -> Generator[Any, Any, None]:
        self._park()
        if self._parked is None:  # it has settled by this
            return
        waiter = batches_of(self._handle)[0].backend.new_waiter()
        self._waiters[waiter] = None
        try:
            yield from waiter
        finally:
            if self._waiters.pop(waiter, 0) is None and not self._waiters and not self._callbacks:
                self._leave()

    def _park(self) -> None:
        """Have the handle tell this when it settles, unless it has settled."""
        if self._parked is None:
            parked = _CallsBack(self._call_back)
            if park(self._handle, parked):
                self._parked = parked

    def _leave(self, given_up: bool = True) -> None:
        parked, self._parked = self._parked, None
        if parked is not None:
            parked.leave(given_up)

    def done(self) -> bool:
        """Whether the load has settled, or this was cancelled."""
        if not self._done and (self._error is not None or not is_pending(self._handle)):
            self._know()
        return self._done

    def _know(self) -> None:
        """It is done, by the load or by an error."""
        self._done = True
        handle = self._handle
        if type(handle) is LoadHandle and self._error is None:
            value = outcome_in(handle)
            if type(value) is not Failure:
                self._value = value

    def cancelled(self) -> bool:
        """Whether :meth:`cancel` was called in time."""
        return self._cancelled

    def result(self) -> T:
        """
        Return the value, or raise the error of the load.

        :raises asyncio.CancelledError: if this was cancelled
        :raises asyncio.InvalidStateError: if the load is pending
        """
        if self._value is _UNKNOWN and not self.done():
            raise asyncio.InvalidStateError("Result is not set.")
        value: T = self._value
        if value is not _UNKNOWN:
            return value
        if self._error is not None:
            raise self._error
        if self._cancelled:
            raise self._make_cancelled_error()
        try:
            await_settled(self._handle).send(None)
        except StopIteration as stop:
            value = stop.value
            return value
        raise AssertionError("a settled load does not wait")  # pragma: no cover

    def exception(self) -> BaseException | None:
        """
        Return the error of the load, or ``None``.

        :raises asyncio.CancelledError: if this was cancelled
        :raises asyncio.InvalidStateError: if the load is pending
        """
        if self._value is not _UNKNOWN:
            return None
        if self._cancelled or not self.done():
            self.result()
        try:
            self.result()
        except Exception as exc:
            return exc
        return None

    def cancel(self, msg: object = None) -> bool:
        """Give this up; return whether there was anything to give up."""
        if self.done():
            return False
        if self._parked is None:
            give_up(self._handle)
        self._leave()
        self._cancelled = self._done = True
        self._cancel_message = msg
        self._call_back()
        return True

    def add_done_callback(
        self, fn: Callable[[LoadFuture[T]], object], /, *, context: Context | None = None
    ) -> None:
        """Call ``fn(self)`` soon after this is done. Under asyncio only."""
        self._callbacks.append((fn, copy_context() if context is None else context))
        if self._parked is None and not self._done:
            try:
                self._park()
            except Exception as exc:  # of another event loop, or a deadlock: this await has failed
                self._error = exc
        if self._parked is None:
            self._call_back()

    def remove_done_callback(self, fn: Callable[[LoadFuture[T]], object], /) -> int:
        """Do not call ``fn``; return how often it would have been called."""
        kept = [pair for pair in self._callbacks if pair[0] != fn]
        removed = len(self._callbacks) - len(kept)
        self._callbacks = kept
        if not kept and not self._waiters:
            self._leave(False)  # ``asyncio.wait`` has had its time, and may be called again
        return removed

    def _call_back(self) -> None:
        self._parked = None
        if not self._done:
            self._know()
        if self._waiters:
            waiters, self._waiters = self._waiters, {}
            for waiter in waiters:
                if not getattr(waiter, "done", bool)():  # it may be cancelled in this very round
                    waiter.set_result(None)
        if self._callbacks:
            callbacks, self._callbacks = self._callbacks, []
            loop = asyncio.get_running_loop()
            for fn, context in callbacks:
                loop.call_soon(fn, self, context=context)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the running event loop."""
        return asyncio.get_running_loop()

    def _make_cancelled_error(self) -> asyncio.CancelledError:
        message = self._cancel_message
        return asyncio.CancelledError() if message is None else asyncio.CancelledError(message)

    def __repr__(self) -> str:
        return f"<LoadFuture of {self._handle!r}>"


def ignore(loop: object) -> None:
    """Warn whoever gives a loop to the constructor that calls this."""
    if loop is not None:
        warnings.warn(
            "loop is ignored: a loader runs in the event loop in which its scope is entered",
            DeprecationWarning,
            stacklevel=3,
        )


class _Loop:
    # No property: a subclass may have an attribute of this name, and copies of a class have this one.
    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        loader = instance.__anyloader__
        try:
            if loader.scope is not None:
                loader.admit()
            return asyncio.get_running_loop()
        except (LoaderError, RuntimeError):
            return None


class DataLoader(_DataLoader[K, V]):
    """
    Takes the arguments of aiodataloader's ``DataLoader``, and those of :class:`anyloader.DataLoader`.

    Behaves as the latter; ``load`` and ``load_many`` return a :class:`LoadFuture`.

    :param batch_load_fn: as in :class:`anyloader.DataLoader`; a subclass can define the method
    :param batch: ``None``, here and below, stands for the class attribute
    :param loop: ignored, with a ``DeprecationWarning``: a loader runs where its scope was entered
    :param options: the other options of :class:`anyloader.DataLoader`, by name
    :raises TypeError: if an argument has the wrong type
    :raises ValueError: if ``max_batch_size`` is less than 1
    """

    @overload
    def __init__(
        self: DataLoader[K2, V2 | None],
        batch_load_fn: MappingFn[K2, V2] | StreamFn[K2, V2],
        batch: bool | None = ...,
        max_batch_size: int | None = ...,
        cache: bool | None = ...,
        get_cache_key: Callable[[K2], Any] | None = ...,
        cache_map: MutableMapping[Any, LoadHandle[Any]] | None = ...,
        loop: asyncio.AbstractEventLoop | None = ...,
        **options: Any,
    ) -> None: ...
    @overload
    def __init__(
        self,
        batch_load_fn: IterableFn[K, V],
        batch: bool | None = ...,
        max_batch_size: int | None = ...,
        cache: bool | None = ...,
        get_cache_key: Callable[[K], Any] | None = ...,
        cache_map: MutableMapping[Any, LoadHandle[Any]] | None = ...,
        loop: asyncio.AbstractEventLoop | None = ...,
        **options: Any,
    ) -> None: ...
    @overload
    def __init__(
        self,
        batch_load_fn: None = ...,
        batch: bool | None = ...,
        max_batch_size: int | None = ...,
        cache: bool | None = ...,
        get_cache_key: Callable[[Any], Any] | None = ...,
        cache_map: MutableMapping[Any, LoadHandle[Any]] | None = ...,
        loop: asyncio.AbstractEventLoop | None = ...,
        **options: Any,
    ) -> None: ...
    def __init__(
        self,
        batch_load_fn: Any = None,
        batch: bool | None = None,
        max_batch_size: int | None = None,
        cache: bool | None = None,
        get_cache_key: Callable[[Any], Any] | None = None,
        cache_map: MutableMapping[Any, LoadHandle[Any]] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        **options: Any,
    ) -> None:
        ignore(loop)
        given = {
            "batch": batch,
            "max_batch_size": max_batch_size,
            "cache": cache,
            "get_cache_key": get_cache_key,
            "cache_map": cache_map,
        }
        options.update((name, value) for name, value in given.items() if value is not None)
        if type(self) is DataLoader and batch_load_fn is not None:
            # As a plain anyloader.DataLoader is; a subclass has a name of its own.
            options.setdefault("name", default_name(batch_load_fn))
        super().__init__(batch_load_fn, **options)

    #: The event loop that runs here, if this can load here; else ``None``. Code for aiodataloader that
    #: keeps loaders compares it with its own, and so makes a new loader for each scope.
    loop: Any = _Loop()

    # A future is no coroutine: asyncio.wait takes the one and refuses the other.
    def load(self, key: K) -> LoadFuture[V]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        """See :meth:`anyloader.DataLoader.load`."""
        return LoadFuture(super().load(key))

    def load_many(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        self, keys: Iterable[K], *, return_exceptions: bool = False
    ) -> LoadFuture[list[V]]:
        """See :meth:`anyloader.DataLoader.load_many`."""
        return LoadFuture(super().load_many(keys, return_exceptions=return_exceptions))
