"""Random programs with several loaders, whose events fall into each other.

Nothing here waits for the event loop to be quiet, and no state is followed step by step as
``model.py`` does. Tasks load, give up, clear, prime, send and hold tokens, batch functions load from
each other, and meanwhile the scope is left, fails or is cancelled. What is judged is little and holds
in any order: what a load may get, since when its value may be known, how often a key may be sent, who
may be cancelled, how many functions run at once, and that nothing is left.

A program (``random_programs.py``) is plain data, made from a seed, so that ``shrink`` can leave out part
after part of it.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from anyloader import (
    BatchResultError,
    DataLoader,
    KeyNotFoundError,
    LoadCancelledError,
    LoadDeadlockError,
    LoaderBusyError,
    LoaderClosedError,
    LoaderScope,
    batch_loader,
    limit,
    schedules,
)
from random_programs import Op, Program, Source
from support.tasks import stray_cancellation

#: Virtual seconds after which a program hangs; functions that load from themselves may take a thousand.
TOO_LONG = 100_000


class Value(NamedTuple):
    loader: int
    key: int
    #: When the call began, or the priming took place, that made it.
    stamp: int


class Refused(Exception):
    """A key, or a call, that fails."""

    def __init__(self, loader: int, keys: list[int]) -> None:
        self.loader, self.keys = loader, keys


class Frozen(Refused):
    """Nothing can be set on it, not even its traceback."""

    def __init__(self, loader: int, keys: list[int]) -> None:
        vars(self).update(loader=loader, keys=keys)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"no {name} can be set")


class Broken(Exception):
    """What keys and caches of the user's own raise at times."""


class Key:
    """Of the user's own: equal by number, without a place for anything else, now and then broken."""

    __slots__ = ("number", "world")

    def __init__(self, number: int, world: World | None) -> None:
        self.number, self.world = number, world

    def __eq__(self, other: object) -> bool:
        if self.world is not None:
            self.world.may_break("key")
        return isinstance(other, Key) and other.number == self.number

    def __hash__(self) -> int:
        return hash(self.number)


