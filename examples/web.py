"""A bookshop's service, with FastAPI and SQLAlchemy: one scope for each request.

    hypercorn --worker-class trio examples/web.py:app

or `--worker-class asyncio`. Then http://127.0.0.1:8000/authors?id=1&id=2 answers with two authors,
their books, and the copies of these in each shop; /authors/1 with one of them, and /authors/99 is a
404. So is /stock/south/2: a book and a shop are one key. http://127.0.0.1:8000/trace draws the
batches of the last request. Needs `fastapi`, `hypercorn`, `sqlalchemy` and, for trio, `trio`.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from _bookshop import Author, Book, Stock, lifespan, sessions
from anyloader import BatchLoader, KeyNotFoundError, batch_loader, gather
from anyloader.integrations.asgi import LoaderScopeMiddleware
from anyloader.integrations.sqlalchemy import related, rows_by, rows_grouped_by
from anyloader.trace import Trace, record

# A statement for many keys, stated once. The endpoints load a key at a time, wherever they need one.

author: BatchLoader[int, Author | None] = batch_loader(rows_by(Author.id, session=sessions))
books_of: BatchLoader[int, list[Book]] = batch_loader(related(Author.books, session=sessions))
stock: BatchLoader[tuple[int, str], Stock | None] = batch_loader(
    rows_by(Stock.book_id, Stock.shop, session=sessions)
)
stocks_of: BatchLoader[int, list[Stock]] = batch_loader(
    rows_grouped_by(Stock.book_id, order_by=Stock.shop, session=sessions)
)

app = FastAPI(lifespan=lifespan)


@app.get("/authors")
async def show_authors(id: Annotated[list[int], Query()]) -> list[dict[str, Any]]:
    return list(await gather(*(show_author(one) for one in id)))


@app.get("/authors/{id}")
async def show_author(id: int) -> dict[str, Any]:
    found, books = author.load_required(id), books_of.load(id)
    return {"name": (await found).name, "books": await gather(*map(book_out, await books))}


async def book_out(book: Book) -> dict[str, Any]:
    copies = {stock.shop: stock.copies for stock in await stocks_of.load(book.id)}
    return {"title": book.title, "year": book.year, "copies": copies}


@app.get("/stock/{shop}/{book_id}")
async def show_stock(shop: str, book_id: int) -> int:
    return (await stock.load_required((book_id, shop))).copies


@app.exception_handler(KeyNotFoundError)
async def not_found(request: Request, exc: Exception) -> JSONResponse:
    return JSONResponse({"detail": "Not Found"}, 404)


@app.get("/trace")
async def show_trace(request: Request) -> HTMLResponse:
    last: Trace = getattr(request.app.state, "trace", Trace())
    return HTMLResponse(last.html())


class TraceMiddleware:
    """Keeps a record of the last request but those for the drawing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with record() as trace:
            if scope["type"] == "http" and scope["path"] != "/trace":
                app.state.trace = trace
            await self._app(scope, receive, send)


app.add_middleware(LoaderScopeMiddleware)
app.add_middleware(TraceMiddleware)
