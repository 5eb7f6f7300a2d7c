import asyncio
from contextvars import ContextVar

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy_models import Author, Base, Book, add_some

from anyloader import BatchLoader, LoaderScope, batch_loader
from anyloader.integrations.sqlalchemy import rows_by, rows_grouped_by

#: The one session of the request.
request_session: ContextVar[AsyncSession] = ContextVar("request_session")

author: BatchLoader[int, Author | None] = batch_loader(rows_by(Author.id, session=request_session))
books_of: BatchLoader[int, list[Book]] = batch_loader(
    rows_grouped_by(Book.author_id, order_by=Book.id, session=request_session)
)


async def handle_request(session: AsyncSession) -> None:
    async with LoaderScope() as scope:
        scope.set(request_session, session)  # or request_session.set(session), before
        # Two batches that leave together, and use the session one after the other.
        found, books = author.load_required(1), books_of.load(1)
        print((await found).name, len(await books))

        session.add(Book(title="Letters", author=await found))
        await session.flush()
        print(len(await books_of.load(1)), "as it was")
        print(len(await books_of.clear(1).load(1)), "with what is written, though not committed")
        await session.commit()


async def main() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with sessions.begin() as session:
        await session.run_sync(add_some)
    async with sessions() as session:
        await handle_request(session)
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
