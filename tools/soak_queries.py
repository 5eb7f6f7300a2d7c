"""Runs random GraphQL queries of ``random_queries.py`` for long.

``python tools/soak_queries.py --queries 10000`` runs that many on each backend, each time in another order of
tasks. One whose results or batches are not the same everywhere is shrunk and printed, and the exit
status is 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from random_queries import Query, outcomes, query, shrink
from support import SHUFFLED_BACKENDS


def differs(one: Query) -> bool:
    return len(outcomes(one, range(8), SHUFFLED_BACKENDS)) > 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    options = parser.parse_args()

    start = time.monotonic()
    seed = options.first
    for seed in range(options.first, options.first + options.queries):
        if time.monotonic() - start > options.seconds:
            break
        if len(found := outcomes(query(seed), [seed], SHUFFLED_BACKENDS)) > 1:
            one = shrink(query(seed), differs) if differs(query(seed)) else query(seed)
            print(f"\nseed {seed}: {found}\n{one}", flush=True)
            return 1
    print(f"{seed - options.first + 1} queries on {', '.join(SHUFFLED_BACKENDS)}: the same")
    return 0


if __name__ == "__main__":
    sys.exit(main())
