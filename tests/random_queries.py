"""GraphQL queries that are made up, and made smaller: plain data, and what runs them."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import anyio
import graphql
from anyio.lowlevel import checkpoint

from anyloader import DataLoader, LoaderScope
from anyloader.integrations.graphql import AnyioExecutor
from support import run_shuffled

EXECUTOR = "executor_class" if hasattr(graphql, "Executor") else "execution_context_class"


@dataclass(frozen=True)
class Field:
    """One field of a query, and how it is resolved."""

    #: One of ``STYLES``.
    style: str = "plain"
    loader: int = 0
    #: How long the list is; 0 is no list.
    length: int = 0
    #: How the items of the list are resolved.
    items: str = "plain"
    fields: tuple[Field, ...] = ()


@dataclass(frozen=True)
class Query:
    fields: tuple[Field, ...]
    #: How many checkpoints each batch function passes.
    rounds: tuple[int, ...] = (0, 0, 0)
    #: Of how many keys all are.
    keys: int = 1_000_000


#: By what a resolver gives a value. These pass no round of the scheduler but by loads.
STYLES = ("plain", "load", "many", "await", "async", "nested", "twice", "thrice", "object")
#: These pass some by themselves, so that the scheduler decides which of them share a batch.
LATE = ("late", "group")

TYPES = "type Query { one(n: Int!): Node  list(n: Int!): [Node]  leaf(n: Int!): Int }"
SCHEMA = graphql.build_schema(TYPES.replace("Query", "Node") + TYPES)


def query(seed: int, *, even: bool = True) -> Query:
    """
    Make a query up.

    :param even: with no ``LATE`` resolvers, and all batch functions pass as many checkpoints
    """
    rng = random.Random(seed)
    styles = STYLES if even else STYLES + LATE

    def field(depth: int) -> Field:
        return Field(
            rng.choice(styles),
            rng.randrange(3),
            rng.choice((0, 0, 0, 1, 2)),
            rng.choice(styles) if rng.random() < 0.4 else "plain",
            fields(depth - 1),
        )

    def fields(depth: int) -> tuple[Field, ...]:
        return tuple(field(depth) for _ in range(rng.choice((1, 1, 2, 2, 3)))) if depth else ()

    rounds = rng.randint(0, 2)
    return Query(
        fields(rng.randint(1, 4)),
        tuple(rounds if even else rng.randint(0, 4) for _ in range(3)),
        rng.choice((1_000_000, 1_000_000, 20)),
    )


def simpler(one: Query) -> Iterator[Query]:
    """Make queries of it that lack something."""

    def less(field: Field) -> Iterator[Field]:
        for fields in fewer(field.fields):
            yield replace(field, fields=fields)
        for name in ("style", "items", "loader"):
            if getattr(field, name) != getattr(Field(), name):
                yield replace(field, **{name: getattr(Field(), name)})
        if field.length:
            yield replace(field, length=field.length - 1)
        if field.style not in ("plain", "await"):
            yield replace(field, style="await")

    def fewer(fields: tuple[Field, ...]) -> Iterator[tuple[Field, ...]]:
        for index, field in enumerate(fields):
            before, after = fields[:index], fields[index + 1 :]
            yield before + after
            if field.fields:
                yield before + field.fields + after
            for smaller in less(field):
                yield (*before, smaller, *after)

    for fields in fewer(one.fields):
        if fields:
            yield replace(one, fields=fields)
    for index, rounds in enumerate(one.rounds):
        if rounds and len(set(one.rounds)) > 1:
            yield replace(one, rounds=(*one.rounds[:index], rounds - 1, *one.rounds[index + 1 :]))
    if any(one.rounds):
        yield replace(one, rounds=tuple(max(n - 1, 0) for n in one.rounds))
    if one.keys < 1_000_000:
        yield replace(one, keys=1_000_000)


def shrink(one: Query, fails: Callable[[Query], bool]) -> Query:
    """Leave out of it whatever can be left out while it still ``fails``."""
    while (less := next((less for less in simpler(one) if fails(less)), None)) is not None:
        one = less
    return one


def outcomes(one: Query, orders: Iterable[int], backends: Iterable[str]) -> list[Any]:
    """Run it in several orders of tasks on each backend, and return what is different."""
    found: list[Any] = []
    for backend in backends:
        for order in orders:
            outcome = run_shuffled(backend, order, Run(one).main)
            if outcome not in found:
                found.append(outcome)
    return found


class Awaitable:
    """An awaitable that is no coroutine."""

    def __init__(self, steps: Any) -> None:
        self.steps = steps

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield from self.steps.__await__())


#: What a load is of: a number, and of which kind its value is (a leaf, a node, the list of a field).
Key = tuple[int, int]
LEAF, NODE = -2, -1


class Run:
    """One execution of a query, with its batches."""

    def __init__(self, one: Query) -> None:
        self.query = one
        self.batches: list[tuple[int, list[Key]]] = []
        self.made: list[Field] = []
        self.loaders: list[DataLoader[Key, Any]] = []

    def text(self, fields: tuple[Field, ...]) -> str:
        parts = []
        for field in fields:
            number = len(self.made)
            self.made.append(field)
            name = "list" if field.length else "one" if field.fields else "leaf"
            inner = self.text(field.fields) if field.fields else "{leaf(n: -1)}"
            parts.append(f"f{number}: {name}(n: {number}) {'' if name == 'leaf' else inner}")
        return "{" + " ".join(parts) + "}"

    def loader(self, number: int) -> Any:
        async def fetch(keys: list[Key]) -> list[Any]:
            self.batches.append((number, sorted(keys)))
            for _ in range(self.query.rounds[number]):
                await checkpoint()
            return [self.value(*key) for key in keys]

        return fetch

    def value(self, key: int, kind: int) -> Any:
        if kind == LEAF:
            return key
        if kind == NODE:
            return Node(self, key)
        return Items(self, key, self.made[kind])

    def resolve(self, style: str, loader: int, key: int, kind: int) -> Any:
        key %= self.query.keys
        if style == "plain":
            return self.value(key, kind)
        if style == "load":
            return self.loaders[loader].load((key, kind))
        steps = self.steps(style, loader, key, kind)
        return Awaitable(steps) if style == "object" else steps

    async def steps(self, style: str, loader: int, key: int, kind: int) -> Any:
        def load(step: int = 0) -> Any:
            return self.loaders[(loader + step) % 3].load((key, kind))

        async def nested() -> None:
            await load()

        if style == "async":
            return self.value(key, kind)
        if style in ("twice", "thrice"):
            await load(2)
            if style == "thrice":
                await load(1)
        elif style == "late":
            for _ in range(key % 3):
                await checkpoint()
        elif style == "nested":
            await nested()
        elif style == "many":
            await self.loaders[loader].load_many([(key, kind), (key + 1, LEAF)])
        elif style == "group":
            async with anyio.create_task_group() as tg:
                tg.start_soon(nested)
                tg.start_soon(nested)
        return await load()

    async def main(self) -> tuple[Any, Any]:
        async with LoaderScope() as scope:
            self.loaders = [scope.get(self.loader(number)) for number in range(3)]
            document = graphql.parse(self.text(self.query.fields))
            options: Any = {EXECUTOR: AnyioExecutor}
            result: Any = graphql.execute(SCHEMA, document, Node(self, 1), **options)
            result = await result if graphql.pyutils.is_awaitable(result) else result
        assert not result.errors, result.errors
        return result.data, sorted(self.batches)


class Items(Sequence[Any]):
    """A list that is resolved anew for each who loads it."""

    def __init__(self, run: Run, key: int, field: Field) -> None:
        self.run = run
        self.key = key
        self.field = field

    def __len__(self) -> int:
        return self.field.length

    def __getitem__(self, index: Any) -> Any:
        if index >= self.field.length:
            raise IndexError
        return self.run.resolve(self.field.items, self.field.loader, self.key * 7 + index, NODE)


class Node:
    def __init__(self, run: Run, key: int) -> None:
        self.run = run
        self.key = key

    def leaf(self, _info: object, n: int) -> Any:
        return self.key if n < 0 else self.resolve(n, LEAF)

    def one(self, _info: object, n: int) -> Any:
        return self.resolve(n, NODE)

    def list(self, _info: object, n: int) -> Any:
        return self.resolve(n, n)

    def resolve(self, n: int, kind: int) -> Any:
        field = self.run.made[n]
        return self.run.resolve(field.style, field.loader, self.key * 31 + n, kind)
