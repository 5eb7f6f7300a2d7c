"""Everything that a load takes goes by reference counting alone, with the collector off.

What would only go with the collector is in a cycle: it would hold a request's data for as long as
the collector pleases, and cost its time.
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from types import CoroutineType, GeneratorType
from typing import Any, cast

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import DataLoader, LoaderScope, LoadHandle, schedules
from support import wait_all_tasks_blocked

pytestmark = pytest.mark.anyio


class Data:
    """A key or a value of a request."""

    __slots__ = ("__weakref__", "name")

    def __init__(self, name: str) -> None:
        self.name = name


class Unhashable(list[Data]):
    """A key that cannot be cached as it is."""

    name = "key"


class Refused(Exception):
    pass


async def fetch(keys: list[Data]) -> list[Data | Exception]:
    await checkpoint()
    if keys[0].name == "batch fails":
        raise Refused
    if keys[0].name == "hangs":
        await anyio.sleep_forever()
    return [Refused() if key.name == "fails" else Data("value") for key in keys]


async def stream(keys: list[Data]) -> AsyncIterator[tuple[Data, Data | Exception]]:
    for key, value in zip(keys, await fetch(keys)):
        yield key, value


async def mapping(keys: list[Data]) -> Mapping[Data, Data | Exception]:
    return dict(zip(keys, await fetch(keys)))


async def drop(load: Callable[..., Awaitable[Any]], *args: Any) -> None:
    """Await a load, and keep nothing of what comes.

    A handle in a variable would be in a cycle with an error that it raises: handle, error,
    traceback, frame, handle. That is the caller's, as with any future.
    """
    try:
        await load(*args)
    except (Refused, TypeError):
        pass


Loader = DataLoader[Data, Data]
Scenario = Callable[[Loader], Awaitable[None]]
SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    SCENARIOS[function.__name__] = function
    return function


@scenario
async def a_load(loader: Loader) -> None:
    assert (await loader.load(Data("key"))).name == "value"


@scenario
async def a_load_many(loader: Loader) -> None:
    assert len(await loader.load_many([Data("key") for _ in range(5)])) == 5


@scenario
async def loads_of_one_key(loader: Loader) -> None:
    key = Data("key")
    async with anyio.create_task_group() as tg:
        for _ in range(3):
            tg.start_soon(drop, loader.load, key)
        tg.start_soon(drop, loader.load_many, [key, key])


@scenario
async def a_hit(loader: Loader) -> None:
    key = Data("key")
    await loader.load(key)
    await loader.load(key)
    new, hit = loader.load(Data("key")), loader.load(key)
    await hit
    await new


@scenario
async def a_failed_key(loader: Loader) -> None:
    await drop(loader.load, Data("fails"))


@scenario
async def a_failed_key_of_many(loader: Loader) -> None:
    await drop(loader.load_many, [Data("key"), Data("fails")])
    await loader.load_many([Data("key"), Data("fails")], return_exceptions=True)


@scenario
async def a_failed_batch(loader: Loader) -> None:
    await drop(loader.load, Data("batch fails"))
    await drop(loader.load_many, [Data("batch fails"), Data("key")])


@scenario
async def a_failed_batch_with_many_waiters(loader: Loader) -> None:
    key = Data("batch fails")
    async with anyio.create_task_group() as tg:
        for _ in range(3):
            tg.start_soon(drop, loader.load, key)


@scenario
async def a_key_that_cannot_be_hashed(loader: Loader) -> None:
    key: Any = Unhashable([Data("key")])
    await drop(lambda: loader.load(key))
    await drop(lambda: loader.load_many([Data("key"), key]))


@scenario
async def an_error_that_nobody_awaits(loader: Loader) -> None:
    loader.load(Data("batch fails"))
    await wait_all_tasks_blocked()
    loader.load(Data("fails"))
    await wait_all_tasks_blocked()


async def give_up(load: Callable[..., Awaitable[Any]], *args: Any, running: bool) -> None:
    """Await a load in a scope that is cancelled.

    In this task: one that ends by its cancellation is kept in a cycle by anyio's task group.
    """
    async with anyio.create_task_group() as tg:
        with anyio.CancelScope() as scope:
            if running:
                tg.start_soon(cancel_later, scope)
            else:
                scope.cancel()
            await load(*args)
    await wait_all_tasks_blocked()


async def cancel_later(scope: anyio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


@scenario
async def a_load_given_up_before_it_is_sent(loader: Loader) -> None:
    await give_up(loader.load, Data("hangs"), running=False)


@scenario
async def a_load_given_up_while_it_runs(loader: Loader) -> None:
    await give_up(loader.load, Data("hangs"), running=True)


@scenario
async def a_load_many_given_up_while_it_runs(loader: Loader) -> None:
    await give_up(loader.load_many, [Data("hangs"), Data("key")], running=True)


@scenario
async def one_of_two_loads_given_up(loader: Loader) -> None:
    key = Data("key")
    other = loader.load(key)
    await give_up(loader.load, key, running=False)
    await other


@scenario
async def a_key_primed_while_queued(loader: Loader) -> None:
    key = Data("key")
    load = loader.load(key)
    loader.prime(key, Data("primed"), force=True)
    await load


@scenario
async def a_key_cleared_while_queued(loader: Loader) -> None:
    key = Data("key")
    first = loader.load(key)
    second = loader.clear(key).load(key)
    await first
    await second


@scenario
async def a_handle_that_is_driven(loader: Loader) -> None:
    async with anyio.create_task_group() as tg:
        load = loader.load(Data("key"))
        for _ in range(2):
            tg.start_soon(lambda: load)


def cache_key(key: Data) -> str:
    if isinstance(key, Unhashable):
        raise TypeError
    return key.name


class NoValues:
    """A value cache that has nothing and keeps nothing."""

    async def get_many(self, keys: Sequence[Any]) -> Mapping[Any, Any]:
        return {}

    async def set_many(self, items: Mapping[Any, Any]) -> None:
        await checkpoint()

    async def delete_many(self, keys: Sequence[Any]) -> None:
        await checkpoint()


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "no cache": {"cache": False},
    "deduplicate": {"cache": False, "deduplicate": True},
    "cache key": {"get_cache_key": id},
    "small batches": {"max_batch_size": 1},
    "defer_hits": {"defer_hits": True},
    "rounds": {"schedule": schedules.rounds(0)},
    "value cache": {"value_cache": NoValues(), "cache": False},
    "value cache, cache key": {
        "value_cache": NoValues(),
        "cache": False,
        "get_cache_key": cache_key,
    },
    "hooks": {"hooks": [lambda event: None]},
}
FUNCTIONS: dict[str, Any] = {"list": fetch, "stream": stream, "mapping": mapping}
CASES = [(function, "default") for function in FUNCTIONS] + [("list", option) for option in OPTIONS]


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # `census` is about what a test makes; it took longer with each test that had been
    gc.disable()
    yield
    gc.enable()


def census() -> Counter[str]:
    """What there is of the library, of its coroutines, and of the data of requests."""
    found: Counter[str] = Counter()
    things = gc.get_objects()
    for kind, number in Counter(map(type, things)).items():
        if kind is Refused or str(kind.__module__).partition(".")[0] == "anyloader":
            found[kind.__qualname__] += number
    for thing in things:
        if type(thing) is GeneratorType or type(thing) is CoroutineType:
            code = thing.gi_code if isinstance(thing, GeneratorType) else thing.cr_code
            if "/anyloader/" in code.co_filename.replace("\\", "/"):
                found[code.co_name] += 1
    return found


watched: weakref.WeakSet[Data] = weakref.WeakSet()


@pytest.fixture(autouse=True)
def watch_data(monkeypatch: pytest.MonkeyPatch) -> None:
    make = Data.__init__

    def watching(self: Data, name: str) -> None:
        make(self, name)
        watched.add(self)

    monkeypatch.setattr(Data, "__init__", watching)
    watched.clear()


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize(("function", "options"), CASES[1:])
async def test_an_open_loader_keeps_nothing_but_its_cache(
    name: str, function: str, options: str, no_collector: None
) -> None:
    async with DataLoader(FUNCTIONS[function], **OPTIONS[options]) as loader:
        before: Counter[str] | None = None
        for _ in range(3):
            await SCENARIOS[name](cast(Any, loader))
            await wait_all_tasks_blocked()
            await loader.load(Data("key"))  # after which one worker is idle
            await wait_all_tasks_blocked()
            loader.clear_all()
            before = before or census()
        assert census() == before
        # And the keys that it has to delete again when it is left.
        clears = name in ("a_key_primed_while_queued", "a_key_cleared_while_queued")
        cleared = 3 if clears and options == "value cache" else 0
        assert [data.name for data in watched] == ["key"] * cleared


def forget_errors(loader: Loader) -> None:
    """A cached error is in a cycle with frames that it passed, if they hold the loader."""
    for key in [data for data in watched if data.name == "fails"]:
        loader.clear(key)


async def use(name: str, place: str) -> None:
    if place == "own":
        async with DataLoader(fetch) as loader:
            await SCENARIOS[name](loader)
            forget_errors(loader)
    elif place == "foreign":
        async with anyio.create_task_group() as tg:
            loader = DataLoader(fetch, task_group=tg)
            await SCENARIOS[name](loader)
            forget_errors(loader)
    else:
        async with LoaderScope() as scope:
            loader = scope.get(fetch)
            await SCENARIOS[name](loader)
            forget_errors(loader)


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("place", ["own", "foreign", "scope"])
async def test_a_scope_that_has_ended_keeps_nothing(
    name: str, place: str, no_collector: None
) -> None:
    before = census()
    await use(name, place)
    await wait_all_tasks_blocked()
    assert census() == before
    assert len(watched) == 0


async def test_a_handle_holds_its_value_and_nothing_of_the_loader(no_collector: None) -> None:
    async with DataLoader(fetch) as loader:
        handle = loader.load(Data("key"))
        await handle
    gone = weakref.ref(loader)
    del loader
    await wait_all_tasks_blocked()
    assert gone() is None
    assert handle.status is LoadHandle.Status.FINISHED
    assert sorted(data.name for data in watched) == ["key", "value"]


async def test_a_loader_that_lives_on_holds_nothing_of_its_task_group(no_collector: None) -> None:
    async with DataLoader(fetch) as loader:
        dispatcher: Any = loader.__anyloader__.scope
        gone = weakref.ref(dispatcher._group)
        await loader.load(Data("key"))
    await wait_all_tasks_blocked()
    assert gone() is None
