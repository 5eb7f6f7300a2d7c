"""Errors name the cause and the remedy first, and hold no keys and no values (contract 3, 4)."""

from __future__ import annotations

import asyncio
import inspect
import sys
from threading import Thread
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest

from anyloader import (
    BatchResultError,
    DataLoader,
    LoadDeadlockError,
    LoaderClosedError,
    LoaderNotOpenError,
    LoaderScope,
    batch_loader,
    compat,
)

pytestmark = pytest.mark.anyio

SECRET = "$2b$12$abcdefg"
KEY = 424242
ROW = {"id": 1, "password_hash": SECRET}


def without_await(keys: list[int]) -> Any:
    return [ROW for _ in keys]


def giving(result: Any) -> Any:
    async def fetch(keys: list[int]) -> Any:
        return result() if callable(result) else result

    return fetch


async def strange_pairs(keys: list[int]) -> Any:
    yield 999_999, SECRET


async def no_pairs(keys: list[int]) -> Any:
    yield SECRET


async def pairs_twice(keys: list[int]) -> Any:
    yield keys[0], SECRET
    yield keys[0], SECRET


WRONG: dict[str, Any] = {
    "one row missing": giving([ROW]),
    "one too many": giving([ROW] * 3),
    "a str": giving(SECRET),
    "bytes": giving(SECRET.encode()),
    "a set": giving({SECRET}),
    "None": giving(None),
    "a row": giving(lambda: ROW),
    "a number": giving(999_999),
    "an object": giving(object()),
    "a generator": giving(lambda: (ROW for _ in range(3))),
    "not async": without_await,
    "a stream of unknown keys": strange_pairs,
    "a stream of no pairs": no_pairs,
    "a stream of pairs given twice": pairs_twice,
    "a mapping of foreign keys": giving({SECRET: ROW}),
}


async def error_of(function: Any, name: str | None = "fetch_users") -> BatchResultError:
    async with DataLoader(function, name=name) as loader:
        handles = [loader.load(KEY), loader.load(KEY + 1)]
        error: Any = None
        for handle in handles:
            try:
                await handle
            except BatchResultError as exc:
                error = exc
        assert error is not None
        assert isinstance(error, BatchResultError)
        return error


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_wrong_result_is_told_without_keys_and_values(wrong: str) -> None:
    error = await error_of(WRONG[wrong])
    text = str(error)
    assert "fetch_users" in text
    for secret in (SECRET, "password_hash", str(KEY), str(KEY + 1), "999999", "999_999"):
        assert secret not in text
        assert not any(secret in str(arg) for arg in error.args)
        assert error.__cause__ is None or secret not in str(error.__cause__)


@pytest.mark.parametrize("wrong", ["one row missing", "one too many", "a row", "not async"])
async def test_an_excerpt_stands_beside_it(wrong: str) -> None:
    error: Any = await error_of(WRONG[wrong])
    assert str(KEY) in error.excerpt
    assert len(error.excerpt) < 2_000
    if sys.version_info >= (3, 11):
        assert any(str(KEY) in note for note in error.__notes__)
        assert sum(map(len, error.__notes__)) < 4_000


async def test_the_excerpt_is_bounded() -> None:
    async with DataLoader(giving(["x" * 100_000] * 3)) as loader:
        with pytest.raises(BatchResultError) as caught:
            await loader.load_many(["k" * 100_000 for _ in range(1)] + [*range(1_000)])
    error: Any = caught.value
    assert len(error.excerpt) < 2_000
    assert len(str(error)) < 1_000


async def test_lengths_are_named() -> None:
    text = str(await error_of(giving([ROW])))
    assert "2" in text
    assert "1" in text


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        ("not async", "is not async"),
        ("None", "None"),
        ("a str", "str"),
        ("bytes", "bytes"),
        ("a set", "set"),
        ("a number", "int"),
    ],
)
async def test_the_cause_comes_first(wrong: str, cause: str) -> None:
    text = str(await error_of(WRONG[wrong]))
    assert cause in text
    assert text.index(cause) < 100


