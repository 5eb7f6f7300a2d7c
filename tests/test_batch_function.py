"""Section 3 of the contract: which callables are batch functions, and what they may return."""

from __future__ import annotations

import threading
from collections import ChainMap, defaultdict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from functools import partial, wraps
from itertools import count
from types import MappingProxyType
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import BatchResultError, DataLoader, LoaderError, in_thread
from support import wait_all_tasks_blocked

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


# --- iterables ---


def one_by_one(keys: list[int]) -> Iterator[int]:
    for key in keys:
        yield key * 10


ITERABLES: dict[str, Callable[[list[int]], Any]] = {
    "list": lambda keys: [key * 10 for key in keys],
    "tuple": lambda keys: tuple(key * 10 for key in keys),
    "generator": one_by_one,
    "map": lambda keys: map((10).__mul__, keys),
    "deque": lambda keys: deque(key * 10 for key in keys),
    "range": lambda keys: range(30, 0, -10),
    "values of a dict": lambda keys: {key: key * 10 for key in keys}.values(),
}


def returning(make: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Awaitable[Any]]:
    async def fetch(keys: list[Any]) -> Any:
        return make(keys)

    return fetch


@pytest.mark.parametrize("kind", ITERABLES)
async def test_any_iterable_of_one_value_per_key_will_do(kind: str) -> None:
    async with DataLoader[int, int](returning(ITERABLES[kind])) as loader:
        assert await loader.load_many([3, 2, 1]) == [30, 20, 10]


async def test_a_generator_that_raises_fails_the_batch() -> None:
    def broken(keys: list[int]) -> Iterator[int]:
        yield 1
        raise LookupError("half way")

    async with DataLoader[int, int](returning(broken)) as loader:
        result = await loader.load_many([1, 2], return_exceptions=True)
        assert [repr(error) for error in result] == ["LookupError('half way')"] * 2


class Nameless:
    def __repr__(self) -> str:
        raise ValueError("no repr")


# All but the dict views have as many items as there are keys, so only their type speaks
# against them.
REFUSED: dict[str, Any] = {
    "str": "ab",
    "bytes": b"ab",
    "bytearray": bytearray(b"ab"),
    "set": {1, 2},
    "frozenset": frozenset({1, 2}),
    "keys of a dict": {1: "a", 2: "b"}.keys(),
    "None": None,
    "int": 2,
    "object without a repr": Nameless(),
    "too few": [1],
    "too many": [1, 2, 3],
    "none": [],
    "tuple too long": (1, 2, 3),
}


@pytest.mark.parametrize("kind", REFUSED)
async def test_anything_else_is_refused(kind: str) -> None:
    async with DataLoader[int, Any](returning(lambda keys: REFUSED[kind])) as loader:
        one, two = loader.load(1), loader.load(2)
        for handle in one, two:
            with pytest.raises(BatchResultError):
                await handle
        assert loader.peek(1) is None


@pytest.mark.parametrize("make", [lambda keys: [1, 2], lambda keys: None, lambda keys: (1, 2)])
async def test_what_cannot_be_awaited_is_refused(make: Any) -> None:
    async with DataLoader[int, Any](make) as loader:
        with pytest.raises(BatchResultError, match="await"):
            await loader.load_many([1, 2])


async def test_an_endless_generator_is_refused_at_the_first_value_too_many() -> None:
    taken: list[int] = []

    def endless(keys: list[int]) -> Iterator[int]:
        for number in count():
            taken.append(number)
            yield number

    async with DataLoader[int, int](returning(endless)) as loader:
        with pytest.raises(BatchResultError, match="more than 2"):
            await loader.load_many([1, 2])
    assert taken == [0, 1, 2]


async def test_a_batch_result_error_names_loader_and_lengths() -> None:
    async with DataLoader[str, Any](returning(lambda keys: ["x", "y"]), name="users") as loader:
        with pytest.raises(BatchResultError) as caught:
            await loader.load_many(["alice", "bob", "carol"])

    message = str(caught.value)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, LoaderError)
    assert "users" in message
    assert "2 values" in message
    assert "3 keys" in message
    for excerpt in "'alice'", "'carol'", "'x'", "'y'":
        assert excerpt not in message  # it reaches clients
        assert excerpt in caught.value.excerpt


