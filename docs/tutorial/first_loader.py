import anyio
from library import Library, open_library

from anyloader import DataLoader


async def authors(library: Library, ids: list[int]) -> dict[int, str]:
    marks = ", ".join("?" * len(ids))
    rows = await library.select(f"SELECT id, name FROM author WHERE id IN ({marks})", ids)
    return dict(rows)


async def main() -> None:
    async with open_library() as library:
        lines: list[str] = []

        async def fetch_authors(ids: list[int]) -> dict[int, str]:
            return await authors(library, ids)

        async def describe(title: str, author_id: int) -> None:
            lines.append(f"{title}, by {await loader.load(author_id)}")

        books = await library.select("SELECT title, author_id FROM book")
        async with DataLoader(fetch_authors) as loader, anyio.create_task_group() as tasks:
            for title, author_id in books:
                tasks.start_soon(describe, title, author_id)
        print(*sorted(lines), sep="\n")


if __name__ == "__main__":
    anyio.run(main)
