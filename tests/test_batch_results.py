"""What a batch function may return, but for streams (contract 3)."""

from __future__ import annotations

from collections import ChainMap, defaultdict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from itertools import count
from types import MappingProxyType
from typing import Any

import pytest

from anyloader import (
    BatchResultError,
    DataLoader,
    LoaderError,
)
from support import Recorder
from support.loads import outcome, outcomes

pytestmark = pytest.mark.anyio

# --- iterables ---


def one_by_one(keys: list[int]) -> Iterator[int]:
    for key in keys:
        yield key * 10


ITERABLES: dict[str, Callable[[list[int]], Any]] = {
    "list": lambda keys: [key * 10 for key in keys],
    "tuple": lambda keys: tuple(key * 10 for key in keys),
    "generator": one_by_one,
    "map": lambda keys: map((10).__mul__, keys),
    "deque": lambda keys: deque(key * 10 for key in keys),
    "range": lambda keys: range(30, 0, -10),
    "values of a dict": lambda keys: {key: key * 10 for key in keys}.values(),
}


def returning(make: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Awaitable[Any]]:
    async def fetch(keys: list[Any]) -> Any:
        return make(keys)

    return fetch


@pytest.mark.parametrize("kind", ITERABLES)
async def test_any_iterable_of_one_value_per_key_will_do(kind: str) -> None:
    async with DataLoader[int, int](returning(ITERABLES[kind])) as loader:
        assert await loader.load_many([3, 2, 1]) == [30, 20, 10]


async def test_a_generator_that_raises_fails_the_batch() -> None:
    def broken(keys: list[int]) -> Iterator[int]:
        yield 1
        raise LookupError("half way")

    async with DataLoader[int, int](returning(broken)) as loader:
        result = await loader.load_many([1, 2], return_exceptions=True)
        assert [repr(error) for error in result] == ["LookupError('half way')"] * 2


class Nameless:
    def __repr__(self) -> str:
        raise ValueError("no repr")


# All but the dict views have as many items as there are keys, so only their type speaks
# against them.
REFUSED: dict[str, Any] = {
    "str": "ab",
    "bytes": b"ab",
    "bytearray": bytearray(b"ab"),
    "set": {1, 2},
    "frozenset": frozenset({1, 2}),
    "keys of a dict": {1: "a", 2: "b"}.keys(),
    "None": None,
    "int": 2,
    "object without a repr": Nameless(),
    "too few": [1],
    "too many": [1, 2, 3],
    "none": [],
    "tuple too long": (1, 2, 3),
}


@pytest.mark.parametrize("kind", REFUSED)
async def test_anything_else_is_refused(kind: str) -> None:
    async with DataLoader[int, Any](returning(lambda keys: REFUSED[kind])) as loader:
        one, two = loader.load(1), loader.load(2)
        for handle in one, two:
            with pytest.raises(BatchResultError):
                await handle
        assert loader.peek(1) is None


@pytest.mark.parametrize("make", [lambda keys: [1, 2], lambda keys: None, lambda keys: (1, 2)])
async def test_what_cannot_be_awaited_is_refused(make: Any) -> None:
    async with DataLoader[int, Any](make) as loader:
        with pytest.raises(BatchResultError, match="await"):
            await loader.load_many([1, 2])


async def test_an_endless_generator_is_refused_at_the_first_value_too_many() -> None:
    taken: list[int] = []

    def endless(keys: list[int]) -> Iterator[int]:
        for number in count():
            taken.append(number)
            yield number

    async with DataLoader[int, int](returning(endless)) as loader:
        with pytest.raises(BatchResultError, match="more than 2"):
            await loader.load_many([1, 2])
    assert taken == [0, 1, 2]


async def test_a_batch_result_error_names_loader_and_lengths() -> None:
    async with DataLoader[str, Any](returning(lambda keys: ["x", "y"]), name="users") as loader:
        with pytest.raises(BatchResultError) as caught:
            await loader.load_many(["alice", "bob", "carol"])

    message = str(caught.value)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, LoaderError)
    assert "users" in message
    assert "2 values" in message
    assert "3 keys" in message
    for excerpt in "'alice'", "'carol'", "'x'", "'y'":
        assert excerpt not in message  # it reaches clients
        assert excerpt in caught.value.excerpt


