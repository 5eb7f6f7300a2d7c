"""Strawberry on asyncio and on trio, with a :class:`~anyloader.LoaderScope` for each operation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from ._extras import missing

try:
    from strawberry.extensions import SchemaExtension
    from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext
except ModuleNotFoundError as _exc:
    raise missing("strawberry", _exc) from _exc

from .._scope import LoaderScope
from ._scopes import make
from .graphql import AnyioExecutor

__all__ = ("AnyioExecutionContext", "LoaderScopeExtension")


class AnyioExecutionContext(AnyioExecutor, StrawberryGraphQLCoreExecutionContext):
    """
    Lets a Strawberry schema be executed under asyncio and under trio::

        schema = strawberry.Schema(Query, execution_context_class=AnyioExecutionContext)

    All said of :class:`~anyloader.integrations.graphql.AnyioExecutor` holds. Strawberry itself uses
    asyncio for subscriptions over WebSockets, for lists of operations in one HTTP request, for relay's
    ``nodes`` with an async ``resolve_nodes`` and for a ``ListConnection`` of an async iterable: these
    are for asyncio only.
    """


class LoaderScopeExtension(SchemaExtension):
    """
    Runs each operation, and each event of a subscription, in a loader scope of its own::

        schema = strawberry.Schema(Query, extensions=[LoaderScopeExtension])

    In resolvers ``@batch_loader`` functions, :func:`~anyloader.current_scope` and the first load of
    any loader find it. It is left when the operation, or the event, has been executed: loads that
    nobody awaits are cancelled then, and so are all if the operation is cancelled. So a socket that
    stays open for hours keeps nothing of what its operations loaded, and no event sees what an
    earlier one did.

    The generator of a subscription runs between its events, in none of these scopes. To load it opens
    a scope, and leaves it before it yields. What is delivered after the first response (``@defer``,
    ``@stream``) finds the operation's scope closed; there
    :class:`~anyloader.integrations.asgi.LoaderScopeMiddleware` helps, which spans the request. Events
    need graphql-core 3.3; with 3.2 they have no scope.

    ``schema.execute_sync`` refuses it, as any extension that is async. Extensions that load, in
    ``on_execute``, come after it in the list; their ``on_operation`` is outside of its scope.

    :param make_scope: called without arguments for each operation and event; returns the scope for it,
        with hooks or a limiter. ``extensions=[partial(LoaderScopeExtension, make_scope=f)]`` gives it
    :raises TypeError: if ``make_scope`` cannot be called
    """

    def __init__(self, *, make_scope: Callable[[], LoaderScope] = LoaderScope) -> None:
        if not callable(make_scope):
            raise TypeError(
                "make_scope must be a callable that returns a new LoaderScope for each operation, "
                f"not {make_scope!r}"
            )
        self._make_scope = make_scope

    # Strawberry has no hook around the execution of an event, but it asks its schema for the class
    # that executes, after it has told the extensions what is executed.

    @property
    def execution_context(self) -> Any:
        """What is executed; set by Strawberry for each operation."""
        return self._execution_context

    @execution_context.setter
    def execution_context(self, context: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._execution_context = context
        schema = context.schema
        schema.execution_context_class = _with_scopes(
            schema.execution_context_class, self._make_scope
        )

    async def on_execute(self) -> AsyncIterator[None]:
        """Open the scope, and leave it after the operation; entering is no checkpoint."""
        async with make(self._make_scope, "operation"):
            yield


class _ScopeForEachEvent:
    """Added to a class that executes; graphql-core 3.3 makes a copy of the executor for each event."""

    _is_event = False
    _make_scope: Any

    def build_per_event_executor(self, payload: Any) -> Any:
        stock: Any = super()
        executor = stock.build_per_event_executor(payload)
        executor._is_event = True
        executor._relevant_sub_fields = {}  # as in AnyioExecutor, which this one need not be
        return executor

    def execute_operation(self, *args: Any) -> Any:
        stock: Any = super()
        execute = stock.execute_operation
        if not self._is_event:
            return execute(*args)
        return _in_scope(type(self)._make_scope[0], execute, *args)


async def _in_scope(make_scope: Callable[[], LoaderScope], execute: Any, *args: Any) -> Any:
    async with make(make_scope, "operation"):
        result = execute(*args)
        return await result if isinstance(result, Awaitable) else result


def _with_scopes(executor: type[Any], make_scope: Callable[[], LoaderScope]) -> type[Any]:
    if issubclass(executor, _ScopeForEachEvent):  # from the second operation of a schema on
        return executor
    # In a tuple, where a function does not become a method.
    names = {"__module__": executor.__module__, "_make_scope": (make_scope,)}
    return type(executor.__name__, (_ScopeForEachEvent, executor), names)
