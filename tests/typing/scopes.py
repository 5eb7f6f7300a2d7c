# mypy: disable-error-code="empty-body"
"""Type-checked, not run: the types of scopes and ``@batch_loader``, and what frameworks take."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Generic, TypeVar

from fastapi import FastAPI
from litestar import Litestar
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import Receive, Scope, Send

from anyloader import (
    BatchLoader,
    DataLoader,
    LoaderScope,
    LoaderStatistics,
    LoadHandle,
    LoadManyHandle,
    batch_loader,
    current_scope,
    gather,
    schedules,
)
from anyloader.integrations.asgi import LoaderScopeMiddleware, safe_methods

if TYPE_CHECKING:
    from typing_extensions import assert_type

T = TypeVar("T")


class User:
    name = ""


@batch_loader
async def listed(ids: list[int]) -> list[User]: ...


@batch_loader(max_batch_size=100, schedule=schedules.window(0.1), cache_errors=False, name="users")
async def mapped(ids: list[int]) -> dict[int, User]: ...


@batch_loader(on_missing=KeyError)
async def with_errors(ids: list[str]) -> list[User | Exception]: ...


@batch_loader(cache=False)
async def streamed(ids: list[int]) -> AsyncGenerator[tuple[int, User], None]:
    yield 1, User()


async def plain(ids: list[int]) -> list[User]: ...


@batch_loader(group_by=id)
async def books(ids: list[int], *, first: int = 10, order: str = "id") -> list[User]: ...


@batch_loader
async def of_tenant(ids: list[int], *, tenant: str, first: int = 1) -> dict[int, User]: ...


async def with_argument(ids: list[int], *, first: int = 1) -> list[User]: ...


class Users(DataLoader[int, User]):
    def by_name(self, name: str) -> LoadHandle[User]: ...


class Table(DataLoader[int, T], Generic[T]): ...


class Database:
    async def users(self, ids: list[int]) -> dict[int, User]: ...

    @batch_loader
    async def friends(self, ids: list[int], *, first: int = 1) -> list[list[User]]: ...


def types_follow_from_the_function() -> None:
    assert_type(listed, BatchLoader[int, User, []])
    assert_type(mapped, BatchLoader[int, User | None, []])
    assert_type(with_errors, BatchLoader[str, User, []])
    assert_type(streamed, BatchLoader[int, User | None, []])
    assert_type(mapped.load(1), LoadHandle[User | None])
    assert_type(mapped.load_many([1]), LoadManyHandle[User | None])
    assert_type(mapped.peek(1), LoadHandle[User | None] | None)
    assert_type(mapped.prime(1, User()).prime(2, KeyError()), DataLoader[int, User | None])
    assert_type(mapped.make_loader(), DataLoader[int, User | None])


async def a_scope_gives_loaders_of_the_right_type(database: Database) -> None:
    async with LoaderScope() as scope:
        assert_type(scope, LoaderScope)
        assert_type(scope.get(mapped), DataLoader[int, User | None])
        assert_type(scope.get(plain), DataLoader[int, User])
        assert_type(scope.get(database.users), DataLoader[int, User | None])
        assert_type(scope.get(Users), Users)
        assert_type(scope.get(Users).by_name("a"), LoadHandle[User])
        assert_type(scope.get(Table[User]), Table[User])
        assert_type(current_scope().get(listed).load(1), LoadHandle[User])
        assert_type(scope.statistics(), LoaderStatistics)
        assert_type(await with_errors.load("a"), User)
        assert_type(await listed.load_many([1, 2]), list[User])


async def wrong_code_is_refused(scope: LoaderScope) -> None:
    listed.load("a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with_errors.load(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    listed.prime(1, "a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    scope.get(mapped).load("a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    scope.get(1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    scope.get(int)  # type: ignore[type-var]  # pyright: ignore[reportCallIssue, reportArgumentType]
    scope.get(Users())  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    batch_loader(max_batch_size="1")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    batch_loader(cache_map={})  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    batch_loader(task_group=None)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    LoaderScope(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def arguments_are_those_of_the_function(scope: LoaderScope, database: Database) -> None:
    bound = books.bind(first=3, order="name")
    assert_type(bound.load(1), LoadHandle[list[User]])
    assert_type(bound.bind(order="id").load(1), LoadHandle[list[User]])
    assert_type(scope.get(bound), DataLoader[int, list[User]])
    assert_type(scope.get(bound.bind(order="id")), DataLoader[int, list[User]])
    assert_type(scope.get(of_tenant.bind(tenant="a")), DataLoader[int, User | None])
    assert_type(scope.get(of_tenant.bind(tenant="a").bind(first=3)), DataLoader[int, User | None])
    assert_type(books.bind().bind(first=3).load(1), LoadHandle[list[User]])
    assert_type(of_tenant.bind(tenant="a").load(1), LoadHandle[User | None])
    assert_type(of_tenant.bind(tenant="a").load_required(1), LoadHandle[User])
    assert_type(scope.get(database.friends.bind(first=3)), DataLoader[int, list[User]])
    assert_type(scope.get(books, first=3), DataLoader[int, list[User]])
    assert_type(scope.get(of_tenant, tenant="a"), DataLoader[int, User | None])
    assert_type(scope.get(with_argument, first=3), DataLoader[int, User])
    assert_type(scope.get(database.friends, first=3), DataLoader[int, list[User]])
    untold: BatchLoader[int, list[User]] = books  # takes anything, as what is bound does
    untold = bound
    untold.bind(last=3)


async def wrong_arguments_are_refused(scope: LoaderScope, database: Database) -> None:
    books.bind(last=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    books.bind(first="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    books.bind(3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    listed.bind(first=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    of_tenant.bind(first=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    database.friends.bind(last=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    scope.get(books, last=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    scope.get(books, first="3")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    scope.get(of_tenant)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    scope.get(with_argument, last=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    scope.get(with_argument, first="3")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    scope.get(database.friends, first="3")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await books(["1"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


async def application(scope: Scope, receive: Receive, send: Send) -> None: ...


def frameworks_take_the_middleware() -> None:
    LoaderScopeMiddleware(LoaderScopeMiddleware(application), cancel_on_disconnect=False)
    Starlette(middleware=[Middleware(LoaderScopeMiddleware, cancel_on_disconnect=False)])
    FastAPI().add_middleware(LoaderScopeMiddleware)
    Litestar(middleware=[LoaderScopeMiddleware])
    LoaderScopeMiddleware(application, make_scope=LoaderScope, cancel_on_disconnect=safe_methods)
    LoaderScopeMiddleware(application, make_scope=lambda: LoaderScope(hooks=[]))
    LoaderScopeMiddleware(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def gathered(one: int, many: list[int]) -> None:
    assert_type(await gather(listed.load(one), mapped.load(one)), tuple[User, "User | None"])
    assert_type(await gather(listed.load(one), mapped.load_required(one)), tuple[User, User])
    assert_type(await gather(*(listed.load(id) for id in many)), tuple[User, ...])
    await gather(1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await gather(many)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    mapped.load_required("a")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
