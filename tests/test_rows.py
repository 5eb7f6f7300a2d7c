"""Rows in any order, and mappings by any key (contract 3)."""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable
from operator import itemgetter
from typing import Any

import pytest

from anyloader import BatchResultError, DataLoader, batch_loader

pytestmark = pytest.mark.anyio

Row = dict[str, Any]
ROWS: list[Row] = [
    {"id": 3, "author": 1},
    {"id": 1, "author": 2},
    {"id": 2, "author": 1},
]
by_id = itemgetter("id")
by_author = itemgetter("author")


def giving(result: Any) -> Any:
    async def fetch(keys: list[Any]) -> Any:
        return result

    return fetch


async def loaded(result: Any, keys: Iterable[Any], **options: Any) -> Any:
    async with DataLoader(giving(result), **options) as loader:
        return await loader.load_many(keys, return_exceptions=True)


# --- index_by ---


async def test_rows_in_any_order_find_their_keys() -> None:
    assert await loaded(ROWS, [1, 2, 3], index_by=by_id) == [ROWS[1], ROWS[2], ROWS[0]]


async def test_any_iterable_of_rows_will_do() -> None:
    assert await loaded(tuple(ROWS), [1], index_by=by_id) == [ROWS[1]]
    assert await loaded((row for row in ROWS), [1], index_by=by_id) == [ROWS[1]]
    assert await loaded(iter(ROWS), [2], index_by=by_id) == [ROWS[2]]


async def test_a_key_without_a_row_is_absent() -> None:
    assert await loaded(ROWS, [1, 4], index_by=by_id) == [ROWS[1], None]
    assert await loaded([], [1, 2], index_by=by_id) == [None, None]
    _, missing = await loaded(ROWS, [1, 4], index_by=by_id, on_missing=KeyError)
    assert isinstance(missing, KeyError)
    assert await loaded(ROWS, [4], index_by=by_id, on_missing=lambda key: -key) == [-4]


async def test_a_second_row_for_a_key_is_an_error() -> None:
    async with DataLoader(giving(ROWS), index_by=by_author, name="fetch") as loader:
        with pytest.raises(BatchResultError, match="fetch"):
            await loader.load_many([1, 2])


async def test_rows_are_found_by_the_cache_key_too() -> None:
    rows = [{"name": "ann"}, {"name": "BOB"}]
    options: Any = {"index_by": itemgetter("name"), "get_cache_key": str.lower}
    assert await loaded(rows, ["Ann", "BOB"], **options) == rows


async def test_without_a_cache_equal_keys_get_the_same_row() -> None:
    assert await loaded(ROWS, [1, 1, 2], index_by=by_id, cache=False) == [
        *(ROWS[1], ROWS[1], ROWS[2])
    ]


@pytest.mark.parametrize("option", ["index_by", "group_by"])
@pytest.mark.parametrize("result", [None, 5, "text", b"bytes"], ids=repr)
async def test_what_is_no_rows_is_a_wrong_result(option: str, result: Any) -> None:
    (error,) = await loaded(result, [1], **{option: by_id})
    assert isinstance(error, BatchResultError)


@pytest.mark.parametrize("option", ["index_by", "group_by"])
async def test_a_function_that_raises_fails_the_batch_with_its_error(option: str) -> None:
    first, second = await loaded([{"other": 1}], [1, 2], **{option: by_id})
    assert isinstance(first, KeyError)
    assert first is second


# --- group_by ---


async def test_each_key_gets_the_list_of_its_rows_in_their_order() -> None:
    assert await loaded(ROWS, [1, 2, 3], group_by=by_author) == [
        *([ROWS[0], ROWS[2]], [ROWS[1]], [])
    ]


async def test_keys_without_rows_get_lists_of_their_own() -> None:
    first, second = await loaded([], [1, 2], group_by=by_author)
    assert first == second == []
    assert first is not second


async def test_rows_are_grouped_by_the_cache_key_too() -> None:
    rows = [("ann", 1), ("Ann", 2), ("bob", 3)]
    options: Any = {"group_by": itemgetter(0), "get_cache_key": str.lower}
    (anns,) = await loaded(rows, ["Ann"], **options)
    assert sorted(anns) == [("Ann", 2), ("ann", 1)]


async def test_beside_a_batch_function() -> None:
    @batch_loader(group_by=by_author)
    async def books_of(authors: list[int]) -> list[Row]:
        return ROWS

    from anyloader import LoaderScope

    async with LoaderScope():
        assert await books_of.load(1) == [ROWS[0], ROWS[2]]


# --- the options ---


def test_not_both() -> None:
    with pytest.raises((TypeError, ValueError), match="group_by"):
        DataLoader(giving([]), index_by=by_id, group_by=by_author)


@pytest.mark.parametrize("option", ["index_by", "group_by"])
@pytest.mark.parametrize("value", [5, "id", True])
def test_they_are_callable(option: str, value: Any) -> None:
    with pytest.raises(TypeError, match=option):
        DataLoader(giving([]), **{option: value})


async def test_a_subclass_can_define_it_as_a_method() -> None:
    class Users(DataLoader[int, Row]):
        def index_by(self, row: Row) -> int:
            key: int = row["id"]
            return key

        async def batch_load_fn(self, keys: list[int]) -> list[Row]:
            return ROWS

    async with Users() as loader:
        assert await loader.load_many([2, 1]) == [ROWS[2], ROWS[1]]


# --- mappings: the key as it was given, or the cache key ---


async def test_a_mapping_by_the_keys_that_were_given() -> None:
    names = {"Ann": "Ann!", "BOB": "BOB!"}
    assert await loaded(names, ["Ann", "BOB"], get_cache_key=str.lower) == ["Ann!", "BOB!"]


