"""Programs in a process of their own: what hangs there beyond cancellation ends by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ("PYTEST", "run_program")

#: Runs the pytest of others, without what takes seconds and has no part in it: plugins to import, and
#: assertions of whole packages to rewrite.
PYTEST = [
    *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:faker"),
    *("-p", "no:hypothesispytest", "-p", "no:randomly", "-p", "no:xdist", "--assert=plain"),
]

_TESTS = Path(__file__).parents[1]

_FRAME = """
import faulthandler
faulthandler.dump_traceback_later({seconds}, exit=True)

import anyio
from support import backend_options

{source}

library, options = backend_options({backend!r})
anyio.run(main, backend=library, backend_options=options)
"""


def run_program(source: str, backend: str, *, seconds: float = 15) -> str:
    """Run ``async def main()`` of ``source`` on a backend of ours, and give what it printed.

    Warnings are errors in there, those that nothing can catch are in what it printed.

    :param seconds: of real time, after which it ends with the stacks of its threads
    :raises AssertionError: if it fails or hangs; with what it has written
    """
    paths = [str(_TESTS), str(_TESTS.parent), os.environ.get("PYTHONPATH", "")]
    process = subprocess.run(
        [
            *(sys.executable, "-W", "error", "-c"),
            _FRAME.format(seconds=seconds, source=source, backend=backend),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds * 4,
    )
    assert process.returncode == 0, process.stdout
    return process.stdout