async def test_a_function_that_is_not_async_is_told_the_remedy() -> None:
    text = str(await error_of(without_await))
    assert "in_thread" in text
    assert "async def" in text


@pytest.mark.parametrize(
    ("wrong", "keys", "told"),
    [
        ([1], [1, 2], "returned 1 value for 2 keys;"),
        ([1, 2], [1], "returned 2 values for 1 key;"),
        (5, [1], "returned an int;"),
        ("ab", [1, 2], "returned a str;"),
    ],
)
async def test_one_is_one(wrong: object, keys: list[int], told: str) -> None:
    async with DataLoader(giving(wrong)) as loader:
        with pytest.raises(BatchResultError) as caught:
            await loader.load_many(keys)
    assert told in str(caught.value)


async def test_a_deadlock_is_told_without_keys() -> None:
    async def own(keys: list[int]) -> list[int]:
        return await loader.load_many(keys)

    async with DataLoader(own, name="own") as loader:
        with pytest.raises(LoadDeadlockError, match="own") as caught:
            await loader.load(KEY)
    assert str(KEY) not in str(caught.value)


# --- where a loader can be used ---


async def fetch(keys: list[int]) -> list[int]:
    return keys


fetch_users = batch_loader(fetch)


async def test_a_loader_of_an_ended_scope_points_to_scope_get() -> None:
    """Such as one at the level of a module, in the second request (also told of ``@batch_loader``)."""
    loader = DataLoader(fetch)
    async with LoaderScope():
        assert await loader.load(1) == 1
    async with LoaderScope():
        with pytest.raises((LoaderClosedError, LoaderNotOpenError)) as caught:
            loader.load(1)
    assert "scope.get(" in str(caught.value)
    assert "batch_loader" in str(caught.value)


async def test_a_task_group_around_the_scope_is_told_which_goes_inside() -> None:
    errors: list[Exception] = []

    async def late() -> None:
        await anyio.lowlevel.checkpoint()
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        try:
            await fetch_users.load(1)
        except LoaderClosedError as exc:
            errors.append(exc)

    async with anyio.create_task_group() as tg, LoaderScope():
        tg.start_soon(late)
    (error,) = errors
    assert "task group" in str(error)
    assert "inside" in str(error)


def test_outside_of_any_scope_the_middleware_is_named() -> None:
    async def main() -> None:
        with pytest.raises(LoaderNotOpenError, match="LoaderScopeMiddleware"):
            fetch_users.load(1)
        with pytest.raises(LoaderNotOpenError):
            DataLoader(fetch).load(1)

    asyncio.run(main())


@pytest.mark.parametrize("use", ["load", "enter", "prime"])
async def test_a_subclass_that_forgot_the_constructor_of_its_base(use: str) -> None:
    class Forgetful(DataLoader[int, int]):
        def __init__(self) -> None:
            pass

        async def batch_load_fn(self, keys: list[int]) -> list[int]:
            return keys

    with pytest.raises((RuntimeError, TypeError, AttributeError), match=r"super\(\).__init__"):
        async with LoaderScope():
            loader = Forgetful()
            if use == "load":
                loader.load(1)
            elif use == "prime":
                loader.prime(1, 1)
            else:
                async with loader:
                    pass


# --- other threads ---


async def test_the_advice_for_threads_works_in_any_thread() -> None:
    """It names the token, without which it would work in anyio's own threads only."""
    async with DataLoader(fetch) as loader:

        def wrong_thread() -> str:
            with pytest.raises(RuntimeError) as caught:
                loader.load(KEY)
            return str(caught.value)

        text = await anyio.to_thread.run_sync(wrong_thread)
        assert "from_thread.run" in text
        assert "token" in text
        assert "current_token" in text
        assert str(KEY) not in text

        token = anyio.lowlevel.current_token()

        def right() -> Any:
            return anyio.from_thread.run(loader.load, 1, token=token)

        assert await anyio.to_thread.run_sync(right) == 1


