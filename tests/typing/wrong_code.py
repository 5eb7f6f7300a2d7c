# mypy: disable-error-code="empty-body"
"""Type-checked, not run: each ignored error is code that has to be refused.

A checker that lets it pass complains about the comment.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from anyloader import (
    DataLoader,
    LoaderScope,
    LoadHandle,
    batch_loader,
    compat,
    compat_strawberry,
    in_thread,
    schedules,
)


class User:
    name = ""


async def users(keys: list[int]) -> list[User]: ...


async def users_dict(keys: list[int]) -> dict[int, User]: ...


# --- batch functions ---


def blocking(keys: list[int]) -> list[User]: ...


async def no_keys() -> list[User]: ...


async def one_key(key: int) -> User: ...


async def keys_as_set(keys: set[int]) -> list[User]: ...


async def two_arguments(keys: list[int], more: int) -> list[User]: ...


async def count(keys: list[int]) -> int: ...


async def nothing(keys: list[int]) -> None: ...


async def no_pairs(keys: list[int]) -> AsyncGenerator[User, None]:
    yield User()


def functions_that_are_no_batch_functions() -> None:
    DataLoader(blocking)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    DataLoader(no_keys)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    DataLoader(one_key)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    DataLoader(keys_as_set)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    DataLoader(two_arguments)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    DataLoader(count)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    DataLoader(nothing)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    DataLoader(no_pairs)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    DataLoader(3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    DataLoader(users([1]))  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    in_thread(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    batch_loader(blocking)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]


def functions_of_other_types_than_were_given() -> None:
    DataLoader[str, User](users)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    DataLoader[int, str](users)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    DataLoader[int, str](users_dict)  # pyright: ignore[reportArgumentType, reportCallIssue]


# --- options ---


def wants_str(key: str) -> User: ...


def gives_int(key: int) -> int: ...


def no_schedule(batch: schedules.BatchView) -> None: ...


def wrong_options() -> None:
    DataLoader(users, max_batch_size="100")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    DataLoader(users, cache="yes")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    DataLoader(users, batch_size=100)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    DataLoader(users, True)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    DataLoader(users, task_group=3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    DataLoader(users, cache_map=[])  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    DataLoader(users, limiter=3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    DataLoader(users, schedule=0.1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    DataLoader[int, User](users, schedule=no_schedule)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    DataLoader(users, cache_errors=lambda: True)  # type: ignore[arg-type, misc]  # pyright: ignore[reportArgumentType, reportCallIssue]
    DataLoader(users, get_cache_key=3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    DataLoader(users_dict, on_missing=User())  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    DataLoader[int, User](users_dict, on_missing=wants_str)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    DataLoader[int, User](users_dict, on_missing=gives_int)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    schedules.quiescent(3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    schedules.rounds("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    schedules.window(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    batch_loader(max_batch_size="100")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    batch_loader(task_group=None)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    LoaderScope(task_group=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# --- loads ---


async def wrong_keys(loader: DataLoader[int, User], by_name: DataLoader[str, User]) -> None:
    loader.load("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    loader.load(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    loader.load_many(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    loader.load_many(["1"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    by_name.load_many([1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    loader.peek("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    loader.clear("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    loader.clear_many(["1"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    loader.prime("1", User())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    loader.prime(1, "user")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    loader.prime(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    loader.prime_many({"1": User()})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    loader.prime_many({1: "user"})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    loader.prime_many([(1, User())])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def wrong_values(loader: DataLoader[int, User]) -> None:
    name: str = await loader.load(1)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    user: User = loader.load(1)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    users: tuple[User] = await loader.load_many([1])  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    handle: LoadHandle[User] = loader.peek(1)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    narrower: LoadHandle[str] = loader.load(1)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    await loader.clear(1)  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    del name, user, users, handle, narrower


def wrong_uses_of_a_handle(handle: LoadHandle[User]) -> None:
    handle.return_value = User()  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    handle.key = 1  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    handle.set_result(User())  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    handle.cancel()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    LoadHandle(User())  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


# --- subclasses ---


class WrongOption(DataLoader[int, User]):
    max_batch_size = "100"  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]


class Blocking(DataLoader[int, User]):
    def batch_load_fn(self, keys: list[int], /) -> list[User]: ...  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]


class OtherValues(DataLoader[int, User]):
    async def batch_load_fn(self, keys: list[int], /) -> list[str]: ...  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]


class OtherKeys(DataLoader[int, User]):
    async def batch_load_fn(self, keys: list[str], /) -> list[User]: ...  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]


async def wrong_drop_ins() -> None:
    compat.DataLoader(blocking)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    compat.DataLoader(users_dict, max_batch_size="2")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    compat.DataLoader(users_dict).load("a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    print((await compat.DataLoader(users_dict).load(1)).name)  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
    compat_strawberry.DataLoader(load_fn=one_key)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]


async def wrong_scopes(scope: LoaderScope) -> None:
    scope.get(blocking)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    scope.get(User)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType, reportCallIssue]
    scope.get(3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    with scope:  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass
    with DataLoader(users):  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass
