"""The quick form of the soak test; ``python tools/soak.py`` is the long one."""

from __future__ import annotations

import anyio
import pytest

from support import SERVERS, serve

pytest.importorskip("websockets")
pytest.importorskip("graphql")

import graphql

from soak import KINDS, growth, requests, soak

pytestmark = pytest.mark.skipif(
    not hasattr(graphql, "Executor"), reason="subscriptions need graphql-core 3.3"
)


@pytest.mark.parametrize("name", SERVERS)
def test_nothing_is_left_of_requests_that_go_wrong(name: str) -> None:
    with serve(name, "for_soak:app") as server:
        figures = anyio.run(soak, server, 300, 1, 0.0001)
    assert not figures.faults
    assert set(figures.over_sockets) == {"messages", "events"}
    assert len(figures.meanwhile) == 1
    assert sum(figures.outcomes.values()) == 300
    assert {"200", "500", "502", "504", "chat", "left"} == set(figures.outcomes)


def test_what_grows_beside_open_sockets_is_a_fault() -> None:
    first = {"requests": 8, "objects": 90_000, "memory": 50_000, "kinds": {"a.A": 9, "b.B": 3}}
    assert growth(first, {**first, "objects": 90_999, "memory": 58_000}) == []
    last = {"requests": 9, "objects": 92_000, "memory": 60_000, "kinds": {"a.A": 8, "b.B": 5}}
    assert growth(first, last) == [
        "open: 8 at first, 9 at last",
        "open: +2000 objects (2 b.B)",
        "memory: 50000 kB at first, 60000 at last",
    ]


def test_all_kinds_of_requests_come_and_each_has_a_right_answer() -> None:
    some = list(requests(300, 1))
    assert {request.kind for request in some} == set(KINDS)
    assert all(request.answers() for request in some)
    assert some == list(requests(300, 1)) != list(requests(300, 2))
