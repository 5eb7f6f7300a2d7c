"""Section 3 of the contract: which callables are batch functions, and what they may return."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from functools import partial, wraps
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import (
    DataLoader,
    in_thread,
)

pytestmark = pytest.mark.anyio

# --- callables ---


async def tens(keys: list[int]) -> list[int]:
    await checkpoint()
    return [key * 10 for key in keys]


async def scaled(factor: int, keys: list[int], *, plus: int = 0) -> list[int]:
    return [key * factor + plus for key in keys]


def decorated(fn: Callable[[list[int]], Awaitable[list[int]]]) -> Any:
    @wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Awaitable[list[int]]:
        return fn(*args, **kwargs)

    return wrapper


def blocking_tens(keys: list[int]) -> list[int]:
    return [key * 10 for key in keys]


class Repository:
    async def fetch(self, keys: list[int]) -> list[int]:
        return await tens(keys)

    @classmethod
    async def fetch_by_class(cls, keys: list[int]) -> list[int]:
        return await tens(keys)

    @staticmethod
    async def fetch_by_static(keys: list[int]) -> list[int]:
        return await tens(keys)

    async def __call__(self, keys: list[int]) -> list[int]:
        return await tens(keys)


class OwnAwaitable:
    def __init__(self, keys: list[int]) -> None:
        self.keys = keys

    def __await__(self) -> Iterator[Any]:
        return tens(self.keys).__await__()


async def tens_as_stream(keys: list[int]) -> AsyncGenerator[tuple[int, int], None]:
    for key in keys:
        await checkpoint()
        yield key, key * 10


class Streaming:
    async def __call__(self, keys: list[int]) -> AsyncGenerator[tuple[int, int], None]:
        for key in keys:
            yield key, key * 10


CALLABLES: dict[str, Any] = {
    "async function": tens,
    "lambda": lambda keys: tens(keys),
    "bound method": Repository().fetch,
    "class method": Repository.fetch_by_class,
    "static method": Repository.fetch_by_static,
    "object with async __call__": Repository(),
    "partial": partial(scaled, 10, plus=0),
    "partial of a partial": partial(partial(scaled, 10), plus=0),
    "decorated": decorated(tens),
    "partial of an object": partial(Repository()),
    "class whose instances can be awaited": OwnAwaitable,
    "async generator function": tens_as_stream,
    "partial of an async generator function": partial(tens_as_stream),
    "object whose __call__ is an async generator": Streaming(),
    "lambda that returns an async generator": lambda keys: tens_as_stream(keys),
    "in_thread": in_thread(blocking_tens),
}


@pytest.mark.parametrize("kind", CALLABLES)
async def test_any_callable_taking_a_list_will_do(kind: str) -> None:
    async with DataLoader[int, int](CALLABLES[kind]) as loader:
        assert await loader.load_many([3, 1, 2]) == [30, 10, 20]


async def test_a_method_of_a_subclass_will_do() -> None:
    class Tens(DataLoader[int, int]):
        async def batch_load_fn(self, keys: list[int], /) -> list[int]:
            return await tens(keys)

    async with Tens() as loader:
        assert await loader.load_many([3, 1, 2]) == [30, 10, 20]


async def test_a_generator_method_of_a_subclass_will_do() -> None:
    class Tens(DataLoader[int, int]):
        async def batch_load_fn(self, keys: list[int], /) -> AsyncGenerator[tuple[int, int], None]:
            for key in keys:
                yield key, key * 10

    async with Tens() as loader:
        assert await loader.load_many([3, 1, 2]) == [30, 10, 20]


async def test_keys_come_as_a_fresh_list_in_load_order() -> None:
    given: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        assert type(keys) is list
        given.append(keys)
        values = [key * 10 for key in keys]
        keys.clear()  # it is the function's own
        return values

    async with DataLoader(fetch, cache=False) as loader:
        first, second = loader.load_many([2, 1]), loader.load(3)
        assert (await first, await second) == ([20, 10], 30)
        assert await loader.load_many([5, 4]) == [50, 40]

    assert given == [[], []]
    assert given[0] is not given[1]


# --- in_thread ---


async def test_in_thread_runs_a_blocking_function_in_a_worker_thread() -> None:
    threads: list[threading.Thread] = []

    def fetch(keys: list[int]) -> list[int]:
        threads.append(threading.current_thread())
        return [key * 10 for key in keys]

    async with DataLoader(in_thread(fetch)) as loader:
        assert await loader.load_many([3, 1]) == [30, 10]
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


async def test_in_thread_may_return_a_mapping() -> None:
    def fetch(keys: list[int]) -> dict[int, str]:
        return {1: "a"}

    async with DataLoader[int, Any](in_thread(fetch)) as loader:
        assert await loader.load_many([1, 2]) == ["a", None]


async def test_the_error_of_a_blocking_function_is_the_error_of_its_batch() -> None:
    error = ConnectionError("lost")

    def fetch(keys: list[int]) -> list[int]:
        raise error

    async with DataLoader(in_thread(fetch)) as loader:
        with pytest.raises(ConnectionError) as caught:
            await loader.load(1)
    assert caught.value is error


async def test_in_thread_takes_a_limiter() -> None:
    limiter = anyio.CapacityLimiter(1)
    tokens: list[float] = []

    def fetch(keys: list[int]) -> list[int]:
        tokens.append(limiter.borrowed_tokens)
        return keys

    async with DataLoader(in_thread(fetch, limiter=limiter)) as loader:
        assert await loader.load(1) == 1
    assert tokens == [1]


async def test_in_thread_keeps_the_name_of_the_function() -> None:
    def fetch_users(keys: list[int]) -> list[int]:
        return keys

    loader = DataLoader(in_thread(fetch_users))
    assert loader.name.endswith("fetch_users")


@pytest.mark.parametrize("wrong", [None, 3, "fetch"])
async def test_in_thread_refuses_what_cannot_be_called(wrong: Any) -> None:
    with pytest.raises(TypeError, match="in_thread"):
        in_thread(wrong)


def test_a_function_in_a_thread_keeps_its_name() -> None:
    def blocking(keys: list[int]) -> list[int]:
        return keys

    function: Any = in_thread(blocking)
    assert function.__name__ == "blocking"
    assert DataLoader(function).name.endswith("blocking")
