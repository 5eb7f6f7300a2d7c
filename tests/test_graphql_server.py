"""The GraphQL server of the examples, over HTTP."""

from __future__ import annotations

import json
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from support import SERVERS, Server, serve

for package in ("sqlite_anyio", "pycountry", "starlette", "strawberry"):
    pytest.importorskip(package)

EXAMPLES = Path(__file__).parents[1] / "examples"
QUERY = "{countries(limit: 80) {name subdivisions {name parent {name} country {name}}}}"


def post(server: Server, query: str) -> Any:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        headers = {"content-type": "application/json"}
        connection.request("POST", "/", json.dumps({"query": query}), headers)
        response = connection.getresponse()
        assert response.status == 200
        return json.loads(response.read())
    finally:
        connection.close()


def get(server: Server, path: str) -> str:
    with urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as response:
        body: bytes = response.read()
        return body.decode()


def printed(server: Server, lines: int) -> list[str]:
    """Wait until the server has printed so many lines about statements."""
    deadline = time.monotonic() + 10
    while True:
        found = [line.strip() for line in server.log if "SQL" in line or line.endswith("keys\n")]
        if len(found) >= lines or time.monotonic() > deadline:
            return found
        time.sleep(0.01)


@pytest.mark.parametrize("name", SERVERS)
def test_a_nested_query_takes_a_statement_for_each_level(name: str) -> None:
    with serve(name, "graphql_server:app", folder=EXAMPLES) as server:
        france = post(server, '{country(code: "fr") {name subdivisions {name parent {name}}}}')
        assert france["data"]["country"]["name"] == "France"
        subdivisions = france["data"]["country"]["subdivisions"]
        assert {"name": "Bas-Rhin", "parent": {"name": "Alsace"}} in subdivisions
        assert printed(server, 4)[:3] == [
            "3 SQL statements",
            "countries: 1 keys",
            "subdivisions_of: 1 keys",
        ]

        countries = post(server, QUERY)["data"]["countries"]
        assert len(countries) == 80
        assert sum(len(country["subdivisions"]) for country in countries) > 1000
        lines = printed(server, 9)[4:]
        assert lines[:4] == [
            "4 SQL statements",
            "country_codes: 0 keys",
            "countries: 80 keys",
            "subdivisions_of: 80 keys",
        ]
        assert lines[4].startswith("subdivisions: ")

        assert post(server, '{country(code: "xx") {name}}') == {"data": {"country": None}}


@pytest.mark.parametrize("name", SERVERS)
def test_it_draws_the_batches_of_the_last_operation(name: str) -> None:
    with serve(name, "graphql_server:app", folder=EXAMPLES) as server:
        assert "0 loads, 0 batches" in get(server, "/trace")
        for code in "fr", "de":
            post(server, f'{{country(code: "{code}") {{subdivisions {{name country {{name}}}}}}}}')
        post(server, "{__typename}")  # loads nothing
        page = get(server, "/trace")
    assert page.count("<svg") == 1
    assert "2 batches, 16 hits" in page  # each of the subdivisions loads its country again
    assert "DE" in page
    assert "FR" not in page
