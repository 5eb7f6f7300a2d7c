from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Table
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship


class Base(DeclarativeBase):
    pass


book_tags = Table(
    "book_tags",
    Base.metadata,
    Column("book_id", ForeignKey("book.id"), primary_key=True),
    Column("tag_id", ForeignKey("tag.id"), primary_key=True),
)


class Author(Base):
    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))
    author: Mapped[Author] = relationship()
    tags: Mapped[list[Tag]] = relationship(secondary=book_tags, order_by="Tag.word")


class Tag(Base):
    __tablename__ = "tag"
    id: Mapped[int] = mapped_column(primary_key=True)
    word: Mapped[str]


class Stock(Base):
    __tablename__ = "stock"
    book_id: Mapped[int] = mapped_column(ForeignKey("book.id"), primary_key=True)
    shop: Mapped[str] = mapped_column(primary_key=True)
    copies: Mapped[int]


def add_some(session: Session) -> None:
    ada, grace = Author(id=1, name="Ada"), Author(id=2, name="Grace")
    old, new = Tag(word="old"), Tag(word="new")
    session.add_all([ada, grace, old, new])
    for id, title, author, tags in [
        (1, "Engines", ada, [old]),
        (2, "Notes", ada, [old, new]),
        (3, "Compilers", grace, []),
    ]:
        session.add(Book(id=id, title=title, author=author, tags=tags))
    session.flush()
    session.add(Stock(book_id=1, shop="north", copies=3))
