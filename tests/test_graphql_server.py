"""The GraphQL server of the examples, over HTTP, and over WebSockets where Strawberry has them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from support import SERVERS, Server, serve

for package in ("sqlalchemy", "starlette", "strawberry"):
    pytest.importorskip(package)

graphql: Any = import_module("graphql")
EVENTS = pytest.mark.skipif(not hasattr(graphql, "Executor"), reason="needs graphql-core 3.3")
EXAMPLES = Path(__file__).parents[1] / "examples"
QUERY = "{authors(ids: [1, 2, 9, 1]) {name books(first: 2) {title author {name}}}}"
ADD = 'addBook(authorId: 3, title: "Poems", year: %d) {books(first: 3) {year}}'
SUBSCRIPTION = "subscription {author(id: 3) {name books(first: 3) {year}}}"


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


@pytest.mark.parametrize("name", SERVERS)
def test_it_answers_in_a_batch_for_each_level_and_draws_them(name: str) -> None:
    with serve(name, "graphql_server:app", folder=EXAMPLES) as server:
        assert "0 loads, 0 batches" in get(server, "/trace")
        austen, eliot, nobody, again = post(server, QUERY)["data"]["authors"]
        assert (
            austen
            == again
            == {
                "name": "Jane Austen",
                "books": [
                    {"title": title, "author": {"name": "Jane Austen"}}
                    for title in ("Sense and Sensibility", "Pride and Prejudice")
                ],
            }
        )
        assert [book["title"] for book in eliot["books"]] == ["Adam Bede", "The Mill on the Floss"]
        assert nobody is None
        assert post(server, "{__typename}")["data"]  # loads nothing
        page = get(server, "/trace")
        assert page.count("<table") == 1
        assert "2 batches" in page

        # Two mutations of one operation: the second one sees what it has cleared.
        added = post(server, f"mutation {{a: {ADD % 1846} b: {ADD % 1848}}}")["data"]
        assert [book["year"] for book in added["a"]["books"]] == [1846, 1847]
        assert [book["year"] for book in added["b"]["books"]] == [1846, 1847, 1848]
        refused = post(server, "{authors(ids: [1]) {books(first: -1) {title}}}")["errors"]
        assert "first must be an int >= 0" in refused[0]["message"]


@EVENTS
@pytest.mark.parametrize("name", [name for name in SERVERS if not name.endswith("trio")])
def test_a_socket_gets_each_change(name: str) -> None:
    client = pytest.importorskip("websockets.sync.client")
    with (
        serve(name, "graphql_server:app", folder=EXAMPLES) as server,
        client.connect(f"ws://{server.url}/", subprotocols=["graphql-transport-ws"]) as socket,
    ):
        socket.send(json.dumps({"type": "connection_init"}))
        assert json.loads(socket.recv(timeout=10))["type"] == "connection_ack"
        payload = {"query": SUBSCRIPTION}
        socket.send(json.dumps({"type": "subscribe", "id": "1", "payload": payload}))
        years = [1847]
        for year in 1848, 1849:
            author = json.loads(socket.recv(timeout=10))["payload"]["data"]["author"]
            assert author == {"name": "Emily Brontë", "books": [{"year": year} for year in years]}
            post(server, f"mutation {{{ADD % year}}}")
            years.append(year)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield import_module("graphql_server")
    for module in "graphql_server", "_bookshop":
        del sys.modules[module]


@EVENTS
@pytest.mark.anyio
async def test_it_subscribes_on_trio_too(example: Any) -> None:
    class Request:
        app = example.app

    context = {"request": Request}
    async with example.lifespan(None):
        events = await example.schema.subscribe(SUBSCRIPTION, context_value=context)
        for year in 1850, 1851:
            event = await anext(events)
            assert event.errors is None
            assert len(event.data["author"]["books"]) == year - 1849
            mutation = f"mutation {{{ADD % year}}}"
            await example.schema.execute(mutation, context_value=context)
        await events.aclose()
