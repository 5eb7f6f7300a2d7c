"""Which ``contextvars`` context a batch function sees (contract 2.7)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextvars import ContextVar, copy_context
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import DataLoader, LoaderScope, current_scope, in_thread, schedules
from support import wait_all_tasks_blocked

pytestmark = pytest.mark.anyio

where: ContextVar[str] = ContextVar("where", default="nowhere")


async def see(keys: list[int]) -> list[str]:
    before = where.get()
    await checkpoint()
    assert where.get() == before
    return [before for _ in keys]


async def load_from_elsewhere(loader: DataLoader[int, Any], keys: list[int]) -> list[str]:
    """Load each key in a task whose context is another one."""
    seen: list[str] = []

    async def load(key: int) -> None:
        where.set(f"caller {key}")
        seen.append(await loader.load(key))
        assert where.get() == f"caller {key}"

    async with anyio.create_task_group() as tg:
        for key in keys:
            tg.start_soon(load, key)
    return seen


# --- Which context ---


async def test_a_batch_function_sees_the_context_in_which_the_loader_was_entered() -> None:
    where.set("made")
    loader = DataLoader(see)
    where.set("entered")
    async with loader:
        where.set("body")
        assert await loader.load(0) == "entered"
        assert await load_from_elsewhere(loader, [1, 2, 3]) == ["entered"] * 3
        assert where.get() == "body"


async def test_a_batch_function_sees_the_context_in_which_its_loader_was_made_in_a_group() -> None:
    where.set("group made")
    async with anyio.create_task_group() as tg:
        where.set("loader made")
        loader = DataLoader(see, task_group=tg)
        where.set("body")
        assert await load_from_elsewhere(loader, [1, 2, 3]) == ["loader made"] * 3
        assert await loader.load(4) == "loader made"


@pytest.mark.only_on("trio")
async def test_the_same_in_a_nursery() -> None:
    import trio

    where.set("group made")
    async with trio.open_nursery() as nursery:
        where.set("loader made")
        loader = DataLoader(see, task_group=nursery)
        where.set("body")
        assert await load_from_elsewhere(loader, [1, 2, 3]) == ["loader made"] * 3


@pytest.mark.only_on("asyncio")
async def test_the_same_in_an_asyncio_task_group() -> None:
    open_group: Any = getattr(asyncio, "TaskGroup", None)
    if open_group is None:
        pytest.skip("asyncio.TaskGroup is new in Python 3.11")
    where.set("group made")
    async with open_group() as group:
        where.set("loader made")
        loader = DataLoader(see, task_group=group)
        where.set("body")
        assert await load_from_elsewhere(loader, [1, 2, 3]) == ["loader made"] * 3


@pytest.mark.parametrize("foreign_group", [False, True])
async def test_a_batch_function_sees_the_context_in_which_its_scope_was_entered(
    foreign_group: bool,
) -> None:
    async def see_scope(keys: list[int]) -> list[str]:
        assert current_scope() is scope, "which is ambient in it"
        return await see(keys)

    async with anyio.create_task_group() as tg:
        where.set("scope made")
        scope = LoaderScope(task_group=tg if foreign_group else None)
        where.set("scope entered")
        async with scope:
            where.set("loader made")
            by_first_load, by_get = DataLoader(see_scope), scope.get(see_scope)
            where.set("body")
            assert await load_from_elsewhere(by_first_load, [1, 2, 3]) == ["scope entered"] * 3
            assert await load_from_elsewhere(by_get, [1, 2, 3]) == ["scope entered"] * 3


async def test_the_context_does_not_depend_on_who_sends_the_batch() -> None:
    where.set("entered")
    async with DataLoader(see, max_batch_size=2, schedule=schedules.manual()) as loader:
        where.set("body")
        handle = loader.load(1)
        context = copy_context()
        context.run(where.set, "dispatcher")
        context.run(loader.dispatch)
        assert await handle == "entered"
        assert await load_from_elsewhere(loader, [2, 3]) == ["entered"] * 2


async def test_what_the_opener_sets_later_is_not_seen() -> None:
    where.set("entered")
    async with DataLoader(see) as loader:
        for key in range(3):
            where.set(f"later {key}")
            assert await loader.load(key) == "entered"


async def test_every_kind_of_batch_function_sees_it() -> None:
    def plain(keys: list[int]) -> Awaitable[list[str]]:
        first = where.get()

        async def rest() -> list[str]:
            return [f"{first}, {where.get()}" for _ in keys]

        return rest()

    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, str], None]:
        for key in keys:
            yield key, where.get()
            await checkpoint()

    def blocking(keys: list[int]) -> list[str]:
        return [where.get() for _ in keys]

    async def tasks(keys: list[int]) -> list[str]:
        seen: list[str] = []

        async def child() -> None:
            seen.append(where.get())

        async with anyio.create_task_group() as tg:
            for _ in keys:
                tg.start_soon(child)
        return seen

    where.set("entered")
    async with (
        DataLoader(plain) as of_plain,
        DataLoader(stream) as of_stream,
        DataLoader(in_thread(blocking)) as of_thread,
        DataLoader(tasks) as of_tasks,
    ):
        assert await load_from_elsewhere(of_plain, [1, 2]) == ["entered, entered"] * 2
        assert await load_from_elsewhere(of_stream, [1, 2]) == ["entered"] * 2
        assert await load_from_elsewhere(of_thread, [1, 2]) == ["entered"] * 2
        assert await load_from_elsewhere(of_tasks, [1, 2]) == ["entered"] * 2


# --- A fresh copy for each batch ---


async def set_and_see(keys: list[int]) -> list[str]:
    before = where.get()
    token = where.set(f"batch {keys}")
    await checkpoint()
    assert where.get() == f"batch {keys}", "but it lasts as long as the function"
    where.reset(token)
    where.set(f"batch {keys}")
    return [before for _ in keys]


async def test_what_a_batch_function_sets_does_not_leak_into_the_next_batch() -> None:
    where.set("entered")
    async with DataLoader(set_and_see) as loader:
        for key in range(3):
            assert await loader.load(key) == "entered"
        assert where.get() == "entered", "nor into the context that was copied"


async def test_nor_into_batches_that_run_at_the_same_time() -> None:
    where.set("entered")
    async with DataLoader(set_and_see, batch=False) as loader:
        assert await loader.load_many(range(5)) == ["entered"] * 5


async def test_nor_in_a_foreign_group() -> None:
    async with anyio.create_task_group() as tg:
        where.set("made")
        loader = DataLoader(set_and_see, task_group=tg)
        for key in range(3):
            assert await loader.load(key) == "made"
        assert where.get() == "made"


async def test_nor_from_a_stream() -> None:
    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, str], None]:
        before = where.get()
        where.set("stream")
        for key in keys:
            yield key, before
            assert where.get() == "stream", "but it lasts from one pair to the next"

    where.set("entered")
    async with DataLoader(stream) as loader:
        for first in (0, 3, 6):
            assert await loader.load_many([first, first + 1]) == ["entered"] * 2
        assert where.get() == "entered"


async def test_nor_after_a_failure() -> None:
    async def fetch(keys: list[int]) -> list[str]:
        seen.append(where.get())
        where.set("failed")
        await checkpoint()
        raise OSError

    seen: list[str] = []
    where.set("entered")
    async with DataLoader(fetch) as loader:
        for _ in range(3):
            with pytest.raises(OSError):
                await loader.load(1)
    assert seen == ["entered"] * 3


async def test_nor_does_anything_leak_to_those_who_load() -> None:
    async with DataLoader(set_and_see) as loader:
        async with anyio.create_task_group() as tg:

            async def load(key: int) -> None:
                where.set("caller")
                await loader.load(key)
                assert where.get() == "caller"

            tg.start_soon(load, 1)
            tg.start_soon(load, 2)
        await wait_all_tasks_blocked()
        assert where.get() == "nowhere"
