"""Runs the benchmarks and prints their table; writes a plot and the raw numbers."""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter

from ._contenders import missing
from ._measure import FEWEST_ROUNDS, Result, measure
from ._report import HEADER, environment, line, write
from ._rows import ROWS


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="`python -m benchmarks.inference` measures a loader in front of a model.",
    )
    parser.add_argument("--list", action="store_true", help="list the rows and leave")
    parser.add_argument("--only", metavar="NAME", action="append", help="run this row (repeatable)")
    parser.add_argument(
        "--rounds",
        type=int,
        default=51,
        help="rounds for each row (default %(default)s); fewer, but never less than "
        f"{FEWEST_ROUNDS}, where a row takes long",
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if options.list:
        for row in ROWS:
            print(f"{row.name:16} {row.title}")
        return
    unknown = set(options.only or ()) - {row.name for row in ROWS}
    if unknown:
        parser.error(f"no row is called {', '.join(sorted(unknown))}; see --list")
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")

    began = perf_counter()
    print(*(f"{name} {version}" for name, version in environment().items()), sep=", ")
    for name in missing():
        print(f"{name} is not installed: what needs it is left out")
    print(HEADER)
    results: list[Result] = []
    for row in ROWS:
        if not options.only or row.name in options.only:
            for result in measure(row, options.rounds):
                print(line(row, result), flush=True)
                results.append(result)
    write(options.output, ROWS, results)
    met = sum(result.met for result in results)
    print(
        f"{met} of {len(results)} targets met, in {perf_counter() - began:.0f} s; "
        f"plot and raw numbers in {options.output}"
    )


if __name__ == "__main__":
    main()
