"""The server's side of a request."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from anyloader import batch_loader
from anyloader.integrations.asgi import App, LoaderScopeMiddleware, Message
from support import wait_all_tasks_blocked


class Client:
    """The server's side of one request: what it has received, what it will send, what it was sent."""

    def __init__(self, kind: str = "http", method: str = "GET") -> None:
        self.kind = kind
        self.method = method
        self.received = 0
        self.sent: list[Message] = []
        self._send, self._receive = anyio.create_memory_object_stream[Message](100)

    def says(self, *messages: Message) -> None:
        for message in messages:
            self._send.send_nowait(message)

    async def receive(self) -> Message:
        message = await self._receive.receive()
        self.received += 1
        return message

    async def send(self, message: Message) -> None:
        await checkpoint()
        self.sent.append(message)

    async def call(self, app: App) -> None:
        with self._send, self._receive:
            scope = {"type": self.kind, "method": self.method, "path": "/"}
            await app(scope, self.receive, self.send)


@asynccontextmanager
async def request(
    app: App, *messages: Message, kind: str = "http", method: str = "GET", **options: Any
) -> AsyncIterator[Client]:
    """Call the application, and enter the block once nothing moves any more."""
    client = Client(kind, method)
    client.says(*messages)
    async with anyio.create_task_group() as tg:
        tg.start_soon(client.call, LoaderScopeMiddleware(app, **options))
        await wait_all_tasks_blocked()
        yield client


@batch_loader
async def double(keys: list[int]) -> list[int]:
    return [key * 2 for key in keys]


# What outlives the response, and what outlives the request


async def chunks(log: list[str]) -> AsyncGenerator[int, None]:
    """Stream a response, loading in the scope of its request."""
    try:
        for key in range(3):
            yield await double.load(key)
    finally:
        log.append("closed")
