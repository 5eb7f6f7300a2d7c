"""A bookshop's GraphQL server, with Strawberry and SQLAlchemy.

    hypercorn --worker-class trio examples/graphql_server.py:app

or `--worker-class asyncio`. Then http://127.0.0.1:8000/ has a page to try things in, such as

    { authors(ids: [1, 2, 3]) { name books(first: 3) { title author { name } } } }
    mutation { addBook(authorId: 3, title: "Poems", year: 1846) { books(first: 3) { title } } }
    subscription { author(id: 3) { books(first: 3) { title } } }

The subscription has an event whenever there is a new book; Strawberry's WebSockets need asyncio.
http://127.0.0.1:8000/trace draws the batches of the last operation that loaded something. Needs
`hypercorn`, `strawberry-graphql`, `starlette`, `sqlalchemy` and, for trio, `trio`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import anyio
import strawberry
from anyio import to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from strawberry.asgi import GraphQL
from strawberry.extensions import SchemaExtension

import _bookshop as tables
from _bookshop import lifespan, sessions
from anyloader import BatchLoader, LoaderScope, batch_loader
from anyloader.integrations.sqlalchemy import rows_by, rows_grouped_by
from anyloader.integrations.strawberry import AnyioExecutionContext, LoaderScopeExtension
from anyloader.trace import Trace, record

# A statement for many keys, stated once. The resolvers load a key at a time.

load_author: BatchLoader[int, tables.Author | None] = batch_loader(
    rows_by(tables.Author.id, session=sessions)
)
books_of: BatchLoader[int, list[tables.Book]] = batch_loader(
    rows_grouped_by(
        tables.Book.author_id, order_by=[tables.Book.year, tables.Book.id], session=sessions
    )
)

#: Set, and forgotten, when the author of that id has a new book.
changes: defaultdict[int, anyio.Event] = defaultdict(anyio.Event)


@strawberry.type
class Author:
    id: int
    name: str

    @classmethod
    def of(cls, row: tables.Author) -> Author:
        return cls(id=row.id, name=row.name)

    @strawberry.field
    async def books(self, first: int = 10) -> list[Book]:
        return [Book.of(row) for row in await books_of.bind(first=first).load(self.id)]


@strawberry.type
class Book:
    title: str
    year: int
    author_id: strawberry.Private[int]

    @classmethod
    def of(cls, row: tables.Book) -> Book:
        return cls(title=row.title, year=row.year, author_id=row.author_id)

    @strawberry.field
    async def author(self) -> Author:
        return Author.of(await load_author.load_required(self.author_id))


@strawberry.type
class Query:
    @strawberry.field
    async def authors(self, ids: list[int]) -> list[Author | None]:
        rows = await load_author.load_many(ids)
        return [None if row is None else Author.of(row) for row in rows]


@strawberry.type
class Mutation:
    @strawberry.mutation
    async def add_book(self, author_id: int, title: str, year: int) -> Author:
        author = Author.of(await load_author.load_required(author_id))
        await to_thread.run_sync(insert_book, author_id, title, year)
        books_of.clear(author_id)  # whatever `first` was
        changes.pop(author_id, anyio.Event()).set()
        return author


def insert_book(author_id: int, title: str, year: int) -> None:
    with sessions.begin() as session:
        session.add(tables.Book(author_id=author_id, title=title, year=year))


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def author(self, id: int) -> AsyncGenerator[Author, None]:
        async with LoaderScope():  # for what the generator itself loads
            author = Author.of(await load_author.load_required(id))
        while True:
            change = changes[id]  # before the event is executed, which reads the books
            yield author
            await change.wait()


class TraceExtension(SchemaExtension):
    """Keeps a record of the last operation that loaded something."""

    async def on_execute(self) -> AsyncIterator[None]:
        with record() as trace:
            yield
        if trace.batches:
            context: Any = self.execution_context.context
            context["request"].app.state.trace = trace


async def show_trace(request: Request) -> Response:
    last: Trace = getattr(request.app.state, "trace", Trace())
    return HTMLResponse(last.html())


schema = strawberry.Schema(
    Query,
    Mutation,
    Subscription,
    extensions=[TraceExtension, LoaderScopeExtension],
    execution_context_class=AnyioExecutionContext,
)

app = Starlette(
    routes=[Route("/trace", show_trace), Mount("/", GraphQL[Any, Any](schema))],
    lifespan=lifespan,
)
