"""A :class:`~anyloader.LoaderScope` for every HTTP request, in any ASGI application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from inspect import iscoroutinefunction, signature
from typing import Any

import anyio

from .._scope import LoaderScope
from ._scopes import make

__all__ = ("LoaderScopeMiddleware", "safe_methods")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
# Frameworks have types of their own for these three, which exclude one another.
App = Callable[[Any, Any, Any], Awaitable[None]]

#: What has a part of a response's body. The two latter are extensions of ASGI.
_BODIES = frozenset(f"http.response.{kind}" for kind in ("body", "pathsend", "zerocopysend"))


def safe_methods(scope: Any) -> bool:
    """
    Whether a request only reads: by GET, HEAD or OPTIONS.

    :param scope: the ASGI scope of an HTTP request
    """
    return scope["method"] in ("GET", "HEAD", "OPTIONS")


class LoaderScopeMiddleware:
    """
    Pure ASGI middleware: runs each HTTP request in a loader scope of its own.

    Every loader used in the application finds it, by :func:`~anyloader.current_scope`, by
    ``@batch_loader`` functions, or by a loader's first load. It is left when the application
    returns, after background tasks. An error of the application comes out as it is, and what cancels
    the application cancels its batches. A batch that fails or is cancelled cancels no application.

    WebSockets get no scope: a connection lasts for hours, and what it has loaded would grow old with
    it. Open a ``LoaderScope`` for each message. All else, such as ``lifespan``, passes through too.

    **Shared scopes.** Servers run the lifespan in another context than the requests. A
    ``LoaderScope(shared=True)`` entered there reaches them by the lifespan's state, under the name
    ``anyloader``: the scopes of all requests are inside of it.

    **Disconnects.** A client that leaves cancels nothing, as without the middleware, unless that is
    asked for. Then one that leaves before the response is complete cancels the application, as any
    timeout would, and its batches; one that leaves later cancels nothing, so that background tasks
    go on. (A client that closes its sending half, and waits for the response, has left in the eyes
    of most servers.) To see it in time, at most three messages are received ahead of the
    application; a disconnect behind more than these, as after an upload that nobody reads, is seen
    late.

    :param app: the application
    :param make_scope: called without arguments for each request; returns the scope for it. With
        ``lambda: LoaderScope(hooks=[...])`` hooks get in
    :param cancel_on_disconnect: whether a client that leaves cancels its request; or a callable that
        says so, given the ASGI scope, such as :func:`safe_methods`
    :raises TypeError: if ``app`` cannot be called with three arguments, ``make_scope`` is no plain
        callable, or ``cancel_on_disconnect`` neither a bool nor a plain function; from a request, if
        ``make_scope`` returns no ``LoaderScope``, ``cancel_on_disconnect`` something to be
        awaited, or what is in the lifespan's state is no shared one
    :raises RuntimeError: from a request, if ``make_scope`` returns a scope that was entered before
    :raises LoaderNotOpenError: from a request, if the scope in the lifespan's state was not entered
    """

    def __init__(
        self,
        app: App,
        *,
        make_scope: Callable[[], LoaderScope] = LoaderScope,
        cancel_on_disconnect: bool | Callable[[Any], bool] = False,
    ) -> None:
        try:
            signature(app).bind("scope", "receive", "send")
        except TypeError:
            raise TypeError(
                "LoaderScopeMiddleware takes an ASGI application, which is called with scope, "
                f"receive and send, not {app!r}; a WSGI application needs an adapter to ASGI, and in "
                "Django's MIDDLEWARE stands that of anyloader.integrations.django"
            ) from None
        except ValueError:
            pass  # of something that has no signature to read
        if not callable(make_scope) or iscoroutinefunction(make_scope):
            raise TypeError(
                "make_scope must be a plain callable that returns a new LoaderScope for each request, "
                f"not {make_scope!r}"
            )
        if not isinstance(cancel_on_disconnect, bool) and (
            not callable(cancel_on_disconnect) or iscoroutinefunction(cancel_on_disconnect)
        ):
            raise TypeError(
                "cancel_on_disconnect must be a bool or a plain function of the ASGI scope, "
                f"not {cancel_on_disconnect!r}"
            )
        self._app = app
        self._make_scope = make_scope
        self._cancel_on_disconnect = cancel_on_disconnect

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        loaders = make(self._make_scope, "request")
        shared = (scope.get("state") or {}).get("anyloader")
        if shared is not None:
            if not isinstance(shared, LoaderScope) or not shared.is_shared:
                raise TypeError(
                    "the lifespan's state must have a LoaderScope(shared=True) under the name "
                    f"'anyloader'; it has an object of type {type(shared).__qualname__}"
                    f"{' that is not shared' if isinstance(shared, LoaderScope) else ''}"
                )
            loaders.be_inside(shared)
        cancels = self._cancel_on_disconnect
        if not isinstance(cancels, bool):
            cancels = cancels(scope)
            if isinstance(cancels, Awaitable):  # which would be true for every request
                raise TypeError(
                    "cancel_on_disconnect must be a plain function of the ASGI scope; it returned an "
                    f"object of type {type(cancels).__qualname__}, which has to be awaited"
                )
        if cancels:
            await _run_watched(self._app, loaders, scope, receive, send)
        else:
            async with loaders:
                await self._app(scope, receive, send)


async def _run_watched(
    app: App, loaders: LoaderScope, scope: Any, receive: Receive, send: Send
) -> None:
    """Run one request, and cancel it if its client leaves before it has got all of the response."""
    complete = False
    error: BaseException | None = None
    # An application need not receive the request to which it responds, and the disconnect comes after
    # that: two messages for a short body on some servers. The watcher may hold one more. It closes
    # this after the last one.
    ahead, messages = anyio.create_memory_object_stream[Message](2)

    async def watch() -> None:
        nonlocal error
        try:
            while (message := await receive())["type"] != "http.disconnect":
                await ahead.send(message)
        except Exception as exc:
            error = exc
        ahead.close()
        if error is not None or not complete:
            request.cancel_scope.cancel()

    async def take() -> Message:
        # What is there is returned without a checkpoint, as servers do: frameworks look for a
        # disconnect by receiving in a scope that is cancelled already.
        try:
            try:
                return messages.receive_nowait()
            except anyio.WouldBlock:
                return await messages.receive()
        except anyio.EndOfStream:
            return {"type": "http.disconnect"}

    async def pass_on(message: Message) -> None:
        nonlocal complete
        if message["type"] in _BODIES:
            complete = not message.get("more_body", False)
        await send(message)

    try:
        with ahead, messages:
            async with anyio.create_task_group() as request:
                request.start_soon(watch)
                try:
                    async with loaders:
                        await app(scope, take, pass_on)
                except (Exception, KeyboardInterrupt, SystemExit) as exc:
                    error = exc  # which the task group would wrap
                request.cancel_scope.cancel()  # the watcher, before it can see the stream closed
        if error is not None:
            raise error
    finally:
        del error  # its traceback holds this frame