class Cache(dict[Any, Any]):
    """A cache_map that is broken now and then."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __setitem__(self, key: Any, value: Any) -> None:
        self.world.may_break("cache")
        super().__setitem__(key, value)

    def __delitem__(self, key: Any) -> None:
        self.world.may_break("cache")
        super().__delitem__(key)


@dataclass(eq=False)
class Call:
    source: int
    keys: list[int]
    stamp: int
    ended: str | None = None


@dataclass(eq=False)
class World:
    """One run of a program: what happened, and what is wrong about it."""

    program: Program
    faults: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    clock: int = 0
    #: From the first moment on at which the scope may be ended.
    ending: bool = False
    ended: bool = False

    def __post_init__(self) -> None:
        self.rng = random.Random(self.program.seed)
        #: By loader and key: how often it may have to be sent again, and when it was cleared last.
        self.resets: Counter[tuple[int, int]] = Counter()
        self.cleared: defaultdict[tuple[int, int], int] = defaultdict(int)
        self.running: Counter[Any] = Counter()
        self.got: list[Any] = []
        self.handles: list[tuple[int, tuple[int, ...], Any, bool]] = []
        self.given_up: set[int] = set()
        self.scopes: dict[int, anyio.CancelScope] = {}
        self.loaders: list[DataLoader[Any, Any]] = []
        self.unbroken = True
        #: Whether somebody outside holds a token of theirs.
        self.holds = 0

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def wrong(self, text: str) -> None:
        self.faults.append(f"at {anyio.current_time() - self.start:g}: {text}")

    def may_break(self, what: str) -> None:
        if not self.unbroken and self.rng.random() < 0.1:
            raise Broken(what)

    # The loaders

    def make(self, scope: LoaderScope) -> None:
        self.shared = limit(2)
        for number, source in enumerate(self.program.sources):
            options = dict(source.options)
            schedule = options.pop("schedule", None)
            if schedule:
                made = {"rounds": schedules.rounds(1), "window": schedules.window(0.5)}
                options["schedule"] = made.get(schedule, schedules.manual())
            if "max_batch_weight" in options:
                options["weigh"] = lambda key: self.plain(key) + 1
            if source.limiter:
                options["limiter"] = self.shared if source.limiter == "shared" else limit(1)
            if source.value_cache:
                options["value_cache"] = Values(self, source.value_cache)
            if source.cache_map and options.get("cache", True) is True:
                options["cache_map"] = Cache(self)
            fetch = self.function(number, source)
            arguments = {"first": number} if source.arguments and not source.value_cache else {}
            if "cache_map" in options:
                self.loaders.append(scope.get(with_options(fetch, options)))
            else:
                self.loaders.append(scope.get(batch_loader(**options)(fetch), **arguments))

    def function(self, number: int, source: Source) -> Any:
        async def stream(keys: list[Any], **_: Any) -> AsyncIterator[tuple[Any, Any]]:
            with self.calling(number, keys) as call:
                await self.work(call, source)
                for key in keys:
                    yield key, self.result(call, key, source)
                    if source.sleep:
                        await anyio.sleep(0.25)

        async def fetch(keys: list[Any], **_: Any) -> Any:
            with self.calling(number, keys) as call:
                await self.work(call, source)
                pairs = [(key, self.result(call, key, source)) for key in keys]
                if source.way == "short" and self.unlucky(call, source.bad_calls):
                    self.resets.update((number, key) for key in call.keys)
                    pairs.pop()
            if source.kind == "mapping":
                return dict(pairs)
            return (
                (value for _, value in pairs)
                if source.kind == "generator"
                else [v for _, v in pairs]
            )

        return stream if source.kind == "stream" else fetch

    def plain(self, key: Any) -> int:
        return key.number if isinstance(key, Key) else key

    def key(self, number: int, key: int) -> Any:
        kind = self.program.sources[number].keys
        return key if kind == "int" else Key(key, self if kind == "broken" else None)

    def calling(self, number: int, keys: list[Any]) -> Calling:
        return Calling(self, Call(number, [self.plain(key) for key in keys], self.tick()))

    def unlucky(self, call: Call, of_ten: int, key: int = -1) -> bool:
        before = sum(sorted(other.keys) == sorted(call.keys) for other in self.calls)
        seed = f"{self.program.seed} {call.source} {sorted(call.keys)} {before} {key}"
        return random.Random(seed).randrange(10) < of_ten

    async def work(self, call: Call, source: Source) -> None:
        loads = []
        # Without a cache functions that need each other go on for ever, as recursive ones do.
        for other in source.needs if len(self.calls) < 200 else ():
            keys = [self.key(other, (key + 1) % 5) for key in call.keys]
            try:
                loader = self.loaders[other]
                load = loader.load(keys[0]) if len(keys) == 1 else loader.load_many(keys)
            except Exception:
                continue  # judged where it came from
            if source.early:
                loads.append(load)
            else:
                await self.need(call, load)
        if loads:
            await anyio.sleep(1)
        for load in loads:
            await self.need(call, load)
        if source.sleep:
            await anyio.sleep(source.sleep)
        if self.unlucky(call, source.bad_calls) and source.way != "short":
            self.resets.update((call.source, key) for key in call.keys)
            if source.way == "stray":
                raise await stray_cancellation()
            raise (Frozen if source.way == "frozen" else Refused)(call.source, call.keys)

    async def need(self, call: Call, load: Awaitable[Any]) -> None:
        """Await what a function has loaded, in vain or not."""
        sources = self.program.sources
        try:
            await load
        except LoadDeadlockError:
            limited = self.program.scope_limiter or any(one.limiter for one in sources)
            cyclic = any(n <= i for i, one in enumerate(sources) for n in one.needs)
            if not limited and not cyclic:
                self.wrong(f"deadlock of {call}")
        except LoadCancelledError as exc:
            # Who is cancelled together with what it loads hears of it here, at the latest.
            await anyio.lowlevel.checkpoint()
            left = self.program.end == "left" and self.program.place == "scope"
            if left and not any(source.way == "stray" for source in sources):
                self.wrong(f"{call} goes on without a load of its own: {exc}")
        except Exception:
            pass  # judged where it came from

    def result(self, call: Call, key: Any, source: Source) -> Any:
        number = self.plain(key)
        if self.unlucky(call, source.bad_keys, number):
            if not source.option("cache_errors", True):
                self.resets[call.source, number] += 1
            return (Frozen if source.way == "frozen" else Refused)(call.source, [number])
        return Value(call.source, number, call.stamp)

    # What may be

    def judge(self, number: int, key: int, asked: int, got: Any, given_up: bool = False) -> None:
        """Say what is wrong about what a load of a key gave, which was made at ``asked``."""
        source = self.program.sources[number]
        what = f"loader {number}, key {key}: {got!r}"
        self.got.append((number, key, type(got).__name__))
        if isinstance(got, Value):
            if (got.loader, got.key) != (number, key):
                self.wrong(f"{what}, of somebody else")
            elif got.stamp < asked:
                self.wrong(f"{what}, which had been cleared at {asked}")
        elif isinstance(got, Refused):
            if got.loader != number or key not in got.keys:
                self.wrong(f"{what}, of {got.loader} {got.keys}")
        elif isinstance(got, LoadCancelledError):
            if not self.ending and not given_up and source.way != "stray":
                self.wrong(f"{what}, and nothing was cancelled")
        elif isinstance(got, LoaderClosedError):
            if not self.ending:
                self.wrong(f"{what} before the end")
        elif isinstance(got, BatchResultError):
            if not source.bad_calls or source.way != "short":
                self.wrong(what)
        elif isinstance(got, Broken):
            if not source.cache_map and source.keys != "broken":
                self.wrong(what)
        elif got is None or isinstance(got, KeyNotFoundError):
            if source.kind != "mapping" or source.way != "short" or not source.bad_calls:
                self.wrong(what)
        elif not (isinstance(got, LoaderBusyError) and source.option("max_queue_size")):
            self.wrong(what)

    def judge_calls(self) -> None:
        sent: Counter[tuple[int, int]] = Counter()
        for call in self.calls:
            source = self.program.sources[call.source]
            if not call.keys:
                self.wrong(f"{call} has no keys")
            if len(call.keys) > source.option("max_batch_size", math.inf):
                self.wrong(f"{call} is too big")
            weight = sum(key + 1 for key in call.keys)
            if len(call.keys) > 1 and weight > source.option("max_batch_weight", math.inf):
                self.wrong(f"{call} is too heavy")
            sure = source.keys != "broken" and not source.cache_map
            once = sure and (source.kind == "stream" or source.option("deduplicate"))
            if once and len(set(call.keys)) < len(call.keys):
                self.wrong(f"{call} has a key twice")
            if call.ended is None:
                self.wrong(f"{call} never ended")
            sent.update((call.source, key) for key in call.keys)
        for (number, key), times in sent.items():
            source = self.program.sources[number]
            sure = source.keys != "broken" and not source.cache_map
            shared = sure and source.option("cache", True) is True
            if shared and times > 1 + self.resets[number, key]:
                self.wrong(f"key {key} of loader {number} was sent {times} times")

    # The tasks

    async def run(self, index: int) -> None:
        for op in self.program.tasks[index]:
            with anyio.CancelScope() as scope:
                self.scopes[index] = scope
                try:
                    await self.do(op, scope)
                except Broken:
                    pass
                except Exception as exc:
                    if not isinstance(exc, LoaderClosedError) or not self.ending:
                        self.wrong(f"{op}: {exc!r}")
                except BaseException:
                    if not scope.cancel_called:
                        self.wrong(f"{op} was cancelled, and by nobody")
                    raise

    async def do(self, op: Op, scope: anyio.CancelScope) -> None:
        number, loader = op.loader, self.loaders[op.loader]
        keys = [self.key(number, key) for key in op.keys]
        one = (number, op.keys[0]) if op.keys else (number, 0)
        if op.name in ("load", "load_required", "load_many", "timeout", "start"):
            many = op.name == "load_many" or (op.name == "timeout" and len(keys) > 2)
            asked = tuple(self.cleared[number, key] for key in op.keys[: None if many else 1])
            try:
                if many:
                    load: Any = loader.load_many(keys, return_exceptions=True)
                elif op.name == "load_required":
                    load = loader.load_required(keys[0])
                else:
                    load = loader.load(keys[0])
            except Exception as exc:
                self.judge(number, op.keys[0], 0, exc)
                return
            self.handles.append((number, op.keys if many else op.keys[:1], load, many))
            if op.name == "start":
                return
            if op.name == "timeout":
                scope.deadline = anyio.current_time() + op.seconds
            await self.wait(len(self.handles) - 1, asked, scope)
        elif op.name == "again" and self.handles:
            # It may have been asked for before a clear: nothing is known of how old it may be.
            await self.wait(op.task % len(self.handles), None, scope)
        elif op.name == "cancel":
            if (other := self.scopes.get(op.task)) is not None and other is not scope:
                other.cancel()
        elif op.name == "sleep":
            await anyio.sleep(op.seconds)
        elif op.name == "clear":
            loader.clear(keys[0])
            self.resets[one] += 1
            self.cleared[one] = self.tick()
        elif op.name == "clear_all":
            # In a value cache it reaches what this loader remembers now.
            everything = self.program.sources[number].value_cache is None
            reached = [key for key in range(5) if everything or loader.peek(self.key(number, key))]
            self.resets.update((number, key) for key in range(5))
            loader.clear_all()
            for key in reached:
                self.cleared[number, key] = self.tick()
        elif op.name in ("prime", "force"):
            self.resets[one] += 1
            loader.prime(keys[0], Value(*one, self.tick()), force=op.name == "force")
        elif op.name == "dispatch":
            loader.dispatch()
        elif op.name == "hold":
            async with self.shared():
                self.running["shared"] += 1
                try:
                    await anyio.sleep(op.seconds)
                finally:
                    self.running["shared"] -= 1

    async def wait(
        self, handle: int, asked: tuple[int, ...] | None, scope: anyio.CancelScope
    ) -> None:
        number, keys, load, many = self.handles[handle]
        early = not self.ending
        since = anyio.current_time()
        given_up = handle in self.given_up
        try:
            got: Any = await load
        except Exception as exc:
            got = [exc] * len(keys) if many else exc
        except BaseException:
            self.given_up.add(handle)
            self.resets.update((number, key) for key in keys)
            raise
        given_up = given_up or handle in self.given_up
        for key, value, at in zip(keys, got if many else [got], asked or [0] * len(keys)):
            self.judge(number, key, at, value, given_up)
            if (
                isinstance(value, (LoadCancelledError, LoaderClosedError))
                and self.program.end == "left"
                and self.program.place == "scope"
                and early
                and not given_up
                and since < self.end_time
                and not any(source.way == "stray" for source in self.program.sources)
            ):
                self.wrong(f"loader {number}, key {key}: {value!r}, though it was awaited")

    async def own(self, tg: TaskGroup, opened: anyio.Event) -> None:
        """Keep the scope open."""
        program = self.program
        options: dict[str, Any] = {"limiter": limit(1)} if program.scope_limiter else {}

        async def body(**place: Any) -> None:
            async with LoaderScope(**place, **options) as scope:
                self.make(scope)
                opened.set()
                await anyio.sleep(program.until)
                self.ending = True
                self.end_time = anyio.current_time()
                if program.end == "raises":
                    raise Broken("the body")
                if program.end == "cancelled":
                    around.cancel()
                    await anyio.lowlevel.checkpoint()

        self.end_time = float("inf")
        with anyio.CancelScope() as around:
            try:
                if program.place == "scope":
                    await body()
                else:
                    async with anyio.create_task_group() as group:
                        if program.place == "cancelled group":
                            tg.start_soon(self.cancel_later, group.cancel_scope, program.until / 2)
                        await body(task_group=group)
            except Exception as exc:
                # A task group puts what its body raised into a group of exceptions.
                leaf = exc if program.place == "scope" else getattr(exc, "exceptions", [None])[0]
                if program.end != "raises" or not isinstance(leaf, Broken):
                    self.wrong(f"out of the scope came {exc!r}")
        self.ending = self.ended = True
        for call in self.calls:
            if call.ended is None:
                self.wrong(f"{call} outlives its scope")

    async def cancel_later(self, scope: anyio.CancelScope, seconds: float) -> None:
        await anyio.sleep(seconds)
        self.ending = True
        self.end_time = anyio.current_time()
        scope.cancel()

    async def main(self) -> World:
        self.start = anyio.current_time()
        try:
            with anyio.fail_after(TOO_LONG):
                async with anyio.create_task_group() as tg:
                    opened = anyio.Event()
                    tg.start_soon(self.own, tg, opened)
                    await opened.wait()
                    self.unbroken = False
                    for index in range(len(self.program.tasks)):
                        tg.start_soon(self.run, index)
        except TimeoutError:
            self.wrong("it hangs")
        self.unbroken = True
        self.judge_calls()
        for number, _keys, load, _many in self.handles:
            if hasattr(load, "status") and load.status.name == "PENDING" and self.ended:
                self.wrong(f"a load of loader {number} is pending after the end")
        borrowed = self.shared().statistics().borrowed_tokens
        if borrowed:
            self.wrong(f"{borrowed} tokens were not given back")
        return self


def with_options(fetch: Any, options: dict[str, Any]) -> type[DataLoader[Any, Any]]:
    class Loader(DataLoader[Any, Any]):
        def __init__(self) -> None:
            super().__init__(fetch, **options)

    return Loader


class Calling:
    """Around a call of a batch function: counts what runs, notes how it ended."""

    def __init__(self, world: World, call: Call) -> None:
        self.world, self.call = world, call
        source = world.program.sources[call.source]
        self.limits: list[tuple[Any, int]] = []
        if source.limiter:
            own = source.limiter == "own"
            self.limits.append((call.source if own else "shared", 1 if own else 2))
        if world.program.scope_limiter:
            self.limits.append(("scope", 1))

    def __enter__(self) -> Call:
        world = self.world
        world.calls.append(self.call)
        if world.ended:
            world.wrong(f"{self.call} after the end")
        for name, most in self.limits:
            world.running[name] += 1
            if world.running[name] > most:
                world.wrong(f"{self.call}: too many run under {name}")
        return self.call

    def __exit__(self, kind: type[BaseException] | None, exc: object, _: object) -> None:
        for name, _most in self.limits:
            self.world.running[name] -= 1
        if kind is not None:
            keys = self.call.keys
            self.world.resets.update((self.call.source, key) for key in keys)
        self.call.ended = kind.__name__ if kind else "returned"


class Found(dict[Any, Any]):
    """A mapping that cannot be read."""

    def __getitem__(self, key: Any) -> Any:
        raise Broken("mapping")


class Values:
    """A value cache that takes its time, fails or hangs."""

    def __init__(self, world: World, kind: str) -> None:
        self.world, self.kind = world, kind
        self.items: dict[int, Any] = {}

    async def work(self) -> None:
        chance = self.world.rng.random()
        if self.kind == "failing" and chance < 0.4:
            raise Broken("value cache")
        if self.kind == "hanging" and chance < 0.1:
            await anyio.sleep(30)
        await anyio.sleep(1 if chance < 0.7 else 0)

    async def get_many(self, keys: Sequence[Any]) -> Mapping[Any, Any]:
        await self.work()
        plain = self.world.plain
        found = {key: self.items[plain(key)] for key in keys if plain(key) in self.items}
        return Found(found) if self.kind == "failing" and self.world.rng.random() < 0.3 else found

    async def set_many(self, items: Mapping[Any, Any]) -> None:
        await self.work()
        self.items.update((self.world.plain(key), value) for key, value in items.items())

    async def delete_many(self, keys: Sequence[Any]) -> None:
        await self.work()
        for key in keys:
            self.items.pop(self.world.plain(key), None)
