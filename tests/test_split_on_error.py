"""``split_on_error`` finds the key that makes a call fail (contract 3)."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from anyio.lowlevel import checkpoint

from anyloader import BatchResultError, DataLoader, split_on_error
from support.value_caches import Store

pytestmark = pytest.mark.anyio


class Bad(Exception):
    pass


class Api:
    """A bulk API that fails as a whole if it is asked for one of the bad keys."""

    def __init__(self, *bad: int, mapping: bool = False) -> None:
        self.bad = set(bad)
        self.mapping = mapping
        self.calls: list[list[int]] = []

    async def __call__(self, keys: list[int]) -> Any:
        self.calls.append(list(keys))
        await checkpoint()
        for key in keys:
            if key in self.bad:
                raise Bad(key)
        return {key: key * 10 for key in keys} if self.mapping else [key * 10 for key in keys]


async def load(api: Api, keys: Any, **options: Any) -> list[Any]:
    async with DataLoader(split_on_error(api, **options)) as loader:
        return await loader.load_many(keys, return_exceptions=True)


@pytest.mark.parametrize("mapping", [False, True])
@pytest.mark.parametrize("bad", [0, 3, 7])
async def test_only_the_bad_key_fails(mapping: bool, bad: int) -> None:
    api = Api(bad, mapping=mapping)
    values = await load(api, range(8), on=Bad)
    error = values[bad]
    assert isinstance(error, Bad)
    assert error.args == (bad,)
    assert [value for key, value in enumerate(values) if key != bad] == [
        key * 10 for key in range(8) if key != bad
    ]
    assert api.calls[0] == [*range(8)]
    assert len(api.calls) == 7


async def test_several_bad_keys_get_an_error_each() -> None:
    values = await load(Api(1, 5), range(8), on=Bad)
    assert [key for key, value in enumerate(values) if isinstance(value, Bad)] == [1, 5]
    assert [value.args for value in values if isinstance(value, Bad)] == [(1,), (5,)]


async def test_without_an_error_there_is_one_call() -> None:
    api = Api()
    assert await load(api, range(8), on=Bad) == [key * 10 for key in range(8)]
    assert api.calls == [[*range(8)]]


async def test_a_key_alone_is_not_asked_again() -> None:
    api = Api(1)
    (error,) = await load(api, [1], on=Bad)
    assert isinstance(error, Bad)
    assert api.calls == [[1]]


async def test_another_error_fails_the_batch() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        calls.append(keys)
        raise OSError("down")

    calls: list[list[int]] = []
    async with DataLoader(split_on_error(fetch, on=Bad)) as loader:
        with pytest.raises(OSError, match="down"):
            await loader.load_many(range(8))
    assert len(calls) == 1


async def test_several_types_of_error() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        if 1 in keys:
            raise Bad
        if 2 in keys:
            raise KeyError
        return keys

    async with DataLoader(split_on_error(fetch, on=(Bad, KeyError))) as loader:
        values = await loader.load_many(range(4), return_exceptions=True)
    assert [type(value) for value in values] == [int, Bad, KeyError, int]


async def test_calls_are_bounded() -> None:
    api = Api(*range(64))
    values = await load(api, range(64), on=Bad, max_calls=9)
    assert all(isinstance(value, Bad) for value in values)
    assert len(api.calls) <= 9


async def test_it_keeps_the_name_of_its_function() -> None:
    async def fetch_users(keys: list[int]) -> list[int]:
        return keys

    function = split_on_error(fetch_users, on=Bad)
    assert "fetch_users" in DataLoader(function).name
    assert "fetch_users" in repr(function)


@pytest.mark.parametrize(
    "options",
    [
        *({"on": on} for on in (5, int, KeyboardInterrupt, (), (Bad, int))),
        *({"on": Bad, "max_calls": calls} for calls in (0, True)),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        split_on_error(Api(), **options)


def test_a_function_that_is_none_is_refused() -> None:
    function: Any = 5
    with pytest.raises(TypeError):
        split_on_error(function, on=Bad)


@pytest.mark.parametrize("wrong", [[1], "ab", 7], ids=repr)
async def test_a_part_with_another_length_fails_the_batch_and_says_so(wrong: Any) -> None:
    async def fetch(keys: list[int]) -> Any:
        if len(keys) > 2:
            raise LookupError
        return wrong

    async with DataLoader[int, Any](split_on_error(fetch, on=LookupError)) as loader:
        with pytest.raises(BatchResultError, match="for 2 keys"):
            await loader.load_many(range(4))


def test_a_value_cache_of_one_function_is_refused_to_another_one() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        raise NotImplementedError

    async def other(keys: list[int]) -> list[int]:
        raise NotImplementedError

    cache = Store()
    for _ in range(2):
        DataLoader(split_on_error(fetch, on=Bad), value_cache=cache)
    with pytest.raises(TypeError, match="serves another batch function"):
        DataLoader(split_on_error(other, on=Bad), value_cache=cache)


async def test_what_a_mapping_gives_for_what_it_lacks_it_gives_in_parts_too() -> None:
    async def posts_of(authors: list[int]) -> dict[int, list[str]]:
        if 2 in authors:
            raise Bad
        return defaultdict(list, {1: ["first"]})

    async with DataLoader(split_on_error(posts_of, on=Bad)) as loader:
        values = await loader.load_many([1, 2, 3], return_exceptions=True)
    assert values[::2] == [["first"], []]
    assert isinstance(values[1], Bad)
