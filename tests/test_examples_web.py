"""The examples for servers and workers, run as their first lines say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from support import SERVERS, serve

pytest.importorskip("sqlite_anyio")
pytest.importorskip("pycountry")

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("name", SERVERS)
def test_web(name: str) -> None:
    pytest.importorskip("starlette")

    def get(path: str) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    with serve(name, "web:app", folder=EXAMPLES) as server:
        status, body = get("/countries/fr")
        france = json.loads(body)
        assert (status, france["name"]) == (200, "France")
        assert "Bas-Rhin, Alsace, Grand-Est, France" in france["subdivisions"]
        batches = json.loads(get("/batches")[1])
        assert len(batches) <= 5
        assert batches[0] == {"batch": "countries", "keys": ["FR"]}
        assert batches[1] == {"batch": "subdivisions_of", "keys": ["FR"]}
        assert {batch["batch"] for batch in batches[2:]} == {"subdivisions"}
        page = get("/trace")[1].decode()
        assert page.count("<svg") == 1
        assert f"{len(batches)} batches" in page
        assert get("/countries/xx")[0] == 404
        assert json.loads(get("/batches")[1]) == [{"batch": "countries", "keys": ["XX"]}]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_worker(backend: str) -> None:
    pytest.importorskip(backend)
    command = [sys.executable, str(EXAMPLES / "worker.py"), "--backend", backend]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines() == [
        "BR AR CL PE: Brazil, Argentina, Chile, Peru (1 batch)",
        "FR: France (1 batch)",
        "FR DE IT: France, Germany, Italy (1 batch)",
        "JP JP JP: Japan, Japan, Japan (1 batch)",
    ]


@pytest.mark.parametrize("name", [name for name in SERVERS if name.startswith("hypercorn")])
def test_inference(name: str) -> None:
    """The model behind a loader answers as it does alone, in fewer calls."""
    for needed in "fastapi", "httpx", "sklearn":
        pytest.importorskip(needed)
    with serve(name, "inference:app", folder=EXAMPLES) as server:
        command = [
            *(sys.executable, str(EXAMPLES / "inference.py"), "--url", f"http://{server.url}"),
            *("--callers", "12", "--calls", "36", "--backend", name.partition("-")[2]),
        ]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (run.returncode, run.stderr) == (0, "")
        title, alone, loader = run.stdout.splitlines()
        assert title == "12 callers, 36 calls"
        pattern = r"(\S+) images in a call \(at most (\d+)\).*; 36 answers, (\d+)% right"
        ((mean, most, right),) = re.findall(pattern, alone)
        assert (mean, most) == ("1.0", "1")
        ((mean, most, same),) = re.findall(pattern, loader)
        assert float(mean) > 1.5
        assert 1 < int(most) <= 12
        assert right == same
        assert int(right) > 80
