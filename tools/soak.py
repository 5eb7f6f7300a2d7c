"""A soak test: thousands of requests to real servers, a good part of which go wrong.

    python tools/soak.py

Clients leave at random moments, timeouts fire, batch functions fail or are slow. It is good if every
request that was not given up got its own right answer in time, and if afterwards the server has no
task, no file and no object left that it had not before the requests.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import anyio
from anyio.abc import SocketAttribute, SocketStream
from websockets.asyncio.client import connect

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support import SERVERS, Server, serve

CLIENTS = 30
WARM_UP = 100  # requests
ENDLESS = 3_600_000  # milliseconds; what takes so long has to be cancelled
ANSWER_WITHIN = 30  # seconds; a request that takes longer counts as hanging
SETTLE_WITHIN = 10
SOCKETS = 4  # that stay open for as long as it takes, and as many subscriptions
PAUSE = 0.1  # seconds between the messages over such a socket
MOST_MORE_OBJECTS = 1000  # between the first round of requests and the last
MOST_MORE_MEMORY = 8192  # kilobytes

#: Each kind of request, how often it comes, and the largest number in it.
KINDS = {
    "values": (6, 12),
    "slow": (4, 25),
    "timeout": (4, 20),
    "broken": (3, 9),
    "partly": (3, 9),
    "unawaited": (2, 20),
    "crash": (1, 9),
    "upload": (2, 200_000),
    "stream": (3, 5),
    "events": (3, 6),
    "order": (3, 30),
    "chat": (2, 12),
}
POSTS = ("upload", "order")


class Request(NamedTuple):
    kind: str
    number: int
    token: str
    #: The client leaves after so many seconds.
    patience: float | None
    #: It does so by a reset rather than in an orderly way.
    reset: bool

    def encode(self) -> bytes:
        body = b"x" * self.number if self.kind == "upload" else b""
        return (
            f"{'POST' if self.kind in POSTS else 'GET'} /{self.kind}/{self.number}?token={self.token} HTTP/1.1\r\n"
            "Host: localhost\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    def answers(self) -> set[tuple[int, str]]:
        """Give all right answers, as status and text."""
        token, number = self.token, self.number
        one = f"{token}:{number}"
        if self.kind == "values":
            texts = (f"{token}:{key} {token}:{key + 100}" for key in range(number))
            return {(200, "\n".join(texts))}
        if self.kind == "timeout":
            return {(200, one), (504, "timeout")}
        if self.kind == "broken":
            return {(502, token)}
        if self.kind == "partly":
            texts = (f"'{token}:{key}'" if key % 2 else f"{token}:{key}" for key in range(number))
            return {(200, "\n".join(texts))}
        if self.kind == "unawaited":
            return {(200, "nothing")}
        if self.kind == "crash":
            return {(500, "Internal Server Error"), (500, "")}
        if self.kind == "events":
            rows = (f"{token}:event:{row}" for row in range(1, number + 1))
            return {(200, "".join(f"{row} {row}\n" for row in rows))}
        if self.kind == "stream":
            return {(200, "".join(f"{token}:{key}\n" for key in range(number)))}
        return {(200, one)}


class Figures(NamedTuple):
    server: str
    seconds: float
    #: How requests ended: by status, "left", "wrong" or "hung".
    outcomes: Counter[str]
    faults: list[str]
    before: dict[str, Any]
    after: dict[str, Any]
    #: Messages and events over what stayed open, and what there was after each round of requests.
    over_sockets: Counter[str]
    meanwhile: list[dict[str, Any]]

    @property
    def good(self) -> bool:
        return not self.faults


def requests(number: int, seed: int) -> Iterator[Request]:
    choose = random.Random(seed)
    kinds, weights = list(KINDS), [weight for weight, _ in KINDS.values()]
    for index in range(number):
        (kind,) = choose.choices(kinds, weights)
        leaves = choose.random() < 0.25
        size = choose.randint(1, KINDS[kind][1])
        yield Request(
            kind,
            ENDLESS if leaves and kind == "slow" else size,
            f"r{index}",
            choose.choice([0, choose.uniform(0, 0.03)]) if leaves else None,
            choose.random() < 0.5,
        )


async def send(request: Request, port: int) -> str:
    """Send one request and say how it ended."""
    with anyio.move_on_after(ANSWER_WITHIN):
        if request.kind == "chat":
            return await chat(request, port)
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            if request.patience is None:
                status, text = await exchange(request, stream)
                right = (status, text) in request.answers()
                return str(status) if right else f"wrong: {request} got {status} {text[:200]!r}"
            with anyio.move_on_after(request.patience):
                await exchange(request, stream)
            if request.reset:
                raw = stream.extra(SocketAttribute.raw_socket)
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return "left"
    return f"hung: {request}"


async def exchange(request: Request, stream: SocketStream) -> tuple[int, str]:
    return await ask(stream, request.encode())


async def chat(request: Request, port: int) -> str:
    """Send so many messages over a WebSocket, one after the other; or leave, whatever is under way."""
    url = f"ws://127.0.0.1:{port}/chat/0?token={request.token}"
    async with connect(url, compression=None, open_timeout=ANSWER_WITHIN) as websocket:
        for number in range(1, request.number + 1):
            await websocket.send(f"message {number}")
            if request.patience is not None and number == request.number:
                if request.reset:
                    websocket.transport.abort()
                return "left"
            answer = await websocket.recv()
            right = f"{request.token}:message {number}:{number}"
            if answer != f"{right} {right}":
                return f"wrong: {request} got {answer!r}"
    return "chat"


class LongLived:
    """WebSockets and subscriptions that stay open, each of which is never given anything stale."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.over = False
        self.seen: Counter[str] = Counter()

    async def talk(self, token: str) -> None:
        url = f"ws://127.0.0.1:{self._port}/chat/0?token={token}"
        async with connect(url, compression=None, open_timeout=ANSWER_WITHIN) as websocket:
            for number in count(1):
                await websocket.send("message")
                row = f"{token}:message:{number}"
                self._check(await websocket.recv(), f"{row} {row}")
                self.seen["messages"] += 1
                await anyio.sleep(PAUSE)
                if self.over:
                    return

    async def listen(self, token: str) -> None:
        """Subscribe to what the server changes for ever."""
        request = Request("events", 0, token, None, False)
        async with await anyio.connect_tcp("127.0.0.1", self._port) as stream:
            await stream.send(request.encode())
            received, rows = b"", count(1)
            async for chunk in stream:
                *lines, received = (received + chunk).split(b"\n")
                for line in lines:
                    if line.startswith(token.encode()):  # and is no header and no size of a chunk
                        row = f"{token}:event:{next(rows)}"
                        self._check(line.decode(), f"{row} {row}")
                        self.seen["events"] += 1
                if self.over:
                    return
        raise RuntimeError("the server has ended a subscription that has no end")

    def _check(self, got: object, expected: str) -> None:
        if got != expected:
            raise RuntimeError(f"got {got!r} instead of {expected!r}")