def huge_mapping(keys: list[Any]) -> Any:
    return {1: "v" * 100_000}.items()


@pytest.mark.parametrize(
    "make",
    [
        lambda keys: ["v" * 100_000] * 5,
        lambda keys: "v" * 100_000,
        lambda keys: {f"{n}{'v' * 1000}" for n in range(1000)},
        lambda keys: tuple("v" * 1000 for _ in range(1000)),
        huge_mapping,
    ],
)
async def test_the_text_of_a_batch_result_error_is_bounded(make: Any) -> None:
    keys = [f"{n}{'k' * 1000}" for n in range(50)]
    async with DataLoader[str, Any](returning(make)) as loader:
        with pytest.raises(BatchResultError) as caught:
            await loader.load_many(keys)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "pair", [("x" * 100_000, 1), "y" * 100_000, (["z" * 100_000] * 100,)], ids=["key", "str", "one"]
)
async def test_the_text_of_a_batch_result_error_of_a_stream_is_bounded(pair: Any) -> None:
    async def stream(keys: list[str]) -> AsyncGenerator[Any, None]:
        yield pair

    async with DataLoader[str, Any](stream) as loader:
        with pytest.raises(BatchResultError) as caught:
            await loader.load_many([f"{n}{'k' * 1000}" for n in range(50)])
    assert len(str(caught.value)) < 1000


# --- mappings ---


@pytest.mark.parametrize(
    "wrap", [dict, MappingProxyType, ChainMap], ids=["dict", "mappingproxy", "ChainMap"]
)
async def test_a_mapping_is_read_by_key(wrap: Any) -> None:
    async with DataLoader[int, str](returning(lambda keys: wrap({2: "b", 1: "a"}))) as loader:
        assert await loader.load_many([1, 2]) == ["a", "b"]


async def test_a_mapping_with_more_than_was_asked_for_is_fine() -> None:
    async with DataLoader[int, str](returning(lambda keys: {1: "a", 2: "b", 3: "c"})) as loader:
        assert await loader.load(2) == "b"
        assert loader.peek(3) is None


async def test_an_absent_key_of_a_mapping_is_none() -> None:
    async with DataLoader[int, Any](returning(lambda keys: {1: "a"})) as loader:
        assert await loader.load_many([1, 2]) == ["a", None]


async def test_a_mapping_that_makes_values_up_is_asked_for_absent_keys() -> None:
    found: defaultdict[int, str] = defaultdict(lambda: "made up", {1: "a"})
    async with DataLoader[int, Any](returning(lambda keys: found)) as loader:
        assert await loader.load_many([1, 2]) == ["a", "made up"]
    async with DataLoader[int, Any](returning(lambda keys: found), on_missing=str) as loader:
        assert await loader.load_many([1, 3]) == ["a", "3"]


async def test_none_and_false_in_a_mapping_are_values() -> None:
    async with DataLoader[int, Any](
        returning(lambda keys: {1: None, 2: 0}), on_missing=KeyError
    ) as loader:
        assert await loader.load_many([1, 2]) == [None, 0]


async def test_on_missing_gives_a_value() -> None:
    asked: list[int] = []

    def missing(key: int) -> str:
        asked.append(key)
        return f"no {key}"

    async with DataLoader[int, str](returning(lambda keys: {1: "a"}), on_missing=missing) as loader:
        assert await loader.load_many([1, 2]) == ["a", "no 2"]
    assert asked == [2]


async def test_on_missing_gives_an_error_for_that_key_alone() -> None:
    async with DataLoader[int, str](
        returning(lambda keys: {1: "a"}), on_missing=KeyError
    ) as loader:
        one, two = loader.load(1), loader.load(2)
        assert await one == "a"
        with pytest.raises(KeyError) as caught:
            await two
        assert caught.value.args == (2,)


async def test_what_on_missing_raises_is_the_error_of_that_key() -> None:
    def missing(key: int) -> str:
        raise LookupError(key)

    async with DataLoader[int, str](returning(lambda keys: {1: "a"}), on_missing=missing) as loader:
        one, two = loader.load(1), loader.load(2)
        assert await one == "a"
        with pytest.raises(LookupError):
            await two


