"""Mapped classes, and databases that have their rows."""

from __future__ import annotations

import enum
import importlib
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import date, datetime, time, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("sqlalchemy")
pytest.importorskip("greenlet")

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Engine,
    Enum,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    SmallInteger,
    String,
    Table,
    TypeDecorator,
    Uuid,
    create_engine,
    event,
)
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
    sessionmaker,
)

from support.postgres_server import PostgresServer


class Base(DeclarativeBase):
    pass


book_tags = Table(
    "book_tags",
    Base.metadata,
    Column("book_id", ForeignKey("book.id"), primary_key=True),
    Column("tag_id", ForeignKey("tag.id"), primary_key=True),
    Column("place", Integer, default=0),
)


class Author(Base):
    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))
    # Joined, so that every statement for authors has a row for each of their books.
    books: Mapped[list[Book]] = relationship(
        back_populates="author", order_by="Book.title.desc()", lazy="joined"
    )
    passport: Mapped[Passport | None] = relationship(back_populates="author")


class Passport(Base):
    __tablename__ = "passport"
    number: Mapped[str] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"), unique=True)
    author: Mapped[Author] = relationship(back_populates="passport")


class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(50))
    year: Mapped[int]
    author_id: Mapped[int | None] = mapped_column(ForeignKey("author.id"))
    author: Mapped[Author | None] = relationship(back_populates="books")
    tags: Mapped[set[Tag]] = relationship(
        secondary=book_tags, back_populates="books", order_by=book_tags.c.place
    )


class Tag(Base):
    __tablename__ = "tag"
    id: Mapped[int] = mapped_column(primary_key=True)
    word: Mapped[str] = mapped_column(String(20))
    books: Mapped[list[Book]] = relationship(
        secondary=book_tags, back_populates="tags", order_by=Book.id
    )


class Node(Base):
    __tablename__ = "node"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("node.id"))
    children: Mapped[list[Node]] = relationship(back_populates="parent")
    parent: Mapped[Node | None] = relationship(remote_side=[id], back_populates="children")


class Edition(Base):
    __tablename__ = "edition"
    isbn: Mapped[str] = mapped_column(String(20), primary_key=True)
    language: Mapped[str] = mapped_column(String(2), primary_key=True)
    number: Mapped[int]
    copies: Mapped[list[Copy]] = relationship(back_populates="edition")


class Copy(Base):
    __tablename__ = "copy"
    __table_args__ = (
        ForeignKeyConstraint(["isbn", "language"], ["edition.isbn", "edition.language"]),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    isbn: Mapped[str] = mapped_column(String(20))
    language: Mapped[str] = mapped_column(String(2))
    edition: Mapped[Edition] = relationship(back_populates="copies")


class Person(Base):
    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(10))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012


class Engineer(Person):
    __tablename__ = "engineer"
    id: Mapped[int] = mapped_column(ForeignKey("person.id"), primary_key=True)
    team: Mapped[str] = mapped_column(String(10))
    __mapper_args__ = {"polymorphic_identity": "engineer"}  # noqa: RUF012


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class OldUUID(TypeDecorator[uuid.UUID]):
    """As it was written before ``Uuid`` came: it takes texts, too."""

    impl = String(32)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str:
        return uuid.UUID(str(value)).hex

    def process_result_value(self, value: Any, dialect: Any) -> uuid.UUID:
        return uuid.UUID(value)


class AnyTime(TypeDecorator[Any]):
    """Whose keys cannot be known, as with any ``TypeDecorator``."""

    impl = DateTime(timezone=True)
    cache_ok = True


class Thing(Base):
    __tablename__ = "thing"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    old_id: Mapped[uuid.UUID] = mapped_column(OldUUID)
    colour: Mapped[Colour] = mapped_column(Enum(Colour))
    price: Mapped[Decimal]
    small: Mapped[int] = mapped_column(SmallInteger)
    big: Mapped[int] = mapped_column(BigInteger)
    document: Mapped[Any] = mapped_column(JSON)


class Moment(Base):
    __tablename__ = "moment"
    id: Mapped[int] = mapped_column(primary_key=True)
    local: Mapped[datetime] = mapped_column(DateTime)
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    old_at: Mapped[datetime] = mapped_column(AnyTime)
    day: Mapped[date]
    hour: Mapped[time]
    number: Mapped[float]
    text_id: Mapped[str] = mapped_column(Uuid(as_uuid=False))
    word: Mapped[str] = mapped_column(Enum("new", "old", name="word_of_moment"))


THING = uuid.UUID(int=1)
NOON = datetime(2024, 5, 1, 12, 0, 0, 123456)

#: author: the titles of his books
TITLES = {1: ["a", "b", "c"], 2: ["d"], 3: []}


