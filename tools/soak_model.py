"""Drives loaders and the model of ``model.py`` side by side for long.

``python tools/soak_model.py --steps 1000000`` makes that many steps, as ``test_model.py`` does some
thousands, on each backend in turn. A divergence is shrunk, printed, and the exit status 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support import SHUFFLED_BACKENDS
from test_model import run_machine, steps

EXAMPLES = 200


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000, help="of all backends together")
    parser.add_argument("--seconds", type=float, help="stop after this time, whatever was made")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("backends", nargs="*", default=SHUFFLED_BACKENDS)
    options = parser.parse_args()

    print(f"seed {options.seed}, Python {sys.version.split()[0]}", flush=True)
    start = time.monotonic()
    deadline = start + (options.seconds or float("inf"))
    made = dict.fromkeys(options.backends, 0)
    turn = 0
    while sum(made.values()) < options.steps and time.monotonic() < deadline:
        for backend in made:
            before = steps["made"]
            run_machine(backend, EXAMPLES, seed=options.seed + turn, database=None)
            made[backend] += steps["made"] - before
            turn += 1
        now = time.monotonic() - start
        print(f"{sum(made.values()):>9} steps, {now:6.0f} s: {made}", flush=True)
    print(f"no divergence in {sum(made.values())} steps on {', '.join(made)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
