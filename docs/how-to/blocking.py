import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio

from anyloader import DataLoader, in_thread, limit


def fetch_names(path: Path, ids: list[int]) -> dict[int, str]:
    connection = sqlite3.connect(path)
    try:
        marks = ", ".join("?" * len(ids))
        return dict(connection.execute(f"SELECT id, name FROM user WHERE id IN ({marks})", ids))
    finally:
        connection.close()


async def main() -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "users.sqlite3")
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE user (id INTEGER PRIMARY KEY, name TEXT)")
            connection.execute("INSERT INTO user VALUES (1, 'Ada'), (2, 'Grace')")
        connection.close()

        batch = in_thread(lambda ids: fetch_names(path, ids), limiter=limit(4))
        async with DataLoader(batch, name="names") as names:
            print(await names.load_many([1, 2]))


if __name__ == "__main__":
    anyio.run(main)
