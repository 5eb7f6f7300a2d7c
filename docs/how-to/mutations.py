from operator import attrgetter
from typing import NamedTuple

import anyio

from anyloader import LoaderScope, batch_loader


class Book(NamedTuple):
    id: int
    author_id: int
    title: str


TABLE = {1: Book(1, 7, "Emma"), 2: Book(2, 7, "Sandition"), 3: Book(3, 8, "Middlemarch")}


@batch_loader(index_by=attrgetter("id"))
async def fetch_books(ids: list[int]) -> list[Book]:
    print("books", ids)
    return [TABLE[id] for id in ids if id in TABLE]


@batch_loader(group_by=attrgetter("author_id"))
async def books_of(author_ids: list[int]) -> list[Book]:
    print("books of authors", author_ids)
    rows = [book for book in TABLE.values() if book.author_id in author_ids]
    fetch_books.prime_many({book.id: book for book in rows})  # the other loader need not ask again
    return rows


async def rename(id: int, title: str) -> Book:
    """A mutation: it writes, and then tells the loaders what they cannot know."""
    TABLE[id] = book = TABLE[id]._replace(title=title)  # UPDATE ... RETURNING
    fetch_books.prime(id, book, force=True)  # the new row is at hand
    books_of.clear(book.author_id)  # this one is asked for again, when somebody wants it
    return book


async def main() -> None:
    async with LoaderScope():
        print([book.title for book in await books_of.load(7)])
        print((await fetch_books.load_required(2)).title, "is known")
        await rename(2, "Sanditon")
        print((await fetch_books.load_required(2)).title, "is known")
        print([book.title for book in await books_of.load(7)])


if __name__ == "__main__":
    anyio.run(main)
