from functools import partial

import anyio
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import StaticPool
from sqlalchemy_models import Base, Book, add_some

from anyloader import DataLoader
from anyloader.integrations.sqlalchemy import RowsGroupedBy, rows_grouped_by

sessions = sessionmaker()

fetch_books: RowsGroupedBy[int, Book] = rows_grouped_by(
    Book.author_id, order_by=[Book.title, Book.id], session=sessions
)


async def main() -> None:
    # One connection for all threads, as an SQLite database in memory belongs to a connection.
    engine = create_engine(
        "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )
    sessions.configure(bind=engine)
    Base.metadata.create_all(engine)
    with sessions.begin() as session:
        add_some(session)

    async with DataLoader(partial(fetch_books, first=1)) as first_book_of:
        for books in await first_book_of.load_many([1, 2, 3]):
            print([book.title for book in books])
    engine.dispose()


if __name__ == "__main__":
    anyio.run(main)
