"""Whatever dies, whenever: nobody hangs, nothing is left, and the loader lives on if it may.

One batch of three keys is on its way, with four waiters outside the loader's scope. A fault strikes
at one point of the batch's life: the table is WHAT x WHEN x PLACES, on every backend.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from contextvars import copy_context
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import (
    DataLoader,
    LoadCancelledError,
    LoaderClosedError,
    LoaderScope,
    LoadHandle,
)
from support import BACKENDS, backend_options
from support.tasks import stray_cancellation

# After so many rounds everybody has to know.
BOUND = 60

PLACES = ("own", "scope", "foreign")
CANCELLED = ("a waiter", "all waiters", "the body", "its scope", "an outer scope")
RAISED = ("Exception", "BaseException", "a stray cancellation")
BROKEN = ("a hook", "the cache_map", "the value cache", "the limiter")
WHAT = (*CANCELLED, *RAISED, *BROKEN)

QUEUED = ("before the seal", "at the seal", "waiting for a token", "asking the value cache")
RUNNING = ("before its first step", "in the function", "leaving")
# Too late for a cancellation to be met: the values are there.
LATE = ("at its return", "while settling", "storing in the value cache")
WHEN = (*QUEUED, *RUNNING, *LATE)

CASES = [
    (what, when)
    for what in WHAT
    for when in WHEN
    # Nothing runs then in which something could be raised; and a body that has ended cannot die.
    if (what not in (*RAISED, "the cache_map") or when != "waiting for a token")
    and (what, when) != ("the body", "leaving")
    # It has given its token.
    and (what != "the limiter" or when in QUEUED[:3])
]

# A task group keeps a cancellation, and what it raises together, in a cycle with all frames that it
# has passed, the user's too. After all else nothing waits for the collector.
IN_A_CYCLE = {
    "own": ("its scope", "an outer scope", "BaseException"),
    "scope": ("its scope", "an outer scope", "BaseException"),
    "foreign": ("its scope", "an outer scope", "BaseException", "the body"),
}
# A mapping that does not let go of a failed load, whose error has frames that hold the loader.
KEPT = [("the cache_map", "leaving")]

VALUE = "value"
GIVEN_UP = "given up"


class Boom(Exception):
    pass


class Stop(BaseException):
    """As a ``KeyboardInterrupt``, but event loops make no exception for it."""


class Key(float):
    """Can be referred to weakly, as a handle cannot: it tells whether a handle is left."""


class World:
    def __init__(self, what: str, when: str, place: str) -> None:
        self.what, self.when, self.place = what, when, place
        self.fired = False
        self.running = 0
        self.body_error: BaseException | None = None
        self.outcomes: list[Any] = [None] * 4
        self.broken = False
        self.left: Any = None

    # The fault

    def point(self, when: str) -> None:
        if when == self.when and not self.fired:
            self.fired = True
            self.strike()

    def strike(self) -> None:
        if self.what == "a waiter":
            self.scopes[0].cancel()
        elif self.what == "all waiters":
            for scope in self.scopes:
                scope.cancel()
        elif self.what == "the body":
            self.body_error = Boom("body")
            self.body_ends.set()
        elif self.what == "its scope":
            self.own_scope.cancel()
        elif self.what == "an outer scope":
            self.outer_scope.cancel()
        elif self.what in ("a hook", "the value cache", "the limiter"):
            self.broken = True
        elif self.what == "a stray cancellation":
            raise self.stray
        elif self.what == "BaseException":
            raise Stop
        elif self.what == "KeyboardInterrupt":
            raise KeyboardInterrupt
        else:
            self.broken = self.what == "the cache_map"
            raise Boom

    # What a loader is given

    async def schedule(self, batch: object) -> None:
        for _ in range(4):  # by now the waiters wait
            await checkpoint()
        self.point("before the seal")
        await checkpoint()
        await checkpoint()
        self.point("at the seal")

    def fetch(self, keys: list[int]) -> Awaitable[Iterator[int]]:
        self.point("before its first step")
        return self._fetch(keys)

    async def _fetch(self, keys: list[int]) -> Iterator[int]:
        self.running += 1
        try:
            if self.when == "leaving" and not self.fired:
                self.body_ends.set()
                for _ in range(4):
                    await checkpoint()
                self.point("leaving")
            self.point("in the function")
            await checkpoint()
            await checkpoint()
            self.point("at its return")
            return self._values(keys)
        finally:
            self.running -= 1

    def _values(self, keys: list[int]) -> Iterator[int]:
        for key in keys:
            if key != keys[0]:
                self.point("while settling")
            yield key * 10

    async def get_many(self, keys: Sequence[int]) -> Mapping[int, int]:
        await checkpoint()
        self.point("asking the value cache")
        await checkpoint()
        self._break("the value cache")
        return {}

    async def set_many(self, items: Mapping[int, int]) -> None:
        await checkpoint()
        self.point("storing in the value cache")
        await checkpoint()
        self._break("the value cache")

    async def delete_many(self, keys: Sequence[int]) -> None:
        self._break("the value cache")

    def hook(self, event: object) -> None:
        self._break("a hook")

    def _break(self, what: str) -> None:
        if self.broken and self.what == what:
            raise Boom(what)

    # Tasks

    async def owner(self) -> None:
        try:
            with anyio.CancelScope() as self.outer_scope, anyio.CancelScope() as self.own_scope:
                async with AsyncExitStack() as stack:
                    options: dict[str, Any] = {
                        "schedule": self.schedule,
                        "hooks": [self.hook],
                        "limiter": self.limiter,
                    }
                    if self.what == "the cache_map":
                        options["cache_map"] = BrittleMap(self)
                    if "the value cache" in self.when or self.what == "the value cache":
                        options["value_cache"] = self
                    if self.place == "scope":
                        await stack.enter_async_context(LoaderScope())
                    if self.place == "foreign":
                        group = await stack.enter_async_context(anyio.create_task_group())
                        options["task_group"] = group
                    self.loader = DataLoader[int, int](self.fetch, **options)
                    if self.place == "own":
                        await stack.enter_async_context(self.loader)
                    self.context = copy_context()
                    load: Any = self.loader.load
                    self.loads = [
                        load(Key(1)),
                        load(Key(1)),
                        load(Key(2)),
                        self.loader.load_many([1, 3]),
                    ]
                    self.ready.set()
                    await self.body_ends.wait()
                    if self.body_error is not None:
                        raise self.body_error
        except (Boom, Stop) as exc:
            self.left = exc
        except BaseException as exc:
            if self.place != "foreign" or not hasattr(exc, "exceptions"):
                raise
            errors: Any = exc
            (self.left,) = errors.exceptions
        else:
            self.left = "left"

    async def waiter(self, index: int) -> None:
        with self.scopes[index]:
            try:
                got = await self.loads[index]
            except Exception as exc:
                self.outcomes[index] = type(exc)
            else:
                assert got == [10, 10, 20, [10, 30]][index]
                self.outcomes[index] = VALUE
        if self.scopes[index].cancelled_caught:
            self.outcomes[index] = GIVEN_UP

    async def outsider(self) -> None:
        """Holds the only token when the batch wants it."""
        async with self.limiter.tokens:
            while self.loader.statistics().queued and not self.fired:
                for _ in range(12):
                    await checkpoint()
                self.point("waiting for a token")
            for _ in range(4):
                await checkpoint()

    async def prepare(self) -> None:
        self.body_ends, self.ready = anyio.Event(), anyio.Event()
        self.scopes = [anyio.CancelScope() for _ in range(4)]
        self.limiter = BrittleLimiter(self)
        if self.what == "a stray cancellation":
            self.stray = await stray_cancellation()

    async def start(self, start_soon: Callable[..., object]) -> None:
        await self.prepare()
        start_soon(self.owner)
        await self.ready.wait()
        if self.when == "waiting for a token":
            start_soon(self.outsider)
        for index in range(4):
            start_soon(self.waiter, index)

    @property
    def may_live_on(self) -> bool:
        if self.when == "leaving" or self.what in ("the body", "its scope", "an outer scope"):
            return False
        return self.what != "BaseException"

    def allowed(self, index: int) -> set[Any]:
        late = {VALUE} if self.when in LATE else set()
        if self.what == "a waiter" and index:
            return {VALUE}
        if self.what in ("a waiter", "all waiters"):
            return {GIVEN_UP} | late
        if self.what in ("a hook", "the value cache") or self.when == "storing in the value cache":
            return {VALUE}
        if self.what == "the limiter":
            return {Boom}
        if self.what in ("Exception", "the cache_map"):
            return {VALUE} if "value cache" in self.when else {Boom}
        return {LoadCancelledError} | (late if self.what in CANCELLED else set())


class BrittleMap(dict[Any, Any]):
    """A cache_map that fails from the fault on: where entries are looked for, to be evicted."""

    def __init__(self, world: World) -> None:
        self.world = world

    def get(self, *args: Any) -> Any:
        if self.world.broken:
            raise Boom("map")
        return super().get(*args)


class BrittleLimiter(anyio.CapacityLimiter):
    """A limiter that gives no token from the fault on, but an error."""

    def __new__(cls, world: World) -> BrittleLimiter:
        return object.__new__(cls)

    def __init__(self, world: World) -> None:
        self.world = world
        self.tokens = anyio.CapacityLimiter(1)

    @property
    def available_tokens(self) -> float:
        return self.tokens.available_tokens

    def acquire_on_behalf_of_nowait(self, borrower: object) -> None:
        self.tokens.acquire_on_behalf_of_nowait(borrower)
        self._break(borrower)

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        await self.tokens.acquire_on_behalf_of(borrower)
        self._break(borrower)

    def _break(self, borrower: object) -> None:
        if self.world.broken and self.world.what == "the limiter":
            self.tokens.release_on_behalf_of(borrower)
            raise Boom("limiter")

    def release_on_behalf_of(self, borrower: object) -> None:
        self.tokens.release_on_behalf_of(borrower)


async def rounds_until(condition: Callable[[], bool]) -> None:
    for _ in range(BOUND):
        if condition():
            return
        await checkpoint()
    raise AssertionError(f"not so after {BOUND} rounds")


def tasks() -> int:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        import trio

        return trio.lowlevel.current_statistics().tasks_living


@pytest.fixture
def no_collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # pytest keeps what is logged, with all frames.
    monkeypatch.setattr(logging.getLogger("anyloader"), "disabled", True)
    gc.disable()
    yield
    gc.enable()


@pytest.mark.anyio
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("what", "when"), CASES)
async def test_whatever_dies_nobody_hangs_and_nothing_is_left(
    what: str, when: str, place: str, no_collector: None
) -> None:
    world = World(what, when, place)
    before = tasks()
    async with anyio.create_task_group() as tg:
        await world.start(tg.start_soon)
        await rounds_until(lambda: world.fired)
        await rounds_until(lambda: None not in world.outcomes)
        for index, outcome in enumerate(world.outcomes):
            assert outcome in world.allowed(index), (index, world.outcomes)
        assert len({*world.outcomes[1:]}) == 1, "all or nothing"

        world.broken = False
        if world.may_live_on:
            await rounds_until(lambda: not world.running)
            assert world.left is None, "the scope has ended"
            if what == "the cache_map":  # which may hold what it did not let be evicted
                world.context.run(world.loader.clear_all)
            assert await world.context.run(world.loader.load_many, [1, 2, 3]) == [10, 20, 30]
            world.body_ends.set()
        await rounds_until(lambda: world.left is not None)
        assert not world.running
        ended_by: dict[str, type] = {"BaseException": Stop}
        if place == "foreign" or when != "leaving":
            ended_by["the body"] = Boom
        assert isinstance(world.left, ended_by.get(what, str)), world.left
        await rounds_until(lambda: tasks() == before)
        with pytest.raises(LoaderClosedError):
            world.context.run(world.loader.load, 4)
    kept = [weakref.ref(thing) for thing in (world.loader, world.loads[3])]
    kept += [weakref.ref(load.key) for load in world.loads[:3]]
    vars(world).clear()  # the loader holds its methods
    await checkpoint()
    if what not in IN_A_CYCLE[place] and (what, when) not in KEPT:
        assert [ref() for ref in kept if ref() is not None] == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("when", [when for when in WHEN if when != "waiting for a token"])
def test_a_keyboard_interrupt_ends_the_program_and_every_load(
    when: str, place: str, backend: str, leftovers: list[str]
) -> None:
    world = World("KeyboardInterrupt", when, place)

    async def main() -> None:
        async with anyio.create_task_group() as tg:
            await world.start(tg.start_soon)

    library, options = backend_options(backend)
    error: Any = None
    try:
        anyio.run(main, backend=library, backend_options=options)
    except BaseException as exc:
        error = exc
    error = error or world.left  # where the owner of the group caught it
    while hasattr(error, "exceptions"):
        (error,) = error.exceptions
    assert type(error) is KeyboardInterrupt
    assert world.fired
    assert not world.running
    handles: list[Any] = [*world.loads]
    many = handles.pop()
    for load in handles:
        assert load.status is not LoadHandle.Status.PENDING
    assert "0 pending" in repr(many)
    with pytest.raises((LoaderClosedError, RuntimeError)):
        world.context.run(world.loader.load, 4)
    assert all("left pending" in line for line in leftovers), leftovers
    leftovers.clear()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("when", WHEN)
def test_an_event_loop_that_shuts_down_leaves_nobody_waiting(
    when: str, place: str, leftovers: list[str]
) -> None:
    world = World("nothing", when, place)
    started: list[asyncio.Task[Any]] = []

    async def main() -> None:
        def start(function: Callable[..., Any], *args: Any) -> None:
            started.append(asyncio.ensure_future(function(*args)))

        world.strike = lambda: None  # type: ignore[method-assign]
        await world.start(start)
        await rounds_until(lambda: world.fired)

    asyncio.run(main())
    assert all(task.done() for task in started)
    assert not world.running
    assert all("left pending" in line for line in leftovers), leftovers
    leftovers.clear()