@pytest.mark.only_on("asyncio")
async def test_also_in_threads_that_are_not_of_anyio() -> None:
    async with DataLoader(fetch) as loader:
        token = anyio.lowlevel.current_token()

        def both() -> Any:
            with pytest.raises(RuntimeError, match="current_token"):
                loader.load(KEY)
            return anyio.from_thread.run(loader.load, 1, token=token)

        assert await asyncio.to_thread(both) == 1
        assert await loader.load(1) == 1


async def test_a_thread_without_the_context_of_its_caller_is_told_the_way() -> None:
    fetch_users = batch_loader(fetch)

    def in_thread() -> None:
        with pytest.raises(LoaderNotOpenError, match=r"scope\.get\(\).*token=token"):
            fetch_users.load(KEY)
        got.append(anyio.from_thread.run(loader.load, 1, token=token))

    def run() -> None:
        thread = Thread(target=in_thread)
        thread.start()
        thread.join()

    got: list[int] = []
    async with LoaderScope() as scope:
        loader, token = scope.get(fetch_users), anyio.lowlevel.current_token()
        await anyio.to_thread.run_sync(run)
    assert got == [1]


# --- classes as dependencies ---


@pytest.mark.parametrize("base", [DataLoader, compat.DataLoader])
def test_a_class_that_needs_no_arguments_is_a_dependency_that_takes_none(base: Any) -> None:
    class Users(base):  # type: ignore[misc]
        async def batch_load_fn(self, keys: list[int]) -> list[int]:
            return keys

    class OfTenant(Users):
        def __init__(self, tenant: str) -> None: ...

    assert not inspect.signature(Users).parameters
    assert [*inspect.signature(OfTenant).parameters] == ["tenant"]
    assert "batch_load_fn" in inspect.signature(base).parameters


# --- no keys ---


@pytest.mark.parametrize("use", ["load", "load_many", "load_required", "load_many_required"])
async def test_what_to_do_instead_of_none_as_a_key(use: str) -> None:
    async with DataLoader(fetch) as loader:
        with pytest.raises(TypeError, match=r"None; leave out what has no key.* such as \(\)"):
            getattr(loader, use)([1, None] if "many" in use else None)
        with pytest.raises(TypeError, match="an iterable of keys, not None"):
            loader.load_many(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def test_nothing_returned_is_none() -> None:
    async with DataLoader(giving(None)) as loader:
        with pytest.raises(BatchResultError, match="returned None;"):
            await loader.load(1)


# --- small ones ---


async def test_deduplicate_with_the_cache_on_sends_a_key_once_that_was_cleared() -> None:
    async def record(keys: list[int]) -> list[int]:
        calls.append(keys)
        return keys

    calls: list[list[int]] = []
    async with DataLoader(record, deduplicate=True) as loader:
        first = loader.load(1)
        second = loader.clear(1).load(1)
        assert [await first, await second] == [1, 1]
    assert calls == [[1]]


async def test_a_key_that_holds_what_cannot_be_hashed_is_told_apart() -> None:
    key: Any = ([1], 2)
    async with DataLoader(fetch) as loader:
        with pytest.raises(TypeError, match="get_cache_key") as caught:
            loader.load(key)
    assert "a tuple is not hashable" not in str(caught.value)


def test_a_cache_map_as_a_class_attribute_is_used_or_refused() -> None:
    class Users(DataLoader[int, int]):
        cache_map: Any = {}  # noqa: RUF012

        async def batch_load_fn(self, keys: list[int]) -> list[int]:
            return keys

    async def main() -> None:
        async with Users() as loader:
            await loader.load(1)

    try:
        asyncio.run(main())
    except TypeError as exc:
        assert "cache_map" in str(exc)  # noqa: PT017
    else:
        assert 1 in Users.cache_map
