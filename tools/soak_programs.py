"""Runs random programs of ``random_programs.py`` for long.

``python tools/soak_programs.py --programs 100000`` runs that many on each backend. What is wrong is
shrunk, printed as a program to be run again, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from random_programs import Program, program, shrink
from random_world import World
from support import SHUFFLED_BACKENDS, run_shuffled


def faults(backend: str, one: Program) -> list[str]:
    return run_shuffled(backend, one.seed, World(one).main).faults


def fails_alike(backend: str, kind: str, one: Program) -> bool:
    return any(kind in fault for fault in faults(backend, one))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--all", action="store_true", help="go on after what is wrong")
    parser.add_argument("backends", nargs="*", default=SHUFFLED_BACKENDS)
    options = parser.parse_args()
    logging.disable()

    start = time.monotonic()
    found, seed = 0, options.first
    for seed in range(options.first, options.first + options.programs):
        if time.monotonic() - start > options.seconds:
            break
        for backend in options.backends:
            if not (wrong := faults(backend, program(seed))):
                continue
            kind = wrong[0].split(":")[-1][-20:]
            one = shrink(program(seed), partial(fails_alike, backend, kind))
            print(f"\n{backend}, seed {seed}: {faults(backend, one)}\n{one}", flush=True)
            found += 1
            if not options.all:
                return 1
            break
    print(f"{seed - options.first + 1} programs on {', '.join(options.backends)}: {found} wrong")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
