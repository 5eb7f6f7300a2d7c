import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy_models import Author, Base, Book, add_some

from anyloader import BatchLoader, KeyNotFoundError, LoaderScope, batch_loader
from anyloader.integrations.sqlalchemy import rows_by, rows_grouped_by

sessions = async_sessionmaker(class_=AsyncSession, expire_on_commit=False)
#: The one session of the request.
request_session: ContextVar[AsyncSession] = ContextVar("request_session")

author: BatchLoader[int, Author | None] = batch_loader(rows_by(Author.id, session=request_session))
books_of: BatchLoader[int, list[Book]] = batch_loader(
    rows_grouped_by(Book.author_id, order_by=Book.id, session=request_session)
)


async def get_session() -> AsyncGenerator[AsyncSession, None]:
    async with sessions() as session:
        yield session


Session = Annotated[AsyncSession, Depends(get_session)]


async def loader_scope(session: Session) -> AsyncGenerator[LoaderScope, None]:
    async with LoaderScope() as scope:
        scope.set(request_session, session)
        yield scope


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    with tempfile.TemporaryDirectory() as folder:
        engine = create_async_engine(f"sqlite+aiosqlite:///{Path(folder, 'books.sqlite3')}")
        sessions.configure(bind=engine)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with sessions.begin() as session:
            await session.run_sync(add_some)
        yield
        await engine.dispose()


app = FastAPI(dependencies=[Depends(loader_scope)], lifespan=lifespan)


@app.get("/authors/{id}")
async def show_author(id: int) -> list[str]:
    found, books = author.load_required(id), books_of.load(id)
    return [(await found).name, *(book.title for book in await books)]


@app.post("/authors/{id}/books")
async def add_book(id: int, title: str, session: Session) -> list[str]:
    await show_author(id)  # remembers what there is
    session.add(Book(title=title, author_id=id))
    await session.flush()
    books_of.clear(id)
    answer = await show_author(id)
    await session.commit()
    return answer


@app.exception_handler(KeyNotFoundError)
async def not_found(request: Request, exc: Exception) -> JSONResponse:
    return JSONResponse({"detail": "Not Found"}, 404)
