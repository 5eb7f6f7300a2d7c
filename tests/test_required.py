"""``load_required`` and ``load_many_required`` (contract 1)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import anyio
import pytest

from anyloader import (
    DataLoader,
    KeyNotFoundError,
    LoaderError,
    LoaderScope,
    LoadHandle,
    batch_loader,
)
from support import Recorder

pytestmark = pytest.mark.anyio


def even(key: int) -> str | None:
    return None if key % 2 else f"value {key}"


async def test_a_value_is_given_and_none_raises() -> None:
    async with DataLoader(Recorder(even)) as loader:
        assert await loader.load_required(2) == "value 2"
        with pytest.raises(KeyNotFoundError):
            await loader.load_required(1)
        assert await loader.load(1) is None


async def test_the_error_is_a_lookup_error_and_names_the_loader_and_the_key() -> None:
    assert issubclass(KeyNotFoundError, LoaderError)
    assert issubclass(KeyNotFoundError, LookupError)
    async with DataLoader(Recorder(even), name="fetch_users") as loader:
        with pytest.raises(KeyNotFoundError, match="fetch_users") as caught:
            await loader.load_required(13)
    told = [str(caught.value), *getattr(caught.value, "__notes__", ())]
    told.append(str(getattr(caught.value, "excerpt", "")))
    assert any("13" in text for text in told)


async def test_it_shares_cache_and_batch_with_load() -> None:
    fetch = Recorder(even)
    async with DataLoader(fetch) as loader:
        handles: list[Any] = [loader.load(2), loader.load_required(2), loader.load_required(4)]
        many = loader.load_many_required([2, 4, 6])
        assert [await handle for handle in handles] == ["value 2", "value 2", "value 4"]
        assert await many == ["value 2", "value 4", "value 6"]
        assert await loader.load_required(2) == "value 2"
        assert loader.statistics().loads == 7
    assert fetch.calls == [[2, 4, 6]]


async def test_it_is_a_plain_call_that_enqueues_at_once() -> None:
    fetch = Recorder(even)
    async with DataLoader(fetch) as loader:
        handle = loader.load_required(2)
        assert loader.statistics().queued == 1
        many = loader.load_many_required([4, 6])
        assert loader.statistics().queued == 3
        assert await handle == "value 2"
        assert await many == ["value 4", "value 6"]


async def test_a_handle_of_it_is_one_like_any_other() -> None:
    async with DataLoader(Recorder(even)) as loader:
        found, lost = loader.load_required(2), loader.load_required(1)
        await found.wait()
        await lost.wait()
        assert (found.key, found.status) == (2, LoadHandle.Status.FINISHED)
        assert found.return_value == "value 2"
        assert lost.status is LoadHandle.Status.FAILED
        assert isinstance(lost.exception, KeyNotFoundError)
        for _ in range(2):
            assert await found == "value 2"
            with pytest.raises(KeyNotFoundError):
                await lost


async def test_the_first_missing_of_many_raises() -> None:
    async with DataLoader(Recorder(even)) as loader:
        with pytest.raises(KeyNotFoundError):
            await loader.load_many_required([2, 3, 5])
        assert await loader.load_many_required([]) == []


async def test_the_first_of_many_raises_before_the_rest_is_there() -> None:
    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, str | Exception | None], None]:
        yield 2, "value 2"
        yield 3, None
        yield 4, PermissionError("not yours")
        await anyio.sleep_forever()

    async with DataLoader(stream) as loader:
        for keys in [2, 3, 4, 5], [2, 3, 5, 4]:
            with pytest.raises(KeyNotFoundError) as caught:
                await loader.load_many_required(keys)
            assert caught.value.key == 3
        with pytest.raises(PermissionError):
            await loader.load_many_required([2, 4, 3, 5])


async def test_an_error_of_the_key_comes_as_it_is() -> None:
    error = PermissionError("not yours")

    async def fetch(keys: list[int]) -> list[Any]:
        return [error for _ in keys]

    async with DataLoader(fetch) as loader:
        with pytest.raises(PermissionError) as caught:
            await loader.load_required(1)
        assert caught.value is error


async def test_other_falsy_values_are_values() -> None:
    async def fetch(keys: list[int]) -> list[Any]:
        return [0, "", [], False]

    async with DataLoader(fetch) as loader:
        assert await loader.load_many_required(range(4)) == [0, "", [], False]


async def test_a_missing_value_is_cached_for_both() -> None:
    fetch = Recorder(even)
    async with DataLoader(fetch) as loader:
        assert await loader.load(1) is None
        with pytest.raises(KeyNotFoundError):
            await loader.load_required(1)
        loader.prime(1, "found", force=True)
        assert await loader.load_required(1) == "found"
    assert fetch.calls == [[1]]


async def test_two_errors_of_one_key_are_not_one_that_grows() -> None:
    async with DataLoader(Recorder(even)) as loader:
        handle = loader.load_required(1)
        lengths = []
        for _ in range(3):
            with pytest.raises(KeyNotFoundError) as caught:
                await handle
            lengths.append(len(caught.traceback))
        assert len(set(lengths)) == 1


@batch_loader
async def fetch_users(keys: list[int]) -> list[str | None]:
    return [*map(even, keys)]


async def test_beside_a_batch_function_and_in_task_groups() -> None:
    async with LoaderScope():
        assert await fetch_users.load_required(2) == "value 2"
        assert await fetch_users.load_many_required([2, 4]) == ["value 2", "value 4"]
        with pytest.raises(KeyNotFoundError):
            await fetch_users.load_required(1)
        async with anyio.create_task_group() as tg:
            tg.start_soon(fetch_users.load_required, 6)


async def test_one_that_is_given_up_leaves_the_others_alone() -> None:
    gate = anyio.Event()
    fetch = Recorder(even, gate=gate)
    async with DataLoader(fetch) as loader:
        required, plain = loader.load_required(2), loader.load(2)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await required
        gate.set()
        assert await plain == "value 2"


async def test_a_deferred_hit_of_none_is_refused_too() -> None:
    async with DataLoader(Recorder[int, Any](lambda key: None), defer_hits=True) as loader:
        assert await loader.load(1) is None
        loads = loader.load(2), loader.load_required(1), loader.load_many_required([1])
        for load in loads[1:]:
            with pytest.raises(KeyNotFoundError):
                await load
        assert await loads[0] is None
