"""A service for the soak test, which can count what is left of the requests that it has answered."""

from __future__ import annotations

import asyncio
import gc
import json
import os
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from contextvars import ContextVar
from itertools import count, islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl
from weakref import WeakSet

import anyio
import graphql

from anyloader import LoaderScope, batch_loader
from anyloader.integrations.asgi import LoaderScopeMiddleware, safe_methods
from anyloader.integrations.graphql import AnyioExecutor

PAUSE = 0.1  # seconds between the events of a subscription without an end


class RequestData:
    """What belongs to one request, with a kilobyte of memory."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.memory = bytearray(1024)
        self.row = 0
        alive.add(self)


alive: WeakSet[RequestData] = WeakSet()
request_data: ContextVar[RequestData] = ContextVar("request_data")
batches: Counter[str] = Counter()
orders: Counter[str] = Counter()


# Batch functions answer with the token of their request: a value of another one would show.


async def run_batch(seconds: float) -> str:
    batches["started"] += 1
    try:
        await anyio.sleep(seconds)
    except anyio.get_cancelled_exc_class():
        batches["cancelled"] += 1
        raise
    batches["ended"] += 1
    return request_data.get().token


@batch_loader(max_batch_size=5)
async def value(keys: list[int]) -> list[str]:
    token = await run_batch(0)
    return [f"{token}:{key}" for key in keys]


@batch_loader
async def nested(keys: list[int]) -> dict[int, str]:
    await run_batch(0.001)
    return dict(zip(keys, await value.load_many(keys)))


@batch_loader
async def slow(milliseconds: list[int]) -> list[str]:
    token = await run_batch(max(milliseconds) / 1000)
    return [f"{token}:{number}" for number in milliseconds]


@batch_loader
async def broken(keys: list[int]) -> list[str]:
    raise OSError(await run_batch(0.001))


@batch_loader
async def partly_broken(keys: list[int]) -> list[str | KeyError]:
    token = await run_batch(0)
    return [KeyError(f"{token}:{key}") if key % 2 else f"{token}:{key}" for key in keys]


@batch_loader
async def row_value(texts: list[str]) -> list[str]:
    token = await run_batch(0)
    return [f"{token}:{text}:{request_data.get().row}" for text in texts]


async def answer(kind: str, number: int, receive: Any) -> tuple[int, str]:
    """Answer a request: its status and its text."""
    if kind == "values":
        texts = [""] * number

        async def load(key: int) -> None:
            first = await nested.load(key)
            texts[key] = f"{first} {await value.load(key + 100)}"

        async with anyio.create_task_group() as tasks:
            for key in range(number):
                tasks.start_soon(load, key)
        return 200, "\n".join(texts)
    if kind == "slow":
        return 200, await slow.load(number)
    if kind == "timeout":
        with anyio.move_on_after(0.01):
            return 200, await slow.load(number)
        return 504, "timeout"
    if kind == "broken":
        try:
            return 200, await broken.load(number)
        except OSError as exc:
            return 502, str(exc)
    if kind == "partly":
        many = await partly_broken.load_many(range(number), return_exceptions=True)
        return 200, "\n".join(map(str, many))
    if kind == "unawaited":
        slow.load(number)
        value.load_many(range(number))
        return 200, "nothing"
    if kind == "crash":
        await value.load(number)
        raise ZeroDivisionError("as it was asked to")
    if kind == "upload":
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return 400, "no more came"
            size += len(message["body"])
            if not message.get("more_body", False):
                return 200, await value.load(size)
    if kind == "order":
        orders["charged"] += 1
        text = await slow.load(number)
        orders["ordered"] += 1
        return 200, text
    raise ValueError(kind)


# Subscriptions: each event changes a row, which two of its fields load.


class Executor(AnyioExecutor):
    make_scope = LoaderScope


async def row_of_event(event: Any, info: Any) -> str:
    return await row_value.load("event")


async def changes(root: Any, info: Any, number: int) -> AsyncGenerator[dict[str, Any], None]:
    """Changes the row so many times, or for ever if that is 0."""
    for _ in islice(count(), number or None):
        await anyio.sleep(0 if number else PAUSE)
        request_data.get().row += 1
        yield {"change": {}}


schema = graphql.build_schema(
    """
    type Query { row: String }
    type Subscription { change(number: Int!): Change }
    type Change { row: String again: String }
    """
)
schema.subscription_type.fields["change"].subscribe = changes  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
for field in schema.type_map["Change"].fields.values():  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    field.resolve = row_of_event


async def texts(kind: str, number: int) -> AsyncGenerator[str, None]:
    """Give the lines of a streamed response."""
    if kind == "stream":
        for key in range(number):
            yield await nested.load_required(key)
        return
    document = graphql.parse(f"subscription {{change(number: {number}) {{row again}}}}")
    events: Any = graphql.subscribe(schema, document, executor_class=Executor)
    async with aclosing(events):
        async for event in events:
            assert event.errors is None
            yield " ".join(event.data["change"].values())


async def service(scope: Any, receive: Any, send: Any) -> None:
    _, kind, number = scope["path"].split("/")
    if kind not in ("stream", "events"):
        await respond(send, *await answer(kind, int(number), receive))
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    async with aclosing(texts(kind, int(number))) as lines:
        async for text in lines:
            body = f"{text}\n".encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def respond(send: Any, status: int, text: str) -> None:
    headers = [(b"content-length", b"%d" % len(text))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


async def chat(scope: Any, receive: Any, send: Any) -> None:
    """Answer each message with what is in a row now, which a message before it has changed."""
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        data = request_data.get()
        data.row += 1
        async with LoaderScope():
            text = " ".join(await row_value.load_many([message["text"]] * 2))
        try:
            await send({"type": "websocket.send", "text": text})
        except Exception:  # what it is depends on the server
            break  # as the client has left


in_scope = LoaderScopeMiddleware(service, cancel_on_disconnect=safe_methods)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        raise RuntimeError("there is nothing to start in here")
    if scope["path"] == "/leftovers":
        await respond(send, 200, json.dumps(leftovers()))
        return
    query = dict(parse_qsl(scope["query_string"].decode()))
    request_data.set(RequestData(query["token"]))
    await (in_scope if scope["type"] == "http" else chat)(scope, receive, send)


# What is left


def leftovers() -> dict[str, Any]:
    forget_deadlines()
    gc.collect()
    everything = gc.get_objects()
    kinds = Counter(f"{type(thing).__module__}.{type(thing).__name__}" for thing in everything)
    return {
        "requests": len(alive),
        "objects of the library": {
            kind: count for kind, count in kinds.items() if kind.startswith("anyloader.")
        },
        "tasks": tasks(),
        "files": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
        "objects": len(everything),
        "kinds": dict(kinds),
        "memory": memory(),
        "batches": dict(batches),
        "orders": dict(orders),
    }


def forget_deadlines() -> None:
    """trio keeps up to a thousand cancel scopes that were left before their deadlines, of a long sleep say."""
    if not asyncio._get_running_loop():
        import trio

        run: Any = trio._core._run
        run.GLOBAL_RUN_CONTEXT.runner.deadlines._prune()


def memory() -> int:
    """In kilobytes, where the system tells."""
    status = Path("/proc/self/statm")
    return (
        int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
        if status.exists()
        else 0
    )


def tasks() -> int:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:  # no asyncio loop: trio
        import trio

        count, roots = 0, [trio.lowlevel.current_root_task()]
        while roots:
            task = roots.pop()
            count += 1
            roots.extend(
                child for n in getattr(task, "child_nurseries", ()) for child in n.child_tasks
            )
        return count
