"""What a key may be (contract 4.6)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from anyloader import (
    DataLoader,
)
from support import Recorder

pytestmark = pytest.mark.anyio

# --- 6: keys ---


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
async def test_load_none_raises_and_leaves_no_trace(cache: bool) -> None:
    fetch = Recorder[Any, int](lambda key: key * 10)
    async with DataLoader(fetch, cache=cache, name="users") as loader:
        before = loader.statistics()
        with pytest.raises(TypeError, match=r"users.*None"):
            loader.load(None)
        with pytest.raises(TypeError, match=r"users.*None"):
            loader.load_many([1, None])
        assert loader.statistics() == before
        assert await loader.load(2) == 20
    assert fetch.calls == [[2]]


def first_letter(key: Any) -> Any:
    return key[:1]


CALLS_WITH_A_KEY: dict[str, Callable[[DataLoader[Any, Any], Any], object]] = {
    "load": lambda loader, key: loader.load(key),
    "load_many": lambda loader, key: loader.load_many(["fine", key]),
    "prime": lambda loader, key: loader.prime(key, 1),
    "clear": lambda loader, key: loader.clear(key),
    "clear_many": lambda loader, key: loader.clear_many([key]),
    "peek": lambda loader, key: loader.peek(key),
}


@pytest.mark.parametrize("call", CALLS_WITH_A_KEY)
@pytest.mark.parametrize("get_cache_key", [None, first_letter], ids=["key", "cache key"])
async def test_an_unhashable_key_is_named_with_the_way_out(call: str, get_cache_key: Any) -> None:
    fetch = Recorder[Any, int](len)
    async with DataLoader(fetch, get_cache_key=get_cache_key, name="users") as loader:
        before = loader.statistics()
        with pytest.raises(TypeError, match=r"users.*\['key', 'two'\].*get_cache_key"):
            CALLS_WITH_A_KEY[call](loader, ["key", "two"])
        assert loader.statistics() == before
        assert await loader.load("abc") == 3
    assert fetch.calls == [["abc"]]


@pytest.mark.parametrize("call", CALLS_WITH_A_KEY)
async def test_the_text_about_an_unhashable_key_is_bounded(call: str) -> None:
    async with DataLoader(Recorder[Any, int](len)) as loader:
        with pytest.raises(TypeError) as caught:
            CALLS_WITH_A_KEY[call](loader, ["k" * 1000] * 1000)
    assert len(str(caught.value)) < 500


async def test_an_unhashable_key_is_fine_with_the_cache_off() -> None:
    fetch = Recorder[list[int], int](sum)
    async with DataLoader(fetch, cache=False) as loader:
        one, many = loader.load([1, 2]), loader.load_many([[3], [3]])
        assert (await one, await many) == (3, [3, 3])
        loader.prime([1, 2], 0).clear([1, 2]).clear_many([[3]])
        assert loader.peek([1, 2]) is None
    assert fetch.calls == [[[1, 2], [3], [3]]]


async def test_an_unhashable_key_is_fine_with_a_hashable_cache_key() -> None:
    fetch = Recorder[list[int], int](sum)
    async with DataLoader(fetch, get_cache_key=tuple) as loader:
        assert await loader.load_many([[1, 2], [1, 2], [3]]) == [3, 3, 3]
        assert await loader.load([3]) == 3
    assert fetch.calls == [[[1, 2], [3]]]


async def one_stream(keys: list[Any]) -> AsyncGenerator[tuple[Any, int], None]:
    for key in keys:
        yield key, len(key)


@pytest.mark.parametrize("deduplicate", [True, False], ids=["deduplicate", "stream"])
async def test_where_keys_are_compared_an_unhashable_one_is_named_with_the_cache_off(
    deduplicate: bool,
) -> None:
    fn: Any = Recorder[Any, int](len) if deduplicate else one_stream
    async with DataLoader[Any, int](fn, cache=False, deduplicate=deduplicate) as loader:
        before = loader.statistics()
        for call in "load", "load_many":
            with pytest.raises(TypeError, match=r"\['key', 'two'\].*get_cache_key"):
                CALLS_WITH_A_KEY[call](loader, ["key", "two"])
            after = loader.statistics()
            assert (after.queued, after.running) == (before.queued, before.running)
        assert await loader.load_many(["abc", "abc"]) == [3, 3]


async def test_the_error_of_an_unhashable_key_has_its_cause() -> None:
    async with DataLoader(Recorder[list[int], int](sum)) as loader:
        with pytest.raises(TypeError) as caught:
            loader.load([1])
        assert type(caught.value.__cause__) is TypeError


class Key:
    """One of many with the same hash, which does something when it is compared or hashed."""

    def __init__(self, name: str, acts: Callable[[], object] = int) -> None:
        self.name, self.acts = name, acts

    def __hash__(self) -> int:
        self.acts()
        return 1

    def __eq__(self, other: object) -> bool:
        self.acts()
        return self is other


def name(key: Key) -> str:
    return key.name


@pytest.mark.parametrize("many", [False, True], ids=["load", "load_many"])
@pytest.mark.parametrize("deduplicate", [False, True], ids=["cache", "deduplicate"])
async def test_a_key_that_fails_to_be_compared_is_not_sent(many: bool, deduplicate: bool) -> None:
    steps = 0

    def fail_at_last() -> None:
        nonlocal steps
        steps -= 1
        if not steps:
            raise ArithmeticError("no comparison")

    for most in range(1, 6):
        steps = 0
        fetch = Recorder[Key, str](name)
        async with DataLoader(
            fetch, cache=not deduplicate, deduplicate=deduplicate, max_batch_size=2
        ) as loader:
            first = loader.load(Key("first"))
            bad = Key("bad", fail_at_last)
            steps = most
            try:
                refused = loader.load_many([bad]) if many else loader.load(bad)
            except ArithmeticError:
                refused = None
            steps = 0
            last = loader.load(Key("last"))
            assert await first == "first"
            assert await last == "last"
        calls = [[key.name for key in keys] for keys in fetch.calls]
        if refused is None:
            assert calls == [["first", "last"]]
        else:
            assert sorted(calls) == [["first", "bad"], ["last"]] or most < 2


@pytest.mark.parametrize("many", [False, True], ids=["load", "load_many"])
@pytest.mark.parametrize("size", [1, 2])
async def test_a_key_that_loads_when_it_is_hashed_makes_no_batch_too_big(
    size: int, many: bool
) -> None:
    extra: list[Any] = []

    def load() -> None:
        if len(extra) < 9:
            index = len(extra)
            extra.append(None)
            key = Key(f"extra {index}")
            extra[index] = loader.load_many([key]) if many else loader.load(key)

    fetch = Recorder[Key, str](name)
    async with DataLoader(fetch, max_batch_size=size) as loader:
        assert await loader.load(Key("one", load)) == "one"
        assert await loader.load_many([Key("two", load), Key("three", load)]) == ["two", "three"]
        for load_ in extra:
            await load_
    assert len(extra) == 9
    assert max(map(len, fetch.calls)) == size
    assert sum(map(len, fetch.calls)) == 12
