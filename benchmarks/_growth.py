"""Shapes of work whose cost once grew with the square: each is timed at n and at four times that."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

import anyloader

from ._contenders import batch
from ._measure import Contest, Sample, cpu_time

Shape = Callable[[int], Awaitable[None]]


async def _stream(keys: list[int]) -> AsyncIterator[tuple[int, int]]:
    for key in keys:
        yield key, key


async def stream_and_load_manys(n: int) -> None:
    async with anyloader.DataLoader(_stream) as loader, anyio.create_task_group() as group:
        for number in range(n):
            group.start_soon(loader.load_many, range(3 * number, 3 * number + 3))


async def waiters_that_give_up_one_a_round(n: int) -> None:
    limiter = anyio.CapacityLimiter(1)
    scopes = [anyio.CancelScope() for _ in range(n)]

    async def waits(key: int) -> None:
        with scopes[key]:
            await loader.load(key)

    async with limiter, anyloader.DataLoader(batch, limiter=limiter) as loader:
        async with anyio.create_task_group() as group:
            for key in range(n):
                group.start_soon(waits, key)
            await checkpoint()
            for scope in scopes:
                scope.cancel()
                await checkpoint()


async def primes_of_a_sealed_batch(n: int) -> None:
    limiter = anyio.CapacityLimiter(1)
    async with anyloader.DataLoader(batch, limiter=limiter) as loader:
        async with limiter:
            many = loader.load_many(range(n))
            loader.dispatch()
            for key in range(n):
                loader.prime(key, key, force=True)
        await many


class _Values:
    async def get_many(self, keys: Sequence[int]) -> Mapping[int, int]:
        return {}

    async def set_many(self, items: Mapping[int, int]) -> None:
        pass

    async def delete_many(self, keys: Sequence[int]) -> None:
        pass


async def clears_beside_many_batches(n: int) -> None:
    limiter = anyio.CapacityLimiter(1)
    options: Any = {"limiter": limiter, "max_batch_size": 1, "value_cache": _Values()}
    async with anyloader.DataLoader(batch, **options) as loader:
        async with limiter:
            many = loader.load_many(range(n))
            for key in range(n):
                loader.clear(key)
        await many


async def leaving_batches_of_one(n: int) -> None:
    options: Any = {"max_batch_size": 1, "limiter": anyio.CapacityLimiter(1)}
    async with anyio.create_task_group() as group:
        async with anyloader.DataLoader(batch, **options) as loader:
            for key in range(n):
                group.start_soon(loader.load, key)
            await checkpoint()


async def chain_of_functions(n: int) -> None:
    async def deeper(keys: list[int]) -> list[int]:
        return [0 if key == 0 else await loader.load(key - 1) for key in keys]

    async with anyloader.DataLoader(deeper) as loader:
        await loader.load(n)


async def waiters_on_one_key(n: int) -> None:
    async with anyloader.DataLoader(batch) as loader, anyio.create_task_group() as group:
        for _ in range(n):
            group.start_soon(loader.load, 1)


def growth_contests() -> Iterator[Contest]:
    for shape, n in (
        (waiters_on_one_key, 1_000),
        (stream_and_load_manys, 250),
        (waiters_that_give_up_one_a_round, 500),
        (primes_of_a_sealed_batch, 2_000),
        (clears_beside_many_batches, 250),
        (leaving_batches_of_one, 250),
        (chain_of_functions, 100),
    ):
        samples: dict[str, Sample] = {
            "n": partial(_sample, shape, n),
            "4 n": partial(_sample, shape, 4 * n),
        }
        yield Contest(shape.__name__.replace("_", " "), samples, [("4 n", "n")])


def _sample(shape: Shape, n: int) -> float:
    async def timed() -> float:
        began = cpu_time()
        await shape(n)
        return cpu_time() - began

    return anyio.run(timed)
