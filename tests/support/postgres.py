"""A real PostgreSQL on loopback, with nothing in it."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

__all__ = ("POSTGRES", "serve_postgres")

_START = 30  # seconds, on a busy machine


def _programs() -> tuple[str, str] | None:
    """Return ``postgres`` and ``initdb``; distributions put the latter beside it, not on the path."""
    postgres = shutil.which("postgres")
    if postgres is None:
        return None
    initdb = shutil.which("initdb", path=str(Path(postgres).resolve().parent))
    return None if initdb is None else (postgres, initdb)


#: Whether there is one.
POSTGRES = _programs()


@contextmanager
def serve_postgres() -> Iterator[str]:
    """
    Run a server until the block is left, and give the DSN of its superuser.

    :raises RuntimeError: if it does not start; the message has its log
    """
    assert POSTGRES is not None
    postgres, initdb = POSTGRES
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    # Not pytest's own folder, whose parents another user may not enter.
    with TemporaryDirectory() as folder, socket.socket() as probe:
        if os.geteuid() == 0:  # which postgres refuses
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            options.update(user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[], cwd=folder)
        data, log = f"{folder}/data", Path(folder, "log")
        command = [initdb, "-D", data, "--username=test", "--auth=trust", "--no-sync"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **options)
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        probe.close()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": "",
            "fsync": "off",
        }
        command = [postgres, "-D", data]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, **options)
        try:
            end = time.monotonic() + _START
            while "ready to accept connections" not in log.read_text():
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"postgres did not start:\n{log.read_text()}")
                time.sleep(0.01)
            yield f"postgresql://test@127.0.0.1:{port}/postgres"
        finally:
            process.terminate()  # waits for clients; the second one does not
            try:
                process.wait(1)
            except subprocess.TimeoutExpired:
                process.send_signal(2)
                process.wait()
