# mypy: disable-error-code="empty-body"
"""Type-checked, not run: what is right, and which types follow from it."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import anyio.from_thread
import cachetools

from anyloader import (
    BatchLoader,
    DataLoader,
    LoaderScope,
    LoaderStatistics,
    LoadHandle,
    LoadManyHandle,
    batch_loader,
    compat,
    compat_strawberry,
    current_scope,
    in_thread,
    schedules,
)

if TYPE_CHECKING:
    import trio
    from typing_extensions import assert_type


class User:
    name = ""


# --- K and V follow from the batch function ---


async def users_list(keys: list[int]) -> list[User]: ...


async def users_or_none(keys: list[int]) -> list[User | None]: ...


async def users_or_errors(keys: list[int]) -> list[User | Exception]: ...


async def users_tuple(keys: list[int]) -> tuple[User, ...]: ...


async def users_generator(keys: list[int]) -> Generator[User, None, None]: ...


async def users_of_sequence(keys: Sequence[int]) -> Sequence[User]: ...


async def users_of_any_keys(keys: Iterable[int]) -> Iterable[User]: ...


async def friends(keys: list[int]) -> list[list[User]]: ...


async def users_dict(keys: list[int]) -> dict[int, User]: ...


async def names_by_name(keys: list[str]) -> Mapping[str, str]: ...


async def users_or_errors_dict(keys: list[int]) -> dict[int, User | Exception]: ...


async def friends_dict(keys: list[int]) -> dict[int, list[User]]: ...


async def users_stream(keys: list[int]) -> AsyncGenerator[tuple[int, User], None]:
    yield 1, User()


async def users_iterator(keys: list[int]) -> AsyncIterator[tuple[int, User]]:
    """How most people annotate an async generator function."""
    yield 1, User()


def users_awaitable(keys: list[int]) -> Awaitable[list[User]]: ...


def users_coroutine(keys: list[int]) -> Coroutine[Any, Any, list[User]]: ...


def users_blocking(keys: list[int]) -> list[User]: ...


def users_dict_blocking(keys: list[int]) -> dict[int, User]: ...


async def users_of(connection: str, keys: list[int]) -> list[User]: ...


class Repository:
    async def users(self, keys: list[int]) -> list[User]: ...

    async def __call__(self, keys: list[int]) -> dict[int, User]: ...


def key_and_value_types_follow_from_the_batch_function() -> None:
    assert_type(DataLoader(users_list), DataLoader[int, User])
    assert_type(DataLoader(users_or_none), DataLoader[int, User | None])
    assert_type(DataLoader(users_or_errors), DataLoader[int, User])
    assert_type(DataLoader(users_tuple), DataLoader[int, User])
    assert_type(DataLoader(users_generator), DataLoader[int, User])
    assert_type(DataLoader(users_of_sequence), DataLoader[int, User])
    assert_type(DataLoader(users_of_any_keys), DataLoader[int, User])
    assert_type(DataLoader(friends), DataLoader[int, list[User]])
    assert_type(DataLoader(users_dict), DataLoader[int, User | None])
    assert_type(DataLoader(names_by_name), DataLoader[str, str | None])
    assert_type(DataLoader(users_or_errors_dict), DataLoader[int, User | None])
    assert_type(DataLoader(friends_dict), DataLoader[int, list[User] | None])
    assert_type(DataLoader(users_stream), DataLoader[int, User | None])
    assert_type(DataLoader(users_iterator), DataLoader[int, User | None])
    assert_type(DataLoader(users_awaitable), DataLoader[int, User])
    assert_type(DataLoader(users_coroutine), DataLoader[int, User])
    assert_type(DataLoader(in_thread(users_blocking)), DataLoader[int, User])
    assert_type(DataLoader(in_thread(users_dict_blocking)), DataLoader[int, User | None])
    assert_type(DataLoader(Repository().users), DataLoader[int, User])
    assert_type(DataLoader(Repository()), DataLoader[int, User | None])
    assert_type(compat.DataLoader(users_list), compat.DataLoader[int, User])
    assert_type(compat.DataLoader(users_or_errors), compat.DataLoader[int, User])
    assert_type(compat.DataLoader(users_dict), compat.DataLoader[int, User | None])
    assert_type(compat.DataLoader(users_stream).load(1), compat.LoadFuture[User | None])
    assert_type(compat_strawberry.DataLoader(users_list), compat_strawberry.DataLoader[int, User])
    strawberry = compat_strawberry.DataLoader(load_fn=users_dict, max_batch_size=10)
    assert_type(strawberry, compat_strawberry.DataLoader[int, User | None])
    assert_type(
        compat_strawberry.DataLoader(users_stream), compat_strawberry.DataLoader[int, User | None]
    )
    assert_type(
        compat_strawberry.DataLoader(users_or_errors), compat_strawberry.DataLoader[int, User]
    )


def a_partial_is_a_batch_function() -> DataLoader[int, User]:
    return DataLoader(partial(users_of, "db"))


def the_batch_function_has_a_name() -> None:
    assert_type(DataLoader(batch_load_fn=users_list), DataLoader[int, User])
    assert_type(DataLoader(batch_load_fn=users_list, cache=False), DataLoader[int, User])


def types_can_be_given_instead(fetch: Callable[[list[Any]], Any]) -> None:
    assert_type(DataLoader[int, User](users_list), DataLoader[int, User])
    assert_type(DataLoader[int, User | None](users_dict), DataLoader[int, User | None])


# --- options ---


def options(limiter: anyio.CapacityLimiter, cache: cachetools.LRUCache[Any, Any]) -> None:
    loader = DataLoader(
        users_dict,
        batch=True,
        max_batch_size=100,
        cache=True,
        get_cache_key=lambda key: str(key),
        cache_map=cache,
        schedule=schedules.window(0.1),
        defer_hits=True,
        deduplicate=False,
        cache_errors=lambda exc: not isinstance(exc, ConnectionError),
        on_missing=KeyError,
        limiter=limiter,
        name="users",
    )
    assert_type(loader, DataLoader[int, User])
    DataLoader(users_dict, on_missing=lambda key: User())
    DataLoader(users_dict, on_missing=lambda key: LookupError(key + 1))
    DataLoader[int, User | None](users_dict, on_missing=lambda key: None)
    DataLoader(users_list, max_batch_size=None, get_cache_key=None, on_missing=None, limiter=None)
    DataLoader(names_by_name, get_cache_key=str.lower)
    DataLoader(users_list, cache_map={})


async def leave_at_three(batch: schedules.BatchView) -> None:
    assert_type(batch.size, int)
    assert_type(batch.is_open, bool)


def a_schedule_is_an_async_function() -> None:
    for schedule in (
        schedules.quiescent(),
        schedules.quiescent(max_rounds=3),
        schedules.rounds(0),
        schedules.window(1),
        schedules.manual(),
        leave_at_three,
    ):
        DataLoader(users_list, schedule=schedule)


def task_groups(
    anyio_group: anyio.abc.TaskGroup,
    nursery: trio.Nursery,
    asyncio_group: asyncio.TaskGroup,  # type: ignore[name-defined]  # pyright: ignore[reportAttributeAccessIssue]
) -> None:
    assert_type(DataLoader(users_list, task_group=anyio_group), DataLoader[int, User])
    assert_type(DataLoader(users_list, task_group=nursery), DataLoader[int, User])
    assert_type(DataLoader(users_list, task_group=asyncio_group), DataLoader[int, User])
    DataLoader(users_list, task_group=None)
    LoaderScope(task_group=anyio_group)
    LoaderScope(task_group=nursery)


# --- loads ---


async def loads(loader: DataLoader[int, User], nullable: DataLoader[int, User | None]) -> None:
    async with loader as opened:
        assert_type(opened, DataLoader[int, User])
    assert_type(loader.load(1), LoadHandle[User])
    assert_type(await loader.load(1), User)
    assert_type(await nullable.load(1), User | None)
    assert_type(loader.load_many([1, 2]), LoadManyHandle[User])
    assert_type(await loader.load_many(range(3)), list[User])
    assert_type(await loader.load_many({1, 2}), list[User])
    assert_type(loader.peek(1), LoadHandle[User] | None)
    assert_type(loader.clear(1).clear_many([1]).clear_all(), DataLoader[int, User])
    assert_type(loader.prime(1, User()), DataLoader[int, User])
    assert_type(loader.prime(1, LookupError(), force=True), DataLoader[int, User])
    assert_type(loader.prime_many({1: User(), 2: LookupError()}), DataLoader[int, User])
    primed: dict[int, User] = {}
    loader.prime_many(primed)
    loader.dispatch()
    assert_type(loader.statistics(), LoaderStatistics)


async def handles(handle: LoadHandle[User]) -> None:
    assert_type(handle.return_value, User)
    assert_type(handle.exception, BaseException | None)
    assert_type(handle.status, LoadHandle.Status)
    assert_type(handle.status is LoadHandle.Status.PENDING, bool)
    assert_type(await handle.wait(), None)
    wider: LoadHandle[object] = handle  # covariant
    coroutine: Coroutine[Any, Any, User] = handle
    awaitable: Awaitable[User] = handle
    del wider, coroutine, awaitable


async def clients(loader: DataLoader[int, User], tg: anyio.abc.TaskGroup) -> None:
    tg.start_soon(loader.load, 1)
    assert_type(await asyncio.wait_for(loader.load(1), 1), User)
    assert_type(await asyncio.create_task(loader.load(1)), User)
    assert_type(await asyncio.gather(loader.load(1), loader.load(2)), tuple[User, User])
    assert_type(anyio.from_thread.run(loader.load, 1), User)


# --- subclasses ---


class Users(DataLoader[int, User]):
    max_batch_size = 100
    cache_errors = False
    schedule = staticmethod(schedules.rounds(1))

    async def batch_load_fn(self, keys: list[int], /) -> list[User]: ...


class UsersWithNamedKeys(DataLoader[int, User]):
    async def batch_load_fn(self, keys: list[int]) -> dict[int, User]: ...

    def on_missing(self, key: int) -> Exception:
        return KeyError(key)

    def get_cache_key(self, key: int) -> str:
        return str(key)


class StreamedUsers(DataLoader[int, User]):
    async def batch_load_fn(self, keys: list[int]) -> AsyncGenerator[tuple[int, User], None]:
        yield 1, User()


async def subclasses() -> None:
    async with Users() as users:
        assert_type(users, Users)
        assert_type(await users.load(1), User)
        assert_type(users.prime(1, User()), Users)
    assert_type(Users(max_batch_size=3), Users)
    UsersWithNamedKeys()
    StreamedUsers()


# --- scopes ---


@batch_loader
async def bare(keys: list[int]) -> list[User]: ...


@batch_loader(max_batch_size=100, on_missing=KeyError)
async def with_options(keys: list[int]) -> dict[int, User]: ...


@batch_loader()
async def streaming(keys: list[int]) -> AsyncGenerator[tuple[int, User], None]:
    yield 1, User()


async def scopes() -> None:
    async with LoaderScope() as scope:
        assert_type(scope, LoaderScope)
        assert_type(scope.get(Users), Users)
        assert_type(scope.get(users_list), DataLoader[int, User])
        assert_type(scope.get(users_dict), DataLoader[int, User | None])
        assert_type(scope.get(users_stream), DataLoader[int, User | None])
        assert_type(scope.get(bare), DataLoader[int, User])
        assert_type(current_scope(), LoaderScope)
        assert_type(scope.statistics(), LoaderStatistics)
    assert_type(bare, BatchLoader[int, User, []])
    assert_type(with_options, BatchLoader[int, User, []])
    assert_type(streaming, BatchLoader[int, User | None, []])
    assert_type(await bare.load(1), User)
    assert_type(await with_options.load_many([1]), list[User])
