import asyncio

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy_models import Author, Base, Book, Stock, Tag, add_some

from anyloader import BatchLoader, DataLoader, LoaderScope, batch_loader
from anyloader.integrations.sqlalchemy import RowsBy, related, rows_by, rows_grouped_by

sessions = async_sessionmaker(class_=AsyncSession)  # each batch makes a session with it

# A row for each key. The annotation tells type checkers the class of the rows.
author: BatchLoader[int, Author | None] = batch_loader(rows_by(Author.id, session=sessions))
# One to many: a list for each key. The first two of each come in one statement.
books_of: BatchLoader[int, list[Book]] = batch_loader(
    rows_grouped_by(Book.author_id, order_by=[Book.title, Book.id], limit=2, session=sessions)
)
# Many to many, or any other relationship, by the primary key of the book.
tags_of: BatchLoader[int, list[Tag]] = batch_loader(related(Book.tags, session=sessions))
# A key of two columns is a tuple. This is a batch function, for a loader of its own.
fetch_stock: RowsBy[tuple[int, str], Stock] = rows_by(Stock.book_id, Stock.shop, session=sessions)


async def main() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    sessions.configure(bind=engine)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with sessions.begin() as session:
        await session.run_sync(add_some)

    async with LoaderScope() as scope:
        for found in await author.load_many([1, 2, 3]):
            print(found and found.name)
        lists = await books_of.load_many([1, 2, 3])
        print([[book.title for book in books] for books in lists])
        ids = [book.id for books in lists for book in books]
        for id, tags in zip(ids, await tags_of.load_many(ids)):
            print(id, [tag.word for tag in tags])
        print([book.title for book in await books_of.bind(first=1).load(1)])
        print(scope.statistics().batches, "batches")

    async with DataLoader(fetch_stock) as stock:
        here, there = await stock.load_many([(1, "north"), (1, "south")])
        print(here and here.copies, there)
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