def fill(engine: Engine) -> None:
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        tags = [Tag(id=n, word=word) for n, word in enumerate(["new", "old", "none"], 1)]
        books: dict[str, Book] = {}
        for author_id, titles in TITLES.items():
            session.add(author := Author(id=author_id, name=f"author {author_id}"))
            for title in titles:
                id = len(books) + 1
                books[title] = Book(id=id, title=title, year=2000 + id, author=author)
        session.add_all(books.values())
        session.add_all([*tags, Passport(number="P1", author_id=1)])
        session.flush()
        session.execute(
            book_tags.insert(),
            [
                {"book_id": books["a"].id, "tag_id": 1, "place": 2},
                {"book_id": books["a"].id, "tag_id": 2, "place": 1},
                {"book_id": books["d"].id, "tag_id": 1, "place": 0},
            ],
        )
        session.add(
            Node(id=1, children=[Node(id=2), Node(id=3, children=[Node(id=4)]), Node(id=5)])
        )
        session.add_all(
            [
                Edition(isbn=f"i{n}", language=lang, number=n)
                for n in (1, 2)
                for lang in ("de", "en")
            ]
        )
        session.flush()
        session.add_all([Copy(id=n, isbn="i1", language="de") for n in (1, 2, 3)])
        session.add_all([Person(id=1), Engineer(id=2, team="x"), Engineer(id=3, team="x")])
        session.add(
            Moment(
                id=1,
                local=NOON,
                at=NOON.replace(tzinfo=timezone.utc),
                old_at=NOON.replace(tzinfo=timezone.utc),
                day=NOON.date(),
                hour=NOON.time(),
                number=0.1,
                text_id=str(THING),
                word="new",
            )
        )
        session.add(
            Thing(
                id=THING,
                old_id=THING,
                colour=Colour.RED,
                price=Decimal("1.5"),
                small=1,
                big=2**40,
                document={},
            )
        )


request_session: ContextVar[Any] = ContextVar("request_session")

# --- databases ---


def is_usable(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:  # psycopg is there, but the library of PostgreSQL is not
        return False
    return True


INSTALLED = [name for name in ("aiosqlite", "asyncpg", "psycopg") if is_usable(name)]

#: What is not installed is absent, but for PostgreSQL, without which its tests are skipped.
DRIVERS = {
    "sqlite": "blocking",
    **({"sqlite+aiosqlite": "async"} if "aiosqlite" in INSTALLED else {}),
    **({"postgresql+psycopg": "blocking"} if "psycopg" in INSTALLED else {}),
    **({"postgresql+psycopg async": "async"} if "psycopg" in INSTALLED else {}),
    **({"postgresql+asyncpg": "async"} if "asyncpg" in INSTALLED else {}),
}
#: These send the very statements, and know the very types, that the blocking ones do.
SAME_STATEMENTS = {"sqlite+aiosqlite", "postgresql+psycopg async"}


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    if PostgresServer.POSTGRES is None or "psycopg" not in INSTALLED:
        pytest.skip("PostgreSQL or psycopg is not installed")
    server = PostgresServer()
    server.start()
    engine = create_engine(server.url("psycopg"))
    fill(engine)
    engine.dispose()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "data.db"
    engine = create_engine(f"sqlite:///{path}")
    fill(engine)
    engine.dispose()
    return path


class Database(NamedTuple):
    engine: Engine
    sessions: Any
    """Makes sessions, whose statements are recorded in"""
    statements: list[str]

    def session(self) -> Any:
        """Enter and leave a session of either kind by ``async with``."""
        return as_async(self.sessions())


@asynccontextmanager
async def as_async(session: AsyncSession | Session) -> AsyncIterator[Any]:
    if isinstance(session, AsyncSession):
        async with session:
            yield session
    else:
        with session:
            yield session


@asynccontextmanager
async def connected(
    name: str, request: pytest.FixtureRequest, **options: Any
) -> AsyncIterator[Database]:
    driver, is_async = name.removesuffix(" async"), DRIVERS[name] == "async"
    if driver.startswith("sqlite"):
        url = f"{driver}:///{request.getfixturevalue('sqlite')}"
    else:
        url = request.getfixturevalue("postgres").url(driver.split("+")[1])
    statements: list[str] = []

    def record(connection: Any, cursor: Any, statement: str, *args: object) -> None:
        statements.append(statement)

    if is_async:
        async_engine = create_async_engine(url, **options)
        event.listen(async_engine.sync_engine, "before_cursor_execute", record)
        yield Database(async_engine.sync_engine, async_sessionmaker(async_engine), statements)
        await async_engine.dispose()
    else:
        engine = create_engine(url, **options)
        event.listen(engine, "before_cursor_execute", record)
        yield Database(engine, sessionmaker(engine), statements)
        engine.dispose()


@pytest.fixture(params=DRIVERS)
async def every_database(
    request: pytest.FixtureRequest, anyio_backend_name: str
) -> AsyncIterator[Database]:
    if DRIVERS[request.param] == "async" and anyio_backend_name == "trio":
        pytest.skip("for asyncio")
    async with connected(request.param, request) as database:
        yield database


@pytest.fixture(params=[name for name in DRIVERS if name not in SAME_STATEMENTS])
async def database(
    request: pytest.FixtureRequest, anyio_backend_name: str
) -> AsyncIterator[Database]:
    """Where sessions do not matter."""
    if DRIVERS[request.param] == "async" and anyio_backend_name == "trio":
        pytest.skip("for asyncio")
    async with connected(request.param, request) as database:
        yield database


def ids(rows: Any) -> Any:
    if isinstance(rows, dict):
        return {key: row.id for key, row in rows.items()}
    return [[row.id for row in some] for some in rows]


# --- mistakes ---


async def first(keys: list[int]) -> None:
    """No session."""
