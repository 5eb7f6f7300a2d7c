"""A real PostgreSQL on loopback, for one session of the tests."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

__all__ = ("PostgresServer",)

_START = 60  # seconds, on a busy machine


def _find(program: str) -> str | None:
    """Debian keeps all but the client's programs off the path."""
    beside = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    return str(beside[-1]) if beside else shutil.which(program)


class PostgresServer:
    INITDB, POSTGRES = _find("initdb"), _find("postgres")

    def __init__(self) -> None:
        # Not below pytest's own folder, which only the user who runs the tests may enter.
        self._folder = Path(tempfile.mkdtemp(prefix="anyloader-postgres-"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._process: subprocess.Popen[Any] | None = None
        #: It refuses to run as root.
        self._user: dict[str, Any] = {}
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            shutil.chown(self._folder, "nobody")
            self._user = {"user": "nobody", "extra_groups": []}

    def url(self, driver: str = "") -> str:
        """
        :param driver: of SQLAlchemy; without one it is as the drivers themselves take it
        """
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        return f"{scheme}://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        assert self.INITDB is not None
        assert self.POSTGRES is not None
        data = str(self._folder / "data")
        subprocess.run(
            [
                *(self.INITDB, "--pgdata", data, "--username", "postgres", "--auth", "trust"),
                *("--encoding", "UTF8", "--no-locale", "--no-sync"),
            ],
            **self._user,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "max_connections": "100",
        }
        log = self._folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    *(self.POSTGRES, "-D", data, "-p", str(self.port)),
                    *(f"--{name}={value}" for name, value in options.items()),
                ],
                **self._user,
                cwd=self._folder,
                stdout=output,
                stderr=output,
            )
        self._process = process
        end = time.monotonic() + _START
        while b"ready to accept connections" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise RuntimeError("PostgreSQL did not start")
            time.sleep(0.01)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # "fast": waits for no client
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
