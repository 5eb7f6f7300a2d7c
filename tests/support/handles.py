"""The kinds of handle that there are."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from anyloader import DataLoader


async def tens(keys: list[int]) -> list[int | Exception]:
    return [ValueError(key) if key < 0 else key * 10 for key in keys]


def load_one(loader: DataLoader[int, int], key: int) -> Coroutine[Any, Any, object]:
    return loader.load(key)


def load_two(loader: DataLoader[int, int], key: int) -> Coroutine[Any, Any, object]:
    return loader.load_many([key, key + 1])


#: Ask for something by key; the kinds of handle that there are, with what key 1 gives.
KINDS = pytest.mark.parametrize(
    ("ask", "value"), [(load_one, 10), (load_two, [10, 20])], ids=["load", "load_many"]
)

Ask = Callable[[DataLoader[int, int], int], Coroutine[Any, Any, object]]
