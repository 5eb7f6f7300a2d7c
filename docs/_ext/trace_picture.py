"""
The directive ``trace-picture``: the page that a trace saves, as a part of a page of the documentation.

    python docs/_ext/trace_picture.py

writes it anew. It is a file, as its times would be others in each build.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anyio

from anyloader import LoaderScope, batch_loader
from anyloader.trace import record

SAVED = Path(__file__).parents[1] / "_static" / "trace.html"


def as_part(page: str) -> str:
    """Keep the style to this part, and let it follow the theme rather than the reader's system alone."""
    style, dark = re.fullmatch(
        r"(.*)@media\(prefers-color-scheme:dark\)\{(.*)\}",
        re.findall(r"<style>(.*)</style>", page, re.DOTALL)[0],
        re.DOTALL,
    ).groups()
    style = re.sub(r":root\{|(?<=\})body\{margin:1rem;", "&{", style)
    style = style.replace("min-width:60rem", "min-width:34rem")  # beside the bars of the page
    dark = dark.replace(":root{", "&{")
    body = re.findall(r"<body>(.*)</body>", page, re.DOTALL)[0].replace("h1>", "p>")
    return (
        f"<style>.trace-picture{{{style}}}"
        f'body[data-theme="dark"] .trace-picture{{{dark}}}'
        '@media(prefers-color-scheme:dark){body:not([data-theme="light"]) '
        f'.trace-picture{{{dark}}}}}</style><div class="trace-picture">{body}</div>'
    )


@batch_loader
async def fetch_books(ids: list[int]) -> dict[int, int]:
    await anyio.sleep(0.012)
    return {id: id % 3 for id in ids}


@batch_loader
async def fetch_authors(ids: list[int]) -> dict[int, str]:
    await anyio.sleep(0.008)
    return {id: f"author {id}" for id in ids}


async def show(book: int) -> None:
    await fetch_authors.load(await fetch_books.load(book))


async def main() -> None:
    async with LoaderScope():
        with record() as trace:
            async with anyio.create_task_group() as tasks:
                for book in 1, 2, 3, 4, 2:
                    tasks.start_soon(show, book)
            for author in 1, 7, 8:  # one after the other
                await fetch_authors.load(author)
    trace.save(SAVED)


def setup(app: Any) -> dict[str, Any]:
    from docutils import nodes
    from docutils.parsers.rst import Directive

    class TracePicture(Directive):
        def run(self) -> list[nodes.Node]:
            return [nodes.raw("", as_part(SAVED.read_text()), format="html")]

    app.add_directive("trace-picture", TracePicture)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    anyio.run(main)
