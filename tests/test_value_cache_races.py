"""Clearing, storing and deleting that cross each other (contract 6.7)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from anyloader import DataLoader, LoaderScope, schedules
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


async def test_nobody_asks_until_the_last_of_two_batches_has_stored_what_is_old() -> None:
    class Slow(Store):
        async def set_many(self, items: Any) -> None:
            if items == {1: "old"}:
                gates.append(anyio.Event())
                await gates[-1].wait()
            self.values.update(items)

    gates: list[anyio.Event] = []
    rows, store = {1: "old", 2: "two"}, Slow()
    store.answer.set()

    async def fetch(keys: list[int]) -> list[str]:
        return [rows[key] for key in keys]

    async with DataLoader(fetch, value_cache=store, cache=False) as loader:
        for _ in range(2):
            assert await loader.load(1) == "old"
            await wait_all_tasks_blocked()
        rows[1] = "new"
        loader.clear(1)
        for gate in gates:
            assert await loader.load_many([1, 2]) == ["new", "two"]
            gate.set()
            await wait_all_tasks_blocked()
        assert await loader.load(1) == "new"
        await wait_all_tasks_blocked()
        assert store.values == {1: "new", 2: "two"}


async def test_what_a_cache_does_with_its_arguments_changes_nothing() -> None:
    class Consumes(Store):
        async def get_many(self, keys: Any) -> dict[int, str]:
            found: dict[int, str] = {}
            while keys:
                key = keys.pop()
                found.update(await super().get_many([key]))
            return found

        async def set_many(self, items: Any) -> None:
            taken: dict[int, str] = {}
            while items:
                key, value = items.popitem()
                taken[key] = value
            await super().set_many(taken)

        async def delete_many(self, keys: Any) -> None:
            await super().delete_many(list(keys))
            keys.clear()

    rows, store = {1: "old", 2: "two"}, Consumes()
    store.values[3] = "three"

    async def fetch(keys: list[int]) -> list[str]:
        return [rows[key] for key in keys]

    async with DataLoader(fetch, value_cache=store) as loader:
        assert await loader.load(3) == "three"
        await cross(loader, store, rows)
        assert await loader.load(1) == "new"
        await wait_all_tasks_blocked()
        assert store.values == {1: "new", 2: "two", 3: "three"}


@pytest.mark.parametrize("cache", [True, False, "pending"])
@pytest.mark.parametrize("when", ["open", "asking", "running", "storing"])
async def test_clearing_all_reaches_what_is_on_its_way(cache: Any, when: str) -> None:
    """Whether the loader remembers the key or not, no later scope gets the old row."""
    rows = {1: "old"}
    at, go_on = anyio.Event(), anyio.Event()

    async def stop(where: str) -> None:
        if where == when and not at.is_set():
            at.set()
            await go_on.wait()

    class Shared:
        def __init__(self) -> None:
            self.values: dict[int, str] = {}

        async def get_many(self, keys: Any) -> dict[int, str]:
            found = {key: self.values[key] for key in keys if key in self.values}
            await stop("asking")
            return found

        async def set_many(self, items: Any) -> None:
            await stop("storing")
            self.values.update(items)

        async def delete_many(self, keys: Any) -> None:
            for key in keys:
                self.values.pop(key, None)

    async def fetch(keys: list[int]) -> list[str]:
        found = [rows[key] for key in keys]
        await stop("running")
        return found

    store = Shared()
    store.values = {1: "old"} if when == "asking" else {}
    schedule = schedules.manual() if when == "open" else schedules.quiescent()
    async with DataLoader(fetch, value_cache=store, cache=cache, schedule=schedule) as loader:
        first = loader.load(1)
        if when == "open":
            store.values[1] = "old"  # by another process
        else:
            await at.wait()
        rows[1] = "new"
        loader.clear_all()
        go_on.set()
        loader.dispatch()
        await first
    assert store.values.get(1) in (None, "new")


async def test_clearing_all_goes_on_beyond_what_cannot_be_a_key() -> None:
    async def fetch(keys: list[Any]) -> list[Any]:
        return keys

    store, manual = Store(), schedules.manual()
    async with DataLoader(fetch, value_cache=store, cache=False, schedule=manual) as loader:
        wrong, right = loader.load([]), loader.load(2)
        loader.clear_all()
        store.answer.set()
        loader.dispatch()
        assert await right == 2
        with pytest.raises(TypeError):
            await wrong


async def test_it_does_not_stay_there_when_the_scope_is_left_by_an_error() -> None:
    rows, store = {1: "old", 2: "two"}, Store()

    async def fetch(keys: list[int]) -> list[str]:
        return [rows[key] for key in keys]

    with pytest.raises(ZeroDivisionError):
        async with DataLoader(fetch, value_cache=store) as loader:
            await cross(loader, store, rows)
            raise ZeroDivisionError
    assert 1 not in store.values


# --- clear_all ---

FORGETFUL = pytest.mark.parametrize("cache", [True, False, "pending"])


class Slow(Store):
    """A value cache, and rows, that are asked only when they are let."""

    def __init__(self) -> None:
        super().__init__()
        self.answer.set()
        self.rows: dict[int, Any] = {1: "old", 2: "old"}
        self.asked, self.ask = anyio.Event(), anyio.Event()
        self.read, self.fetched = anyio.Event(), anyio.Event()
        self.ask.set()
        self.store.set()
        self.fetched.set()

    async def get_many(self, keys: Any) -> dict[int, str]:
        found = await super().get_many(keys)
        self.asked.set()
        await self.ask.wait()
        return found

    async def fetch(self, keys: list[int]) -> list[str]:
        found = [self.rows[key] for key in keys]
        self.read.set()
        await self.fetched.wait()
        return found

    async def stream(self, keys: list[int]) -> AsyncIterator[tuple[int, str]]:
        for key, value in [(key, self.rows[key]) for key in keys]:
            yield key, value
            self.read.set()
            await self.fetched.wait()


async def clear_all_and_load_again(loader: DataLoader[int, str], slow: Slow, old: Any) -> None:
    slow.rows = {1: "new", 2: "new"}
    loader.clear_all()
    for event in (slow.ask, slow.fetched, slow.store):
        event.set()
    with anyio.CancelScope(shield=True):
        assert await old == ["old", "old"]
        await wait_all_tasks_blocked()
    assert await loader.load_many([1, 2]) == ["new", "new"]


@FORGETFUL
@pytest.mark.parametrize("at", ["ask", "fetched", "store"])
@pytest.mark.parametrize("how", ["fetch", "stream"])
async def test_clear_all_reaches_a_batch_wherever_it_is(cache: Any, at: str, how: str) -> None:
    slow = Slow()
    setattr(slow, at, anyio.Event())
    if at == "ask":
        slow.values = {1: "old", 2: "old"}
    made: Any = DataLoader(getattr(slow, how), value_cache=slow, cache=cache)
    loader: DataLoader[int, str] = made
    async with loader:
        old = loader.load_many([1, 2])
        await {"ask": slow.asked, "fetched": slow.read, "store": slow.storing}[at].wait()
        await clear_all_and_load_again(loader, slow, old)
        await wait_all_tasks_blocked()
        assert slow.values == {1: "new", 2: "new"}


@FORGETFUL
async def test_clear_all_reaches_hits_of_a_batch_that_fetches_the_rest(cache: Any) -> None:
    slow = Slow()
    slow.fetched = anyio.Event()
    slow.values = {1: "old"}
    async with DataLoader(slow.fetch, value_cache=slow, cache=cache) as loader:
        old = loader.load_many([1, 2])
        await slow.read.wait()
        await clear_all_and_load_again(loader, slow, old)
        await wait_all_tasks_blocked()
        assert slow.values == {1: "new", 2: "new"}


@FORGETFUL
async def test_clear_all_reaches_a_batch_that_has_not_left(cache: Any) -> None:
    slow = Slow()
    slow.values = {1: "old", 2: "old"}
    async with DataLoader(slow.fetch, value_cache=slow, cache=cache) as loader:
        first = loader.load(1)
        slow.rows = {1: "new", 2: "new"}
        loader.clear_all()
        assert [await loader.load(1), await first] == ["new", "new"]
        await wait_all_tasks_blocked()
        assert slow.values == {1: "new", 2: "old"}


async def test_clear_all_of_a_loader_that_is_not_open_yet() -> None:
    slow = Slow()
    loader = DataLoader(slow.fetch, value_cache=slow, cache=False)
    async with LoaderScope():
        loader.clear_all()
        assert await loader.load(1) == "old"


async def test_clear_all_says_what_it_does_not_reach() -> None:
    """What was stored and forgotten: a list of all that was ever loaded would be a cache."""
    slow = Slow()
    async with DataLoader(slow.fetch, value_cache=slow, cache="pending") as loader:
        assert await loader.load(1) == "old"
        slow.rows = {1: "new"}
        await wait_all_tasks_blocked()
        loader.clear_all()
        assert await loader.load(1) == "old"
        loader.clear_many([1])
        assert await loader.load(1) == "new"


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


async def test_what_was_cleared_is_remembered_no_longer_than_an_older_batch_is_at_work() -> None:
    """Of a loader that all requests share there may be some at any time."""
    gates: dict[int, anyio.Event] = {}

    async def fetch(keys: list[int]) -> list[int]:
        (key,) = keys
        await gates[key].wait()
        return keys

    class Nothing(Store):
        async def set_many(self, items: Any) -> None:
            pass

        async def delete_many(self, keys: Any) -> None:
            pass

    async with DataLoader(fetch, value_cache=Nothing(), cache="pending") as loader:
        second: Any = loader.__anyloader__.second_level
        for key in range(50):
            gates[key] = anyio.Event()
            loader.load(key)
            await wait_all_tasks_blocked()
            loader.clear_many([key, -key])
            if key:
                gates[key - 1].set()
            await wait_all_tasks_blocked()
            assert len(second._cleared) <= 4
        gates[49].set()
        await wait_all_tasks_blocked()
        assert not second._cleared


@pytest.mark.parametrize("cache", [True, False, "pending"])
async def test_nobody_asks_for_what_is_stored_after_it_was_deleted(cache: Any) -> None:
    """The old value is there, and its batch has not yet been told so."""

    class Slow(Store):
        async def set_many(self, items: Any) -> None:
            if "old" in items.values():
                await self.store.wait()
            self.values.update(items)
            self.storing.set()
            if "old" in items.values():
                await told.wait()

    rows, store, told = {1: "old"}, Slow(), anyio.Event()
    store.answer.set()

    async def fetch(keys: list[int]) -> list[str]:
        return [rows[key] for key in keys]

    async with DataLoader(fetch, value_cache=store, cache=cache) as loader:
        assert await loader.load(1) == "old"
        rows[1] = "new"
        loader.clear(1)
        await store.deleted.wait()
        await wait_all_tasks_blocked()
        store.store.set()
        await store.storing.wait()
        assert store.values == {1: "old"}
        assert await loader.load(1) == "new"
        told.set()
    assert store.values.get(1) != "old"


async def test_clear_all_reaches_a_key_beside_one_that_cannot_be_cached() -> None:
    async def fetch(keys: list[Any]) -> list[str]:
        return ["new" for _ in keys]

    store, unhashable = Store(), list[int]()
    store.answer.set()
    store.values[1] = "old"
    async with DataLoader[Any, str](fetch, cache=False, value_cache=store) as loader:
        loader.load(unhashable)
        load = loader.load(1)
        loader.clear_all()
        assert await load == "new"