async def ask(stream: SocketStream, request: bytes) -> tuple[int, str]:
    """Send a request whose connection the server closes after the response."""
    await stream.send(request)
    received = b"".join([chunk async for chunk in stream])
    if not received:
        return 0, "nothing"
    head, _, body = received.partition(b"\r\n\r\n")
    if b"\r\ntransfer-encoding: chunked" in head.lower():
        body = dechunked(body)
    return int(head.split()[1]), body.decode()


def dechunked(body: bytes) -> bytes:
    """:raises ValueError: if it is not all there"""
    chunks: list[bytes] = []
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            return b"".join(chunks)
        chunks.append(body[:length])
        body = body[length + 2 :]


async def leftovers(port: int) -> dict[str, Any]:
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        request = b"GET /leftovers HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        found: dict[str, Any] = json.loads((await ask(stream, request))[1])
    return found


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Say what is left."""
    faults = []
    for what in ("requests", "objects of the library", "tasks", "files"):
        if before[what] != after[what]:
            faults.append(f"{what}: {before[what]} before, {after[what]} after")
    batches = Counter(after["batches"])
    if batches["started"] != batches["ended"] + batches["cancelled"]:
        faults.append(f"batches: {dict(batches)}")
    orders = Counter(after["orders"])
    if orders["charged"] != orders["ordered"]:
        faults.append(f"orders: {dict(orders)}")
    return faults


async def soak(server: Server, number: int, seed: int, minutes: float = 0) -> Figures:
    """
    Send so many requests, and see what they leave behind.

    :param minutes: if more than 0, send them again and again for so long, beside sockets that stay
        open
    """
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    port = server.port

    async def client(todo: Iterator[Request]) -> None:
        for request in todo:
            outcome = await send(request, port)
            if ":" in outcome:
                faults.append(outcome)
            outcomes[outcome.partition(":")[0]] += 1

    async def clients(todo: Iterator[Request]) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(CLIENTS):
                tasks.start_soon(client, todo)

    async def guarded(socket: Callable[[str], Awaitable[None]], token: str) -> None:
        try:
            await socket(token)
        except Exception as exc:
            faults.append(f"socket {token}: {exc!r}")

    idle = await leftovers(port)
    # The first requests import modules and fill caches; they count only if something is wrong.
    await clients(requests(WARM_UP, seed + 1))
    before = await settled(port, lambda now: not compare(idle, now))
    outcomes.clear()
    sockets = LongLived(port)
    meanwhile: list[dict[str, Any]] = []
    start = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for index in range(SOCKETS if minutes else 0):
            tasks.start_soon(guarded, sockets.talk, f"talk{index}")
            tasks.start_soon(guarded, sockets.listen, f"listen{index}")
        for round in count():
            await clients(requests(number, seed + round))
            if not minutes:
                break
            meanwhile.append(await settled(port, lambda now: only_sockets(idle, now)))
            if time.perf_counter() - start > minutes * 60:
                break
        sockets.over = True
    seconds = time.perf_counter() - start
    after = await settled(port, lambda now: not compare(idle, now))
    faults.extend(compare(idle, after))
    if after["objects"] - before["objects"] > number:
        faults.append(more(before, after))
    if meanwhile:
        faults.extend(growth(meanwhile[0], meanwhile[-1]))
    return Figures(server.name, seconds, outcomes, faults, before, after, sockets.seen, meanwhile)


def only_sockets(idle: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether nothing is left but the sockets that stay open."""
    files = idle["files"] and idle["files"] + 2 * SOCKETS  # 0 where the system does not tell
    return bool(now["requests"] == 2 * SOCKETS and now["files"] == files)