async def test_a_mapping_by_cache_keys() -> None:
    names = {"ann": "Ann!", "bob": "BOB!"}
    assert await loaded(names, ["Ann", "BOB"], get_cache_key=str.lower) == ["Ann!", "BOB!"]


async def test_a_mapping_that_has_some_by_the_one_and_some_by_the_other() -> None:
    names = {"Ann": "Ann!", "bob": "BOB!"}
    assert await loaded(names, ["Ann", "BOB", "Cid"], get_cache_key=str.lower) == [
        *("Ann!", "BOB!", None)
    ]


async def test_keys_that_cannot_be_hashed_are_looked_up_by_their_cache_key() -> None:
    assert await loaded({"12": "both"}, [[1, 2]], get_cache_key=lambda k: "".join(map(str, k))) == [
        "both"
    ]


# --- mappings: what they make of an absent key themselves ---


async def test_the_missing_of_a_mapping_answers_for_absent_keys() -> None:
    grouped = defaultdict(list, {1: ["a"]})
    assert await loaded(grouped, [1, 2, 3]) == [["a"], [], []]
    assert await loaded(Counter("aab"), ["a", "b", "c"]) == [2, 1, 0]


async def test_lists_of_a_defaultdict_are_not_shared() -> None:
    first, second = await loaded(defaultdict(list), [1, 2])
    assert first == second == []
    assert first is not second


async def test_on_missing_goes_before_it() -> None:
    grouped = defaultdict(list, {1: ["a"]})
    assert await loaded(grouped, [1, 2], on_missing=lambda key: "none") == [["a"], "none"]


async def test_a_missing_that_raises_key_error_is_the_error_of_that_load() -> None:
    class Strict(dict[int, int]):
        def __missing__(self, key: int) -> int:
            raise KeyError(key)

    value, error = await loaded(Strict({1: 10}), [1, 2])
    assert value == 10
    assert isinstance(error, KeyError)


async def test_a_defaultdict_without_a_factory_is_a_plain_mapping_or_an_error() -> None:
    value, missing = await loaded(defaultdict(None, {1: 10}), [1, 2])
    assert value == 10
    assert missing is None or isinstance(missing, KeyError)


# --- mappings: keys of a foreign type ---

IDS = [uuid.UUID(int=number) for number in range(3)]


@pytest.mark.parametrize(
    ("result", "keys", "types"),
    [
        ({str(key): "n" for key in IDS}, IDS, ("str", "UUID")),
        ({"rows": [1, 2]}, [1, 2], ("str", "int")),
        ({1: "a", 2: "b"}, ["1", "2"], ("int", "str")),
        ({b"a": 1}, ["a"], ("bytes", "str")),
        ({(1,): 1}, [1], ("tuple", "int")),
    ],
    ids=["uuid", "envelope", "json", "bytes", "tuple"],
)
async def test_a_mapping_with_none_of_the_keys_and_none_of_their_types(
    result: Any, keys: list[Any], types: tuple[str, str]
) -> None:
    async with DataLoader(giving(result), name="fetch_users") as loader:
        with pytest.raises(BatchResultError) as caught:
            await loader.load_many(keys)
        text = str(caught.value)
        assert all(kind in text for kind in (*types, "fetch_users"))
        assert not any(repr(key) in text for key in [*keys, *result] if len(repr(key)) > 2)


async def test_what_is_no_fault() -> None:
    assert await loaded({}, [1, 2]) == [None, None], "nothing was found"
    assert await loaded({7: "g"}, [1, 2]) == [None, None], "others were found"
    assert await loaded({"x": 0, 1: "a"}, [1, 2]) == ["a", None], "one was found"
    assert await loaded({"x": 0, 7: "g"}, [1, 2]) == [None, None], "one has the type"
    assert await loaded({7: "g"}, [1, "a"]) == [None, None], "one of two types"


async def test_on_missing_does_not_hide_it() -> None:
    (error,) = await loaded({"1": "a"}, [1], on_missing=KeyError)
    assert isinstance(error, BatchResultError)


async def test_a_defaultdict_does_not_hide_it() -> None:
    (error,) = await loaded(defaultdict(list, {"1": ["a"]}), [1])
    assert isinstance(error, BatchResultError), "it got the key by being asked for it"


async def test_groups_of_keys_that_only_a_cache_key_makes_hashable() -> None:
    async with DataLoader(
        giving([(1, "a"), (1, "b")]), group_by=lambda row: row[:1], get_cache_key=tuple
    ) as loader:
        assert await loader.load_many([[1], [2]]) == [[(1, "a"), (1, "b")], []]


async def test_rows_are_no_mapping() -> None:
    async def fetch(keys: list[int]) -> Any:
        return {key: key for key in keys}

    async with DataLoader[int, Any](fetch, group_by=int) as loader:
        with pytest.raises(BatchResultError, match="returned a mapping"):
            await loader.load(1)


async def test_groups_of_keys_of_another_type_are_an_error() -> None:
    async def fetch(keys: list[int]) -> Any:
        return [str(key) for key in keys]

    async with DataLoader[int, Any](fetch, group_by=str) as loader:
        with pytest.raises(BatchResultError, match=r"keys of type str.*keys of type int"):
            await loader.load(1)


async def test_a_key_that_cannot_be_hashed_is_found_by_its_cache_key() -> None:
    async def fetch(keys: list[list[int]]) -> Any:
        return {tuple(key): sum(key) for key in keys[1:]}

    async with DataLoader[Any, Any](fetch, get_cache_key=tuple) as loader:
        assert await loader.load_many([[1, 2], [3, 4]]) == [None, 7]
