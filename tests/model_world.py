"""The real side of ``test_model.py``: a loader, its tasks and its functions, moved step by step."""

from __future__ import annotations

import math
import queue
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import anyio
import pytest
from hypothesis import strategies as st

from anyloader import DataLoader, LoaderScope, LoadHandle, schedules
from anyloader.hooks import BatchStarted, Event, LoadQueued
from anyloader.schedules import BatchView
from model import Batch, Load, Outcome
from support import run_shuffled, wait_all_tasks_blocked
from support.tasks import stray_cancellation

#: Real seconds after which a step counts as hanging.
HANG = 60
WINDOW = 2.5


class Key:
    """Equal to others of its number, and yet it shows which of them a function was given."""

    def __init__(self, number: int, serial: int = 0) -> None:
        self.number, self.serial = number, serial

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and other.number == self.number

    def __hash__(self) -> int:
        return hash(self.number)

    def __repr__(self) -> str:
        return f"{self.number}#{self.serial}"


def half(key: Key) -> int:
    return key.number // 2


class Bounded(dict[Any, Any]):
    """A cache_map that lets the oldest go."""

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        if len(self) > 3:
            del self[next(iter(self))]


class Boom(Exception):
    pass


class Stop(BaseException):
    """As a ``KeyboardInterrupt``, but event loops make no exception for it."""


class Options(NamedTuple):
    backend: str
    seed: int
    place: str
    schedule: str
    held: bool
    streams: bool
    cache: str
    keyed: bool
    batch: bool
    max_batch_size: int | None
    defer_hits: bool
    deduplicate: bool
    cache_errors: bool | type[Exception]
    on_missing: type[Exception] | None
    tokens: int | None
    #: Whether events are looked at; they tell of the batches that a value cache answers alone.
    hooked: bool
    values: bool


NUMBERS = st.integers(0, 4)
SERIAL = st.integers(0, 1_000)
SEVERAL = st.lists(NUMBERS, max_size=4)
CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("load"), NUMBERS),
        st.tuples(st.just("load_many"), SEVERAL, st.booleans()),
        st.tuples(st.just("clear"), NUMBERS),
        st.tuples(st.just("clear_all")),
        st.tuples(st.just("prime"), NUMBERS, st.booleans(), st.booleans()),
        st.tuples(st.just("peek"), NUMBERS),
        st.tuples(st.just("dispatch")),
    ),
    min_size=1,
    max_size=4,
)
RESULTS = (
    *("list", "generator", "mapping", "short", "long", "str", "none", "raise", "cancel", "stop"),
)
STREAM_RESULTS = ("pair", "pair", "pair", "end", "unknown", "no pair", "raise", "cancel", "stop")


def options_on(backend: str) -> st.SearchStrategy[Options]:
    any_of_them = st.builds(
        Options,
        backend=st.just(backend),
        seed=SERIAL,
        place=st.sampled_from(["own", "scope", "foreign"]),
        schedule=st.sampled_from(["quiescent", "rounds", "gate", "manual", "window"]),
        held=st.booleans(),
        streams=st.booleans(),
        cache=st.sampled_from(["dict", "bounded", "pending", "off"]),
        keyed=st.booleans(),
        batch=st.sampled_from([True, True, True, False]),
        max_batch_size=st.sampled_from([None, 1, 2, 3]),
        defer_hits=st.booleans(),
        deduplicate=st.booleans(),
        cache_errors=st.sampled_from([True, False, KeyError]),
        on_missing=st.sampled_from([None, KeyError]),
        tokens=st.sampled_from([None, 1, 2]),
        hooked=st.booleans(),
        values=st.booleans(),
    )
    # What most loaders are, and the shortest ways through the code are for, chance would seldom meet.
    plain = any_of_them.map(
        lambda options: options._replace(
            cache="dict", keyed=False, batch=True, max_batch_size=None, hooked=False, values=False
        )
    )
    # Batches of which some is settled, some given up, and some still to come.
    held = any_of_them.map(lambda options: options._replace(streams=True, held=True))
    return st.one_of(any_of_them, plain, held).filter(
        lambda options: (options.place, options.schedule) != ("foreign", "manual")
    )


class Values:
    """A value cache that answers at once."""

    def __init__(self) -> None:
        self.items: dict[Any, Any] = {}

    async def get_many(self, keys: Sequence[Any]) -> dict[Any, Any]:
        return {key: self.items[key] for key in keys if key in self.items}

    async def set_many(self, items: Mapping[Any, Any]) -> None:
        self.items.update(items)

    async def delete_many(self, keys: Sequence[Any]) -> None:
        for key in keys:
            self.items.pop(key, None)


