"""Type-checked, not run: the types of batch functions over SQLAlchemy, and what is refused."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, sessionmaker

from anyloader import BatchLoader, DataLoader, LoaderScope, batch_loader
from anyloader.integrations.sqlalchemy import (
    RowsBy,
    RowsGroupedBy,
    related,
    rows_by,
    rows_grouped_by,
)

if TYPE_CHECKING:
    from typing_extensions import assert_type


class Base(DeclarativeBase): ...


class Author(Base):
    id: Mapped[int]
    name: Mapped[str]
    books: Mapped[list[Book]]
    friends: Mapped[set[Author]]
    by_title: Mapped[dict[str, Book]]


class Book(Base):
    id: Mapped[int]
    title: Mapped[str]
    author_id: Mapped[int | None]
    author: Mapped[Author]
    editor: Mapped[Author | None]


class OwnSession(AsyncSession): ...


def make() -> Session:
    return Session()


def sessions_of_every_kind(
    maker: sessionmaker[Session],
    async_maker: async_sessionmaker[AsyncSession],
    own_maker: async_sessionmaker[OwnSession],
    variable: ContextVar[Session],
    async_variable: ContextVar[AsyncSession],
    own_variable: ContextVar[OwnSession],
) -> None:
    assert_type(rows_by(Author.id, session=maker), RowsBy[int, Any])
    rows_by(Author.id, session=make)
    rows_by(Author.id, session=async_maker)
    rows_by(Author.id, session=own_maker)
    rows_by(Author.id, session=variable)
    rows_by(Author.id, session=async_variable)
    rows_by(Author.id, session=own_variable)


async def the_type_of_a_key_follows_from_the_columns() -> None:
    assert_type(rows_by(Author.id, session=make), RowsBy[int, Any])
    assert_type(rows_by(Book.author_id, session=make), RowsBy[int, Any])
    assert_type(rows_by(aliased(Book).title, session=make), RowsBy[str, Any])
    assert_type(rows_by(Book.author_id, Book.title, session=make), RowsBy[tuple[int, str], Any])
    assert_type(
        rows_by(Book.id, Book.author_id, Book.title, session=make), RowsBy[tuple[Any, ...], Any]
    )
    assert_type(rows_grouped_by(Book.author_id, session=make), RowsGroupedBy[int, Any])
    assert_type(
        rows_grouped_by(Book.author_id, Book.title, session=make),
        RowsGroupedBy[tuple[int, str], Any],
    )


# The class of the rows has to be said.
fetch_authors: RowsBy[int, Author] = rows_by(Author.id, where=Author.id > 1, session=make)
fetch_books: RowsGroupedBy[int, Book] = rows_grouped_by(
    Book.author_id,
    order_by=[Book.title, Book.id.desc()],
    limit=3,
    where=[Book.id > 1, Book.title != ""],
    session=make,
)
authors = batch_loader(fetch_authors)


async def the_type_of_the_rows_is_kept(scope: LoaderScope) -> None:
    assert_type(await fetch_authors([1]), dict[int, Author])
    assert_type(await fetch_books([1], first=2), list[list[Book]])
    assert_type(authors, BatchLoader[int, Author | None, []])
    assert_type(DataLoader(fetch_books), DataLoader[int, list[Book]])
    assert_type(scope.get(fetch_books), DataLoader[int, list[Book]])
    assert_type(await scope.get(fetch_books).load(1), list[Book])


async def so_it_is_by_the_annotation_of_the_loader() -> None:
    author: BatchLoader[int, Author | None] = batch_loader(rows_by(Author.id, session=make))
    assert_type(await author.load(1), Author | None)
    assert_type(await author.load_required(1), Author)
    books_of: BatchLoader[int, list[Book]] = batch_loader(
        rows_grouped_by(Book.author_id, order_by=Book.id, session=make)
    )
    assert_type(await books_of.bind(first=3).load(1), list[Book])


async def relationships_say_what_they_lead_to() -> None:
    assert_type(related(Author.books, session=make), RowsGroupedBy[Any, Book])
    assert_type(related(Author.friends, session=make), RowsGroupedBy[Any, Author])
    assert_type(related(Author.by_title, session=make), RowsGroupedBy[Any, Book])
    assert_type(related(Book.author, session=make), RowsBy[Any, Author])
    assert_type(related(Book.editor, session=make), RowsBy[Any, Author])
    related(Author.books, order_by=Book.title, limit=3, where=Book.id > 1, session=make)


def no_session() -> int:
    return 0


async def wrong_code_is_refused(session: Session, variable: ContextVar[int]) -> None:
    rows_by(session=make)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    rows_by(Author.id)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    rows_by("id", session=make)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    rows_by(Author, session=make)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    rows_by(Author.id, session=session)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    rows_by(Author.id, session=no_session)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    rows_by(Author.id, session=variable)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    rows_by(Author.id, limit=3, session=make)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    rows_grouped_by(Author.id, limit="3", session=make)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    related(Book.author, limit=3, session=make)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    wrong: RowsBy[str, Author] = rows_by(Author.id, session=make)  # type: ignore[arg-type]  # pyright: ignore[reportAssignmentType]
    await wrong(["a"])
    await fetch_authors(["a"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    await fetch_authors([1], first=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await fetch_books([1], first="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