def huge_mapping(keys: list[Any]) -> Any:
    return {1: "v" * 100_000}.items()


@pytest.mark.parametrize(
    "make",
    [
        lambda keys: ["v" * 100_000] * 5,
        lambda keys: "v" * 100_000,
        lambda keys: {f"{n}{'v' * 1000}" for n in range(1000)},
        lambda keys: tuple("v" * 1000 for _ in range(1000)),
        huge_mapping,
    ],
)
async def test_the_text_of_a_batch_result_error_is_bounded(make: Any) -> None:
    keys = [f"{n}{'k' * 1000}" for n in range(50)]
    async with DataLoader[str, Any](returning(make)) as loader:
        with pytest.raises(BatchResultError) as caught:
            await loader.load_many(keys)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "pair", [("x" * 100_000, 1), "y" * 100_000, (["z" * 100_000] * 100,)], ids=["key", "str", "one"]
)
async def test_the_text_of_a_batch_result_error_of_a_stream_is_bounded(pair: Any) -> None:
    async def stream(keys: list[str]) -> AsyncGenerator[Any, None]:
        yield pair

    async with DataLoader[str, Any](stream) as loader:
        with pytest.raises(BatchResultError) as caught:
            await loader.load_many([f"{n}{'k' * 1000}" for n in range(50)])
    assert len(str(caught.value)) < 1000


# --- mappings ---


@pytest.mark.parametrize(
    "wrap", [dict, MappingProxyType, ChainMap], ids=["dict", "mappingproxy", "ChainMap"]
)
async def test_a_mapping_is_read_by_key(wrap: Any) -> None:
    async with DataLoader[int, str](returning(lambda keys: wrap({2: "b", 1: "a"}))) as loader:
        assert await loader.load_many([1, 2]) == ["a", "b"]


async def test_a_mapping_with_more_than_was_asked_for_is_fine() -> None:
    async with DataLoader[int, str](returning(lambda keys: {1: "a", 2: "b", 3: "c"})) as loader:
        assert await loader.load(2) == "b"
        assert loader.peek(3) is None


async def test_an_absent_key_of_a_mapping_is_none() -> None:
    async with DataLoader[int, Any](returning(lambda keys: {1: "a"})) as loader:
        assert await loader.load_many([1, 2]) == ["a", None]


async def test_a_mapping_that_makes_values_up_is_asked_for_absent_keys() -> None:
    found: defaultdict[int, str] = defaultdict(lambda: "made up", {1: "a"})
    async with DataLoader[int, Any](returning(lambda keys: found)) as loader:
        assert await loader.load_many([1, 2]) == ["a", "made up"]
    async with DataLoader[int, Any](returning(lambda keys: found), on_missing=str) as loader:
        assert await loader.load_many([1, 3]) == ["a", "3"]


async def test_none_and_false_in_a_mapping_are_values() -> None:
    async with DataLoader[int, Any](
        returning(lambda keys: {1: None, 2: 0}), on_missing=KeyError
    ) as loader:
        assert await loader.load_many([1, 2]) == [None, 0]


async def test_on_missing_gives_a_value() -> None:
    asked: list[int] = []

    def missing(key: int) -> str:
        asked.append(key)
        return f"no {key}"

    async with DataLoader[int, str](returning(lambda keys: {1: "a"}), on_missing=missing) as loader:
        assert await loader.load_many([1, 2]) == ["a", "no 2"]
    assert asked == [2]


async def test_on_missing_gives_an_error_for_that_key_alone() -> None:
    async with DataLoader[int, str](
        returning(lambda keys: {1: "a"}), on_missing=KeyError
    ) as loader:
        one, two = loader.load(1), loader.load(2)
        assert await one == "a"
        with pytest.raises(KeyError) as caught:
            await two
        assert caught.value.args == (2,)


async def test_what_on_missing_raises_is_the_error_of_that_key() -> None:
    def missing(key: int) -> str:
        raise LookupError(key)

    async with DataLoader[int, str](returning(lambda keys: {1: "a"}), on_missing=missing) as loader:
        one, two = loader.load(1), loader.load(2)
        assert await one == "a"
        with pytest.raises(LookupError):
            await two


