"""Which digit is it? A small model behind FastAPI, with one loader in front of it.

    hypercorn --worker-class trio examples/inference.py:app

or `--worker-class asyncio`. The model is trained at the start, with the data set that comes with
scikit-learn. Then, beside it,

    python examples/inference.py --backend trio

sends it the images it was not trained with, from many callers at the same time: first each image
in a call of its own, then through the loader. Needs `fastapi`, `hypercorn`, `httpx`, `scikit-learn`
and, for trio, `trio`.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import cycle, islice
from statistics import mean, quantiles
from time import perf_counter
from typing import Any, NamedTuple

import anyio
import anyio.to_thread
import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier

from anyloader import DataLoader, LoaderBusyError, in_thread, limit

TRAINED_WITH = 1200  # of the 1,797 images of the data set

Pixels = tuple[float, ...]


def _data() -> tuple[Any, Any]:
    data: Any = load_digits()  # which has no types
    return data.data, data.target


class Digits:
    """The model. It is asked from one thread at a time; an image more costs next to nothing."""

    def __init__(self) -> None:
        images, digits = _data()
        self._trees: Any = ExtraTreesClassifier(200, random_state=0)
        self._trees.fit(images[:TRAINED_WITH], digits[:TRAINED_WITH])
        self.sizes: list[int] = []  # of the calls since somebody asked

    def read(self, images: list[Pixels]) -> list[int]:
        self.sizes.append(len(images))
        found: list[int] = self._trees.predict(images).tolist()
        return found


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    model = await anyio.to_thread.run_sync(Digits)
    async with DataLoader(
        in_thread(model.read),
        cache="pending",  # equal images that are under way at the same time are read once
        limiter=limit(1),  # one call at a time; while it runs the next batch grows
        max_batch_size=64,
        max_queue_size=256,  # more than four calls ahead: better say so at once
    ) as loader:
        yield {"model": model, "loader": loader, "one_at_a_time": anyio.CapacityLimiter(1)}


app = FastAPI(lifespan=lifespan)


class Image(BaseModel):
    pixels: Pixels = Field(min_length=64, max_length=64)


@app.exception_handler(LoaderBusyError)
async def busy(request: Request, exc: LoaderBusyError) -> JSONResponse:
    return JSONResponse({"detail": "busy"}, 503, headers={"Retry-After": "1"})


@app.post("/digit")
async def digit(image: Image, request: Request) -> int:
    found: int = await request.state.loader.load(image.pixels)
    return found


@app.post("/digit-alone")
async def digit_alone(image: Image, request: Request) -> int:
    """Do the same without a loader, to compare."""
    model: Digits = request.state.model
    (found,) = await anyio.to_thread.run_sync(
        model.read, [image.pixels], limiter=request.state.one_at_a_time
    )
    return found


@app.post("/sizes")
async def sizes(request: Request) -> list[int]:
    """Return how many images the calls of the model had, since this was asked last."""
    model: Digits = request.state.model
    found, model.sizes = model.sizes, []
    return found


# The load generator.


class Found(NamedTuple):
    waits: list[float]
    statuses: Counter[int]
    right: int


async def send(
    clients: list[httpx.AsyncClient], path: str, images: list[tuple[Pixels, int]]
) -> Found:
    """Send all images, each client one after the other."""
    found = Found([], Counter(), 0)
    right = 0
    todo = iter(images)

    async def caller(client: httpx.AsyncClient) -> None:
        nonlocal right
        for pixels, digit in todo:
            began = perf_counter()
            response = await client.post(path, json={"pixels": pixels})
            found.waits.append((perf_counter() - began) * 1000)
            found.statuses[response.status_code] += 1
            right += response.status_code == 200 and response.json() == digit

    async with anyio.create_task_group() as group:
        for client in clients:
            group.start_soon(caller, client)
    return found._replace(right=right)


async def compare(url: str, callers: int, calls: int) -> None:
    pixels, digits = _data()
    rest = zip(pixels[TRAINED_WITH:].tolist(), digits[TRAINED_WITH:].tolist())
    images = [*islice(cycle([(tuple(image), digit) for image, digit in rest]), calls)]
    async with AsyncExitStack() as stack:
        # One for each caller: a pool looks at all of its connections for each request. A connection
        # that idles is given up well before the server does so (after 5 s), whose closing a request
        # may meet otherwise.
        limits = httpx.Limits(keepalive_expiry=2)
        clients = [
            await stack.enter_async_context(
                httpx.AsyncClient(base_url=url, limits=limits, timeout=60, verify=False)
            )
            for _ in range(callers)
        ]
        print(f"{callers} callers, {calls} calls")
        for title, path in ("each alone", "/digit-alone"), ("with the loader", "/digit"):
            await send(clients, path, images[:callers])  # connects
            await clients[0].post("/sizes")
            began = perf_counter()
            found = await send(clients, path, images)
            seconds = perf_counter() - began
            sizes = (await clients[0].post("/sizes")).json()
            cuts = quantiles(found.waits, n=100, method="inclusive")
            print(
                f"{title:15} {calls / seconds:5.0f} calls a second, "
                f"{mean(sizes):4.1f} images in a call (at most {max(sizes)}), "
                f"wait {cuts[49]:.0f} ms, 99 of 100 within {cuts[98]:.0f} ms; "
                f"{found.statuses[200]} answers, {found.right / calls:.0%} right"
            )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Sends images to the server.")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--calls", type=int, default=1000)
    options = parser.parse_args(arguments)
    anyio.run(compare, options.url, options.callers, options.calls, backend=options.backend)


if __name__ == "__main__":
    main()
