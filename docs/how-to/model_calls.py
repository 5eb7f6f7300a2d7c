from collections import Counter

import anyio

from anyloader import LoaderBusyError, LoaderScope, batch_loader, limit, split_on_error

calls: list[int] = []


async def call_model(texts: list[str]) -> list[list[float]]:
    """Stands in for an embedding model, to which one bad text fails the whole call."""
    calls.append(len(texts))
    if "" in texts:
        raise ValueError("a text is empty")
    return [[float(len(text))] for text in texts]


embed = batch_loader(
    shared=True,  # one loader for all requests
    cache="pending",  # equal texts that are under way at the same time are embedded once
    limiter=limit(1),  # the model takes one call at a time
    max_batch_size=4,  # and so many texts
    max_queue_size=8,  # more than two calls ahead, and nobody would wait for it
)(split_on_error(call_model, on=ValueError, max_calls=10))


async def handle_request(text: str, answers: list[int]) -> None:
    async with LoaderScope():  # in a web application, the middleware does this
        try:
            await embed.load(text)
        except LoaderBusyError:
            answers.append(503)
        except ValueError:
            answers.append(422)
        else:
            answers.append(200)


async def send(*texts: str) -> None:
    answers: list[int] = []
    async with anyio.create_task_group() as clients:
        for text in texts:
            clients.start_soon(handle_request, text, answers)
    print(
        f"{len(texts)} requests, {len(calls)} calls, answers {dict(sorted(Counter(answers).items()))}"
    )
    calls.clear()


async def main() -> None:
    async with LoaderScope(shared=True):  # in the lifespan of the application
        await send("a", "b", "b")
        await send(*"abcdefghij")
        await send("a", "", "c", "d")


if __name__ == "__main__":
    anyio.run(main)
