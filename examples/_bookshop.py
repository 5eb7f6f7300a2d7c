"""The database of the other examples: authors, their books, and the copies of these in two shops."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from sqlalchemy import ForeignKey, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, sessionmaker

#: Sessions that block: batch functions run them in worker threads, on asyncio as on trio.
sessions = sessionmaker()


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    books: Mapped[list[Book]] = relationship(order_by="Book.year, Book.id")


class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    year: Mapped[int]
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"), index=True)


class Stock(Base):
    __tablename__ = "stock"
    book_id: Mapped[int] = mapped_column(ForeignKey("book.id"), primary_key=True)
    shop: Mapped[str] = mapped_column(primary_key=True)
    copies: Mapped[int]


BOOKS = {
    "Jane Austen": [
        ("Sense and Sensibility", 1811),
        ("Pride and Prejudice", 1813),
        ("Mansfield Park", 1814),
        ("Emma", 1815),
    ],
    "George Eliot": [
        ("Adam Bede", 1859),
        ("The Mill on the Floss", 1860),
        ("Silas Marner", 1861),
        ("Middlemarch", 1871),
    ],
    "Emily Brontë": [("Wuthering Heights", 1847)],
    "A. N. Other": [],
}


@contextmanager
def open_bookshop() -> Generator[None, None, None]:
    """Make the database, and let ``sessions`` use it until the block is left."""
    with tempfile.TemporaryDirectory() as folder:
        engine = create_engine(f"sqlite:///{Path(folder, 'bookshop.sqlite3')}")
        sessions.configure(bind=engine)
        try:
            Base.metadata.create_all(engine)
            with sessions.begin() as session:
                for name, books in BOOKS.items():
                    rows = [Book(title=title, year=year) for title, year in books]
                    session.add(Author(name=name, books=rows))
                session.flush()
                for book in session.query(Book):
                    session.add(Stock(book_id=book.id, shop="north", copies=book.id))
                    if book.id % 2:
                        session.add(Stock(book_id=book.id, shop="south", copies=1))
            yield
        finally:
            engine.dispose()


@asynccontextmanager
async def lifespan(app: object) -> AsyncGenerator[None, None]:
    """For a web application: the database is there as long as the application runs."""
    with open_bookshop():
        yield
