"""Starts ASGI servers on loopback, each in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

__all__ = ("APPS", "SERVERS", "Server", "serve")

APPS = Path(__file__).parents[1] / "apps"

# Port 0: the server picks a free one and says which. No workers: it runs in the one process.
_HYPERCORN = [
    *("hypercorn", "--bind", "127.0.0.1:0", "--workers", "0"),
    *("--graceful-timeout", "1", "--keep-alive", "1", "--worker-class"),
]
_UVICORN = [
    *("uvicorn", "--host", "127.0.0.1", "--port", "0", "--no-access-log"),
    *("--timeout-graceful-shutdown", "1"),
]
_COMMANDS = {
    "hypercorn-asyncio": [*_HYPERCORN, "asyncio"],
    "hypercorn-trio": [*_HYPERCORN, "trio"],
    "uvicorn": _UVICORN,
}

# What is not installed is absent.
SERVERS = [
    name
    for name, command in _COMMANDS.items()
    if find_spec(command[0]) and (command[-1] != "trio" or find_spec("trio"))
]

_START = 60  # seconds; a busy machine imports frameworks slowly


class Server(NamedTuple):
    name: str
    port: int
    log: list[str]
    """The lines that the server wrote so far."""

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextmanager
def serve(
    name: str, app: str, *, folder: Path = APPS, options: Sequence[str] = ()
) -> Iterator[Server]:
    """Run ``app``, such as ``"module:application"`` in ``folder``, until the block is left.

    :param name: one of ``SERVERS``
    :param options: more for its command line
    :raises RuntimeError: if the server does not start; the message has its log
    """
    log: list[str] = []
    port: list[int] = []
    started = threading.Event()

    def read() -> None:
        for line in output:
            log.append(line)
            found = re.search(r"[Rr]unning on http://127\.0\.0\.1:(\d+)", line)
            if found and not port:
                port.append(int(found[1]))
                started.set()
        started.set()

    process = subprocess.Popen(
        [sys.executable, "-m", *_COMMANDS[name], *options, app],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    output = process.stdout
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        if not started.wait(_START) or not port:
            raise RuntimeError(f"{name} did not start:\n{''.join(log)}")
        yield Server(name, port[0], log)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(10)
        output.close()