def more(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Say how many objects there are more, and of which classes most of them are."""
    kinds = Counter(after["kinds"])
    kinds.subtract(before["kinds"])
    most = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(5) if n > 0)
    return f"{after['objects'] - before['objects']:+} objects ({most})"


def growth(first: dict[str, Any], last: dict[str, Any]) -> list[str]:
    """Say what has become more while the same sockets were open."""
    faults = []
    if last["requests"] != first["requests"]:
        faults.append(f"open: {first['requests']} at first, {last['requests']} at last")
    if last["objects"] - first["objects"] > MOST_MORE_OBJECTS:
        faults.append(f"open: {more(first, last)}")
    if last["memory"] - first["memory"] > MOST_MORE_MEMORY:
        faults.append(f"memory: {first['memory']} kB at first, {last['memory']} at last")
    return faults


async def settled(port: int, good: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Give the server some time to notice who has left."""
    deadline = time.perf_counter() + SETTLE_WITHIN
    while True:
        now = await leftovers(port)
        if good(now) or time.perf_counter() > deadline:
            return now
        await anyio.sleep(0.2)


def start(name: str) -> AbstractContextManager[Server]:
    """Start a server with the service."""
    # A busy one may read a request late, and hypercorn closes what was idle for so long; it has to
    # close within SETTLE_WITHIN those that were left.
    patience = ["--keep-alive", "5"] if name.startswith("hypercorn") else []
    return serve(name, "for_soak:app", options=patience)


def show(figures: Figures) -> None:
    outcomes, before, after = figures.outcomes, figures.before, figures.after
    total = sum(outcomes.values())
    started, cancelled = (
        Counter(after["batches"])[what] - Counter(before["batches"])[what]
        for what in ("started", "cancelled")
    )
    print(f"{figures.server}: {total} requests in {figures.seconds:.0f} s")
    print("  " + ", ".join(f"{outcomes[outcome]} x {outcome}" for outcome in sorted(outcomes)))
    print(f"  {started} batches, {cancelled} of them cancelled")
    library = sum(after["objects of the library"].values()) - sum(
        before["objects of the library"].values()
    )
    print(f"  left: {after['requests']} requests, {library:+} objects of the library,", end=" ")
    for what in ("tasks", "files"):
        print(f"{after[what] - before[what]:+} {what}", end=", ")
    print(more(before, after))
    if figures.meanwhile:
        first, last = figures.meanwhile[0], figures.meanwhile[-1]
        print(f"  {len(figures.meanwhile)} rounds beside {2 * SOCKETS} sockets with", end=" ")
        print(", ".join(f"{n} {what}" for what, n in sorted(figures.over_sockets.items())))
        print(
            f"  memory after the first and the last: {first['memory']}, {last['memory']} kB,",
            end=" ",
        )
        print(more(first, last))
    for fault in figures.faults[:20]:
        print(f"  FAULT {fault}")
    print(f"  {'good' if figures.good else 'NOT GOOD'}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Many requests to real servers, on loopback.")
    parser.add_argument("--requests", type=int, default=30_000, help="to each (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--minutes", type=float, default=0, help="repeat that for so long, beside open sockets"
    )
    parser.add_argument("--seconds", type=int, default=600, help="most for each (%(default)s)")
    parser.add_argument("servers", nargs="*", default=SERVERS, help="by default all installed")
    options = parser.parse_args(arguments)

    async def bounded(server: Server) -> Figures:
        with anyio.fail_after(options.seconds + options.minutes * 60):
            return await soak(server, options.requests, options.seed, options.minutes)

    good = True
    for name in options.servers:
        with start(name) as server:
            figures = anyio.run(bounded, server)
        show(figures)
        good &= figures.good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
