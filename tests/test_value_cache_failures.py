"""A value cache may fail or hang in every way without failing a load (contract 6.7)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import (
    Mapping,
    Sequence,
)
from functools import partial, wraps
from typing import Any

import anyio
import pytest

from anyloader import (
    DataLoader,
    LoadCancelledError,
    LoaderScope,
    batch_loader,
    in_thread,
    limit,
    split_on_error,
)
from anyloader.hooks import (
    Event,
    ValueCacheFailed,
)
from support import Recorder, wait_all_tasks_blocked
from support.value_caches import Boom, Store

pytestmark = pytest.mark.anyio

# --- what fails there never fails a load, and the hooks hear of it ---


class Faulty(Store):
    """Raises, or returns what it must not, in one of the operations."""

    def __init__(self, operation: str, fault: Any, values: Mapping[Any, Any] | None = None) -> None:
        super().__init__(values)
        self.operation, self.fault = operation, fault
        self.tried: list[list[Any]] = []

    async def _fail(self, operation: str) -> Any:
        if self.operation != operation:
            return False
        if isinstance(self.fault, BaseException):
            raise self.fault
        return True

    async def get_many(self, keys: Sequence[Any]) -> Mapping[Any, Any]:
        found = await super().get_many(keys)
        return self.fault if await self._fail("get_many") else found

    async def set_many(self, items: Mapping[Any, Any]) -> None:
        await self._fail("set_many")
        await super().set_many(items)

    async def delete_many(self, keys: Sequence[Any]) -> None:
        self.tried.append(list(keys))
        await self._fail("delete_many")
        await super().delete_many(keys)


class Failures:
    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, ValueCacheFailed):
            self.told.append((event.operation, repr(event.error)))


@pytest.mark.parametrize("operation", ["get_many", "set_many", "delete_many"])
async def test_an_operation_that_raises_is_told_and_no_load_fails(operation: str) -> None:
    store, fetch, failures = Faulty(operation, Boom()), Recorder(str), Failures()
    async with DataLoader(fetch, value_cache=store, hooks=[failures]) as loader:
        assert await loader.clear(0).load_many([1, 2]) == ["1", "2"]
        assert await loader.load(1) == "1"
    assert fetch.calls == [[1, 2]]
    # What could not be deleted at once is tried again before the batch, and on the way out.
    times = 3 if operation == "delete_many" else 1
    assert failures.told == [(operation, "Boom()")] * times


@pytest.mark.parametrize("operation", ["get_many", "set_many", "delete_many"])
async def test_the_first_failure_of_a_row_is_logged(
    operation: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = Faulty(operation, Boom())
    with caplog.at_level(logging.DEBUG):
        for _ in range(3):
            async with DataLoader(Recorder(str), value_cache=store) as loader:
                assert await loader.clear(1).load(1) == "1"
    records = [record for record in caplog.records if record.name == "anyloader"]
    assert f"failed in {operation}()" in records[0].getMessage()
    assert records[0].exc_info is not None
    # What works in between ends the row: here the calls of the other operations.
    assert len(records) <= 4


class Incomparable:
    """Two of them have one hash, and cannot be compared."""

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        raise Boom("no")


@pytest.mark.parametrize("slow", [True, False])
async def test_keys_that_cannot_be_compared_end_no_scope_where_they_are_deleted(slow: bool) -> None:
    """Where one is being deleted, or was, another one comes."""
    failures = Failures()
    go_on = anyio.Event()

    class Slow(Store):
        async def delete_many(self, keys: Sequence[Any]) -> None:
            deleted.extend(keys)
            if slow:
                await go_on.wait()

    deleted: list[Any] = []
    keys = [Incomparable(), Incomparable(), 3]
    async with DataLoader(
        Recorder(str), value_cache=Slow(), cache=False, hooks=[failures]
    ) as loader:
        for key in keys:
            loader.clear(key)
            await wait_all_tasks_blocked()
        go_on.set()
        assert await loader.load(4) == "4"
    assert deleted[0] is keys[0]
    assert 3 in [key for key in deleted if isinstance(key, int)]
    assert ("delete_many", repr(Boom("no"))) in failures.told


@pytest.mark.parametrize("wrong", [["one", "two"], ["one"], None, "ab", 1], ids=repr)
async def test_what_is_no_mapping_is_refused_and_told(wrong: object) -> None:
    store, fetch, failures = Faulty("get_many", wrong), Recorder(str), Failures()
    async with DataLoader(fetch, value_cache=store, hooks=[failures]) as loader:
        assert await loader.load_many([1, 2]) == ["1", "2"]
    ((operation, error),) = failures.told
    assert operation == "get_many"
    assert "get_many() must return a mapping, not " in error
    assert ("None" if wrong is None else type(wrong).__name__) in error


async def test_a_mapping_that_raises_when_it_is_looked_at_is_told_and_no_load_fails() -> None:
    class Lazy(dict[int, str]):
        def __getitem__(self, key: int) -> str:
            raise Boom

    store, fetch, failures = Faulty("get_many", Lazy({1: "old"})), Recorder(str), Failures()
    async with DataLoader(fetch, value_cache=store, hooks=[failures]) as loader:
        assert await loader.load_many([1, 2]) == ["1", "2"]
    assert failures.told == [("get_many", "Boom()")]


async def test_a_method_that_is_not_async_is_told_and_no_load_fails() -> None:
    class Plain:
        def get_many(self, keys: Sequence[Any]) -> Any:
            return {}

        set_many = delete_many = get_many

    plain: Any = Plain()
    failures = Failures()
    async with DataLoader(Recorder(str), value_cache=plain, hooks=[failures]) as loader:
        assert await loader.clear(0).load(1) == "1"
    told = [operation for operation, _ in failures.told]
    assert told == ["delete_many", "delete_many", "get_many", "set_many", "delete_many"]


async def test_a_key_that_could_not_be_deleted_is_not_taken_from_there() -> None:
    store, fetch = Faulty("delete_many", Boom(), {1: "stale", 2: "good"}), Recorder(str)
    async with DataLoader(fetch, value_cache=store) as loader:
        assert await loader.clear(1).load_many([1, 2]) == ["1", "good"]
    assert fetch.calls == [[1]]


async def test_deleting_is_tried_again_before_the_next_batch() -> None:
    store = Faulty("delete_many", Boom(), {1: "stale"})
    async with DataLoader(Recorder(str), value_cache=store) as loader:
        await loader.clear(1).load(2)
        store.operation = "none any more"
        assert await loader.load(1) == "1"
        assert [keys for what, keys in store.calls if what == "delete"] == [[1]]


@pytest.mark.only_on("asyncio")  # where anybody can raise that
@pytest.mark.parametrize("operation", ["get_many", "set_many"])
async def test_a_value_cache_that_is_cancelled_ends_its_batch_and_hangs_nobody(
    operation: str,
) -> None:
    store = Faulty(operation, None)
    async with DataLoader(Recorder(str), value_cache=store) as loader:
        store.fault = anyio.get_cancelled_exc_class()()
        load = loader.load(1)
        if operation == "get_many":
            with pytest.raises(LoadCancelledError):
                await load
        else:
            assert await load == "1"
        store.operation = "none any more"
        assert await loader.clear(1).load(1) == "1"


# --- one that hangs ---


class Hanging(Store):
    def __init__(self, operation: str) -> None:
        super().__init__()
        self.operation = operation
        self.cancelled = 0

    async def _hang(self, operation: str) -> None:
        if operation == self.operation:
            try:
                await anyio.sleep_forever()
            finally:
                self.cancelled += 1

    async def get_many(self, keys: Sequence[Any]) -> Mapping[Any, Any]:
        await self._hang("get_many")
        return await super().get_many(keys)

    async def set_many(self, items: Mapping[Any, Any]) -> None:
        await self._hang("set_many")

    async def delete_many(self, keys: Sequence[Any]) -> None:
        await self._hang("delete_many")
        await super().delete_many(keys)


@pytest.mark.virtual_time
async def test_whoever_gives_up_on_one_that_hangs_ends_it_and_can_load_again() -> None:
    store, fetch = Hanging("get_many"), Recorder(str)
    async with DataLoader(fetch, value_cache=store) as loader:
        with anyio.move_on_after(1) as scope:
            await loader.load(1)
        assert scope.cancelled_caught
        await wait_all_tasks_blocked()
        assert store.cancelled == 1
        store.operation = "none any more"
        assert await loader.load(1) == "1"
    assert fetch.calls == [[1]]


@pytest.mark.virtual_time
async def test_a_deletion_that_hangs_holds_no_load_up_and_is_tried_again() -> None:
    store = Hanging("delete_many")
    store.values = {1: "old", 2: "two"}
    start = anyio.current_time()
    async with DataLoader(Recorder(str), value_cache=store) as loader:
        loader.clear(1)
        assert await loader.load_many([1, 2]) == ["1", "two"]
        assert anyio.current_time() == start
        await anyio.sleep(2)
        assert store.cancelled == 1
        store.operation = "none any more"
        await loader.load(3)
        assert store.calls[-2:] == [("delete", [1]), ("get", [3])]


async def test_where_deleting_fails_keys_are_not_tried_for_one_another() -> None:
    """Each would be tried as often as others are cleared."""
    store = Faulty("delete_many", Boom(), dict.fromkeys(range(30), "old"))
    async with DataLoader(Recorder(str), value_cache=store) as loader:
        for key in range(10):
            loader.clear(key)
            await wait_all_tasks_blocked()
        for key in range(10, 20):
            assert await loader.load(key) == "old"
        assert store.tried == [[key] for key in (*range(10), *range(10))]
        store.operation = "none any more"
        loader.clear(10)
        await wait_all_tasks_blocked()
        assert store.tried[20:] == [[10], list(range(10))]
        assert list(store.values) == list(range(11, 30))


@pytest.mark.virtual_time
@pytest.mark.parametrize("operation", ["get_many", "set_many", "delete_many"])
async def test_one_that_hangs_does_not_outlive_a_block_that_raises(operation: str) -> None:
    store = Hanging(operation)
    with pytest.raises(Boom):
        async with DataLoader(Recorder(str), value_cache=store) as loader:
            loader.clear(1).load(1)
            await anyio.sleep(1)
            raise Boom
    # Deleting is tried at once, and once more on the way out, for a second each.
    assert store.cancelled == (2 if operation == "delete_many" else 1)


@pytest.mark.virtual_time
async def test_storing_that_hangs_holds_nobody_up_but_the_way_out_which_can_be_cancelled() -> None:
    store = Hanging("set_many")
    start = anyio.current_time()
    with anyio.move_on_after(1) as scope:
        async with DataLoader(Recorder(str), value_cache=store) as loader:
            assert await loader.load(1) == "1"
            assert await loader.load(2) == "2"
            assert anyio.current_time() == start
    assert scope.cancelled_caught
    assert store.cancelled == 2


# --- one cache, one function ---


def other(keys: list[int]) -> Any:
    raise NotImplementedError


def bound(keys: list[int], by: int = 0) -> Any:
    raise NotImplementedError


def test_a_cache_of_one_function_is_refused_to_another_one() -> None:
    store = Store({})
    DataLoader(other, value_cache=store)
    DataLoader(other, value_cache=store)
    with pytest.raises(TypeError, match="serves another batch function already"):
        DataLoader(bound, value_cache=store)
    partials = Store({})
    DataLoader(partial(bound, by=1), value_cache=partials)
    DataLoader(partial(bound, by=2), value_cache=partials)


async def test_a_cache_that_two_sources_of_a_scope_have_is_refused_to_the_second() -> None:
    """Where it is an attribute of their base, all classes share it, though they name no cache."""

    class Rows(DataLoader[int, str]):
        value_cache = Store()

        async def batch_load_fn(self, keys: list[int]) -> list[str]:
            return [f"{type(self).__name__} {key}" for key in keys]

    class One(Rows):
        pass

    class Two(Rows):
        pass

    store = Store()
    first, second = (batch_loader(value_cache=store)(source) for source in (Recorder(str), other))
    for _ in range(2):
        async with LoaderScope() as scope:
            assert await scope.get(One).load(1) == "One 1"
            assert await first.load(1) == "1"
            for source in Two, second:
                with pytest.raises(TypeError, match="serves another batch function already"):
                    await scope.get(source).load(1)


def decorated(function: Any) -> Any:
    @wraps(function)
    async def call(keys: Any) -> Any:
        raise NotImplementedError

    return call


class Table:
    async def rows(self, keys: Any) -> Any:
        raise NotImplementedError

    @classmethod
    async def all_rows(cls, keys: Any) -> Any:
        raise NotImplementedError


class Users(Table):
    pass


class Books(Table):
    pass


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (decorated(decorated(other)), decorated(decorated(bound))),
        (
            split_on_error(in_thread(other), on=ValueError),
            split_on_error(in_thread(bound), on=ValueError),
        ),
        (decorated(partial(other)), decorated(partial(bound))),
        (Users().rows, Books().rows),
        (partial(decorated(Users().rows)), decorated(partial(Books().rows))),
        (Users.all_rows, Books.all_rows),
    ],
    ids=["decorators", "wrappers", "partials", "methods", "wrapped methods", "class methods"],
)
def test_a_cache_is_refused_to_another_function_whatever_stands_around_it(
    one: Any, two: Any
) -> None:
    store = Store({})
    for _ in range(2):
        DataLoader(one, value_cache=store)
    with pytest.raises(TypeError, match="serves another batch function already"):
        DataLoader(two, value_cache=store)


def test_objects_of_one_class_share_the_cache_of_their_method() -> None:
    store = Store({})
    for _ in range(2):
        DataLoader(Users().rows, value_cache=store)
        DataLoader(decorated(Users().rows), value_cache=store)


def test_of_a_cache_that_cannot_be_referred_to_weakly_nothing_is_known() -> None:
    class Slots:
        __slots__ = ()

        async def get_many(self, keys: Sequence[Any]) -> Mapping[Any, Any]:
            raise NotImplementedError

        async def set_many(self, items: Mapping[Any, Any]) -> None:
            raise NotImplementedError

        async def delete_many(self, keys: Sequence[Any]) -> None:
            raise NotImplementedError

    store = Slots()
    for function in (other, bound):
        DataLoader(function, value_cache=store)


async def test_a_key_cleared_again_while_it_is_deleted_is_deleted_again() -> None:
    class Slow(Store):
        async def delete_many(self, keys: Sequence[Any]) -> None:
            deleting.set()
            await gate.wait()
            await super().delete_many(keys)

    gate, deleting = anyio.Event(), anyio.Event()
    store = Slow({1: "old"})
    async with DataLoader(Recorder(str), value_cache=store) as loader:
        loader.clear(1)
        await deleting.wait()
        loader.clear(1)
        gate.set()
        await wait_all_tasks_blocked()
        assert [call for call in store.calls if call[0] == "delete"] == [("delete", [1])] * 2


async def test_in_a_foreign_group_what_was_cleared_is_deleted_at_once() -> None:
    store = Store({1: "old"})
    async with anyio.create_task_group() as tg:
        loader = DataLoader(Recorder(str), value_cache=store, task_group=tg)
        loader.clear(1)
        await wait_all_tasks_blocked()
        assert store.values == {}
        await loader.load(2)
    loader.clear(2)  # pyright: ignore[reportPossiblyUnboundVariable]  # nobody is left who could
    assert store.values == {2: "2"}


async def test_a_foreign_group_that_is_cancelled_lets_what_was_cleared_be_deleted() -> None:
    class Slow(Store):
        async def delete_many(self, keys: Sequence[Any]) -> None:
            await anyio.lowlevel.checkpoint()
            await super().delete_many(keys)

    store = Slow({1: "old"})
    async with anyio.create_task_group() as tg:
        loader = DataLoader(Recorder(str), value_cache=store, task_group=tg)
        assert await loader.load(1) == "old"
        loader.clear(1)
        tg.cancel_scope.cancel()
    assert store.values == {}


@pytest.mark.only_on("asyncio")
@pytest.mark.parametrize("place", ["its own", "a given group"])
async def test_what_was_cleared_is_deleted_though_the_way_out_is_cancelled_natively(
    place: str,
) -> None:
    deleting = asyncio.Event()

    class Slow(Store):
        async def delete_many(self, keys: Sequence[Any]) -> None:
            deleting.set()
            await wait_all_tasks_blocked()
            await super().delete_many(keys)

    store = Slow({1: "old"})

    async def leave() -> None:
        async with anyio.create_task_group() as tg:
            async with LoaderScope(tg if place == "a given group" else None) as scope:
                scope.get(batch_loader(value_cache=store)(other)).clear(1)

    leaving = asyncio.create_task(leave())
    await deleting.wait()
    leaving.cancel()
    await asyncio.wait([leaving])
    assert leaving.cancelled()
    assert store.values == {}


@pytest.mark.parametrize("leave", ["soon", "later"])
async def test_in_a_shared_scope_what_was_cleared_is_deleted_at_once(leave: str) -> None:
    """Its way out may be days away, and so may its next batch."""
    store = Store({1: "old"})
    decorate = batch_loader(shared=True, cache="pending", value_cache=store)
    shared: Any = decorate(Recorder[int, str](str))
    async with LoaderScope(shared=True) as outer:
        async with LoaderScope():
            shared.clear(1)
        if leave == "later":
            await wait_all_tasks_blocked()
            assert store.values == {}
            async with LoaderScope():
                assert await shared.load(1) == "1"
                shared.clear_many([1])
        loader = outer.get(shared)
    assert store.values == {}
    store.values = {1: "old"}
    loader.clear(1)  # nobody is left who could
    assert store.values == {1: "old"}


@pytest.mark.virtual_time
async def test_one_that_hangs_on_the_way_out_keeps_no_other_from_its_turn() -> None:
    hanging, store, late = Hanging("delete_many"), Store({1: "old"}), Hanging("delete_many")
    start = anyio.current_time()
    async with LoaderScope() as scope:
        for cache in hanging, store, late:
            scope.get(batch_loader(value_cache=cache)(other)).clear(1)
    assert store.values == {}
    assert hanging.cancelled == late.cancelled == 2
    assert anyio.current_time() - start == pytest.approx(2)  # of which one passes at once


async def test_a_deletion_that_fails_on_the_way_out_is_told_as_of_no_batch() -> None:
    class Values:
        async def get_many(self, keys: Any) -> Any:
            return {}

        async def set_many(self, items: Any) -> None:
            pass

        async def delete_many(self, keys: Any) -> None:
            raise OSError

    told: list[Any] = []
    loader = DataLoader(Recorder[int, int](abs), value_cache=Values(), hooks=[told.append])
    async with loader:
        loader.clear(1)
    assert [(type(event), event.batch, event.operation) for event in told] == [
        (ValueCacheFailed, 0, "delete_many")
    ] * 2  # at once, and on the way out


@pytest.mark.virtual_time
async def test_who_stores_holds_no_token() -> None:
    store = Hanging("set_many")
    async with DataLoader(Recorder(str), value_cache=store, limiter=limit(1)) as loader:
        assert await loader.load(1) == "1"
        with anyio.fail_after(5):
            assert await loader.load(2) == "2"
