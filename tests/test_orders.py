"""Whatever order tasks run in: the same batches, the same results, the same errors.

Exhaustively for four tasks, and under thousands of seeds for many. What fails has a note that says
under which seed, or which choices, to be run again with ``run_shuffled`` and ``run_choices``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import DataLoader
from support import all_orders, run_seeds

Loader = DataLoader[int, Any]
#: What a task does with the loader; its number comes along.
Task = Callable[[Loader, int, list[anyio.CancelScope]], Awaitable[Any]]


class Refused(Exception):
    pass


async def load(loader: Loader, number: int, scopes: list[anyio.CancelScope]) -> Any:
    return await loader.load(number)


async def load_of_one_key(loader: Loader, number: int, scopes: list[anyio.CancelScope]) -> Any:
    return await loader.load(0)


async def load_many(loader: Loader, number: int, scopes: list[anyio.CancelScope]) -> Any:
    return await loader.load_many([number, 0, -number])


async def load_what_fails(loader: Loader, number: int, scopes: list[anyio.CancelScope]) -> Any:
    return await loader.load(13)


async def load_and_cancel(loader: Loader, number: int, scopes: list[anyio.CancelScope]) -> Any:
    handle = loader.load(number)
    scopes[0].cancel()  # the task of number 0, which may have made its first step, or not
    return await handle


async def load_twice(loader: Loader, number: int, scopes: list[anyio.CancelScope]) -> Any:
    return await loader.load(number), await loader.load(number + 100)


async def outcomes(tasks: list[Task], function: Callable[[list[int]], Awaitable[Any]]) -> Any:
    """What each task got, and which keys each call of the batch function."""
    calls: list[list[int]] = []
    got: dict[int, Any] = {}

    async def fetch(keys: list[int]) -> Any:
        calls.append(sorted(keys))
        return await function(keys)

    async def run(number: int) -> None:
        with scopes[number]:
            try:
                got[number] = await tasks[number](loader, number, scopes)
            except Refused as exc:
                got[number] = str(exc)
        if scopes[number].cancelled_caught:
            got[number] = "cancelled"

    async with anyio.create_task_group() as tg, DataLoader(fetch) as loader:
        scopes = [anyio.CancelScope() for _ in tasks]
        async with anyio.create_task_group() as inner:
            for number in range(len(tasks)):
                inner.start_soon(run, number)
        tg.cancel_scope.cancel()
    return sorted(got.items()), calls


async def tenfold(keys: list[int]) -> list[int | Exception]:
    await checkpoint()
    return [Refused(str(key)) if key == 13 else key * 10 for key in keys]


async def refuse(keys: list[int]) -> list[int]:
    await checkpoint()
    raise Refused("all")


FOUR: dict[str, tuple[list[Task], Any, list[Any], list[list[int]]]] = {
    "four keys": ([load] * 4, tenfold, [0, 10, 20, 30], [[0, 1, 2, 3]]),
    "one key": ([load_of_one_key] * 4, tenfold, [0, 0, 0, 0], [[0]]),
    "load and load_many": (
        [load, load_many, load, load_many],
        tenfold,
        [0, [10, 0, -10], 20, [30, 0, -30]],
        [[-3, -1, 0, 1, 2, 3]],
    ),
    "a key that fails": (
        [load, load_what_fails, load, load_what_fails],
        tenfold,
        [0, "13", 20, "13"],
        [[0, 2, 13]],
    ),
    "a batch that fails": ([load, load_many, load, load], refuse, ["all"] * 4, [[-1, 0, 1, 2, 3]]),
    "one is cancelled": (
        [load_of_one_key, load_of_one_key, load_and_cancel, load],
        tenfold,
        ["cancelled", 0, 20, 30],
        [[0, 2, 3]],
    ),
    "one is cancelled whose key nobody else wants": (
        [load_of_one_key, load, load_and_cancel, load],
        tenfold,
        ["cancelled", 10, 20, 30],
        [[1, 2, 3]],
    ),
}


@pytest.mark.parametrize("name", FOUR)
def test_four_tasks_have_the_same_outcomes_in_every_order(shuffled_backend: str, name: str) -> None:
    tasks, function, expected, calls = FOUR[name]
    runs = 0
    for found in all_orders(shuffled_backend, outcomes, tasks, function, limit=100_000):
        assert found == (list(enumerate(expected)), calls)
        runs += 1
    assert runs >= 24 * 6  # in which they load, and in which three or four of them go on


CROWD: list[Task] = [
    *(load_of_one_key, load, load_and_cancel, load_many, load_twice, load_what_fails),
    *(load, load_twice, load_many, load_of_one_key, load_twice, load, load_what_fails, load),
    *(load_many, load, load_of_one_key, load_twice, load, load_and_cancel, load_many, load),
]


def test_a_crowd_has_the_same_outcomes_under_a_thousand_seeds(shuffled_backend: str) -> None:
    got, calls = run_seeds(shuffled_backend, range(1_000), outcomes, CROWD, tenfold)
    assert [outcome for _, outcome in got if outcome == "cancelled"] == ["cancelled"]
    assert calls == [
        [-20, -14, -8, -3, 0, 1, 2, 3, 4, 6, 7, 8, 10, 11, 13, 14, 15, 17, 18, 19, 20, 21],
        [104, 107, 110, 117],
    ]
