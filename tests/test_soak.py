"""The quick form of the soak test; ``python tools/soak.py`` is the long one."""

from __future__ import annotations

import anyio
import pytest

from support import SERVERS, serve

pytest.importorskip("websockets")

from soak import KINDS, requests, soak


@pytest.mark.parametrize("name", SERVERS)
def test_nothing_is_left_of_requests_that_go_wrong(name: str) -> None:
    with serve(name, "for_soak:app") as server:
        figures = anyio.run(soak, server, 300, 1)
    assert not figures.faults
    assert sum(figures.outcomes.values()) == 300
    assert {"200", "500", "502", "504", "chat", "left"} == set(figures.outcomes)


def test_all_kinds_of_requests_come_and_each_has_a_right_answer() -> None:
    some = list(requests(300, 1))
    assert {request.kind for request in some} == set(KINDS)
    assert all(request.answers() for request in some)
    assert some == list(requests(300, 1)) != list(requests(300, 2))
