"""A subclass may use every name that is not documented (contract 1).

What the library keeps on an instance stands where no name of a user's can meet it, and options are
read once, in the constructor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest

from anyloader import DataLoader, LoaderScope, compat
from support import wait_all_tasks_blocked

pytestmark = pytest.mark.anyio

OPTIONS = frozenset(
    [
        "batch",
        "max_batch_size",
        "max_batch_weight",
        "weigh",
        "max_queue_size",
        "cache",
        "get_cache_key",
        "cache_map",
        "schedule",
        "defer_hits",
        "deduplicate",
        "cache_errors",
        "on_missing",
        "index_by",
        "group_by",
        "limiter",
        "value_cache",
        "name",
        "hooks",
        "task_group",
    ]
)
METHODS = frozenset(
    [
        "batch_load_fn",
        "load",
        "load_many",
        "load_required",
        "load_many_required",
        "clear",
        "clear_many",
        "clear_all",
        "prime",
        "prime_many",
        "peek",
        "dispatch",
        "statistics",
    ]
)
#: Names that real loaders have on themselves, or that this library had on them once.
EVERYDAY = frozenset(
    [
        "_token",
        "_cache",
        "_keys",
        "_open",
        "_hits",
        "_hooks",
        "_running",
        "_batches",
        "_queued",
        "_shared",
        "_most",
        "_options",
        "_cache_key",
        "_missing",
        "_evict",
        "_loads",
        "_bind",
        "_seal",
        "_load",
        "_loop",
        "_queue",
        "_scope",
        "_state",
        "_lock",
        "_name",
        "_session",
        "_dispatcher",
        "_schedule",
        "_limiter",
        "_batch",
        "_fn",
        "_context",
        "_core",
        "_engine",
        "_impl",
        "_inner",
        "_loader",
        "_admit",
        "_attach",
        "_undo",
        "_sent",
        "token",
        "keys",
        "key",
        "loop",
        "queue",
        "session",
        "state",
        "scope",
        "client",
        "db",
        "engine",
        "core",
        "context",
        "options",
        "log",
        "logger",
        "key_fn",
        "ttl",
        "close",
        "closed",
        "open",
        "start",
        "stop",
        "run",
        "send",
        "wait",
        "get",
        "set",
        "add",
        "bind",
        "attach",
        "evict",
        "seal",
        "owner",
        "parent",
        "loader",
        "backend",
        "_DataLoader__cache",
        "_DataLoader__core",
    ]
)

BASES: dict[str, Any] = {"DataLoader": DataLoader, "compat": compat.DataLoader}
every_base = pytest.mark.parametrize("base", BASES.values(), ids=BASES)


def slots_of(kind: type) -> Iterator[str]:
    for each in kind.__mro__:
        slots = vars(each).get("__slots__", ())
        yield from [slots] if isinstance(slots, str) else slots


def free_names(base: Any) -> list[str]:
    """Give the names that a subclass may use, among them all that a look at an instance shows."""

    class Probe(base):  # type: ignore[misc]
        async def batch_load_fn(self, keys: list[int]) -> list[int]:
            return keys

    probe = Probe()
    seen = {*dir(probe), *dir(Probe), *getattr(probe, "__dict__", ()), *slots_of(Probe)}
    names = EVERYDAY | seen - METHODS - OPTIONS
    return sorted(name for name in names if not (name.startswith("__") and name.endswith("__")))


async def exercise(loader: Any, negate: Callable[[int], int]) -> None:
    """Go through all that a loader can do, but for its end."""
    first, many = loader.load(1), loader.load_many([2, 3, 3, 1])
    assert await first == negate(1)
    assert await many == [negate(key) for key in (2, 3, 3, 1)]
    assert await loader.load(1) == negate(1)
    assert loader.peek(1) is not None
    loader.clear(1).clear_many([2]).prime(4, 40).prime_many({5: 50})
    assert await loader.load_many([4, 5]) == [40, 50]
    loader.prime(4, 44, force=True)
    assert await loader.load(4) == 44
    with pytest.raises(LookupError):
        await loader.load(404)
    assert await loader.load_many([8, 404], return_exceptions=True) != []
    with pytest.raises(OSError, match="down"):
        await loader.load(500)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await loader.load(9)
    await wait_all_tasks_blocked()
    waiting = loader.load(6)
    loader.dispatch()
    assert await waiting == negate(6)
    assert loader.statistics().batches
    assert repr(loader)
    loader.clear_all()
    assert await loader.load(1) == negate(1)


async def answers(keys: list[int]) -> dict[int, Any]:
    if 500 in keys:
        raise OSError("down")
    return {key: LookupError() if key == 404 else -key for key in keys}


@every_base
async def test_every_free_name_as_an_attribute_of_the_instance(base: Any) -> None:
    names = free_names(base)

    class Users(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            for name in names:
                setattr(self, name, f"the user's own {name}")

        async def batch_load_fn(self, keys: list[int]) -> Any:
            return await answers(keys)

    async with LoaderScope() as scope:
        loader = scope.get(Users)
        await exercise(loader, lambda key: -key)
        assert {name: getattr(loader, name) for name in names} == {
            name: f"the user's own {name}" for name in names
        }
        assert scope.statistics().loads


@every_base
async def test_they_can_be_set_before_the_constructor_of_the_base_runs(base: Any) -> None:
    names = free_names(base)

    class Users(base):  # type: ignore[misc]
        def __init__(self) -> None:
            for name in names:
                setattr(self, name, f"the user's own {name}")
            super().__init__()

        async def batch_load_fn(self, keys: list[int]) -> Any:
            return await answers(keys)

    async with LoaderScope():
        loader = Users()
        await exercise(loader, lambda key: -key)
        assert [getattr(loader, name) for name in names] == [
            f"the user's own {name}" for name in names
        ]


@every_base
async def test_every_free_name_as_an_attribute_of_the_class(base: Any) -> None:
    names = free_names(base)

    async def batch_load_fn(self: Any, keys: list[int]) -> Any:
        return await answers(keys)

    body = {name: f"the user's own {name}" for name in names}
    users: Any = type("Users", (base,), {**body, "batch_load_fn": batch_load_fn})
    async with users() as loader:
        await exercise(loader, lambda key: -key)
        assert {name: getattr(loader, name) for name in names} == body


@every_base
async def test_every_free_name_as_a_method(base: Any) -> None:
    called: list[str] = []

    def method(name: str) -> Any:
        def own(self: Any, kind: str, key: int, /) -> None:
            called.append(name)

        return own

    async def batch_load_fn(self: Any, keys: list[int]) -> Any:
        return await answers(keys)

    body = {name: method(name) for name in free_names(base)}
    users: Any = type("Users", (base,), {**body, "batch_load_fn": batch_load_fn})
    async with users(defer_hits=True, max_batch_size=3) as loader:
        await exercise(loader, lambda key: -key)
        for name in body:
            getattr(loader, name)("user", 1)
    assert called == [*body]


@every_base
async def test_a_subclass_of_the_same_name_has_private_names_of_its_own(base: Any) -> None:
    """Python makes ``_DataLoader__cache`` of ``self.__cache`` in a class of this name."""
    parent = base

    class DataLoader(parent):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.__cache = self.__keys = self.__loop = self.__core = "mine"

        async def batch_load_fn(self, keys: list[int]) -> Any:
            assert self.__cache == self.__keys == self.__loop == self.__core == "mine"
            return await answers(keys)

    async with LoaderScope():
        await exercise(DataLoader(), lambda key: -key)


@every_base
async def test_a_token_of_the_user_stays_what_it_is(base: Any) -> None:
    class ApiUsers(base):  # type: ignore[misc]
        def __init__(self, token: str) -> None:
            super().__init__()
            self._token = token

        async def batch_load_fn(self, keys: list[int]) -> list[str]:
            return [f"GET /users/{key} with Bearer {self._token}" for key in keys]

    users = ApiUsers("s3cret")
    async with LoaderScope():
        assert await users.load(1) == "GET /users/1 with Bearer s3cret"


# --- options are read once ---


@every_base
async def test_an_option_that_is_set_after_the_constructor_is_an_attribute_like_any_other(
    base: Any,
) -> None:
    class Users(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            for name in OPTIONS:
                setattr(self, name, f"the user's own {name}")

        async def batch_load_fn(self, keys: list[int]) -> Any:
            return await answers(keys)

    async with LoaderScope():
        loader = Users()
        await exercise(loader, lambda key: -key)
        assert [getattr(loader, name) for name in OPTIONS] == [
            f"the user's own {name}" for name in OPTIONS
        ]


async def test_a_class_attribute_that_changes_later_changes_no_loader() -> None:
    class Users(DataLoader[int, int]):
        max_batch_size = 2

        async def batch_load_fn(self, keys: list[int]) -> list[int]:
            sizes.append(len(keys))
            return keys

    sizes: list[int] = []
    async with Users() as loader:
        Users.max_batch_size = 100
        await loader.load_many(range(4))
    assert sizes == [2, 2]