async def test_a_mapping_is_read_by_cache_key_and_on_missing_gets_the_key() -> None:
    async with DataLoader[str, str](
        returning(lambda keys: {"a": "letter"}),
        get_cache_key=str.lower,
        on_missing=lambda key: f"no {key}",
    ) as loader:
        assert await loader.load_many(["A", "B"]) == ["letter", "no B"]


async def test_a_mapping_is_read_by_cache_key_with_the_cache_off() -> None:
    given: list[list[str]] = []

    async def fetch(keys: list[str]) -> dict[str, str]:
        given.append(keys)
        return {key.lower(): f"letter {key}" for key in keys}

    async with DataLoader(fetch, get_cache_key=str.lower, cache=False) as loader:
        assert await loader.load_many(["A", "A"]) == ["letter A", "letter A"]
    assert given == [["A", "A"]]


async def test_an_error_in_a_mapping_fails_its_key_alone() -> None:
    async with DataLoader[int, str](returning(lambda keys: {1: "a", 2: LookupError(2)})) as loader:
        one, two = loader.load(1), loader.load(2)
        assert await one == "a"
        with pytest.raises(LookupError):
            await two


# --- streams ---


async def settled(loader: DataLoader[Any, Any], handles: list[Any]) -> list[str]:
    await wait_all_tasks_blocked()
    return [handle.status.name.lower() for handle in handles]


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("hidden", [False, True], ids=["generator function", "lambda"])
async def test_a_stream_is_given_each_distinct_key_once(cache: bool, hidden: bool) -> None:
    given: list[list[int]] = []

    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, str], None]:
        given.append(list(keys))
        for key in keys:
            yield key, f"value {key}"

    fn: Any = (lambda keys: stream(keys)) if hidden else stream
    async with DataLoader[int, str](fn, cache=cache) as loader:
        handles = [loader.load(key) for key in (2, 1, 2, 1)]
        many = loader.load_many([2, 3, 2])
        assert [await handle for handle in handles] == ["value 2", "value 1"] * 2
        assert await many == ["value 2", "value 3", "value 2"]
    assert given == [[2, 1, 3]]


async def test_a_stream_gets_a_key_cleared_and_loaded_again_once() -> None:
    given: list[list[int]] = []

    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, str], None]:
        given.append(list(keys))
        for key in keys:
            yield key, f"value {key}"

    async with DataLoader(stream) as loader:
        first = loader.load(1)
        second = loader.clear(1).load(1)
        assert (await first, await second) == ("value 1", "value 1")
        assert loader.peek(1) is second
    assert given == [[1]]


async def test_a_failing_stream_fails_a_key_cleared_and_loaded_again_once() -> None:
    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, str], None]:
        raise ValueError("no stream")
        yield 1, ""

    async with DataLoader(stream) as loader:
        loads = [loader.load(1), loader.clear(1).load(1), loader.load(2)]
        for load in loads:
            with pytest.raises(ValueError, match="no stream"):
                await load
        assert loader.peek(1) is None


async def test_a_stream_gives_the_cache_keys_or_the_keys() -> None:
    given: list[list[str]] = []

    async def stream(keys: list[str]) -> AsyncGenerator[tuple[str, str], None]:
        given.append(list(keys))
        yield "a", "by cache key"
        yield "B", "by key"

    for cache in True, False:
        async with DataLoader(stream, get_cache_key=str.lower, cache=cache) as loader:
            assert await loader.load_many(["A", "B", "a"]) == [
                "by cache key",
                "by key",
                "by cache key",
            ]
    assert given == [["A", "B"]] * 2


