"""Django: a scope for each request, whose batches run in the thread that has its database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ._extras import missing

try:
    from asgiref.sync import (
        AsyncToSync,
        SyncToAsync,
        iscoroutinefunction,
        markcoroutinefunction,
    )
except ModuleNotFoundError as _exc:
    raise missing("django", _exc) from _exc

from .._scope import LoaderScope
from ._scopes import make

__all__ = ("DjangoScope", "LoaderScopeMiddleware")


def _where() -> tuple[Any, Any]:
    """What ``sync_to_async`` would look at here to find its thread; see ``SyncToAsync.__call__``."""
    return (
        getattr(AsyncToSync.executors, "current", None),  # that of a thread in async_to_sync
        SyncToAsync.thread_sensitive_context.get(None),  # that of a request under ASGI
    )


class DjangoScope(LoaderScope):
    """
    A scope whose batch functions find the thread in which the request uses its database.

    ``sync_to_async``, and so the ORM, looks in its context for the thread that belongs to the request,
    and for one that waits in ``async_to_sync``. But batch functions run in the context in which their
    scope was opened, and that is mostly outside of both. In a plain ``LoaderScope`` around Django all
    requests would take turns in one thread, on a connection that is never closed, and a load within
    ``async_to_sync`` would hang: the thread waits for the batch, and the batch for the thread. In this
    one batch functions run where the load was made that came last.

    It looks where ``get`` is called, which ``@batch_loader`` functions do at each load. All said of
    :class:`~anyloader.LoaderScope` holds besides.
    """

    async def __aenter__(self) -> Any:
        self._where = _where()
        return await super().__aenter__()

    def get(self, source: Any, /, *args: Any, **arguments: Any) -> Any:
        """
        As :meth:`~anyloader.LoaderScope.get`.

        :raises RuntimeError: also if called within ``async_to_sync`` while batches of loads that were
            made outside of it are under way
        """
        loader = super().get(source, *args, **arguments)
        here = _where()
        if here != self._where:
            self._move(here)
        return loader

    def _move(self, here: tuple[Any, Any]) -> None:
        thread, request = here
        if thread is not None and thread is not self._where[0]:
            now = self.statistics()
            if now.queued or now.running:  # these may need the thread that would wait for them
                raise RuntimeError(
                    "batches that were begun outside of async_to_sync may wait for the thread that it "
                    "blocks: await their loads before it, or open a LoaderScope within the coroutine "
                    "that is given to async_to_sync"
                )
        self._where = here
        context = self._entered().context
        context.run(setattr, AsyncToSync.executors, "current", thread)
        if request is not None:
            context.run(SyncToAsync.thread_sensitive_context.set, request)


class LoaderScopeMiddleware:
    """
    Runs each request in a :class:`DjangoScope` of its own::

        MIDDLEWARE = [..., "anyloader.integrations.django.LoaderScopeMiddleware"]

    Last in the list, so that batch functions see what other middleware has activated, such as a
    language, and what that returns early needs no scope. Async views load in
    it, and sync ones in coroutines that they give to ``async_to_sync``; under ASGI, under WSGI (where
    Django starts an event loop for each request that passes an async middleware), and in both of its
    test clients. The scope is left when the view has returned: a streamed response comes after that,
    and opens scopes itself.

    A subclass that overrides :meth:`make_scope` gives the scopes hooks or a limiter.

    :raises TypeError: if ``get_response`` is not async, as where Django itself does not call this
    """

    async_capable = True
    sync_capable = False

    def __init__(self, get_response: Callable[[Any], Awaitable[Any]]) -> None:
        if not iscoroutinefunction(get_response):
            raise TypeError(
                "this LoaderScopeMiddleware is one of Django's MIDDLEWARE; the application of asgi.py "
                "takes that of anyloader.integrations.asgi"
            )
        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request: Any) -> Any:
        """Respond to one request."""
        async with make(self.make_scope, "request"):
            return await self.get_response(request)

    def make_scope(self) -> LoaderScope:
        """Return a new scope, for one request."""
        return DjangoScope()
