"""A worker without a web: messages come from a queue, and each is handled in a scope of its own.

    python examples/worker.py --backend trio

A message asks for an offer or an invoice of some books. It has a time limit: one that takes too long
is given up with all that it was loading, and the others go on. Prices come from elsewhere. An invoice
needs them; an offer waits a part of its time for each, and then goes out without. Needs `sqlalchemy`
and, for trio, `trio`.
"""

from __future__ import annotations

import argparse

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from _bookshop import Author, Book, Stock, open_bookshop, sessions
from anyloader import BatchLoader, KeyNotFoundError, LoaderScope, batch_loader, gather
from anyloader.integrations.sqlalchemy import rows_by, rows_grouped_by

WORKERS = 3
MESSAGES = ["offer 1 2 3", "invoice 1 5", "offer 4", "invoice 4 1", "offer 8", "offer 1 99"]

author: BatchLoader[int, Author | None] = batch_loader(rows_by(Author.id, session=sessions))
book: BatchLoader[int, Book | None] = batch_loader(rows_by(Book.id, session=sessions))
stocks_of: BatchLoader[int, list[Stock]] = batch_loader(
    rows_grouped_by(Stock.book_id, session=sessions)
)


@batch_loader
async def price(book_ids: list[int]) -> dict[int, int]:
    """Stands for a service that has no answer when it is asked for the fourth book."""
    await anyio.sleep(float("inf") if 4 in book_ids else 0.01)
    return {id: 10 + id for id in book_ids}


async def handle(message: str, seconds: float) -> str:
    kind, *ids = message.split()
    try:
        with anyio.fail_after(seconds):
            async with LoaderScope() as scope:
                patience = seconds / 4 if kind == "offer" else float("inf")
                lines = await gather(*(describe(int(id), patience) for id in ids))
                return f"{'; '.join(lines)} ({scope.statistics().batches} batches)"
    except TimeoutError:
        return "given up"
    except KeyNotFoundError as exc:
        return f"there is no {exc.key}"


async def describe(id: int, patience: float) -> str:
    found = await book.load_required(id)
    writer, stocks = author.load_required(found.author_id), stocks_of.load(id)
    copies = sum(stock.copies for stock in await stocks)
    text = f"{(await writer).name}, {found.title}, {copies} in stock"
    with anyio.move_on_after(patience):
        return f"{text}, {await price.load_required(id)} pounds"
    return f"{text}, price on request"


async def work(messages: MemoryObjectReceiveStream[str], seconds: float) -> None:
    """Handle messages, one at a time, until there are no more."""
    async with messages:
        async for message in messages:
            print(f"{message}: {await handle(message, seconds)}")


async def run(seconds: float) -> None:
    queue, messages = anyio.create_memory_object_stream[str]()
    async with anyio.create_task_group() as tasks:
        for _ in range(WORKERS):
            tasks.start_soon(work, messages.clone(), seconds)
        messages.close()
        async with queue:
            for message in MESSAGES:
                await queue.send(message)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Messages from a queue, a scope for each.")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--seconds", type=float, default=2, help="for a message (%(default)s)")
    options = parser.parse_args(arguments)
    with open_bookshop():
        anyio.run(run, options.seconds, backend=options.backend)


if __name__ == "__main__":
    main()
