"""Batch functions made of mapped columns and relationships, on real databases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextvars import ContextVar
from datetime import timedelta, timezone
from decimal import Decimal
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

import pytest

pytest.importorskip("sqlalchemy")
pytest.importorskip("greenlet")

from sqlalchemy import Integer, String, bindparam
from sqlalchemy.exc import MultipleResultsFound
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column

from anyloader import DataLoader, LoaderScope
from anyloader.integrations.sqlalchemy import RowsBy, related, rows_by, rows_grouped_by
from support.databases import (
    NOON,
    THING,
    Author,
    Book,
    Colour,
    Copy,
    Database,
    Edition,
    Engineer,
    Moment,
    Node,
    Passport,
    Person,
    Tag,
    Thing,
    connected,
    ids,
    request_session,
)

pytestmark = pytest.mark.anyio

pytest_plugins = ["support.databases"]


@pytest.fixture
async def sqlite_database(request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    """Blocking, and so for all backends; where it does not matter which database it is."""
    async with connected("sqlite", request) as database:
        yield database


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


async def test_times_have_the_zone_that_the_database_gives(database: Database) -> None:
    here = NOON.replace(tzinfo=timezone.utc)
    there = here.astimezone(timezone(timedelta(hours=2)))
    keeps = database.engine.dialect.name == "postgresql"
    for column, right, wrong, error in (
        (Moment.local, [NOON], [here, there], "Moment.local takes a datetime without a time zone"),
        (
            Moment.hour,
            [NOON.time()],
            [here.timetz()],
            "Moment.hour takes a time without a time zone",
        ),
        (
            Moment.day,
            [NOON.date()],
            [NOON, here],
            "Moment.day takes a key of type date, not this datetime",
        ),
        (
            Moment.at,
            [here, there],
            [NOON],
            "Moment.at takes a datetime with a time zone, not one without",
        )
        if keeps
        else (
            Moment.at,
            [NOON],
            [here, there],
            "Moment.at takes a datetime without a time zone on sqlite, which keeps none",
        ),
    ):
        fetch: Any = rows_by(column, session=database.sessions)
        found = await fetch([*right, *wrong])
        assert [found[key].id for key in right] == [1] * len(right)
        assert {str(found[key]) for key in wrong} == {error}
        several: Any = rows_grouped_by(Moment.id, column, session=database.sessions)
        rows, *errors = await several([(1, right[0]), *((1, key) for key in wrong)])
        assert [row.id for row in rows] == [1]
        assert {str(problem) for problem in errors} == {error}


async def test_where_only_rows_tell_the_zone_a_wrong_one_is_an_error(database: Database) -> None:
    here = NOON.replace(tzinfo=timezone.utc)
    keeps = database.engine.dialect.name == "postgresql"
    right, wrong = (here, NOON) if keeps else (NOON, here)
    fetch: Any = rows_by(Moment.old_at, session=database.sessions)
    assert ids(await fetch([right])) == {right: 1}
    kind = "with" if keeps else "without"
    with pytest.raises(
        TypeError, match=f"the database gives, which is datetime {kind} a time zone"
    ):
        await fetch([wrong])


class Level(IntEnum):
    HIGH = 7


async def test_equal_numbers_and_uuids_are_found_in_any_form(database: Database) -> None:
    fetch: Any = rows_by(Thing.price, session=database.sessions)
    keys: list[Any] = [1.5, Decimal("1.50"), 3, True, Level.HIGH, float("nan"), float("inf")]
    assert ids(await fetch(keys)) == {1.5: THING}
    fetch = rows_by(Moment.number, session=database.sessions)
    assert ids(await fetch([0.1, Decimal("0.1"), 1])) == {0.1: 1, Decimal("0.1"): 1}
    fetch = rows_by(Moment.text_id, session=database.sessions)
    keys = [THING, THING.hex, str(THING), "none"]
    found = await fetch(keys)
    error = found.pop("none")
    assert str(error) == "Moment.text_id takes a key of type UUID, not this str"
    assert ids(found) == dict.fromkeys(keys[:3], 1)


async def test_a_word_that_an_enum_does_not_have_is_of_no_row(database: Database) -> None:
    fetch: Any = rows_by(Moment.word, session=database.sessions)
    assert ids(await fetch(["new", "old", "other"])) == {"new": 1}


async def test_a_number_that_no_column_can_hold_is_of_no_row(database: Database) -> None:
    for column, value in ((Book.id, 1), (Thing.small, 1), (Thing.big, 2**40)):
        fetch: Any = rows_by(column, session=database.sessions)
        assert list(await fetch([value, 2**15, 2**31, 2**63, -(2**64), 10**100])) == [value]
        assert list(await fetch([10**100])) == []


async def test_a_text_that_no_column_can_hold_is_of_no_row(database: Database) -> None:
    fetch: Any = rows_by(Book.title, session=database.sessions)
    assert list(await fetch(["a", "a\0", "\ud800"])) == ["a"]


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
