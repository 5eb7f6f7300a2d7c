"""Clearing, storing and deleting that cross each other (contract 6.7)."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from anyloader import DataLoader
from support import wait_all_tasks_blocked

pytestmark = pytest.mark.anyio


class Store:
    """A value cache whose every answer can be held back, after it has had its effect or before."""

    def __init__(self) -> None:
        self.values: dict[int, str] = {}
        self.storing, self.store = anyio.Event(), anyio.Event()
        self.deleted, self.answer = anyio.Event(), anyio.Event()

    async def get_many(self, keys: Any) -> dict[int, str]:
        return {key: self.values[key] for key in keys if key in self.values}

    async def set_many(self, items: Any) -> None:
        if 1 in items and not self.storing.is_set():
            self.storing.set()
            await self.store.wait()
        self.values.update(items)

    async def delete_many(self, keys: Any) -> None:
        if self.deleted.is_set() and not self.answer.is_set():
            await self.answer.wait()
        for key in keys:
            self.values.pop(key, None)
        if not self.deleted.is_set():
            self.deleted.set()
            await self.answer.wait()


async def cross(loader: DataLoader[int, str], store: Store, rows: dict[int, str]) -> None:
    """Let an old value arrive after a deletion had its effect, and before that answers."""
    assert await loader.load(1) == "old"
    await store.storing.wait()
    rows[1] = "new"
    loader.clear(1)
    async with anyio.create_task_group() as tg:
        tg.start_soon(loader.load, 2)  # its batch deletes first
        await store.deleted.wait()
        store.store.set()
        await wait_all_tasks_blocked()
        store.answer.set()


@pytest.mark.parametrize("cache", [True, False, "pending"])
async def test_no_load_gets_what_was_stored_as_it_was_deleted(cache: Any) -> None:
    rows, store = {1: "old", 2: "two"}, Store()

    async def fetch(keys: list[int]) -> list[str]:
        return [rows[key] for key in keys]

    async with DataLoader(fetch, value_cache=store, cache=cache) as loader:
        await cross(loader, store, rows)
        assert await loader.load(1) == "new"


async def test_it_does_not_stay_there_when_the_scope_is_left_by_an_error() -> None:
    rows, store = {1: "old", 2: "two"}, Store()

    async def fetch(keys: list[int]) -> list[str]:
        return [rows[key] for key in keys]

    with pytest.raises(ZeroDivisionError):
        async with DataLoader(fetch, value_cache=store) as loader:
            await cross(loader, store, rows)
            raise ZeroDivisionError
    assert 1 not in store.values


@pytest.mark.virtual_time
async def test_leaving_waits_no_longer_than_a_second_for_what_is_being_stored() -> None:
    class Hangs(Store):
        async def set_many(self, items: Any) -> None:
            await anyio.sleep_forever()

    async def fetch(keys: list[int]) -> list[str]:
        return list(map(str, keys))

    with anyio.fail_after(5):
        async with DataLoader(fetch, value_cache=Hangs()) as loader:
            assert await loader.load(1) == "1"
