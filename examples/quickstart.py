"""One nested question, asked of a database without a loader and with it.

For each of a number of countries: its name, and each of its subdivisions with everything above it,
such as "Bas-Rhin, Alsace, Grand-Est, France". The code that answers fetches one row at a time;
whether every row is a statement of its own is up to the functions it is given.

    python examples/quickstart.py --backend both

needs `sqlite-anyio`, `pycountry` and, for the second backend, `trio`.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import anyio

from _data import (
    DEFAULT_DATABASE,
    Country,
    DatabaseError,
    Statement,
    Subdivision,
    ensure_database,
    open_atlas,
)
from anyloader import DataLoader

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

Answer = dict[str, list[str]]
"""From the name of a country to its subdivisions, each as the path up to the country."""


class Fetch(NamedTuple):
    """How to get one thing by its key."""

    country: Callable[[str], Awaitable[Country]]
    subdivision: Callable[[str], Awaitable[Subdivision]]
    subdivisions_of: Callable[[str], Awaitable[list[Subdivision]]]


class Run(NamedTuple):
    """One answer, and what it took."""

    answer: Answer
    statements: list[Statement]
    seconds: float


# The question. This code is the same with and without the loader.


async def ask(fetch: Fetch, country_codes: Iterable[str]) -> Answer:
    async def describe(code: str) -> tuple[str, list[str]]:
        country = await fetch.country(code)
        subdivisions = await fetch.subdivisions_of(code)
        return country.name, await each(path, subdivisions)

    async def path(subdivision: Subdivision) -> str:
        if subdivision.parent_code is None:
            above = (await fetch.country(subdivision.country_code)).name
        else:
            above = await path(await fetch.subdivision(subdivision.parent_code))
        return f"{subdivision.name}, {above}"

    return dict(await each(describe, country_codes))


async def each(function: Callable[[T], Coroutine[Any, Any, V]], items: Iterable[T]) -> list[V]:
    """Call an async function for all items at the same time."""
    tasks: list[anyio.TaskHandle[V]] = []
    async with anyio.create_task_group() as task_group:
        for item in items:
            tasks.append(task_group.start_soon(function, item))
    return [task.return_value for task in tasks]


# Two ways to fetch.


def one_by_one(batch: Callable[[list[K]], Awaitable[dict[K, V]]]) -> Callable[[K], Awaitable[V]]:
    async def fetch(key: K) -> V:
        return (await batch([key]))[key]

    return fetch


async def without_loader(database: Path, limit: int) -> Run:
    async with open_atlas(database) as atlas:
        start = time.perf_counter()
        fetch = Fetch(
            one_by_one(atlas.countries),
            one_by_one(atlas.subdivisions),
            one_by_one(atlas.subdivisions_of),
        )
        codes = await atlas.country_codes()
        answer = await ask(fetch, codes[:limit])
        return Run(answer, atlas.statements, time.perf_counter() - start)


async def with_loader(database: Path, limit: int) -> Run:
    async with open_atlas(database) as atlas:
        start = time.perf_counter()
        async with (
            DataLoader(atlas.countries) as countries,
            DataLoader(atlas.subdivisions) as subdivisions,
            DataLoader(atlas.subdivisions_of) as subdivisions_of,
        ):
            fetch = Fetch(
                countries.load_required,
                subdivisions.load_required,
                subdivisions_of.load_required,
            )
            codes = await atlas.country_codes()
            answer = await ask(fetch, codes[:limit])
        return Run(answer, atlas.statements, time.perf_counter() - start)


# What came of it.


def batches(run: Run) -> list[tuple[str, list[str]]]:
    """The batches of a run, sorted: trio starts tasks in any order, so keys come in any order."""
    return sorted((statement.name, sorted(statement.keys)) for statement in run.statements)


def print_run(title: str, run: Run) -> None:
    print(f"  {title}: {len(run.statements)} SQL statements in {run.seconds:.3f} s")
    counts = Counter(
        statement.sql.format(keys=f"{len(statement.keys)} key(s)") for statement in run.statements
    )
    for sql, count in counts.items():
        print(f"    {count:5} x {sql}")


def print_batches(run: Run) -> None:
    sizes: dict[str, list[int]] = {}
    for statement in run.statements:
        if statement.keys:
            sizes.setdefault(statement.name, []).append(len(statement.keys))
    print("  sizes of batches:", ", ".join(f"{name} {size}" for name, size in sizes.items()))


def check(claim: str, holds: bool) -> bool:
    print(f"  {claim}: {'yes' if holds else 'NO'}")
    return holds


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="One nested question, without a loader and with it."
    )
    parser.add_argument("--backend", choices=["asyncio", "trio", "both"], default="asyncio")
    parser.add_argument(
        "--countries",
        type=positive,
        default=80,
        metavar="N",
        help="how many (default: %(default)s)",
    )
    parser.add_argument(
        "--database",
        type=Path,
        default=DEFAULT_DATABASE,
        metavar="PATH",
        help="made if it is not there (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    backends = ["asyncio", "trio"] if options.backend == "both" else [options.backend]
    if "trio" in backends and importlib.util.find_spec("trio") is None:
        parser.exit(2, f"{parser.prog}: error: trio is not installed, try --backend asyncio\n")
    try:
        ensure_database(options.database)
    except DatabaseError as exc:
        parser.exit(2, f"{parser.prog}: error: {exc}\n")

    print(options.database)
    good = True
    loaded = []
    for backend in backends:
        print(f"\n{backend}")
        plain = anyio.run(without_loader, options.database, options.countries, backend=backend)
        print_run("without a loader", plain)
        run = anyio.run(with_loader, options.database, options.countries, backend=backend)
        print_run("with anyloader", run)
        print_batches(run)
        good &= check("same answer", plain.answer == run.answer)
        loaded.append(run)
    if len(loaded) > 1:
        print("\nboth backends")
        good &= check("same answer", loaded[0].answer == loaded[1].answer)
        good &= check("same batches", batches(loaded[0]) == batches(loaded[1]))
    return 0 if good else 1


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


if __name__ == "__main__":
    sys.exit(main())
