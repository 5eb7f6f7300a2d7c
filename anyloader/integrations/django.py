"""Django's views, of which the sync ones share a thread with its database."""

from __future__ import annotations

from typing import Any

from ._extras import missing

try:
    from asgiref.sync import AsyncToSync
except ModuleNotFoundError as _exc:
    raise missing("django", _exc) from _exc

from .._scope import LoaderScope

__all__ = ("DjangoScope",)


def _blocked() -> Any:
    """What runs functions in the thread that ``async_to_sync`` blocks, if there is one around us."""
    return getattr(AsyncToSync.executors, "current", None)


class DjangoScope(LoaderScope):
    """
    A scope that refuses a load which would hang::

        app = LoaderScopeMiddleware(get_asgi_application(), make_scope=DjangoScope)

    While a sync view waits in ``async_to_sync``, it blocks the thread in which Django uses its
    database. ``sync_to_async`` lends it that thread, within the coroutine that the view waits for.
    But batch functions run in the context in which their scope was opened; if that is outside of the
    view, they wait for the thread, and the view waits for them. So a load from there raises an error
    that says where to open the scope: within the coroutine. Async views are not concerned.

    It looks where ``get`` is called, which ``@batch_loader`` functions do at each load. All said of
    :class:`~anyloader.LoaderScope` holds besides.
    """

    async def __aenter__(self) -> Any:
        self._thread = _blocked()
        return await super().__aenter__()

    def get(self, source: Any, /, *args: Any, **arguments: Any) -> Any:
        """
        As :meth:`~anyloader.LoaderScope.get`.

        :raises RuntimeError: also if called within ``async_to_sync``, where this scope was entered
            outside of it
        """
        if _blocked() is not self._thread:
            raise RuntimeError(
                "open a LoaderScope within the coroutine that is given to async_to_sync: that blocks "
                "the thread which a batch function of the scope around it would wait for"
            )
        return super().get(source, *args, **arguments)
