"""Strawberry on asyncio and on trio, with a :class:`~anyloader.LoaderScope` for each operation."""

from __future__ import annotations

from collections.abc import AsyncIterator

from strawberry.extensions import SchemaExtension
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext

from .._scope import LoaderScope
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
    Runs each operation in a loader scope of its own::

        schema = strawberry.Schema(Query, extensions=[LoaderScopeExtension])

    In resolvers ``@batch_loader`` functions, :func:`~anyloader.current_scope` and the first load of
    any loader find it. It is left when the operation has been executed: loads that nobody awaits are
    cancelled then, and so are all if the operation is cancelled. What is delivered later (``@defer``,
    ``@stream``, the events of a subscription) finds it closed; use
    :class:`~anyloader.integrations.asgi.LoaderScopeMiddleware` for these, which spans the request.

    ``schema.execute_sync`` refuses it, as any extension that is async.
    """

    async def on_execute(self) -> AsyncIterator[None]:
        """Open the scope, and leave it after the operation; entering is no checkpoint."""
        async with LoaderScope():
            yield
