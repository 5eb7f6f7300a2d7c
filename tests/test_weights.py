"""``max_batch_weight`` and ``weigh`` fill a batch (contract 2.3)."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from anyloader import DataLoader, schedules
from support import Recorder, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio


def same(key: str) -> str:
    return key


async def batches(keys: list[str], **options: Any) -> list[list[str]]:
    """Load these keys, each as heavy as it is long; give the batches in the order of their keys."""
    fetch = Recorder[str, str](same)
    async with DataLoader(fetch, weigh=len, **options) as loader:
        assert await loader.load_many(keys) == keys
    one_by_one = Recorder[str, str](same)
    async with DataLoader(one_by_one, weigh=len, **options) as loader:
        handles = [*map(loader.load, keys)]
        assert [await handle for handle in handles] == keys
    assert sorted(one_by_one.calls, key=keys_in_order(keys)) == sorted(
        fetch.calls, key=keys_in_order(keys)
    )
    return sorted(fetch.calls, key=keys_in_order(keys))


def keys_in_order(keys: list[str]) -> Any:
    return lambda batch: keys.index(batch[0])


async def test_a_key_that_does_not_fit_any_more_opens_the_next_batch() -> None:
    keys = ["aaaa", "bbbb", "cccc", "d"]
    assert await batches(keys, max_batch_weight=10) == [["aaaa", "bbbb"], ["cccc", "d"]]


async def test_a_batch_of_just_this_weight_is_full() -> None:
    keys = ["aaaaa", "bbbbb", "c"]
    assert await batches(keys, max_batch_weight=10) == [["aaaaa", "bbbbb"], ["c"]]


async def test_a_key_heavier_than_all_goes_alone() -> None:
    keys = ["a", "b" * 20, "c", "d"]
    assert await batches(keys, max_batch_weight=10) == [["a"], ["b" * 20], ["c", "d"]]


async def test_also_as_the_first_and_the_last_key() -> None:
    keys = ["a" * 20, "b" * 11, "c"]
    assert await batches(keys, max_batch_weight=10) == [["a" * 20], ["b" * 11], ["c"]]


async def test_together_with_a_size_whichever_comes_first() -> None:
    keys = ["a", "b", "c", "dddddddd", "eeeeeeee"]
    expected = [["a", "b"], ["c", "dddddddd"], ["eeeeeeee"]]
    assert await batches(keys, max_batch_weight=10, max_batch_size=2) == expected


async def test_a_batch_that_is_full_by_weight_leaves_without_waiting() -> None:
    fetch = Recorder[str, str](same)
    options: Any = {"schedule": schedules.manual(), "weigh": len, "max_batch_weight": 4}
    async with DataLoader(fetch, **options) as loader:
        handles = [*map(loader.load, ("aa", "bb", "c"))]
        await wait_all_tasks_blocked()
        assert fetch.calls == [["aa", "bb"]]
        handles.append(loader.load("dddd"))  # does not fit: "c" leaves, and this one is full itself
        await wait_all_tasks_blocked()
        assert sorted(fetch.calls) == [["aa", "bb"], ["c"], ["dddd"]]
        assert [await handle for handle in handles] == ["aa", "bb", "c", "dddd"]


async def test_hits_and_shared_loads_weigh_nothing() -> None:
    fetch = Recorder[str, str](same)
    async with DataLoader(fetch, weigh=len, max_batch_weight=4) as loader:
        loader.prime("hit", "hit")
        handles = [loader.load("aa"), loader.load("aa"), loader.load("hit"), loader.load("bb")]
        assert [await handle for handle in handles] == ["aa", "aa", "hit", "bb"]
    assert fetch.calls == [["aa", "bb"]]


async def test_a_weigh_that_raises_fails_the_load_and_leaves_no_trace() -> None:
    def weigh(key: str) -> int:
        if key == "odd":
            raise OSError("cannot weigh")
        return 1

    fetch = Recorder[str, str](same)
    async with DataLoader(fetch, weigh=weigh, max_batch_weight=10) as loader:
        first = loader.load("a")
        with pytest.raises(OSError, match="cannot weigh"):
            loader.load("odd")
        assert loader.peek("odd") is None
        second = loader.load("b")
        assert [await first, await second] == ["a", "b"]
    assert fetch.calls == [["a", "b"]]


@pytest.mark.parametrize("options", [{"weigh": len}, {"max_batch_weight": 10}], ids=str)
def test_both_options_or_neither(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=r"weigh.*max_batch_weight|max_batch_weight"):
        DataLoader(Recorder[str, str](same), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"weigh": 3, "max_batch_weight": 10},
        {"weigh": len, "max_batch_weight": 0},
        {"weigh": len, "max_batch_weight": -1},
        {"weigh": len, "max_batch_weight": "10"},
        {"weigh": len, "max_batch_weight": True},
    ],
    ids=str,
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match="weigh"):
        DataLoader(Recorder[str, str](same), **options)


@pytest.mark.parametrize(
    ("weight", "error"),
    [
        ("heavy", TypeError),
        (None, TypeError),
        (True, TypeError),
        (1j, TypeError),
        (-1, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (10**400, ValueError),
    ],
)
async def test_what_is_no_weight_refuses_that_load_and_queues_nothing(
    weight: Any, error: type[Exception]
) -> None:
    fetch = Recorder[int, int](int)
    weigh = {1: 1, 2: weight}.__getitem__
    async with DataLoader(fetch, max_batch_weight=10, weigh=weigh, name="fetch") as loader:
        for load in (lambda: loader.load(2), lambda: loader.load_many([1, 2])):
            with pytest.raises(error, match="weigh of fetch must give a"):
                load()
        assert loader.statistics().queued == 0
        assert await loader.load(1) == 1
    assert fetch.calls == [[1]]


async def test_a_weight_is_any_real_number_such_as_those_of_numpy() -> None:
    fetch = Recorder[int, int](int)
    weigh: Any = {1: 0.5, 2: Fraction(1, 2), 3: Fraction(3, 2)}.__getitem__
    async with DataLoader(fetch, max_batch_weight=1, weigh=weigh) as loader:
        assert await loader.load_many([1, 2, 3]) == [1, 2, 3]
    assert sorted(fetch.calls) == [[1, 2], [3]]
