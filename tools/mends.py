"""Takes mends of the core out, one at a time, and looks whether the machines find each fault again.

``python tools/mends.py`` does it for all of them, in a copy of the package; names given on the command
line choose some. Each machine has ``--seconds`` for each mend.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Mend(NamedTuple):
    """What a mend is for, and how it is taken out."""

    about: str
    module: str
    mended: str
    broken: str


MENDS = {
    "frozen": Mend(
        "an error that cannot be changed is raised as it is",
        "_results.py",
        "    return BaseException.with_traceback(exception, traceback)\n",
        "    exception.__traceback__ = traceback\n    return exception\n",
    ),
    "grows": Mend(
        "a batch takes keys while it waits for a token",
        "_workers.py",
        "if batch.state is _batch.OPEN and batch.pulse is self:\n                    batch.seal",
        "if batch.state is _batch.OPEN:\n                    batch.seal",
    ),
    "sifted": Mend(
        "a load given up before the seal leaves the cache",
        "_batch.py",
        "            self.loader.evict(self._cached(unwanted))\n            self.settle_some",
        "            self.settle_some",
    ),
    "many": Mend(
        "what a load_many awaits is wanted",
        "_batch.py",
        "            if many._is_wanted:\n                wanted.update(entries)\n",
        "            pass\n",
    ),
    "stream": Mend(
        "a stream does not go on for nobody",
        "_batch.py",
        '        elif not self.live:\n            self.cancel("all its loads',
        '        elif False:\n            self.cancel("all its loads',
    ),
    "recreated": Mend(
        "a failing batch leaves entries alone that were made since",
        "_cache.py",
        "    if cache.get(cache_key) is entry:\n        cache.pop",
        "    if True:\n        cache.pop",
    ),
    "late": Mend(
        "a value read before its key was cleared is not stored",
        "_values.py",
        "        return self._cleared.get(cache_key, 0) > since\n",
        "        return False\n",
    ),
    "storing": Mend(
        "a key stays doomed while its old value is being stored",
        "_values.py",
        "            or any(self._was_cleared(key, began) for began in self._storing.get(key, ()))\n",
        "",
    ),
    "mapping": Mend(
        "a mapping of the value cache that raises fails no load",
        "_values.py",
        "        return {key: found[key] for key in asked if key in found}\n",
        "        return found  # type: ignore[return-value]\n",
    ),
    "deleted": Mend(
        "what was cleared is deleted on the way out",
        "_dispatcher.py",
        "await _delete(*(partial(level.delete, again=True) for level in self.to_delete))\n",
        "pass\n",
    ),
    "leaving": Mend(
        "leaving waits for what a wanted function has loaded",
        "_dispatcher.py",
        "        todo = list(wanted)\n",
        "        todo: list[Batch] = []\n",
    ),
    "ended": Mend(
        "a group that has ended takes no more batches",
        "_dispatcher.py",
        "            if not self._owns_group and has_ended(self._group):\n                raise",
        "            if False:\n                raise",
    ),
    "deferred": Mend(
        "a deferred hit opens a batch where none is open",
        "_loader.py",
        "        if batch is None or batch.pulse is not batch.scope:\n",
        "        if batch is None:\n"
        "            self.counts.hits += 1\n"
        "            return hit if claim is None else claim(None, hit)\n"
        "        if batch.pulse is not batch.scope:\n",
    ),
}

PROGRAMS = """
import logging, sys, time
from random_programs import program
from random_world import World
from support import SHUFFLED_BACKENDS, run_shuffled
logging.disable()
start, seed = time.monotonic(), 0
while time.monotonic() - start < float(sys.argv[1]):
    for backend in SHUFFLED_BACKENDS:
        try:
            wrong = run_shuffled(backend, seed, World(program(seed)).main).faults
        except BaseException as exc:
            wrong = [repr(exc)]
        if wrong:
            print(f"found by program {seed + 1}, {time.monotonic() - start:.0f} s: {wrong[0][:100]}")
            sys.exit(1)
    seed += 1
print(f"not found by {seed} programs")
"""

MODEL = """
import itertools, sys, time
from hypothesis import Phase
from support import SHUFFLED_BACKENDS
from test_model import run_machine, steps
start = time.monotonic()
for turn in itertools.count():
    if time.monotonic() - start > float(sys.argv[1]):
        break
    try:
        run_machine(
            SHUFFLED_BACKENDS[turn % len(SHUFFLED_BACKENDS)], 40, seed=turn, database=None,
            phases=[Phase.generate], print_blob=False, report_multiple_bugs=False,
        )
    except BaseException as exc:
        what = f"{type(exc).__name__} {exc}".split(chr(10))[0][:100]
        print(f"found at step {steps['made']}, {time.monotonic() - start:.0f} s: {what}")
        sys.exit(1)
print(f"not found in {steps['made']} steps")
"""


def run(copy: Path, machine: str, seconds: float) -> str:
    path = os.pathsep.join(map(str, (copy, ROOT / "tests")))
    try:
        done = subprocess.run(
            [sys.executable, "-c", machine, str(seconds)],
            cwd=copy,  # which comes first where modules are looked for
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=seconds + 120,
        )
    except subprocess.TimeoutExpired:
        return "found: it hangs"
    lines = [line for line in done.stdout.splitlines() if line.startswith(("found", "not found"))]
    return lines[-1] if lines else f"found: it ends with {done.returncode}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("names", nargs="*", default=list(MENDS))
    options = parser.parse_args()
    missed = 0
    for name in options.names:
        mend = MENDS[name]
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder)
            shutil.copytree(ROOT / "anyloader", copy / "anyloader")
            file = copy / "anyloader" / mend.module
            text = file.read_text()
            if text.count(mend.mended) != 1:
                print(f"{name}: {mend.module} has changed, write its mend anew")
                missed += 1
                continue
            file.write_text(text.replace(mend.mended, mend.broken))
            results = [run(copy, machine, options.seconds) for machine in (PROGRAMS, MODEL)]
        missed += not any(result.startswith("found") for result in results)
        print(f"{name}: {mend.about}", *results, sep="\n    ", flush=True)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
