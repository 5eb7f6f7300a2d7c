"""
How near to its peers a loader on asyncio can come that keeps the rules of waiting.

``python -m benchmarks.floor`` divides the time of each peer by that of the least code that keeps these
rules of anyloader: a batch leaves when nothing else can run, or after three quiet checkpoints; its function
is called in a task that was there before, in a context of its own; each waiter can be cancelled by itself,
which the loader sees; a call from another event loop is refused. There is nothing else in it: no errors,
hooks, limiter, deadlocks, statistics or scopes, and no second load of a pending key. Where this does not
reach 1, a loader would need other rules, or a way to keep these that nobody has found yet.

Then it divides the least that async resolvers come to on trio by stock graphql-core with aiodataloader on
asyncio: graphql-core's work on a query of which nothing is awaited, and a nursery that starts a task
for each object, which awaits the two loads of its resolvers. There is nothing that hands results over, and
no errors. Where a resolver that fails is to cancel its siblings, each task needs a cancel scope besides.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from contextvars import copy_context
from functools import partial
from importlib import import_module
from typing import Any

import anyio

from anyloader._backend import _next_round as next_round
from anyloader._backend import _ready_queue as ready_queue
from anyloader._workers import _in_context as in_context

from . import _rows
from ._contenders import BatchFunction, Open, ours, peers
from ._measure import Contest, Row, Sample, measure
from ._report import HEADER, line


class Handle:
    __slots__ = ("batch", "value", "waiter")

    batch: Batch | None
    value: Any
    waiter: asyncio.Future[None] | None

    def __await__(self) -> Generator[Any, Any, Any]:
        batch = self.batch
        if batch is not None:
            waiter = self.waiter = batch.new_waiter()
            try:
                waiter._asyncio_future_blocking = True
                yield waiter
            except BaseException:
                self.waiter = None
                batch.wanted -= 1
                raise
        return self.value


class Batch:
    __slots__ = ("handles", "keys", "new_waiter", "wanted")

    def __init__(self, new_waiter: Any) -> None:
        self.new_waiter = new_waiter
        self.keys: list[int] = []
        self.handles: list[Handle] = []
        self.wanted = 0


class Floor:
    def __init__(self, function: BatchFunction, quiet_rounds: bool, cache: bool) -> None:
        self._function = function
        self._quiet_rounds = quiet_rounds
        self._cache: dict[int, Handle] | None = {} if cache else None
        self._open: Batch | None = None
        self._loop = asyncio.get_running_loop()
        self._ready = ready_queue(self._loop)
        self._running = asyncio._get_running_loop
        self._new_handle = partial(object.__new__, Handle)
        self._new_waiter: Any = partial(asyncio.Future, loop=self._loop)
        self._wake: asyncio.Future[None] = self._new_waiter()
        self._context = copy_context()

    def load(self, key: int) -> Handle:
        if self._running() is not self._loop:
            raise RuntimeError("another event loop")
        cache = self._cache
        if cache is not None:
            found = cache.get(key)
            if found is not None:
                return found
        batch = self._open
        if batch is None:
            batch = self._open = Batch(self._new_waiter)
            self._wake.set_result(None)
        handle = self._new_handle()
        handle.batch = batch
        handle.waiter = None
        if cache is not None:
            cache[key] = handle
        batch.keys.append(key)
        batch.handles.append(handle)
        batch.wanted += 1
        return handle

    async def work(self) -> None:
        while True:
            await self._wake
            self._wake = self._new_waiter()
            batch = self._open
            assert batch is not None
            if self._quiet_rounds:
                seen = len(batch.keys)
                quiet = 0
                while self._ready and quiet < 3:
                    await next_round()
                    quiet = quiet + 1 if len(batch.keys) == seen else 0
                    seen = len(batch.keys)
            self._open = None
            context, steps = self._context.copy(), self._call(batch)
            try:
                yielded = context.run(steps.send, None)
            except StopIteration:
                pass
            else:
                await in_context(context, steps, yielded)

    async def _call(self, batch: Batch) -> None:
        values = await self._function(list(batch.keys))
        if len(values) != len(batch.keys):
            raise ValueError("not one value for each key")
        for handle, value in zip(batch.handles, values):
            handle.value = value
            handle.batch = None
            if handle.waiter is not None and not handle.waiter.done():
                handle.waiter.set_result(None)


def floor(*, quiet_rounds: bool) -> Any:  # an Open, but for the rows that load_many
    @asynccontextmanager
    async def opened(function: BatchFunction, /, *, cache: bool = True) -> AsyncIterator[Floor]:
        loader = Floor(function, quiet_rounds, cache)
        worker = asyncio.create_task(loader.work())
        await asyncio.sleep(0)  # until it waits
        try:
            yield loader
        finally:
            worker.cancel()

    return opened


def _row(title: str, work: _rows.Work, loads: int, *, one_by_one: bool = False, **how: bool) -> Row:
    def sample(opened: Open) -> float:
        return asyncio.run(_rows.time_work(work, loads, opened, **how))

    def contests() -> Iterator[Contest]:
        for peer, opened in peers().items():
            opens_floor = floor(quiet_rounds=not (one_by_one and peer == "dloader"))
            samples: dict[str, Sample] = {
                peer: partial(sample, opened),
                "floor": partial(sample, opens_floor),
            }
            yield Contest("asyncio", samples, [(peer, "floor")])

    return Row(title, title, 1, False, "us", contests)


# Async resolvers of GraphQL, on trio


def _time_tasks(n: int, new_scope: Callable[[], AbstractContextManager[Any]]) -> float:
    schema, document = _rows.pairs("plain", n)
    graphql = import_module("graphql")

    async def resolve(others: Any, names: Any, node: int) -> None:
        with new_scope():
            await names.load(await others.load(node))

    async def request() -> None:
        async with ours(_rows.names) as names, ours(_rows.others_of(n)) as others:
            graphql.execute(schema, document)
            async with import_module("trio").open_nursery() as nursery:
                for node in range(n // 2):
                    nursery.start_soon(resolve, others, names, node)

    return anyio.run(_rows.timed, request, n, backend="trio")


def _task_contests() -> Iterator[Contest]:
    stock = peers()["aiodataloader"]
    scopes = {"tasks": nullcontext, "tasks with scopes": import_module("trio").CancelScope}
    for n in (2_000, 8_000):
        samples: dict[str, Sample] = {
            name: partial(_time_tasks, n, scope) for name, scope in scopes.items()
        }
        samples["stock, asyncio"] = partial(_rows.time_executor, "await", n, "asyncio", stock)
        yield Contest(f"trio, {n}", samples, [(name, "stock, asyncio") for name in scopes])


ROWS = [
    _row("asyncio.gather of bare loads", _rows.gather, 5_000),
    _row("asyncio tasks, a load each", _rows.tasks, 5_000),
    _row("hits, awaited one by one", _rows.hits, 5_000, warm=True),
    _row("one miss at a time", _rows.misses, 1_000, one_by_one=True),
    _row("two loads, two awaits", _rows.two_by_two, 2_000, one_by_one=True),
    _row("cache off, 10 keys in tasks", partial(_rows.tasks, distinct=10), 5_000, cache=False),
    Row("executor", "GraphQL, resolvers await loads", 1.3, True, "us", _task_contests),
]


if __name__ == "__main__":
    print(HEADER)
    for row in ROWS:
        for result in measure(row, rounds=51):
            print(line(row, result), flush=True)
