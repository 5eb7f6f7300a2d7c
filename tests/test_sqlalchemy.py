"""``anyloader.integrations.sqlalchemy`` on SQLite and on a PostgreSQL of its own."""

from __future__ import annotations

import asyncio
import enum
import importlib
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint

pytest.importorskip("sqlalchemy")
pytest.importorskip("greenlet")

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Engine,
    Enum,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    SmallInteger,
    String,
    Table,
    TypeDecorator,
    bindparam,
    create_engine,
    event,
    func,
    text,
)
from sqlalchemy.exc import DBAPIError, MultipleResultsFound
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    mapped_column,
    relationship,
    scoped_session,
    sessionmaker,
)
from sqlalchemy.types import UserDefinedType

from anyloader import DataLoader, LoaderScope
from anyloader.integrations.sqlalchemy import RowsBy, related, rows_by, rows_grouped_by
from support import wait_all_tasks_blocked
from support.postgres_server import PostgresServer

pytestmark = pytest.mark.anyio


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


class Thing(Base):
    __tablename__ = "thing"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    old_id: Mapped[uuid.UUID] = mapped_column(OldUUID)
    colour: Mapped[Colour] = mapped_column(Enum(Colour))
    price: Mapped[Decimal]
    small: Mapped[int] = mapped_column(SmallInteger)
    big: Mapped[int] = mapped_column(BigInteger)
    document: Mapped[Any] = mapped_column(JSON)


THING = uuid.UUID(int=1)

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


def checked_out(database: Database) -> int:
    pool: Any = database.engine.pool
    count: int = pool.checkedout()
    return count


async def call(session: Any, work: Callable[[Session], Any]) -> Any:
    """Use a session of either kind by hand."""
    return await session.run_sync(work) if isinstance(session, AsyncSession) else work(session)


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


