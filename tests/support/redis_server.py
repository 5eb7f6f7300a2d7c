"""Real ``redis-server`` processes on loopback, which a test may kill, pause and start again."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

__all__ = ("RedisServer", "redis_cluster", "redis_sentinel")

_START = 30  # seconds, on a busy machine


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisServer:
    """It keeps its port, and nothing else, when it is killed and started again."""

    PROGRAM = shutil.which("redis-server")

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._folder = folder
        self._arguments = arguments
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert self.PROGRAM is not None
        assert self._process is None
        self._process = subprocess.Popen(
            [
                *(self.PROGRAM, *self._arguments, "--bind", "127.0.0.1", "--port", str(self.port)),
                *("--save", "", "--appendonly", "no", "--dir", str(self._folder)),
            ],
            stdout=subprocess.DEVNULL,
        )
        self.wait_until(lambda: self._answers())

    def wait_until(self, condition: Callable[[], bool]) -> None:
        assert self._process is not None
        end = time.monotonic() + _START
        while not condition():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError("redis-server did not start")
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            return self.command("PING").startswith(b"+PONG")
        except OSError:
            return False

    def command(self, line: str) -> bytes:
        """Give what it answers, if that is short."""
        with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            connection.sendall(f"{line}\r\n".encode())
            return connection.recv(65_536)

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@contextmanager
def redis_cluster(folder: Path) -> Iterator[RedisServer]:
    """Two servers that have half of the slots each; gives the first."""
    with ExitStack() as stack:
        buses = [str(_free_port()) for _ in range(2)]
        servers = [
            RedisServer(
                folder,
                *("--cluster-enabled", "yes", "--cluster-port", bus),
                *("--cluster-config-file", f"nodes-{bus}.conf"),
            )
            for bus in buses
        ]
        for number, server in enumerate(servers):
            stack.callback(server.kill)
            server.start()
            server.command(f"CLUSTER SET-CONFIG-EPOCH {number + 1}")
            server.command(f"CLUSTER ADDSLOTSRANGE {number * 8192} {number * 8192 + 8191}")
        servers[0].command(f"CLUSTER MEET 127.0.0.1 {servers[1].port} {buses[1]}")
        for server in servers:
            server.wait_until(
                lambda server=server: b"cluster_state:ok" in server.command("CLUSTER INFO")  # type: ignore[misc]
            )
        yield servers[0]


@contextmanager
def redis_sentinel(folder: Path) -> Iterator[RedisServer]:
    """A sentinel, given here, that watches one server, by the name of "main"."""
    with ExitStack() as stack:
        primary = RedisServer(folder)
        stack.callback(primary.kill)
        primary.start()
        config = folder / "sentinel.conf"
        config.write_text(f"sentinel monitor main 127.0.0.1 {primary.port} 1\n")
        sentinel = RedisServer(folder, str(config), "--sentinel")
        stack.callback(sentinel.kill)
        sentinel.start()
        yield sentinel
