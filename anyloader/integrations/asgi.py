"""A :class:`~anyloader.LoaderScope` for every request, in any ASGI application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import anyio

from .._dispatcher import leave_bare
from .._scope import LoaderScope

__all__ = ("LoaderScopeMiddleware",)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
# Frameworks have types of their own for these three, which exclude one another.
App = Callable[[Any, Any, Any], Awaitable[None]]

#: Messages of an application after which there are no more, unless they say so.
_LAST = {
    "http.response.body",
    "http.response.pathsend",
    "websocket.close",
    "websocket.http.response.body",
}


class LoaderScopeMiddleware:
    """
    Pure ASGI middleware: runs each HTTP request and each WebSocket connection in a scope of its own.

    Every loader used in the application finds it, by :func:`~anyloader.current_scope`, by
    ``@batch_loader`` functions, or by a loader's first load. What the application raises comes out
    as it is, and what cancels it cancels its batches.

    **Disconnects.** An HTTP client that leaves before the response is complete cancels the request:
    the application, as any timeout would, and with it the batches. A WebSocket application is told
    by its server, as ever, and goes on; its batches are cancelled, so that it hears of it even while
    it awaits a load. To see a disconnect in time, at most three messages are received ahead of the
    application; one that comes behind more than these, as after an upload that the application does
    not read, is seen late. A client that leaves after the end of the response, or of the WebSocket
    connection, cancels nothing: background tasks go on.

    :param app: the application
    :param cancel_on_disconnect: ``False`` leaves requests alone whose client has gone
    """

    def __init__(self, app: App, *, cancel_on_disconnect: bool = True) -> None:
        self._app = app
        self._cancel_on_disconnect = cancel_on_disconnect

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
        elif not self._cancel_on_disconnect:
            async with LoaderScope():
                await self._app(scope, receive, send)
        else:
            await _Request(self._app, scope, receive, send).run()


class _Request:
    """One request whose client is watched while the application works."""

    def __init__(self, app: App, scope: Message, receive: Receive, send: Send) -> None:
        self._app = app
        self._scope = scope
        self._receive = receive
        self._send = send
        # Messages received ahead of the application; the watcher may hold one more. An application
        # need not receive the request to which it responds, and the disconnect comes after that:
        # two messages for a short body on some servers. Closed by the watcher after the last one.
        self._ahead, self._messages = anyio.create_memory_object_stream[Message](2)
        #: The last message, set when the stream is closed.
        self._disconnect: Message = {}
        #: Whether the application has sent all there is to send.
        self._complete = False

    async def run(self) -> None:
        leaving: BaseException | None = None
        tasks = anyio.create_task_group()
        await tasks.__aenter__()
        with self._ahead, self._messages:
            try:
                async with LoaderScope() as loaders:
                    tasks.start_soon(self._watch, loaders, tasks.cancel_scope)
                    await self._app(self._scope, self._take, self._pass_on)
            except BaseException as exc:
                leaving = exc
            tasks.cancel_scope.cancel()  # the watcher, before it can see the stream closed
        try:
            await leave_bare(tasks, leaving)
            if leaving is not None and not isinstance(leaving, anyio.get_cancelled_exc_class()):
                raise leaving
        finally:
            del leaving  # its traceback holds this frame, which shall not hold it

    async def _watch(self, loaders: LoaderScope, request: anyio.CancelScope) -> None:
        while True:
            message = await self._receive()
            if message["type"].endswith(".disconnect"):
                break
            await self._ahead.send(message)
        self._disconnect = message
        self._ahead.close()
        if self._complete:
            return
        if message["type"] == "websocket.disconnect":
            loaders.cancel("the client disconnected")
        else:
            request.cancel()

    async def _take(self) -> Message:
        """Receive, for the application."""
        try:
            # What is there is returned without a checkpoint, as servers do: frameworks look for a
            # disconnect by receiving in a scope that is cancelled already.
            try:
                return self._messages.receive_nowait()
            except anyio.WouldBlock:
                return await self._messages.receive()
        except anyio.EndOfStream:
            return self._disconnect

    async def _pass_on(self, message: Message) -> None:
        """Send, for the application."""
        if message["type"] in _LAST and not message.get("more_body", False):
            self._complete = True
        await self._send(message)