@dataclass(eq=False)
class Start:
    """A batch began to run, with these keys; it calls the batch function, or not."""

    keys: Sequence[Key]
    call: Call | None = None
    batch: Batch | None = None


class Call:
    """A call of the batch function; it goes on when it is told what to do."""

    def __init__(self, number: int, keys: list[Key]) -> None:
        self.number, self.keys = number, keys
        self.batch: Batch | None = None
        self.ended: str | None = None
        self._orders: list[Any] = []
        self._event = anyio.Event()

    def value(self, key: Key) -> tuple[int, int]:
        return self.number, key.serial

    def tell(self, order: Any) -> None:
        self._orders.append(order)
        self._event.set()

    async def told(self) -> Any:
        try:
            while not self._orders:
                self._event = anyio.Event()
                await self._event.wait()
        except BaseException:
            self.ended = "cancelled"
            raise
        order = self._orders.pop(0)
        if order == "cancel" or isinstance(order, BaseException):
            self.ended = "raised"
            if isinstance(order, BaseException):
                raise order
            raise await stray_cancellation()
        return order


@dataclass(eq=False)
class Waiter:
    load: Load
    handle: Any
    #: What it shall get, and what it got.
    expected: Outcome | None = None
    got: Outcome | None = None


@dataclass(eq=False)
class Group:
    """Waiters in one cancel scope."""

    waiters: list[Waiter]
    deadline: float | None
    scope: anyio.CancelScope = field(init=False)


GIVEN_UP = Outcome("given up")


