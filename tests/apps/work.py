"""What all applications do: batch functions that keep a log, and what endpoints answer with.

They are given no loader; all is found through the ambient scope.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from anyloader import LoaderNotOpenError, LoaderScope, batch_loader, current_scope

#: What happened, by the name that the client gave to it.
log: defaultdict[str, list[str]] = defaultdict(list)
#: Set when the client asks for the log of that name.
asked_for: dict[str, anyio.Event] = {}

_numbers = itertools.count()


@batch_loader
async def square(numbers: list[int]) -> list[int]:
    await checkpoint()
    return [number * number for number in numbers]


@batch_loader
async def serial(names: list[str]) -> list[int]:
    """Never the same number twice."""
    await checkpoint()
    return [next(_numbers) for _ in names]


@batch_loader
async def slow(names: list[str]) -> list[str]:
    note(names, "started")
    try:
        await anyio.sleep_forever()
    finally:
        note(names, "cancelled")
    return names


def note(names: list[str], event: str) -> None:
    for name in names:
        log[name].append(event)


async def squares(count: int) -> dict[str, Any]:
    results = [0] * count

    async def load(number: int) -> None:
        results[number] = await square.load(number)

    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(load, number)
    return {"squares": results, "batches": current_scope().statistics().batches}


async def session() -> dict[str, int]:
    first = await serial.load("session")
    for _ in range(50):  # other requests come in between
        await checkpoint()
    return {"first": first, "again": await serial.load("session")}


async def within(seconds: float, name: str) -> str:
    with anyio.move_on_after(seconds):
        return await slow.load(name)
    return "timeout"


async def lengths(chunks: AsyncIterator[bytes]) -> dict[str, int]:
    """Load something for each chunk of an upload, as it comes."""
    total = check = 0
    async for chunk in chunks:
        total += len(chunk)
        if chunk:
            check += await square.load(len(chunk)) // len(chunk)
    return {"total": total, "check": check}


async def later(name: str) -> None:
    """Work on after the response; the client, who asks for the log next, is gone by then."""
    log[name].append("response sent")
    asked_for[name] = anyio.Event()
    await asked_for[name].wait()
    log[name].append(f"loaded {await square.load(3)}")


async def lines(name: str) -> AsyncIterator[bytes]:
    """Stream a response."""
    for number in range(3):
        yield b"%d\n" % await square.load(number)
    if name != "all":
        await slow.load(name)
        yield b"never"


async def order(name: str) -> str:
    """Do half of a job, wait until somebody asks for the log "<name>-left", do the other half."""
    left = asked_for[f"{name}-left"] = anyio.Event()
    log[name].append("charged")
    await left.wait()
    log[name].append(f"ordered {await square.load(3)}")
    return "ordered"


async def chat(text: str) -> str:
    """Answer one message of a WebSocket connection."""
    if text == "outside":
        try:
            square.load(1)
        except LoaderNotOpenError as exc:
            return str(exc)
    async with LoaderScope():
        if text == "serial":
            return str(await serial.load("chat"))
        return str(await square.load(int(text)))
