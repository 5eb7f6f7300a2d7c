import anyio
from library import Library, open_library


async def author(library: Library, id: int) -> str:
    rows = await library.select("SELECT name FROM author WHERE id = ?", [id])
    return rows[0][0]


async def main() -> None:
    async with open_library() as library:
        for title, author_id in await library.select("SELECT title, author_id FROM book"):
            print(f"{title}, by {await author(library, author_id)}")


if __name__ == "__main__":
    anyio.run(main)