class World:
    """The loader, in an event loop that makes one step at a time."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.calls: list[Call] = []
        self.made = 0
        self.starts: list[Start] = []
        self.values = Values()
        #: How many events of each kind there were, and of the loads how many shared a key.
        self.events: Counter[Any] = Counter()
        self.gates: list[tuple[BatchView, anyio.Event]] = []
        self.gate_error: Exception | None = None
        self.body_error: Exception | None = None
        #: How the block that the loader lived in ended.
        self.left: Any = None
        self.limiter: anyio.CapacityLimiter | None = None
        #: Those others than the loader that hold a token.
        self.strangers: list[object] = []
        self._todo: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._answer()

    # Called from the machine

    def step(self, function: Callable[[], Any]) -> Any:
        self._todo.put(function)
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._done.get(timeout=HANG)
        except queue.Empty:
            raise AssertionError("a step hangs") from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def close(self) -> None:
        self._todo.put(None)
        self._thread.join(HANG)
        assert not self._thread.is_alive(), "the event loop hangs at its end"
        while not self._done.empty():
            self._answer()

    # In the event loop

    def _run(self) -> None:
        try:
            run_shuffled(self.options.backend, self.options.seed, self._main)
        except BaseException as exc:
            self._done.put(exc)

    async def _main(self) -> None:
        self._start = anyio.current_time()
        async with anyio.create_task_group() as self.tasks:
            self.leave = anyio.Event()
            self.tasks.start_soon(self._owner)
            await wait_all_tasks_blocked()
            self._done.put(None)
            while (function := self._todo.get()) is not None:
                answer = function()
                if answer is not None and hasattr(answer, "__await__"):
                    answer = await answer
                await wait_all_tasks_blocked()
                self._done.put(answer)
            self.tasks.cancel_scope.cancel()

    async def _owner(self) -> None:
        place = self.options.place
        self.left_scope = anyio.CancelScope()
        try:
            with self.left_scope:
                async with AsyncExitStack() as stack:
                    if place == "foreign":
                        group = await stack.enter_async_context(anyio.create_task_group())
                        self.loader = self._new_loader(task_group=group)
                    elif place == "scope":
                        await stack.enter_async_context(LoaderScope())
                        self.loader = self._new_loader()
                        self.loader.load_many([])
                    else:
                        self.loader = await stack.enter_async_context(self._new_loader())
                    self.context = copy_context()
                    await self.leave.wait()
                    if self.body_error is not None:
                        raise self.body_error
        except (Exception, Stop) as exc:
            self.left = exc
        except BaseException as exc:
            if place != "foreign":
                raise
            self.left = exc
        else:
            self.left = "cancelled" if self.left_scope.cancelled_caught else "done"

    def hook(self, event: Event) -> None:
        self.events[type(event)] += 1
        if isinstance(event, LoadQueued) and event.shared:
            self.events["shared"] += 1
        if isinstance(event, BatchStarted):
            self.starts.append(Start(event.keys))

    def _new_loader(self, **place: Any) -> DataLoader[Key, Any]:
        options = self.options
        if options.tokens is not None:
            self.limiter = anyio.CapacityLimiter(options.tokens)
        keeps: Any = options.cache_errors
        if keeps is KeyError:
            keeps = lambda error: isinstance(error, KeyError)  # noqa: E731
        cache: Any = "pending" if options.cache == "pending" else options.cache != "off"
        on_missing: Any = options.on_missing
        schedule: dict[str, schedules.Schedule] = {
            "quiescent": schedules.quiescent(),
            "rounds": schedules.rounds(1),
            "manual": schedules.manual(),
            "window": schedules.window(WINDOW),
            "gate": self._gate,
        }
        return DataLoader(
            self._stream if options.streams else self._fetch,
            batch=options.batch,
            max_batch_size=options.max_batch_size,
            cache=cache,
            cache_map=Bounded() if options.cache == "bounded" else None,
            get_cache_key=half if options.keyed else None,
            schedule=schedule[options.schedule],
            defer_hits=options.defer_hits,
            deduplicate=options.deduplicate,
            cache_errors=keeps,
            on_missing=on_missing,
            limiter=self.limiter,
            hooks=[self.hook] if options.hooked or options.values else [],
            value_cache=self.values if options.values else None,
            **place,
        )

    async def _gate(self, batch: BatchView) -> None:
        event = anyio.Event()
        self.gates.append((batch, event))
        await event.wait()
        if self.gate_error is not None:
            raise self.gate_error

    def open_gate(self, error: Exception | None) -> None:
        self.gate_error = error
        for _, event in self.gates:
            event.set()
        self.gates.clear()

    def _call(self, keys: list[Key]) -> Call:
        call = Call(self.made, list(keys))
        self.made += 1
        self.calls.append(call)
        if not self.options.hooked and not self.options.values:
            self.starts.append(Start(call.keys))
        self.starts[-1].call = call  # no other batch gets a turn between start and call
        if not self.options.held:
            pairs = [(key, call.value(key)) for key in keys]
            for order in [*pairs, None] if self.options.streams else [dict(pairs).values()]:
                call.tell(order)
            if not self.options.streams:
                call._orders[:] = [[value for _, value in pairs]]
        return call

    async def _fetch(self, keys: list[Key]) -> Any:
        call = self._call(keys)
        result = await call.told()
        call.ended = "returned"
        return result() if callable(result) else result

    async def _stream(self, keys: list[Key]) -> AsyncIterator[Any]:
        call = self._call(keys)
        try:
            while (pair := await call.told()) is not None:
                yield pair
        finally:
            call.ended = call.ended or "returned"

    async def wait(self, group: Group) -> None:
        deadline = math.inf if group.deadline is None else self._start + group.deadline
        with anyio.CancelScope(deadline=deadline) as group.scope:
            async with anyio.create_task_group() as tg:
                for waiter in group.waiters:
                    tg.start_soon(self._wait, waiter)

    async def _wait(self, waiter: Waiter) -> None:
        try:
            waiter.got = Outcome(await waiter.handle)
        except Exception as exc:
            waiter.got = Outcome(error=exc)
        except BaseException:
            waiter.got = GIVEN_UP
            raise


def first_wanted(batch: Batch) -> Any:
    return next((entry.key for entry in batch.entries if entry.is_wanted), None)


def agree(got: Outcome, expected: Outcome) -> bool:
    if isinstance(expected.error, type):
        return type(got.error) is expected.error
    if expected.error is not None or got.error is not None:
        return got.error is expected.error
    if isinstance(expected.value, list):  # of a load_many: one outcome for each part
        if len(got.value) != len(expected.value):
            return False
        for one, part in zip(got.value, expected.value):
            as_outcome = Outcome(error=one) if isinstance(one, Exception) else Outcome(one)
            if not agree(as_outcome, part):
                return False
        return True
    return bool(got.value == expected.value)


def outcome_of(handle: LoadHandle[Any]) -> Outcome | None:
    status = handle.status
    if status is LoadHandle.Status.PENDING:
        return None
    if status is LoadHandle.Status.FINISHED:
        return Outcome(handle.return_value)
    if status is LoadHandle.Status.FAILED:
        return Outcome(error=handle.exception)
    with pytest.raises(anyio.TaskCancelled) as caught:
        handle.exception  # noqa: B018
    return Outcome(error=caught.value.__cause__)
