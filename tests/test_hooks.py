"""What a loader tells its hooks, in which order and where; and that no hook can harm a load."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import anyio
import pytest

from anyloader import DataLoader, LoadCancelledError, LoaderScope, batch_loader, hooks, schedules
from anyloader.hooks import (
    BatchCancelled,
    BatchFailed,
    BatchFinished,
    BatchOpened,
    BatchSealed,
    BatchStarted,
    Event,
    LoadHit,
    LoadQueued,
)
from support import Recorder, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio


class Log:
    """A hook that remembers the events, with the batches numbered from 1."""

    def __init__(self) -> None:
        self.raw: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.raw.append(event)

    @property
    def events(self) -> list[Event]:
        numbers: dict[int, int] = {}
        return [
            event._replace(batch=numbers.setdefault(event.batch, len(numbers) + 1))
            if not isinstance(event, LoadHit)
            else event
            for event in self.raw
        ]

    def of(self, *kinds: type) -> list[Event]:
        return [event for event in self.events if isinstance(event, kinds)]

    @property
    def reasons(self) -> list[tuple[str, int]]:
        sealed = [event for event in self.raw if isinstance(event, BatchSealed)]
        return [(event.reason, event.size) for event in sealed]


async def echo(keys: list[int]) -> list[int]:
    return keys


# --- what is told, and in which order ---


async def test_a_batch_tells_its_whole_life() -> None:
    log = Log()
    async with DataLoader(echo, hooks=[log]) as loader:
        loads = [loader.load(1), loader.load(2), loader.load(1)]
        for load in loads:
            await load
        await loader.load(2)
    assert log.events == [
        BatchOpened("echo", 1),
        LoadQueued("echo", 1, 1, False),
        LoadQueued("echo", 2, 1, False),
        LoadQueued("echo", 1, 1, True),
        BatchSealed("echo", 1, "schedule", 2),
        BatchStarted("echo", 1, (1, 2)),
        BatchFinished("echo", 1, 0),
        LoadHit("echo", 2),
    ]


async def test_load_many_tells_of_every_key() -> None:
    log = Log()
    async with DataLoader(echo, hooks=[log]) as loader:
        loader.prime(0, 0)
        await loader.load_many([0, 1, 2, 1])
    assert log.of(LoadHit, LoadQueued) == [
        LoadHit("echo", 0),
        LoadQueued("echo", 1, 1, False),
        LoadQueued("echo", 2, 1, False),
        LoadQueued("echo", 1, 1, True),
    ]


@pytest.mark.parametrize("many", [False, True], ids=["load", "load_many"])
@pytest.mark.parametrize("deduplicate", [False, True])
async def test_without_a_cache_a_key_is_shared_only_if_deduplicated(
    deduplicate: bool, many: bool
) -> None:
    log = Log()
    async with DataLoader(echo, cache=False, deduplicate=deduplicate, hooks=[log]) as loader:
        if many:
            await loader.load_many([1, 1])
        else:
            loads = [loader.load(1), loader.load(1)]
            assert [await load for load in loads] == [1, 1]
    assert log.of(LoadHit, LoadQueued) == [
        LoadQueued("echo", 1, 1, False),
        LoadQueued("echo", 1, 1, deduplicate),
    ]
    assert log.of(BatchStarted) == [BatchStarted("echo", 1, (1,) if deduplicate else (1, 1))]


async def test_a_load_that_joins_a_running_batch_tells_of_that_batch() -> None:
    log = Log()
    gate = anyio.Event()
    async with DataLoader(Recorder(str, gate=gate), name="it", hooks=[log]) as loader:
        first = loader.load(1)
        await wait_all_tasks_blocked()
        second, other = loader.load(1), loader.load(2)
        gate.set()
        for load in (first, second, other):
            await load
    assert log.of(LoadQueued) == [
        LoadQueued("it", 1, 1, False),
        LoadQueued("it", 1, 1, True),
        LoadQueued("it", 2, 2, False),
    ]


async def test_priming_clearing_and_peeking_tell_nothing() -> None:
    log = Log()
    async with DataLoader(echo, hooks=[log]) as loader:
        loader.prime(1, 1).clear(1).prime_many({2: 2}).clear_all()
        assert loader.peek(1) is None
    assert log.events == []


async def test_the_reason_says_why_a_batch_left_and_the_size_with_how_many_keys() -> None:
    log = Log()
    manual = schedules.manual()
    async with anyio.create_task_group() as group:
        async with DataLoader(echo, schedule=manual, max_batch_size=2, hooks=[log]) as loader:
            loads = [loader.load(1), loader.load(2), loader.load(3)]
            loader.dispatch()
            for load in loads:
                await load
            group.start_soon(_await, loader.load(4))
            await wait_all_tasks_blocked()
    async with DataLoader(echo, hooks=[log]) as scheduled:
        await scheduled.load(5)
    assert log.reasons == [("full", 2), ("dispatch", 1), ("close", 1), ("schedule", 1)]


async def _await(load: Any) -> None:
    await load


async def test_a_full_batch_is_sealed_before_the_next_one_opens() -> None:
    log = Log()
    async with DataLoader(echo, max_batch_size=1, hooks=[log]) as loader:
        await loader.load_many([1, 2])
    told = log.of(BatchOpened, LoadQueued, BatchSealed)
    assert told == [
        BatchOpened("echo", 1),
        LoadQueued("echo", 1, 1, False),
        BatchSealed("echo", 1, "full", 1),
        BatchOpened("echo", 2),
        LoadQueued("echo", 2, 2, False),
        BatchSealed("echo", 2, "full", 1),
    ]


async def test_a_batch_that_nobody_wants_any_more_leaves_with_no_keys_and_tells_no_more() -> None:
    log = Log()
    async with DataLoader(echo, schedule=schedules.manual(), hooks=[log]) as loader:
        async with anyio.create_task_group() as group:
            group.start_soon(_await, loader.load(1))
            await wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        loader.dispatch()
    assert log.events[-1] == BatchSealed("echo", 1, "dispatch", 0)


# --- how batches end ---


class Boom(Exception):
    pass


async def mixed(keys: list[int]) -> list[Any]:
    return [Boom() if key < 0 else key for key in keys]


async def mapped(keys: list[int]) -> dict[int, int]:
    return {key: key for key in keys if key > 0}


async def streamed(keys: list[int]) -> AsyncIterator[tuple[int, Any]]:
    for key in keys:
        if key > 0:
            yield key, key
        elif key == -1:
            yield key, Boom()


@pytest.mark.parametrize("function", [mixed, mapped, streamed])
async def test_the_end_of_a_batch_counts_the_keys_that_failed(function: Any) -> None:
    log = Log()
    async with DataLoader[int, Any](function, on_missing=lambda _: Boom(), hooks=[log]) as loader:
        await loader.load_many([1, -1, 2, -2], return_exceptions=True)
    assert log.of(BatchFinished, BatchFailed, BatchCancelled) == [
        BatchFinished(function.__name__, 1, 2)
    ]


async def test_a_batch_that_raises_tells_the_error() -> None:
    error = Boom()

    async def fail(keys: list[int]) -> list[int]:
        raise error

    log = Log()
    async with DataLoader(fail, name="it", hooks=[log]) as loader:
        with pytest.raises(Boom):
            await loader.load(1)
    assert log.events[-1] == BatchFailed("it", 1, error)


async def test_a_schedule_that_raises_fails_a_batch_that_was_never_sealed() -> None:
    error = Boom()

    async def fail(batch: schedules.BatchView) -> None:
        raise error

    log = Log()
    async with DataLoader(echo, schedule=fail, hooks=[log]) as loader:
        with pytest.raises(Boom):
            await loader.load(1)
    assert log.events[2:] == [BatchFailed("echo", 1, error)]


async def test_a_batch_that_everybody_gave_up_tells_that_it_is_cancelled() -> None:
    log = Log()
    async with DataLoader(Recorder(str, gate=anyio.Event()), hooks=[log]) as loader:
        async with anyio.create_task_group() as group:
            group.start_soon(_await, loader.load(1))
            await wait_all_tasks_blocked()
            group.cancel_scope.cancel()
    assert log.events[-1] == BatchCancelled("Recorder", 1, "all its loads were given up")


async def test_leaving_tells_of_each_batch_that_is_cancelled() -> None:
    log = Log()
    async with DataLoader(
        Recorder(str, gate=anyio.Event()), batch=False, name="it", hooks=[log]
    ) as loader:
        loads = [loader.load(1), loader.load(2)]
        await wait_all_tasks_blocked()
    why = "nobody awaited it when its scope was left"
    assert log.of(BatchCancelled) == [BatchCancelled("it", 1, why), BatchCancelled("it", 2, why)]
    for load in loads:
        with pytest.raises(LoadCancelledError, match=why):
            await load


# --- where it is told ---


async def test_loads_are_told_in_the_context_of_the_caller_and_batches_in_that_of_the_function() -> (
    None
):
    where: ContextVar[str] = ContextVar("where", default="nowhere")
    told: dict[str, str] = {}

    def hook(event: Event) -> None:
        told[type(event).__name__] = where.get()

    async def fetch(keys: list[int]) -> list[int]:
        told["function"] = where.get()
        return keys

    async def call() -> None:
        where.set("the caller")
        await loader.load(1)
        await loader.load(1)

    where.set("where it was opened")
    async with DataLoader(fetch, hooks=[hook]) as loader:
        async with anyio.create_task_group() as group:
            group.start_soon(call)
    callers = ("LoadQueued", "LoadHit", "BatchOpened")
    assert {name: told.pop(name) for name in callers} == dict.fromkeys(callers, "the caller")
    assert told == dict.fromkeys(
        ("BatchSealed", "BatchStarted", "function", "BatchFinished"), "where it was opened"
    )


async def test_what_a_hook_sets_at_the_start_of_a_batch_its_function_sees_and_no_other_one() -> (
    None
):
    mark: ContextVar[int] = ContextVar("mark", default=0)
    seen: list[int] = []

    def hook(event: Event) -> None:
        if isinstance(event, BatchStarted):
            mark.set(mark.get() + event.keys[0])

    async def fetch(keys: list[int]) -> list[int]:
        seen.append(mark.get())
        return keys

    async with DataLoader(fetch, hooks=[hook]) as loader:
        await loader.load(3)
        await loader.load(5)
    assert (seen, mark.get()) == ([3, 5], 0)


async def test_a_hook_may_look_at_the_loader_at_any_time() -> None:
    seen: list[tuple[str, int, int]] = []

    def hook(event: Event) -> None:
        now = loader.statistics()
        assert repr(loader).startswith("<DataLoader echo: open")
        seen.append((type(event).__name__, now.queued, now.running))

    loader = DataLoader(echo, hooks=[hook])
    async with loader:
        await loader.load_many([1, 2])
        await loader.load(1)
    assert seen == [
        ("BatchOpened", 0, 0),
        ("LoadQueued", 1, 0),
        ("LoadQueued", 2, 0),
        ("BatchSealed", 2, 0),
        ("BatchStarted", 0, 1),
        ("BatchFinished", 0, 0),
        ("LoadHit", 0, 0),
    ]


# --- whose hooks ---


async def test_the_hooks_of_a_scope_hear_of_all_its_loaders_after_their_own_hooks() -> None:
    order: list[str] = []

    def named(name: str) -> Callable[[Event], None]:
        return lambda event: order.append(f"{name}: {event.loader}")

    @batch_loader(hooks=[named("own")])
    async def one(keys: list[int]) -> list[int]:
        return keys

    class Two(DataLoader[int, int]):
        hooks = (named("of the class"),)

        async def batch_load_fn(self, keys: list[int]) -> list[int]:
            return keys

    async def three(keys: list[int]) -> list[int]:
        return keys

    async with LoaderScope(hooks=[named("first"), named("second")]) as scope:
        one.make_loader()  # another loader, which is not of the scope
        current: list[DataLoader[int, int]] = [scope.get(one), scope.get(Two), DataLoader(three)]
        for loader in current:
            loader.prime(1, 1)
            await loader.load(1)
    names = [
        "test_the_hooks_of_a_scope_hear_of_all_its_loaders_after_their_own_hooks.<locals>." + name
        for name in ("one", "Two", "three")
    ]
    assert order == [
        *(f"{hook}: {names[0]}" for hook in ("own", "first", "second")),
        *(f"{hook}: {names[1]}" for hook in ("of the class", "first", "second")),
        *(f"{hook}: {names[2]}" for hook in ("first", "second")),
    ]


async def test_numbers_of_batches_differ_between_loaders() -> None:
    log = Log()
    async with DataLoader(echo, hooks=[log]) as one, DataLoader(echo, hooks=[log]) as two:
        for key in range(3):
            await one.load(key)
            await two.load(key)
    assert len({event.batch for event in log.raw if isinstance(event, BatchOpened)}) == 6


async def test_a_loader_without_hooks_tells_a_hooked_one_nothing() -> None:
    log = Log()
    async with DataLoader(echo, name="quiet") as quiet, DataLoader(echo, hooks=[log]) as loader:
        await quiet.load(1)
        await loader.load(1)
    assert {event.loader for event in log.raw} == {"echo"}


@pytest.mark.parametrize(
    "wrong", [print, {print}, [print, 1], None, "abc"], ids=["callable", "set", "1", "None", "str"]
)
def test_hooks_have_to_be_a_sequence_of_callables(wrong: Any) -> None:
    with pytest.raises(TypeError, match="hooks of echo must be a sequence of callables, not "):
        DataLoader(echo, hooks=wrong)
    with pytest.raises(TypeError, match="hooks must be a sequence of callables, not "):
        LoaderScope(hooks=wrong)


async def test_any_kind_of_callable_is_called_as_python_would() -> None:
    heard: list[tuple[str, Any]] = []

    class Method:
        def __call__(self, event: Event) -> None:
            heard.append(("method", self))

    class Static:
        @staticmethod
        def __call__(event: Event) -> None:
            heard.append(("static", event))

    class OfClass:
        @classmethod
        def __call__(cls, event: Event) -> None:
            heard.append(("class", cls))

    def function(event: Event) -> None:
        heard.append(("function", event))

    shadowed: Any = Method()
    shadowed.__call__ = function  # Python looks in the class
    method = Method()
    hooks: list[Any] = [
        method,
        Static(),
        OfClass(),
        shadowed,
        function,
        partial(function),
        Method.__call__.__get__(method),
    ]
    async with DataLoader(echo, hooks=hooks) as loader:
        await loader.load(1)
    opened = BatchOpened("echo", heard[1][1].batch)
    assert heard[:7] == [
        ("method", method),
        ("static", opened),
        ("class", OfClass),
        ("method", shadowed),
        ("function", opened),
        ("function", opened),
        ("method", method),
    ]


async def test_changing_the_sequence_afterwards_changes_nothing() -> None:
    log = Log()
    of_loader: list[hooks.Hook] = [log]
    of_scope: list[hooks.Hook] = [log]
    async with LoaderScope(hooks=of_scope):
        loader = DataLoader(echo, hooks=of_loader)
        of_loader.clear()
        of_scope.clear()
        await loader.load(1)
    assert log.of(LoadQueued) == [LoadQueued("echo", 1, 1, False)] * 2


def test_events_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        LoadHit("users", 1).key = 2  # type: ignore[misc] # pyright: ignore[reportAttributeAccessIssue]


# --- hooks that raise ---


async def test_a_hook_that_raises_harms_nobody_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    called = 0

    def bad(event: Event) -> None:
        nonlocal called
        called += 1
        raise Boom(f"at call {called}")

    class Worse:
        def __call__(self, event: Event) -> None:
            raise Boom("worse")

    worse = Worse()
    log = Log()
    with caplog.at_level(logging.DEBUG, "anyloader"):
        async with DataLoader(mixed, hooks=[bad, log, worse]) as loader:
            got = await loader.load_many([1, -1], return_exceptions=True)
            assert await loader.load(1) == got[0] == 1
            assert isinstance(got[1], Boom)
            assert loader.statistics().batches == 1
    assert called == len(log.raw) == 7
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert "it will not be logged again" in caplog.text
    assert [f"hook {hook!r} raised" in caplog.text for hook in (bad, worse)] == [True, True]
    assert caplog.text.count("Boom: at call 1") == caplog.text.count("Boom: worse") == 1


async def test_where_all_goes_wrong_a_raising_hook_still_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def bad(event: Event) -> None:
        raise Boom("hook")

    async def fail(keys: list[int]) -> list[int]:
        raise ValueError("function")

    async with DataLoader(fail, hooks=[bad]) as failing:
        with pytest.raises(ValueError, match="function"):
            await failing.load(1)
    loads = []
    with pytest.raises(KeyError):
        async with DataLoader(Recorder(str, gate=anyio.Event()), hooks=[bad]) as left:
            loads.append(left.load(1))
            await wait_all_tasks_blocked()
            raise KeyError
    with pytest.raises(LoadCancelledError):
        await loads[0]


# --- the documentation's names ---


def test_an_event_is_one_of_the_public_records() -> None:
    records: Sequence[Any] = [
        value
        for value in vars(hooks).values()
        if isinstance(value, type) and issubclass(value, tuple)
    ]
    assert set(hooks.Event.__args__) == set(records)
    assert {record.__name__ for record in records} <= set(hooks.__all__)


@pytest.mark.parametrize("many", [False, True], ids=["load", "load_many"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_batch_size": 2},
        {"cache": False},
        {"cache": False, "max_batch_size": 2},
        {"cache": False, "deduplicate": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [BatchOpened, LoadQueued, BatchSealed])
async def test_a_hook_may_dispatch_at_any_time(
    kind: type[Event], options: dict[str, Any], many: bool
) -> None:
    calls: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        calls.append(keys)
        return keys

    def hook(event: Event) -> None:
        if isinstance(event, kind):
            loader.dispatch()

    keys = [1, 2, 2, 3]
    async with DataLoader(fetch, hooks=[hook], **options) as loader:
        if many:
            assert await loader.load_many(keys) == keys
        else:
            loads = [loader.load(key) for key in keys]
            assert [await load for load in loads] == keys
        now = loader.statistics()
        assert (now.loads, now.queued, now.running) == (4, 0, 0)
    assert sorted({key for call in calls for key in call}) == [1, 2, 3]
    assert all(calls)
