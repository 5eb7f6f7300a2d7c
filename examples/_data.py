"""ISO 3166 in SQLite: the countries of the world and their subdivisions.

The database is made from `pycountry` the first time it is asked for. `Atlas` reads it through
`sqlite-anyio`: its batch functions take a list of keys, send one statement and return a mapping.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, closing
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pycountry
import sqlite_anyio

APPLICATION_ID = 0x33313636  # "3166"; SQLite keeps it in the file, to tell whose database it is
DEFAULT_DATABASE = Path(tempfile.gettempdir(), f"anyloader-iso3166-{version('pycountry')}.sqlite3")

SCHEMA = f"""
    PRAGMA application_id = {APPLICATION_ID};
    CREATE TABLE country (
        code TEXT PRIMARY KEY,
        name TEXT NOT NULL
    );
    CREATE TABLE subdivision (
        code TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        country_code TEXT NOT NULL REFERENCES country,
        parent_code TEXT REFERENCES subdivision
    );
    CREATE INDEX subdivision_country ON subdivision (country_code);
"""


class Country(NamedTuple):
    code: str
    name: str


class Subdivision(NamedTuple):
    code: str
    name: str
    country_code: str
    parent_code: str | None


class Statement(NamedTuple):
    """A `SELECT` that was sent, and the keys it asked for."""

    name: str
    sql: str
    keys: tuple[str, ...]


class DatabaseError(Exception):
    """The database can neither be used nor made; the message says why."""


def ensure_database(path: Path) -> None:
    """Make the database, unless it is there already.

    :raises DatabaseError: if the file is something else, or cannot be written
    """
    try:
        if path.is_file():
            check_database(path)
        else:
            make_database(path)
    except OSError as exc:
        raise DatabaseError(f"cannot make {path}: {exc.strerror}") from exc
    except sqlite3.Error as exc:
        raise DatabaseError(f"cannot use {path}: {exc}") from exc


def check_database(path: Path) -> None:
    with closing(sqlite3.connect(read_only(path), uri=True)) as connection:
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    if application_id != APPLICATION_ID:
        raise DatabaseError(f"{path} is not a database of this example")


def make_database(path: Path) -> None:
    # Written aside and then moved to its place, so that nobody ever sees half of it.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        unfinished = Path(folder, path.name)
        with closing(sqlite3.connect(unfinished)) as connection:
            connection.executescript(SCHEMA)
            connection.executemany(
                "INSERT INTO country VALUES (?, ?)",
                [(country.alpha_2, country.name) for country in pycountry.countries],
            )
            connection.executemany(
                "INSERT INTO subdivision VALUES (?, ?, ?, ?)",
                [
                    (item.code, item.name, item.country_code, item.parent_code)
                    for item in pycountry.subdivisions
                ],
            )
            connection.commit()
        unfinished.replace(path)


def read_only(path: Path) -> str:
    return f"{path.absolute().as_uri()}?mode=ro"


class Atlas:
    """Reads the database over one connection, and remembers the statements it sent."""

    def __init__(self, connection: sqlite_anyio.Connection) -> None:
        self._connection = connection
        self.statements: list[Statement] = []

    async def country_codes(self) -> list[str]:
        """The codes of all countries, in alphabetical order."""
        rows = await self._select("country_codes", "SELECT code FROM country ORDER BY code")
        return [code for (code,) in rows]

    async def countries(self, codes: Sequence[str]) -> dict[str, Country]:
        """Batch function: countries by their codes."""
        sql = "SELECT code, name FROM country WHERE code IN ({keys})"
        rows = await self._select("countries", sql, codes)
        return {row[0]: Country(*row) for row in rows}

    async def subdivisions(self, codes: Sequence[str]) -> dict[str, Subdivision]:
        """Batch function: subdivisions by their codes."""
        sql = "SELECT code, name, country_code, parent_code FROM subdivision WHERE code IN ({keys})"
        rows = await self._select("subdivisions", sql, codes)
        return {row[0]: Subdivision(*row) for row in rows}

    async def subdivisions_of(self, codes: Sequence[str]) -> dict[str, list[Subdivision]]:
        """Batch function: all subdivisions of a country, by the code of the country."""
        sql = (
            "SELECT code, name, country_code, parent_code FROM subdivision"
            " WHERE country_code IN ({keys}) ORDER BY code"
        )
        result: dict[str, list[Subdivision]] = {code: [] for code in codes}
        for row in await self._select("subdivisions_of", sql, codes):
            subdivision = Subdivision(*row)
            result[subdivision.country_code].append(subdivision)
        return result

    async def _select(self, name: str, sql: str, keys: Sequence[str] = ()) -> list[tuple[Any, ...]]:
        self.statements.append(Statement(name, sql, tuple(keys)))
        cursor = await self._connection.execute(sql.format(keys=", ".join("?" * len(keys))), keys)
        return await cursor.fetchall()


@asynccontextmanager
async def open_atlas(path: Path) -> AsyncGenerator[Atlas, None]:
    """Open the database for reading. The connection sends one statement at a time."""
    connection = await sqlite_anyio.connect(read_only(path), uri=True)
    try:
        yield Atlas(connection)
    finally:
        await connection.close()
