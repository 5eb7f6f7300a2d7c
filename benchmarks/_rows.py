"""What is measured: a row for each promise, with the work it is about."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from tempfile import TemporaryDirectory
from typing import Any

import anyio

from anyloader.integrations.asgi import App, LoaderScopeMiddleware

from ._contenders import (
    OURS,
    ROUNDS_0,
    BatchFunction,
    Floor,
    Loader,
    Open,
    batch,
    loops,
    missing,
    ours,
    ours_rounds_0,
    peers,
)
from ._growth import growth_contests
from ._measure import Contest, Row, Sample, cpu_time
from ._observing import observing_contests
from ._without_hooks import without_hooks

#: Made once, so that making them is never part of what is measured.
KEYS = list(range(1_000_000))

#: What is timed, with a loader that is open.
Work = Callable[[Any], Awaitable[object]]


async def timed(work: Callable[[], Awaitable[object]], units: int) -> float:
    # A function, as some of the work is done by the call and some by the await.
    began = cpu_time()
    await work()
    return (cpu_time() - began) / units


async def load_many(loader: Loader) -> None:
    await loader.load_many(KEYS[:5_000])


async def gather(loader: Loader) -> None:
    await asyncio.gather(*[loader.load(key) for key in KEYS[:5_000]])


async def _one(loader: Loader, key: int) -> None:
    await loader.load(key)


async def tasks(loader: Loader, distinct: int = 5_000) -> None:
    started = [asyncio.create_task(_one(loader, key % distinct)) for key in KEYS[:5_000]]
    for task in started:
        await task


async def anyio_tasks(loader: Loader) -> None:
    async with anyio.create_task_group() as group:
        for key in KEYS[:5_000]:
            group.start_soon(_one, loader, key)


async def hits(loader: Loader) -> None:
    for _ in range(5_000):
        await loader.load(1)


async def misses(loader: Loader) -> None:
    for key in KEYS[:1_000]:
        await loader.load(key)


async def two_by_two(loader: Loader) -> None:
    for key in range(0, 2_000, 2):
        first = loader.load(key)
        second = loader.load(key + 1)
        await first
        await second


async def small_batches(loader: Loader) -> None:
    for start in range(0, 5_000, 10):
        await loader.load_many(KEYS[start : start + 10])


async def time_work(
    work: Work, loads: int, opened: Open, *, warm: bool = False, cache: bool = True
) -> float:
    async with opened(batch, cache=cache) as loader:
        if warm:
            for key in KEYS[:5_000]:  # one by one, as the floor has no load_many
                loader.load(key)
            await loader.load(1)
        return await timed(partial(work, loader), loads)


def _contests(
    work: Work, loads: int, *, warm: bool = False, cache: bool = True, one_by_one: bool = False
) -> Iterator[Contest]:
    """
    All loaders on all asyncio event loops.

    :param loads: how many loads the work makes
    :param warm: whether the keys are loaded before the time begins
    :param one_by_one: dloader, which waits for no quiet round, meets a schedule that does not either
    """

    def sample(run: Callable[..., float], opened: Open) -> float:
        return run(time_work(work, loads, opened, warm=warm, cache=cache))

    entrants: dict[str, Open] = {OURS: ours, **peers()}
    rivals = {peer: ROUNDS_0 if one_by_one and peer == "dloader" else OURS for peer in peers()}
    if ROUNDS_0 in rivals.values():
        entrants[ROUNDS_0] = ours_rounds_0
    for where, run in loops().items():
        samples: dict[str, Sample] = {
            name: partial(sample, run, opened) for name, opened in entrants.items()
        }
        yield Contest(where, samples, list(rivals.items()))


def compat_contests() -> Iterator[Contest]:
    """Our handles do not pass for futures, those of ``anyloader.compat`` do."""
    found = peers()
    if "aiodataloader" not in found:
        return

    def compat(batch_function: BatchFunction, /, *, cache: bool = True) -> Any:
        return import_module("anyloader.compat").DataLoader(batch_function, cache=cache)

    entrants: dict[str, Open] = {"compat": compat, "aiodataloader": found["aiodataloader"]}
    samples: dict[str, Sample] = {
        name: partial(lambda opened: asyncio.run(time_work(gather, 5_000, opened)), opened)
        for name, opened in entrants.items()
    }
    yield Contest("asyncio", samples, [("aiodataloader", "compat")])


# GraphQL: 20 nodes with 9 children each, which have 10 each. Every request has loaders of its own;
# opening and closing them is part of what is measured.

_QUERY = "{ nodes { name children { name children { name } } } }"
_TYPES = "type Query { nodes: [Node] }  type Node { name: String, children: [Node] }"


async def names(nodes: list[int]) -> list[str]:
    return [f"node {node}" for node in nodes]


async def _children(nodes: list[int]) -> list[list[int]]:
    return [
        list(range(20 + 9 * node, 29 + 9 * node))
        if node < 20
        else list(range(10 * node, 10 * node + 10))
        for node in nodes
    ]


def graphql_contests() -> Iterator[Contest]:
    if "graphql" in missing():
        return
    graphql = import_module("graphql")
    schema = graphql.build_schema(_TYPES)
    schema.query_type.fields["nodes"].resolve = lambda _root, _info: range(20)
    fields = schema.type_map["Node"].fields
    fields["name"].resolve = lambda node, info: info.context[0].load(node)
    fields["children"].resolve = lambda node, info: info.context[1].load(node)
    document = graphql.parse(_QUERY)

    def sample(run: Callable[..., float], opened: Open) -> float:
        async def request() -> None:
            async with opened(names) as by_name, opened(_children) as children:
                result = await graphql.execute(schema, document, context_value=(by_name, children))
            if result.errors or len(result.data["nodes"][19]["children"][8]["children"]) != 10:
                raise RuntimeError(f"wrong answer: {result.errors}")

        async def main() -> float:
            return await timed(request, 2_000)

        return run(main())

    for where, run in loops().items():
        samples: dict[str, Sample] = {
            name: partial(sample, run, opened) for name, opened in ({OURS: ours} | peers()).items()
        }
        yield Contest(where, samples, [(peer, OURS) for peer in peers()])


# GraphQL under AnyioExecutor: half of the objects are in a list, each of which has another one.


def pairs(resolvers: str, n: int) -> tuple[Any, Any]:
    graphql = import_module("graphql")
    schema = graphql.build_schema(
        "type Query { nodes: [Node] } type Node { name: String, other: Node }"
    )
    schema.query_type.fields["nodes"].resolve = lambda _root, _info: range(n // 2)

    async def awaits_name(node: int, info: Any) -> str:
        name: str = await info.context[0].load(node)
        return name

    async def awaits_other(node: int, info: Any) -> int:
        other: int = await info.context[1].load(node)
        return other

    by_kind: dict[str, tuple[Any, Any]] = {
        "return": (
            lambda node, info: info.context[0].load(node),
            lambda node, info: info.context[1].load(node),
        ),
        "await": (awaits_name, awaits_other),
        "plain": (lambda node, _info: f"node {node}", lambda node, _info: node + n),
    }
    fields = schema.type_map["Node"].fields
    fields["name"].resolve, fields["other"].resolve = by_kind[resolvers]
    return schema, graphql.parse("{ nodes { other { name } } }")


def others_of(n: int) -> BatchFunction:
    async def others(nodes: list[int]) -> list[int]:
        return [node + n for node in nodes]

    return others


def _no_loader(_function: BatchFunction, /, *, cache: bool = True) -> Any:
    return nullcontext()


def time_executor(resolvers: str, n: int, backend: str, opened: Open, **options: Any) -> float:
    graphql = import_module("graphql")
    schema, document = pairs(resolvers, n)

    async def request() -> None:
        async with opened(names) as name_loader, opened(others_of(n)) as loader:
            loaders = (name_loader, loader)
            result = graphql.execute(schema, document, context_value=loaders, **options)
            if graphql.pyutils.is_awaitable(result):
                result = await result
        if result.data["nodes"][-1]["other"]["name"] != f"node {n + n // 2 - 1}":
            raise RuntimeError(f"wrong answer: {result.errors}")

    return anyio.run(timed, request, n, backend=backend)


def executor_contests(resolvers: str, trio: bool) -> Iterator[Contest]:
    found = peers()
    if "graphql" in missing() or "aiodataloader" not in found or (trio and "trio" in missing()):
        return
    graphql = import_module("graphql")
    executor = import_module("anyloader.integrations.graphql").AnyioExecutor
    name = "executor_class" if hasattr(graphql, "Executor") else "execution_context_class"

    # Opening a loader is no matter of graphql-core's: where nothing is loaded there is none.
    loads = resolvers != "plain"
    opens, stock_opens = (ours, found["aiodataloader"]) if loads else (_no_loader, _no_loader)
    backend = "trio" if trio else "asyncio"
    for n in (2_000, 8_000):
        samples: dict[str, Sample] = {
            "AnyioExecutor": partial(
                time_executor, resolvers, n, backend, opens, **{name: executor}
            ),
            "stock, asyncio": partial(time_executor, resolvers, n, "asyncio", stock_opens),
        }
        yield Contest(f"{backend}, {n}", samples, [("AnyioExecutor", "stock, asyncio")])


# Memory


def _bytes_per_key(opened: Open) -> float:
    async def main() -> float:
        async with opened(batch) as loader:
            gc.collect()
            tracemalloc.start()
            await loader.load_many(KEYS[:10_000])
            gc.collect()
            held, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            return held / 10_000

    return asyncio.run(main())


def memory_contests() -> Iterator[Contest]:
    # dloader caches bare values, which is another thing to promise.
    others = {name: opened for name, opened in peers().items() if name != "dloader"}
    samples: dict[str, Sample] = {
        name: partial(_bytes_per_key, opened) for name, opened in ({OURS: ours} | others).items()
    }
    yield Contest("asyncio", samples, [(peer, OURS) for peer in others])


# trio


async def trio_tasks(loader: Any) -> None:
    async with import_module("trio").open_nursery() as nursery:
        for key in KEYS[:2_000]:
            nursery.start_soon(_one, loader, key)


def trio_contests(work: Work, loads: int) -> Iterator[Contest]:
    if "trio" in missing():
        return
    trio = import_module("trio")

    async def with_ours() -> float:
        async with ours(batch) as loader:
            return await timed(partial(work, loader), loads)

    async def with_floor() -> float:
        async with trio.open_nursery() as nursery:
            return await timed(partial(work, Floor(nursery)), loads)

    samples: dict[str, Sample] = {
        OURS: partial(trio.run, with_ours),
        "floor": partial(trio.run, with_floor),
    }
    yield Contest("trio", samples, [(OURS, "floor")])


# Both backends


def _backends() -> list[str]:
    return ["asyncio"] if "trio" in missing() else ["asyncio", "trio"]


def _load_many_of(backend: str, n: int) -> float:
    async def main() -> float:
        # The small sizes are repeated, each time with a fresh loader, to be long enough to time.
        seconds = 0.0
        repeats = max(1, 20_000 // n)
        for _ in range(repeats):
            async with ours(batch) as loader:
                seconds += await timed(partial(loader.load_many, KEYS[:n]), 1)
        return seconds / repeats / n

    return anyio.run(main, backend=backend)


def scaling_contests() -> Iterator[Contest]:
    sizes = {f"{n:,} keys": n for n in (1_000, 10_000, 100_000, 1_000_000)}
    for backend in _backends():
        samples: dict[str, Sample] = {
            name: partial(_load_many_of, backend, n) for name, n in sizes.items()
        }
        yield Contest(backend, samples, list(itertools.permutations(sizes, 2)), worst_only=True)


async def _stuck(keys: list[int]) -> list[int]:
    await anyio.sleep_forever()
    return keys


def _cancel(backend: str, loads: bool, n: int = 16_000) -> float:
    async def main() -> float:
        began = 0.0  # for type checkers, as a task group can swallow an exception
        async with ours(_stuck) as loader, anyio.create_task_group() as group:
            event = anyio.Event()

            async def one(key: int) -> None:
                await (loader.load(key) if loads else event.wait())

            for key in KEYS[:n]:
                group.start_soon(one, key)
            await anyio.wait_all_tasks_blocked()
            began = cpu_time()
            group.cancel_scope.cancel()
        return (cpu_time() - began) / n

    return anyio.run(main, backend=backend)


def cancel_contests() -> Iterator[Contest]:
    for backend in _backends():
        samples: dict[str, Sample] = {
            OURS: partial(_cancel, backend, True),
            "anyio.Event": partial(_cancel, backend, False),
        }
        yield Contest(backend, samples, [(OURS, "anyio.Event")])


# Hooks


def _without_hooks(batch_function: BatchFunction, /, *, cache: bool = True) -> Any:
    return without_hooks().DataLoader(batch_function, cache=cache)


def hooks_contests() -> Iterator[Contest]:
    entrants: dict[str, Open] = {OURS: ours, "without hooks": _without_hooks}

    def sample(work: Work, loads: int, opened: Open) -> float:
        async def main() -> float:
            async with opened(batch) as loader:
                return await timed(partial(work, loader), loads)

        return asyncio.run(main())

    for name, work, loads in (("tasks", tasks, 5_000), ("misses", misses, 1_000)):
        samples: dict[str, Sample] = {
            entrant: partial(sample, work, loads, opened) for entrant, opened in entrants.items()
        }
        yield Contest(name, samples, [(OURS, "without hooks")])


# The middleware


async def _app(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def _receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send(message: dict[str, Any]) -> None:
    pass


def _requests(app: App, n: int = 1_000) -> float:
    scope = {"type": "http", "method": "GET", "path": "/"}

    async def requests() -> None:
        for _ in range(n):
            await app(scope, _receive, _send)

    async def main() -> float:
        return await timed(requests, n)

    return asyncio.run(main())


async def _in_task_group(scope: Any, receive: Any, send: Any) -> None:
    async with anyio.create_task_group():
        await _app(scope, receive, send)


def middleware_contests() -> Iterator[Contest]:
    """What it adds to a request of an application that does nothing; and a bare task group, which it has."""
    wrapped = LoaderScopeMiddleware(_app)
    contenders: dict[str, Sample] = {
        "the middleware": lambda: _requests(wrapped) - _requests(_app),
        "a task group": lambda: _requests(_in_task_group) - _requests(_app),
        "1 us": lambda: 1e-6,
    }
    pairs = [("the middleware", "1 us"), ("a task group", "1 us")]
    yield Contest("asyncio", contenders, pairs)


# Importing


# What every program needs that runs on anyio is not ours: anyio imports most of itself when it is used.
_IMPORT = """
import sys, time, anyio
anyio.run(anyio.sleep, 0)
before, began = set(sys.modules), time.thread_time()
import anyloader
seconds = time.thread_time() - began
own = {"anyloader", "anyio", "exceptiongroup", "idna", "sniffio", "typing_extensions"}
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(seconds, *sorted(new - own - sys.stdlib_module_names))
"""


def _import(bytecode: str) -> float:
    # Whatever the user's settings, the bytecode is found compiled, as it is after an installation.
    settings = {"PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-c", _IMPORT]
    output = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | settings
    ).stdout
    seconds, *optional = output.split()
    if optional:
        raise RuntimeError(f"import anyloader imports {', '.join(optional)}")
    return float(seconds)


def import_contests() -> Iterator[Contest]:
    with TemporaryDirectory() as bytecode:
        contenders: dict[str, Sample] = {
            "import anyloader": partial(_import, bytecode),
            "1 ms": lambda: 0.001,
        }
        yield Contest("", contenders, [("import anyloader", "1 ms")])


_Contests = Callable[[], Iterator[Contest]]

_TASKS = {"aiodataloader": 1.0, "strawberry": 1.0, "dloader": 0.95}
_MISSES = {"aiodataloader": 1.3, "strawberry": 1.15, "dloader": 0.8}

# Each at least this much faster than every peer; then what anyloader may cost at most.
_FASTER: list[tuple[str, str, float | dict[str, float], _Contests]] = [
    ("load-many", "load_many, 5,000 cold keys", 5, partial(_contests, load_many, 5_000)),
    ("warm", "load_many, 5,000 warm keys", 2.5, partial(_contests, load_many, 5_000, warm=True)),
    ("tasks", "5,000 asyncio tasks, a load each", _TASKS, partial(_contests, tasks, 5_000)),
    ("anyio", "5,000 anyio tasks, a load each", 0.95, partial(_contests, anyio_tasks, 5_000)),
    ("hits", "hits, awaited one by one", 1, partial(_contests, hits, 5_000, warm=True)),
    ("misses", "one miss at a time", _MISSES, partial(_contests, misses, 1_000, one_by_one=True)),
    (
        "two",
        "two loads, two awaits",
        _MISSES | {"dloader": 0.75},
        partial(_contests, two_by_two, 2_000, one_by_one=True),
    ),
    (
        "uncached",
        "cache off, 5,000 loads of 10 keys in tasks",
        1,
        partial(_contests, partial(tasks, distinct=10), 5_000, cache=False),
    ),
    ("tens", "500 batches of 10 by load_many", 1.15, partial(_contests, small_batches, 5_000)),
    ("graphql", "GraphQL query, 3 levels, 2,000 objects", 1, graphql_contests),
    ("compat", "asyncio.gather of 5,000 bare loads, compat", 0.95, compat_contests),
]
_BOUNDED: list[tuple[str, str, float, str, _Contests]] = [
    *(
        (
            f"executor-{name}{'-trio' if trio else ''}",
            title,
            at,
            "us",
            partial(executor_contests, name, trio),
        )
        for name, title, at, trio in (
            ("return", "GraphQL, resolvers return loads", 1.0, False),
            ("return", "GraphQL, resolvers return loads", 1.0, True),
            ("await", "GraphQL, resolvers await loads", 1.1, False),
            ("await", "GraphQL, resolvers await loads", 1.3, True),
            ("plain", "GraphQL, nothing is awaited", 1.0, False),
            ("plain", "GraphQL, nothing is awaited", 1.0, True),
        )
    ),
    ("trio-tasks", "2,000 trio tasks", 1.12, "us", partial(trio_contests, trio_tasks, 2_000)),
    ("trio-misses", "one miss at a time", 1.4, "us", partial(trio_contests, misses, 1_000)),
    ("scaling", "load_many of 1,000 to 1,000,000 keys", 2, "us", scaling_contests),
    ("growth", "4 times the work, in what time", 5, "ms", growth_contests),
    ("cancel", "16,000 waiting tasks cancelled", 1.3, "us", cancel_contests),
    ("hooks", "hooks where none is given", 1.05, "us", hooks_contests),
    ("observed-hits", "a hit, observed", 1.5, "us", partial(observing_contests, hits=True)),
    ("observed-misses", "a miss, observed", 30, "us", partial(observing_contests, hits=False)),
    ("middleware", "a request in LoaderScopeMiddleware", 20, "us", middleware_contests),
    ("import", "import anyloader, beyond anyio", 15, "ms", import_contests),
]

ROWS = [
    *(Row(name, title, at, False, "us", contests) for name, title, at, contests in _FASTER),
    Row("memory", "memory for each cached key", 1, False, "bytes", memory_contests),
    *(Row(name, title, at, True, unit, contests) for name, title, at, unit, contests in _BOUNDED),
]
