from typing import NamedTuple

import anyio

from anyloader import LoaderScope, batch_loader


class Book(NamedTuple):
    id: int
    author_id: int
    title: str


class Stock(NamedTuple):
    shop: str
    book_id: int
    copies: int


BOOKS = [Book(1, 7, "Notes"), Book(2, 8, "Compilers"), Book(3, 7, "Letters"), Book(4, 7, "Poems")]
STOCK = [Stock("north", 1, 3), Stock("south", 1, 5)]


@batch_loader(group_by=lambda book: book.author_id)
async def books_of(author_ids: list[int], *, first: int | None = None) -> list[Book]:
    """One to many: rows in any order; each author gets a list, an empty one if there are none."""
    print("books of", author_ids, "first", first)
    rows = [book for book in BOOKS if book.author_id in author_ids]
    if first is None:
        return rows
    # What SQL does with row_number() OVER (PARTITION BY author_id ORDER BY id) <= :first
    return [
        row for row in rows if sum(r.author_id == row.author_id and r <= row for r in rows) <= first
    ]


@batch_loader(index_by=lambda stock: (stock.shop, stock.book_id))
async def stock_of(keys: list[tuple[str, int]]) -> list[Stock]:
    """A composite key: a tuple. Rows in any order, at most one for each key."""
    return [row for row in STOCK if (row.shop, row.book_id) in keys]


@batch_loader(index_by=lambda book: book.id)
async def book(ids: list[int]) -> list[Book]:
    print("books", ids)
    return [row for row in BOOKS if row.id in ids]


async def main() -> None:
    async with LoaderScope():
        for found in await books_of.load_many([7, 8, 9]):
            print([book.title for book in found])
            book.prime_many({row.id: row for row in found})
        print((await book.load_required(3)).title, "is known by now")

        two = books_of.bind(first=2)
        print([len(found) for found in await two.load_many([7, 8])])
        books_of.clear(7)  # with all arguments

        north, west = stock_of.load(("north", 1)), stock_of.load(("west", 1))
        print(await north, await west)


if __name__ == "__main__":
    anyio.run(main)
