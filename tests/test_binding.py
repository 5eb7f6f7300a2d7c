"""When a loader finds its event loop and its scope: at its first load, for good (contract 1, opening)."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

from anyloader import (
    DataLoader,
    LoaderScope,
    LoadHandle,
)
from support import BACKENDS, Recorder, backend_options, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.TaskGroup is new in Python 3.11")
def test_a_loader_made_without_a_loop_finds_it_at_its_first_load() -> None:
    group: Any = getattr(asyncio, "TaskGroup")()  # noqa: B009 - unknown to checkers of 3.10
    loader = DataLoader(Recorder[int, int](abs), task_group=group)
    with pytest.raises(RuntimeError, match="no event loop is running"):
        loader.load(1)

    async def main() -> int:
        async with group:
            return await loader.load(-1)

    assert asyncio.run(main()) == 1


@pytest.mark.parametrize("name", ["asyncio", "trio.lowlevel"])
def test_a_loader_can_be_made_where_a_library_was_never_imported(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    class Group:
        start_soon = None

    monkeypatch.delitem(sys.modules, name, raising=False)
    group: Any = Group()
    assert "0 keys queued" in repr(DataLoader(Recorder[int, int](abs), task_group=group))


async def test_a_loader_whose_block_has_ended_can_be_primed_in_a_scope() -> None:
    async with LoaderScope():
        async with DataLoader(Recorder[int, int](abs)) as loader:
            pass
        handle = loader.prime(1, 10).peek(1)
        assert handle is not None
        assert await handle == 10


@pytest.mark.parametrize("given", [False, True], ids=["own block", "given group"])
def test_a_plain_callback_of_the_loop_can_load(given: bool) -> None:
    """In one that anyio did not start, so that nothing says which library it is but the task."""
    loads: list[LoadHandle[int]] = []

    async def main() -> None:
        async with anyio.create_task_group() as tg, AsyncExitStack() as stack:
            loader = DataLoader(
                Recorder[int, int](abs), max_batch_size=1, task_group=tg if given else None
            )
            if not given:
                await stack.enter_async_context(loader)

            def load() -> None:
                loads.extend([loader.load(-1), loader.load(-2)])

            asyncio.get_running_loop().call_soon(load)
            await wait_all_tasks_blocked()
            assert [await load for load in loads] == [1, 2]

    asyncio.run(main())


async def test_a_loader_that_no_loop_is_known_of_yet_can_be_primed() -> None:
    class Group:
        start_soon = None

    group: Any = Group()

    def make() -> DataLoader[int, int]:
        return DataLoader(Recorder[int, int](abs), task_group=group)

    loader = await anyio.to_thread.run_sync(make)
    primed = loader.clear_all().prime(1, 10).clear(2).peek(1)
    assert primed is not None
    assert primed.return_value == 10


async def test_a_loader_that_has_loaded_nothing_cannot_be_entered_again() -> None:
    loader = DataLoader(Recorder[int, int](abs))
    async with loader:
        with pytest.raises(RuntimeError, match="entered once"):
            await loader.__aenter__()
        assert await loader.load(-1) == 1


def test_a_loader_whose_loop_has_ended_can_be_looked_into() -> None:
    loader = DataLoader(Recorder[int, int](abs))

    async def main() -> None:
        async with loader:
            await loader.load(-1)

    asyncio.run(main())
    assert loader.statistics().keys == 1
    assert loader.peek(-1) is None  # what it had loaded went with its scope
    assert loader.prime(-1, 2).clear_all().peek(-1) is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loader_can_be_made_before_there_is_a_loop(backend: str) -> None:
    async def fetch(keys: list[int]) -> list[int]:
        return keys

    async def main() -> int:
        async with loader:
            return await loader.load(1)

    loader = DataLoader(fetch)
    library, options = backend_options(backend)
    assert anyio.run(main, backend=library, backend_options=options) == 1
