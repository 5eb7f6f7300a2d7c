"""Where it can be seen that nothing else can run, no further round is passed (contract 2.2).

The queue of what is ready is a private part of an event loop, so it is read of loops only that are
known to have no other one.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from types import SimpleNamespace
from typing import Any, cast

import pytest

from anyloader._backend import running_backend


@pytest.fixture(params=["asyncio", "uvloop"])
def loop_factory(request: pytest.FixtureRequest) -> Any:
    if request.param == "asyncio":
        return asyncio.new_event_loop
    return pytest.importorskip("uvloop").new_event_loop


def ready() -> Any:
    backend = running_backend()
    assert backend is not None
    return backend.ready


def test_the_queue_tells_what_is_ready(loop_factory: Any) -> None:
    async def main() -> None:
        queue = ready()
        await asyncio.sleep(0)
        assert not queue
        asyncio.get_running_loop().call_soon(print)
        assert queue
        await asyncio.sleep(0)
        assert not queue
        task = asyncio.create_task(asyncio.sleep(0))
        assert queue
        await task
        assert ready() is queue

    with_loop(loop_factory(), main)


@pytest.mark.parametrize("name", ["call_soon", "_run_once"])
def test_a_loop_that_was_changed_is_never_idle(loop_factory: Any, name: str) -> None:
    async def main() -> None:
        assert len(ready()) == 1
        await asyncio.sleep(0)
        assert len(ready()) == 1

    loop = loop_factory()
    if not hasattr(loop, name):
        loop.close()
        pytest.skip("has no such method")
    setattr(loop, name, getattr(loop, name))
    with_loop(loop, main)


def test_a_loop_of_another_kind_is_never_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slots:  # takes no weak reference
        __slots__ = ()

    class Other:
        def call_soon(self, _: Any) -> Any:
            return SimpleNamespace(cancel=print)

    class Unknown(Other):
        """Has a queue, which is for something else."""

        def __init__(self) -> None:
            self.queue: deque[None] = deque()

    monkeypatch.setitem(sys.modules, "uvloop", cast(Any, SimpleNamespace(Loop=Unknown)))
    for loop in Slots(), Other(), Unknown():
        monkeypatch.setattr(asyncio, "_get_running_loop", lambda loop=loop: loop)
        assert len(ready()) == 1


def with_loop(loop: asyncio.AbstractEventLoop, main: Any) -> None:
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