async def test_a_mapping_is_read_by_cache_key_and_on_missing_gets_the_key() -> None:
    async with DataLoader[str, str](
        returning(lambda keys: {"a": "letter"}),
        get_cache_key=str.lower,
        on_missing=lambda key: f"no {key}",
    ) as loader:
        assert await loader.load_many(["A", "B"]) == ["letter", "no B"]


async def test_a_mapping_is_read_by_cache_key_with_the_cache_off() -> None:
    given: list[list[str]] = []

    async def fetch(keys: list[str]) -> dict[str, str]:
        given.append(keys)
        return {key.lower(): f"letter {key}" for key in keys}

    async with DataLoader(fetch, get_cache_key=str.lower, cache=False) as loader:
        assert await loader.load_many(["A", "A"]) == ["letter A", "letter A"]
    assert given == [["A", "A"]]


async def test_an_error_in_a_mapping_fails_its_key_alone() -> None:
    async with DataLoader[int, str](returning(lambda keys: {1: "a", 2: LookupError(2)})) as loader:
        one, two = loader.load(1), loader.load(2)
        assert await one == "a"
        with pytest.raises(LookupError):
            await two


async def test_a_mapping_that_refuses_a_look_with_a_type_error_of_its_own_is_heard() -> None:
    class Picky(dict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            raise TypeError("not today")

    async with DataLoader(Recorder[int, int](abs), cache_map=Picky()) as loader:
        for call in loader.load, lambda key: loader.load_many([key]):
            with pytest.raises(TypeError, match="not today"):
                call(1)


async def test_a_result_whose_repr_raises_is_named_by_its_type() -> None:
    class Mute:
        def __repr__(self) -> str:
            raise RuntimeError

    async def fetch(keys: list[int]) -> Any:
        return Mute()

    async with DataLoader[int, int](fetch) as loader:
        with pytest.raises(BatchResultError, match=r"<Mute instance at"):
            await loader.load(1)


@pytest.mark.parametrize(("number", "kind"), [(1, iter), (3, tuple)], ids=["too few", "too many"])
async def test_values_are_counted_where_that_can_be_done(number: int, kind: Any) -> None:
    async def fetch(keys: list[int]) -> Any:
        return kind([1, 2, 3][:number])

    async with DataLoader[int, int](fetch) as loader:
        with pytest.raises(BatchResultError, match=rf"returned {number} values? for 2 keys"):
            await loader.load_many([1, 2])


class Lazy:
    """A proxy such as Django's SimpleLazyObject, whose class is that of what it stands for."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise LookupError("what it stands for is not there")


@pytest.mark.virtual_time
async def test_a_value_is_not_looked_into() -> None:
    lazy: Any = Lazy()

    async def fetch(keys: list[int]) -> list[Any]:
        return [1, lazy, 3]

    async with DataLoader(fetch) as loader:
        one, other, three = await outcomes(loader.load(1), loader.load(2), loader.load(3))
        loader.prime(4, lazy)
        assert await loader.load(4) is lazy
    assert one == 1
    assert other is lazy
    assert three == 3


@pytest.mark.virtual_time
async def test_a_missing_value_is_not_looked_into() -> None:
    lazy: Any = Lazy()

    async def fetch(keys: list[int]) -> Any:
        yield 1, 1
        yield 2, lazy

    async with DataLoader(fetch, on_missing=lambda key: lazy) as loader:
        for outcome in (await outcomes(loader.load(1), loader.load(2), loader.load(3)))[1:]:
            assert outcome is lazy


async def test_a_mapping_gives_values_and_not_its_keys() -> None:
    async def fetch(keys: list[int]) -> dict[int, str]:
        return {2: "b", 1: "a"}

    async with DataLoader(fetch) as loader:
        assert await loader.load_many([1, 2]) == ["a", "b"]


@pytest.mark.parametrize("result", [{1, 2}, "ab"], ids=["set", "str"])
async def test_a_set_or_a_str_is_no_list_of_values(result: Any) -> None:
    async def fetch(keys: list[int]) -> Any:
        return result

    async with DataLoader[int, Any](fetch) as loader:
        assert isinstance(await outcome(loader.load_many([1, 2])), BatchResultError)