async def test_a_stream_may_give_the_keys_where_only_cache_keys_are_hashable() -> None:
    async def stream(keys: list[list[int]]) -> AsyncGenerator[tuple[Any, int], None]:
        for key in keys:
            yield key, sum(key)

    async with DataLoader(stream, get_cache_key=tuple) as loader:
        assert await loader.load_many([[1, 2], [3, 4]]) == [3, 7]


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
async def test_a_pair_settles_all_loads_of_its_key_at_once(cache: bool) -> None:
    """The others stay pending, and all of this is seen before the generator ends."""
    more = anyio.Event()
    events: list[str] = []

    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, str], None]:
        yield 2, "b"
        await more.wait()
        events.append("goes on")
        yield 1, "a"

    async def wait_for(name: str, handle: Any) -> None:
        events.append(f"{name} {await handle}")

    async with DataLoader(stream, cache=cache) as loader:
        async with anyio.create_task_group() as tg:
            handles = [loader.load(key) for key in (1, 2, 2)]
            for name, handle in zip(("one", "two", "two"), handles):
                tg.start_soon(wait_for, name, handle)
            tg.start_soon(wait_for, "many", loader.load_many([2, 2]))
            tg.start_soon(wait_for, "all", loader.load_many([1, 2]))
            assert await settled(loader, handles) == ["pending", "finished", "finished"]
            assert sorted(events) == ["many ['b', 'b']", "two b", "two b"]
            events.clear()
            more.set()
    assert events[0] == "goes on"
    assert sorted(events[1:]) == ["all ['a', 'b']", "one a"]


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
async def test_absent_keys_of_a_stream_are_missing_once_it_ends(cache: bool) -> None:
    end = anyio.Event()
    asked: list[int] = []

    def missing(key: int) -> Any:
        asked.append(key)
        return KeyError(key) if key == 3 else f"no {key}"

    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, str], None]:
        yield 1, "a"
        await end.wait()

    async with DataLoader(stream, on_missing=missing, cache=cache) as loader:
        handles = [loader.load(key) for key in (1, 2, 3, 2)]
        assert (await settled(loader, handles))[1:] == ["pending"] * 3
        assert asked == []
        end.set()
        assert [await handles[0], await handles[1], await handles[3]] == ["a", "no 2", "no 2"]
        with pytest.raises(KeyError):
            await handles[2]
    assert sorted(asked) == [2, 3]


async def test_an_absent_key_of_a_stream_is_none_by_default() -> None:
    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, Any], None]:
        yield 1, "a"

    async with DataLoader(stream) as loader:
        assert await loader.load_many([1, 2]) == ["a", None]


async def test_an_error_in_a_stream_fails_its_key_alone() -> None:
    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, Any], None]:
        yield 1, LookupError(1)
        yield 2, "b"

    async with DataLoader(stream, cache_errors=False) as loader:
        one, two = loader.load(1), loader.load(2)
        assert await two == "b"
        with pytest.raises(LookupError):
            await one
        assert loader.peek(1) is None
        assert loader.peek(2) is not None


BAD_PAIRS: dict[str, tuple[Any, str]] = {
    "unknown key": ((9, "x"), "not asked for"),
    "unhashable key": (([], "x"), "not asked for"),
    "key given twice": ((1, "again"), "twice"),
    "no tuple": (None, "no pair"),
    "str of length two": ("ab", "no pair"),
    "triple": ((2, "b", "c"), "no pair"),
}


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("kind", BAD_PAIRS)
async def test_a_bad_pair_fails_what_is_not_settled(kind: str, cache: bool) -> None:
    pair, message = BAD_PAIRS[kind]
    closed: list[bool] = []

    async def stream(keys: list[int]) -> AsyncGenerator[Any, None]:
        try:
            yield 1, "a"
            yield pair
            yield 2, "never"
        finally:
            await checkpoint()
            closed.append(True)

    async with DataLoader(stream, cache=cache) as loader:
        one, two, three = loader.load(1), loader.load(2), loader.load(3)
        for handle in two, three:
            with pytest.raises(BatchResultError, match=message):
                await handle
        assert await one == "a"
        assert (loader.peek(1) is one) == cache
        assert loader.peek(2) is None
        await wait_all_tasks_blocked()
        assert closed == [True]


async def test_a_stream_that_raises_fails_what_is_not_settled() -> None:
    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, str], None]:
        yield 1, "a"
        raise ConnectionError("lost")

    async with DataLoader(stream) as loader:
        one, two = loader.load(1), loader.load(2)
        with pytest.raises(ConnectionError, match="lost"):
            await two
        assert await one == "a"
        assert loader.peek(1) is one
        assert loader.peek(2) is None


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
