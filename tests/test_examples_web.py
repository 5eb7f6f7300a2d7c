"""The examples for servers and workers, run as their first lines say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import ExitStack
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from support import SERVERS, serve

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("name", SERVERS)
def test_web(name: str) -> None:
    for needed in "fastapi", "sqlalchemy":
        pytest.importorskip(needed)

    def get(path: str) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    with serve(name, "web:app", folder=EXAMPLES) as server:
        status, body = get("/authors?id=2&id=1&id=4")
        assert status == 200
        eliot, austen, nobody = json.loads(body)
        assert nobody == {"name": "A. N. Other", "books": []}
        assert eliot["books"][0] == {
            "title": "Adam Bede",
            "year": 1859,
            "copies": {"north": 5, "south": 1},
        }
        assert austen["books"][1:3] == [
            {"title": "Pride and Prejudice", "year": 1813, "copies": {"north": 2}},
            {"title": "Mansfield Park", "year": 1814, "copies": {"north": 3, "south": 1}},
        ]
        page = get("/trace")[1].decode()
        assert page.count("<table") == 1
        assert "3 batches" in page  # authors, their books, the copies of these
        assert get("/authors/1") == (200, json.dumps(austen, separators=(",", ":")).encode())
        missing = (404, b'{"detail":"Not Found"}')
        assert get("/authors/99") == get("/authors?id=1&id=99") == missing
        assert get("/stock/south/2") == missing
        assert get("/stock/south/3") == (200, b"1")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_worker(backend: str) -> None:
    for needed in backend, "sqlalchemy":
        pytest.importorskip(needed)
    command = [sys.executable, str(EXAMPLES / "worker.py"), "--backend", backend]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    austen = "Jane Austen"
    assert sorted(run.stdout.splitlines()) == [
        f"invoice 1 5: {austen}, Sense and Sensibility, 2 in stock, 11 pounds; "
        "George Eliot, Adam Bede, 6 in stock, 15 pounds (4 batches)",
        "invoice 4 1: given up",
        f"offer 1 2 3: {austen}, Sense and Sensibility, 2 in stock, 11 pounds; "
        f"{austen}, Pride and Prejudice, 2 in stock, 12 pounds; "
        f"{austen}, Mansfield Park, 4 in stock, 13 pounds (4 batches)",
        "offer 1 99: there is no 99",
        f"offer 4: {austen}, Emma, 4 in stock, price on request (4 batches)",
        "offer 8: George Eliot, Middlemarch, 8 in stock, 18 pounds (4 batches)",
    ]


def test_inference() -> None:
    """The model behind a loader answers as it does alone, in fewer calls."""
    for needed in "fastapi", "httpx", "hypercorn", "sklearn":
        if find_spec(needed) is None:  # which imports nothing: sklearn takes two seconds
            pytest.skip(f"{needed} is not installed")
    # A client of the example gives its connections up sooner than hypercorn does by default.
    options = ["--keep-alive", "5"]
    # In one process: to import what they need takes longer than their calls.
    program = "import sys, inference\nfor options in sys.argv[1:]: inference.main(options.split())"
    clients = []
    with ExitStack() as stack:
        for name in [name for name in SERVERS if name.startswith("hypercorn")]:
            serving = serve(name, "inference:app", folder=EXAMPLES, options=options)
            url = f"http://{stack.enter_context(serving).url}"
            backend = name.partition("-")[2]
            clients.append(f"--url {url} --callers 12 --calls 36 --backend {backend}")
        run = subprocess.run(
            [sys.executable, "-c", program, *clients],
            cwd=EXAMPLES,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (run.returncode, run.stderr) == (0, "")
    lines = run.stdout.splitlines()
    assert len(lines) == 3 * len(clients)
    for title, alone, loader in zip(lines[::3], lines[1::3], lines[2::3]):
        assert title == "12 callers, 36 calls"
        pattern = r"(\S+) images in a call \(at most (\d+)\).*; 36 answers, (\d+)% right"
        ((mean, most, right),) = re.findall(pattern, alone)
        assert (mean, most) == ("1.0", "1")
        ((mean, most, same),) = re.findall(pattern, loader)
        assert float(mean) > 1.5
        assert 1 < int(most) <= 12
        assert right == same
        assert int(right) > 80
