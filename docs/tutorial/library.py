"""Five books and their authors in SQLite. Each statement is printed when it is sent."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import sqlite_anyio

SCRIPT = """
    CREATE TABLE author (id INTEGER PRIMARY KEY, name TEXT);
    CREATE TABLE book (id INTEGER PRIMARY KEY, title TEXT, author_id INTEGER);
    INSERT INTO author VALUES (1, 'Ursula'), (2, 'Iain'), (3, 'Octavia');
    INSERT INTO book VALUES
        (1, 'The Dispossessed', 1), (2, 'Excession', 2), (3, 'Kindred', 3),
        (4, 'Matter', 2), (5, 'The Lathe of Heaven', 1);
"""


class Library:
    def __init__(self, connection: sqlite_anyio.Connection) -> None:
        self._connection = connection

    async def select(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        print("SQL:", sql, sorted(parameters))
        cursor = await self._connection.execute(sql, parameters)
        return await cursor.fetchall()


@asynccontextmanager
async def open_library() -> AsyncGenerator[Library, None]:
    connection = await sqlite_anyio.connect(":memory:")
    try:
        cursor = await connection.cursor()
        await cursor.executescript(SCRIPT)
        yield Library(connection)
    finally:
        await connection.close()