@pytest.fixture
async def sqlite_database(request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    """Blocking, and so for all backends; where it does not matter which database it is."""
    async with connected("sqlite", request) as database:
        yield database


def ids(rows: Any) -> Any:
    if isinstance(rows, dict):
        return {key: row.id for key, row in rows.items()}
    return [[row.id for row in some] for some in rows]


# --- rows by key ---


async def test_rows_by_a_key(every_database: Database) -> None:
    database = every_database
    fetch = rows_by(Author.id, session=database.sessions)
    found = await fetch([2, 9, 1])
    assert {key: author.name for key, author in found.items()} == {2: "author 2", 1: "author 1"}
    assert len(database.statements) == 1
    # joined to its author by the mapping, and so loaded, though its session is closed
    assert [book.title for book in found[1].books] == ["c", "b", "a"]


async def test_in_a_loader(every_database: Database) -> None:
    database = every_database
    fetch_author = rows_by(Author.id, session=database.sessions)
    fetch_books = rows_grouped_by(Book.author_id, order_by=Book.title, session=database.sessions)
    async with LoaderScope() as scope:
        one, none = await scope.get(fetch_author).load_many([1, 9])
        assert one is not None
        assert none is None
        books = await scope.get(fetch_books).load(one.id)
        assert [book.title for book in books] == ["a", "b", "c"]
        assert scope.get(fetch_books).name == "rows_grouped_by(Book.author_id)"
    assert len(database.statements) == 2
    async with DataLoader(fetch_author, on_missing=KeyError) as loader:
        with pytest.raises(KeyError):
            await loader.load(9)


async def test_a_key_of_several_columns_is_a_tuple(database: Database) -> None:
    class Key(NamedTuple):
        isbn: str
        language: str

    fetch = rows_by(Edition.isbn, Edition.language, session=database.sessions)
    keys = [("i1", "de"), ("i1", "fr"), Key("i2", "en")]
    found = await fetch(keys)
    assert {key: row.number for key, row in found.items()} == {keys[0]: 1, keys[2]: 2}

    three = rows_by(Edition.number, Edition.isbn, Edition.language, session=database.sessions)
    assert list(await three([(1, "i1", "de"), (2, "i1", "de")])) == [(1, "i1", "de")]


async def test_where_narrows_the_rows(database: Database) -> None:
    fetch = rows_by(Book.id, where=Book.year > 2002, session=database.sessions)
    assert ids(await fetch([1, 2, 3, 4])) == {3: 3, 4: 4}
    fetch = rows_by(Book.id, where=[Book.year > 2002, Book.title != "d"], session=database.sessions)
    assert ids(await fetch([1, 2, 3, 4])) == {3: 3}


async def test_where_can_ask_a_context_variable(database: Database) -> None:
    year: ContextVar[int] = ContextVar("year", default=2000)
    later = Book.year > bindparam("later", callable_=year.get, type_=Integer)
    fetch = rows_by(Book.id, where=later, session=database.sessions)
    assert ids(await fetch([1, 4])) == {1: 1, 4: 4}
    year.set(2003)
    assert ids(await fetch([1, 4])) == {4: 4}


async def test_two_rows_for_one_key_are_an_error(database: Database) -> None:
    fetch = rows_by(Book.author_id, session=database.sessions)
    assert ids(await fetch([2, 3])) == {2: 4}
    with pytest.raises(MultipleResultsFound, match=r"found 3 rows for one key.*rows_grouped_by"):
        await fetch([1, 2])


async def test_no_keys_take_no_session() -> None:
    def none() -> Session:
        raise NotImplementedError

    assert await rows_by(Author.id, session=none)([]) == {}
    assert await rows_grouped_by(Author.id, session=none)([]) == []


async def test_subclasses_and_aliases(sqlite_database: Database) -> None:
    sessions = sqlite_database.sessions
    people = await rows_by(Person.id, session=sessions)([1, 2])
    assert [type(row) for row in people.values()] == [Person, Engineer]
    assert ids(await rows_by(Engineer.id, session=sessions)([1, 2])) == {2: 2}
    by_team = rows_grouped_by(Engineer.team, order_by=Engineer.id, limit=1, session=sessions)
    assert ids(await by_team(["x", "y"])) == [[2], []]
    other = aliased(Book, name="other")
    fetch = rows_grouped_by(other.author_id, order_by=other.id.desc(), limit=2, session=sessions)
    assert ids(await fetch([1])) == [[3, 2]]


# --- rows of a parent ---


async def test_rows_grouped_by_a_key(database: Database) -> None:
    fetch = rows_grouped_by(Book.author_id, order_by=Book.title.desc(), session=database.sessions)
    assert ids(await fetch([3, 1, 2, 1])) == [[], [3, 2, 1], [4], [3, 2, 1]]
    assert len(database.statements) == 1
    fetch = rows_grouped_by(Book.author_id, where=Book.title != "b", session=database.sessions)
    assert [sorted(row) for row in ids(await fetch([1]))] == [[1, 3]]


async def test_the_first_of_each_in_one_statement(database: Database) -> None:
    fetch = rows_grouped_by(
        Book.author_id,
        order_by=[Book.year.desc(), Book.id],
        where=Book.title != "c",
        limit=1,
        session=database.sessions,
    )
    assert ids(await fetch([1, 2, 3])) == [[2], [4], []]
    assert ids(await fetch([1, 2, 3], first=2)) == [[2, 1], [4], []]
    assert ids(await fetch([1, 2, 3], first=0)) == [[], [], []]
    assert ids(await fetch([1], first=None)) == [[2]]
    assert len(database.statements) == 4
    async with DataLoader(partial(fetch, first=2)) as loader:
        assert ids([await loader.load(1)]) == [[2, 1]]
    editions = rows_grouped_by(
        Edition.isbn,
        Edition.number,
        order_by=Edition.language,
        limit=1,
        session=database.sessions,
    )
    rows = await editions([("i1", 1), ("i1", 2)])
    assert [[row.language for row in some] for some in rows] == [["de"], []]


async def test_first_is_checked() -> None:
    fetch: Any = rows_grouped_by(Book.author_id, session=Session)
    with pytest.raises(ValueError, match="made without order_by=, which first= needs"):
        await fetch([1], first=1)
    with pytest.raises(ValueError, match=r"first must be an int >= 0 or None, not -1"):
        await fetch([1], first=-1)
    for wrong in (True, "1", 1.0):
        with pytest.raises(TypeError, match=r"first must be an int >= 0 or None, not an object of"):
            await fetch([1], first=wrong)


# --- relationships ---


async def test_one_to_many(database: Database) -> None:
    fetch = related(Author.books, session=database.sessions)
    assert ids(await fetch([1, 3, 2, 9])) == [[3, 2, 1], [], [4], []]
    assert ids(await fetch([1, 3, 2, 9], first=2)) == [[3, 2], [], [4], []]
    first = related(Author.books, order_by=Book.id, limit=1, session=database.sessions)
    assert ids(await first([1, 2])) == [[1], [4]]
    old = related(Author.books, where=Book.year < 2003, session=database.sessions)
    assert ids(await old([1, 2])) == [[2, 1], []]
    assert len(database.statements) == 4


async def test_many_to_one_and_one_to_one(database: Database) -> None:
    fetch = related(Book.author, session=database.sessions)
    assert ids(await fetch([1, 4, 9])) == {1: 1, 4: 2}
    passports = await related(Author.passport, session=database.sessions)([1, 2])
    assert {key: row.number for key, row in passports.items()} == {1: "P1"}
    assert ids(await related(Passport.author, session=database.sessions)(["P1"])) == {"P1": 1}


async def test_many_to_many(database: Database) -> None:
    fetch = related(Tag.books, session=database.sessions)
    assert ids(await fetch([1, 2, 3])) == [[1, 4], [1], []]
    assert ids(await fetch([1, 2, 3], first=1)) == [[1], [1], []]
    by_place = related(Book.tags, session=database.sessions)
    assert ids(await by_place([1, 2])) == [[2, 1], []]
    assert ids(await by_place([1, 2], first=1)) == [[2], []]


async def test_a_class_related_to_itself(database: Database) -> None:
    fetch = related(Node.children, order_by=Node.id, session=database.sessions)
    assert ids(await fetch([1, 2, 3])) == [[2, 3, 5], [], [4]]
    assert ids(await fetch([1, 3], first=2)) == [[2, 3], [4]]
    assert ids(await related(Node.parent, session=database.sessions)([1, 2, 4])) == {2: 1, 4: 3}


async def test_a_primary_key_of_several_columns(database: Database) -> None:
    fetch = related(Edition.copies, order_by=Copy.id, session=database.sessions)
    assert ids(await fetch([("i1", "de"), ("i1", "en")], first=2)) == [[1, 2], []]
    editions = await related(Copy.edition, session=database.sessions)([1])
    assert editions[1].isbn == "i1"


# --- keys ---


async def test_the_text_of_an_int_or_uuid_is_a_key(database: Database) -> None:
    fetch: Any = rows_by(Book.id, session=database.sessions)
    assert ids(await fetch([1, "1", "2"])) == {1: 1, "1": 1, "2": 2}
    fetch = rows_by(Thing.id, session=database.sessions)
    keys = [THING, str(THING), THING.hex]
    assert ids(await fetch(keys)) == dict.fromkeys(keys, THING)


async def test_a_key_of_another_type_fails_alone(database: Database) -> None:
    fetch_book: RowsBy[Any, Any] = rows_by(Book.id, session=database.sessions)
    for wrong in ("secret", "", 1.5, b"1", (1,)):
        async with DataLoader(fetch_book) as loader:
            first, second = loader.load_required(1), loader.load(wrong)
            assert (await first).id == 1
            with pytest.raises(TypeError, match=r"Book.id takes a key of type int, not this") as e:
                await second
            assert "secret" not in str(e.value)
    grouped: Any = rows_grouped_by(Thing.id, session=database.sessions)
    rows, error = await grouped([THING, "no UUID"])
    assert len(rows) == 1
    assert isinstance(error, TypeError)
    several: Any = rows_by(Edition.isbn, Edition.language, session=database.sessions)
    found = await several(["i1", ("i1",), ("i1", "de"), ("i1", 3)])
    assert found.pop(("i1", "de")).number == 1
    assert [str(error) for error in found.values()] == [
        "rows_by(Edition.isbn, Edition.language) takes keys that are tuples of 2",
        "rows_by(Edition.isbn, Edition.language) takes keys that are tuples of 2",
        "Edition.language takes a key of type str, not this int",
    ]
    assert len(await several([1])) == 1


async def test_other_types_of_keys(database: Database) -> None:
    by_colour: Any = rows_by(Thing.colour, session=database.sessions)
    found = await by_colour([Colour.RED, Colour.BLUE, "RED"])
    assert found[Colour.RED].id == THING
    assert isinstance(found["RED"], TypeError)
    assert Colour.BLUE not in found
    by_price: Any = rows_by(Thing.price, session=database.sessions)
    assert ids(await by_price([1.5, 2])) == {1.5: THING}


async def test_a_number_that_no_column_can_hold_is_of_no_row(database: Database) -> None:
    for column, value in ((Book.id, 1), (Thing.small, 1), (Thing.big, 2**40)):
        fetch: Any = rows_by(column, session=database.sessions)
        assert list(await fetch([value, 2**15, 2**31, 2**63, -(2**64), 10**100])) == [value]
        assert list(await fetch([10**100])) == []


async def test_keys_that_only_the_type_understands(sqlite_database: Database) -> None:
    fetch: Any = rows_by(Thing.old_id, session=sqlite_database.sessions)
    assert ids(await fetch([THING])) == {THING: THING}
    with pytest.raises(
        TypeError, match="keys of another type than the database gives, which is UUID"
    ):
        await fetch([str(THING)])


async def test_rows_that_only_the_database_finds_equal_are_left_out(
    sqlite_database: Database,
) -> None:
    class Loose(DeclarativeBase):
        pass

    class Word(Loose):
        __tablename__ = "word"
        id: Mapped[int] = mapped_column(primary_key=True)
        word: Mapped[str] = mapped_column(String(collation="NOCASE"))

    fetch = rows_by(Word.word, session=request_session)
    async with sqlite_database.session() as session:
        Loose.metadata.create_all(session.connection())
        session.add(Word(word="new"))
        request_session.set(session)
        assert ids(await fetch(["new"])) == {"new": 1}
        assert await fetch(["NEW"]) == {}


async def test_many_keys_are_several_statements(database: Database) -> None:
    fetch = rows_by(Book.id, session=database.sessions)
    assert sorted(await fetch(list(range(-2000, 500)))) == [1, 2, 3, 4]
    assert len(database.statements) == 3
    database.engine.dialect.insertmanyvalues_max_parameters = 8
    assert sorted(await fetch(list(range(9)))) == [1, 2, 3, 4]
    assert len(database.statements) == 6
    several = rows_grouped_by(Edition.isbn, Edition.language, session=database.sessions)
    keys = [(isbn, language) for isbn in ("i1", "i2") for language in ("de", "en", "fr")]
    assert [len(rows) for rows in await several(keys)] == [1, 1, 0, 1, 1, 0]
    assert len(database.statements) == 9


# --- mistakes ---


async def first(keys: list[int]) -> None:
    """No session."""


# Checkers refuse most of these, too: see typing/with_sqlalchemy.py.
any_rows_by: Any = rows_by
any_rows_grouped_by: Any = rows_grouped_by
any_related: Any = related


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: any_rows_by(session=Session),
            TypeError,
            r"rows_by\(\) needs the column of its keys",
        ),
        (lambda: any_rows_grouped_by(session=Session), TypeError, "needs the column of its keys"),
        (lambda: any_rows_by("id", session=Session), TypeError, "not an object of type str"),
        (lambda: any_rows_by(Author, session=Session), TypeError, "such as User.id, not Author"),
        (lambda: any_rows_by(Author.__table__.c.id, session=Session), TypeError, "of type Column"),
        (lambda: any_rows_by(Author.books, session=Session), TypeError, "there is related"),
        (lambda: any_rows_by(Thing.document, session=Session), TypeError, "not hashable"),
        (lambda: any_rows_by(Author.id, Book.id, session=Session), ValueError, "to one class"),
        (
            lambda: any_rows_by(Book.id, aliased(Book).id, session=Session),
            ValueError,
            r"all columns of rows_by\(Book.id, .*\) must belong to one class",
        ),
        (
            lambda: any_rows_grouped_by(Book.author_id, limit=3, session=Session),
            ValueError,
            "with limit= needs order_by=",
        ),
        (
            lambda: any_rows_grouped_by(Book.id, order_by=Book.id, limit=-1, session=Session),
            ValueError,
            "limit must be an int >= 0 or None, not -1",
        ),
        (
            lambda: any_rows_grouped_by(Book.id, order_by=Book.id, limit="3", session=Session),
            TypeError,
            "limit must be an int >= 0 or None, not an object of type str",
        ),
        (lambda: any_related(Author, session=Session), TypeError, "relationship, .* not Author"),
        (lambda: any_related(Author.id, session=Session), TypeError, "not Author.id"),
        (
            lambda: any_related(Author.books.and_(Book.year > 1), session=Session),
            TypeError,
            "where= is for criteria",
        ),
        (
            lambda: any_related(Node.children, limit=1, session=Session),
            ValueError,
            "with limit= needs order_by=",
        ),
        (
            lambda: any_related(Book.author, order_by=Author.id, session=Session),
            ValueError,
            "leads to one row",
        ),
        (
            lambda: any_rows_by(Author.id, session=Session()),
            TypeError,
            "not an object of type Session",
        ),
        (lambda: any_rows_by(Author.id, session=None), TypeError, "of type NoneType"),
        (
            lambda: any_rows_by(Author.id, session=scoped_session(sessionmaker())),
            TypeError,
            "give its session_factory, or a ContextVar",
        ),
        (
            lambda: any_rows_by(
                Author.id,
                session=async_scoped_session(async_sessionmaker(), scopefunc=lambda: 1),
            ),
            TypeError,
            "give its session_factory, or a ContextVar",
        ),
        (lambda: any_rows_by(Author.id, session=first), TypeError, "not an async function or"),
        (lambda: any_rows_by(Author.id, session=as_async), TypeError, "not an async function or"),
    ],
)
def test_mistakes_show_when_a_function_is_made(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


def test_types_that_do_not_tell() -> None:
    class Point(UserDefinedType[Any]):
        cache_ok = True

    class Odd(DeclarativeBase):
        pass

    class Row(Odd):
        __tablename__ = "row"
        id: Mapped[Any] = mapped_column(Point, primary_key=True)

    assert repr(rows_by(Row.id, session=Session)) == "<rows_by(Row.id)>"


async def test_what_is_no_session() -> None:
    fetch = any_rows_by(Author.id, session=lambda: 3)
    with pytest.raises(TypeError, match="an object of type int instead of a Session"):
        await fetch([1])
    variable: ContextVar[Any] = ContextVar("request_session")
    fetch = rows_by(Author.id, session=variable)
    with pytest.raises(LookupError, match="'request_session' holds no session where"):
        await fetch([1])
    variable.set(3)
    with pytest.raises(TypeError, match="an object of type int instead of a Session"):
        await fetch([1])


@pytest.mark.only_on("trio")
async def test_an_async_session_on_trio() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    with pytest.raises(RuntimeError, match="an AsyncSession needs asyncio: on trio give"):
        await rows_by(Author.id, session=async_sessionmaker(engine))([1])


def test_blocking_sessions_need_no_greenlet(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["greenlet"] = None
import anyio
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from anyloader.integrations.sqlalchemy import rows_by
class Base(DeclarativeBase): pass
class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
engine = create_engine("sqlite:///data.db")
Base.metadata.create_all(engine)
print(anyio.run(rows_by(User.id, session=sessionmaker(engine)), [1]))
engine.dispose()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout == "{}\n", done.stderr


# --- a session for each batch ---


async def test_a_session_for_each_batch_is_closed(every_database: Database) -> None:
    database = every_database
    made = []

    def sessions() -> Any:
        made.append(database.sessions())
        return made[-1]

    fetch = rows_by(Book.id, session=sessions)
    async with anyio.create_task_group() as group:
        for key in (1, 2):
            group.start_soon(fetch, [key])
    assert [session.in_transaction() for session in made] == [False, False]
    assert [len(session.identity_map) for session in made] == [0, 0]
    broken = rows_by(Book.id, where=func.no_such_function() == 1, session=sessions)
    with pytest.raises(DBAPIError):
        await broken([1])
    assert not made[2].in_transaction()
    assert checked_out(database) == 0


# --- the session of a request ---


class Watch:
    """Counts who uses sessions at once; they wait for every other task, or until it is opened."""

    def __init__(self, *, closed: bool = False) -> None:
        self.using = 0
        self.most = 0
        self._gate = (anyio.Event(), threading.Event()) if closed else None

    def open(self) -> None:
        assert self._gate is not None
        for gate in self._gate:
            gate.set()

    async def used_by(self, number: int) -> None:
        while self.using < number:  # a thread tells nobody when it has begun
            await checkpoint()

    @contextmanager
    def _used(self) -> Iterator[None]:
        self.using += 1
        self.most = max(self.most, self.using)
        try:
            yield
        finally:
            self.using -= 1

    def watched(self, session: Any) -> Any:
        run_sync, execute = getattr(session, "run_sync", None), session.execute

        async def watched_run_sync(*args: Any) -> Any:
            assert run_sync is not None
            with self._used():
                await (self._gate[0].wait() if self._gate else wait_all_tasks_blocked())
                return await run_sync(*args)

        def watched_execute(*args: Any) -> Any:
            with self._used():
                if self._gate:
                    self._gate[1].wait()
                else:
                    anyio.from_thread.run(wait_all_tasks_blocked)
                return execute(*args)

        if run_sync is not None:
            session.run_sync = watched_run_sync
        else:
            session.execute = watched_execute
        return session


async def test_batches_use_the_session_of_the_request_one_at_a_time(
    every_database: Database,
) -> None:
    database = every_database
    functions: list[Any] = [
        rows_by(Author.id, session=request_session),
        rows_grouped_by(Book.author_id, session=request_session),
        related(Node.children, session=request_session),
    ]
    watch = Watch()
    async with database.session() as session:
        request_session.set(watch.watched(session))
        async with LoaderScope() as scope:
            loads = [scope.get(function).load(1) for function in functions]
            author, books, nodes = [await load for load in loads]
        assert (author.id, len(books), len(nodes)) == (1, 3, 3)
        assert all(row in session for row in (author, *books))
        assert session.in_transaction()
    assert watch.most == 1
    assert len(database.statements) == 3


async def test_two_sessions_are_used_at_once(every_database: Database) -> None:
    database = every_database
    fetch = rows_by(Book.id, session=request_session)
    watch = Watch(closed=True)

    async def request() -> None:
        async with database.session() as session:
            request_session.set(watch.watched(session))
            assert ids(await fetch([1])) == {1: 1}

    async with anyio.create_task_group() as group:
        group.start_soon(request)
        group.start_soon(request)
        await watch.used_by(2)
        watch.open()


async def test_it_sees_what_the_request_has_written(every_database: Database) -> None:
    database = every_database
    fetch = rows_by(Author.id, session=request_session)
    async with database.session() as session:
        request_session.set(session)
        async with LoaderScope() as scope:
            authors = scope.get(fetch)
            author = await authors.load_required(1)
            assert await authors.load(4) is None
            author.name = "renamed"
            session.add(Author(id=4, name="new"))
            assert (await authors.clear(4).load_required(4)).name == "new"
            assert (await authors.clear(1).load_required(1)).name == "renamed"
        await call(session, lambda session: session.rollback())


async def test_a_load_given_up_does_not_end_the_transaction(every_database: Database) -> None:
    database = every_database
    fetch = rows_by(Book.id, session=request_session)
    watch = Watch(closed=True)
    async with database.session() as session:
        await call(session, lambda session: session.add(Author(id=5, name="kept")))
        await call(session, lambda session: session.flush())
        request_session.set(watch.watched(session))
        with anyio.CancelScope() as impatient:
            async with anyio.create_task_group() as group:
                for key in (1, 2):
                    group.start_soon(fetch, [key])
                await watch.used_by(1)
                await wait_all_tasks_blocked()
                group.cancel_scope.cancel()
                watch.open()
        assert not impatient.cancelled_caught
        assert watch.using == 0
        assert len(database.statements) == 2  # the second one never had its turn
        del session.__dict__["run_sync" if isinstance(session, AsyncSession) else "execute"]
        assert ids(await fetch([1, 2])) == {1: 1, 2: 2}
        find = partial(Session.get, entity=Author, ident=5)
        assert (await call(session, find)).name == "kept"
        await call(session, lambda session: session.rollback())


@pytest.mark.only_on("asyncio")
@pytest.mark.parametrize("owned", [True, False])
async def test_asyncio_cancels_twice(request: pytest.FixtureRequest, owned: bool) -> None:
    async with connected("sqlite+aiosqlite", request) as database:
        watch = Watch(closed=True)
        session = watch.watched(database.sessions())
        closed: list[Any] = []
        close = session.close

        async def slow_close() -> None:
            await wait_all_tasks_blocked()
            closed.append(await close())

        session.close = slow_close
        request_session.set(session)
        fetch = rows_by(Book.id, session=(lambda: session) if owned else request_session)
        task = asyncio.create_task(fetch([1]))
        await wait_all_tasks_blocked()
        for _ in range(3):
            task.cancel()
            await checkpoint()
        assert not task.done()
        watch.open()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert watch.using == 0
        assert closed == ([None] if owned else [])
        await close()


# --- cancelling on PostgreSQL ---


# A connection that is dropped is closed by the driver when it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.only_on("asyncio")
@pytest.mark.parametrize("driver", ["psycopg async", "asyncpg"])
async def test_cancelling_stops_the_statements(request: pytest.FixtureRequest, driver: str) -> None:
    if driver.split()[0] not in INSTALLED:
        pytest.skip(f"{driver} is not installed")
    if "uvloop" in request.node.name:
        pytest.skip("uvloop may hang in close() where SQLAlchemy 2.0 has dropped a connection")
    count = text(
        "select count(*) from pg_stat_activity "
        "where application_name = 'slow' and state = 'active' and pid <> pg_backend_pid()"
    )
    name = f"postgresql+{driver}"
    setting = "application_name" if "psycopg" in driver else "server_settings"
    value: Any = "slow" if "psycopg" in driver else {"application_name": "slow"}
    async with connected(name, request, connect_args={setting: value}, pool_size=2) as database:
        slow = rows_by(Book.id, where=func.pg_sleep(30).is_not(None), session=database.sessions)
        async with database.session() as watch:
            async with anyio.create_task_group() as group:
                for key in (1, 2, 3, 4):
                    group.start_soon(slow, [key])
                while await watch.scalar(count) < 4:
                    await watch.rollback()
                group.cancel_scope.cancel()
            await watch.rollback()
            assert await watch.scalar(count) == 0
        assert checked_out(database) == 0
