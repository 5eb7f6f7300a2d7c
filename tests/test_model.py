"""A loader and the model of ``model.py``, side by side through events that hypothesis makes up.

The loader runs in an event loop in a thread of its own, in virtual time and with the tasks of each
round permuted. It stands still but for the steps that it is told to make, and after each of them
all that can be seen of it has to be what the model says.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections import Counter
from typing import Any

import anyio
import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from anyloader import BatchResultError, LoaderClosedError
from anyloader.hooks import LoadHit, LoadQueued
from model import CANCELLED, Batch, Load, Model, Outcome
from model_world import (
    CALLS,
    GIVEN_UP,
    RESULTS,
    SERIAL,
    STREAM_RESULTS,
    WINDOW,
    Boom,
    Bounded,
    Call,
    Group,
    Key,
    Start,
    Stop,
    Waiter,
    World,
    agree,
    first_wanted,
    half,
    options_on,
    outcome_of,
)

#: How many steps all machines of this process have made.
steps: Counter[str] = Counter()
STEPS = int(os.environ.get("MODEL_STEPS", "7000"))  # on each backend


class Machine(RuleBasedStateMachine):
    backend = "asyncio"

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None

    @initialize(data=st.data())
    def start(self, data: st.DataObject) -> None:
        self.options = options = data.draw(options_on(self.backend), label="options")
        keeps = options.cache_errors
        cache: Any = Bounded() if options.cache == "bounded" else {}
        self.model = Model(
            None if options.cache == "off" else cache,
            half if options.keyed else lambda key: key,
            max_batch_size=options.max_batch_size if options.batch else 1,
            defer_hits=options.defer_hits,
            deduplicate=options.deduplicate,
            forgets=options.cache == "pending",
            keeps_map=options.cache == "bounded",
            keeps=lambda error: (
                keeps
                if isinstance(keeps, bool)
                else (error if isinstance(error, type) else type(error)) is KeyError
            ),
            missing=lambda key: Outcome(error=options.on_missing),
            streams=options.streams,
            foreign=options.place == "foreign",
            values={} if options.values else None,
        )
        self.now = 0.0
        self.queued_for_tokens: float = 0
        self.opened: dict[Batch, float] = {}
        self.serial = 0
        self.pairs: list[tuple[Any, Load]] = []
        self.known: dict[Any, Load] = {}
        self.groups: list[Group] = []
        self.left: Any = None
        self.world = World(options)

    # Events

    @rule(calls=CALLS)
    def call(self, calls: list[tuple[Any, ...]]) -> None:
        """Plain calls, one after the other in one step of one task."""
        world = self.get_world()
        made = [self._arguments(*call) for call in calls]

        def make_calls() -> list[Any]:
            return [world.context.run(self._on_loader, *call) for call in made]

        # The model first: it does not depend on the loop.
        expected = [self._on_model(*call) for call in made]
        for (name, *_), mine, theirs in zip(made, expected, world.step(make_calls)):
            if isinstance(mine, type) or isinstance(theirs, Exception):
                assert type(theirs) is mine, f"{name}: {theirs!r} instead of {mine!r}"
            elif mine is not None:
                self._pair(theirs, mine)
            else:
                assert theirs is None or name != "peek", f"peek found {theirs!r}"
        self._check()

    def _arguments(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        if name in ("clear_all", "dispatch"):
            return (name,)
        if name == "load_many":
            return (name, [self._key(number) for number in arguments[0]], arguments[1])
        if name != "prime":
            return (name, self._key(arguments[0]))
        key = self._key(arguments[0])
        value: Any = Boom(key) if arguments[1] else ("primed", key.serial)
        return (name, key, value, arguments[2])

    def _key(self, number: int) -> Key:
        self.serial += 1
        return Key(number, self.serial)

    def _on_loader(self, name: str, *arguments: Any) -> Any:
        loader = self.get_world().loader
        try:
            if name == "load_many":
                return loader.load_many(arguments[0], return_exceptions=arguments[1])
            if name == "prime":
                loader.prime(arguments[0], arguments[1], force=arguments[2])
                return None
            result = getattr(loader, name)(*arguments)
            return result if name in ("load", "peek") else None
        except LoaderClosedError as exc:
            return exc

    def _on_model(self, name: str, *arguments: Any) -> Any:
        model = self.model
        try:
            if self._refuses_all:
                raise LoaderClosedError
            if name == "dispatch":
                for batch in (model.open_batch, model.open_for_hits):
                    if batch:
                        model.seal(batch)
                return None
            if name == "peek":
                return model.cached(arguments[0])
            if name == "prime":
                key, value, force = arguments
                failed = isinstance(value, Exception)
                return model.prime(key, Outcome(error=value) if failed else Outcome(value), force)
            return getattr(model, name)(*arguments)
        except LoaderClosedError as exc:
            return type(exc)

    @precondition(lambda self: self.world and self.pairs)
    @rule(which=st.lists(SERIAL, min_size=1, max_size=3), timeout=st.sampled_from([None, 1, 3]))
    def wait(self, which: list[int], timeout: int | None) -> None:
        """Tasks in one cancel scope, each of which awaits a load; the last are the likeliest."""
        pairs = [self.pairs[-1 - number % min(len(self.pairs), 8)] for number in which]
        deadline = None if timeout is None else self.now + timeout + 0.25
        group = Group([Waiter(load, handle) for handle, load in pairs], deadline)
        self.groups.append(group)
        world = self.get_world()
        for waiter in group.waiters:
            self.model.start_waiting(waiter.load)

        def start() -> None:
            world.tasks.start_soon(world.wait, group)

        world.step(start)
        self._check()

    @precondition(lambda self: self.world and any(map(self._is_waiting, self.groups)))
    @rule(which=SERIAL)
    def cancel(self, which: int) -> None:
        """The scope of some waiters, or of one, is cancelled."""
        groups = [group for group in self.groups if self._is_waiting(group)]
        group = groups[which % len(groups)]
        self._give_up(group)
        self.get_world().step(lambda: group.scope.cancel())
        self._check()

    @staticmethod
    def _is_waiting(group: Group) -> bool:
        return any(waiter.expected is None for waiter in group.waiters)

    def _give_up(self, group: Group) -> None:
        for waiter in group.waiters:
            if waiter.expected is None:
                waiter.expected = GIVEN_UP
                self.model.stop_waiting(waiter.load, cancelled=True)

    @precondition(lambda self: self.world and self.options.schedule == "gate" and self._scheduled())
    @rule(fails=st.sampled_from([False, False, True]))
    def let_go(self, fails: bool) -> None:
        """A schedule of the user's returns, or raises."""
        error = Boom("schedule") if fails else None
        for batch in self._scheduled():
            if error is None:
                self.model.be_due(batch)
            else:
                self.model.finish(batch, Outcome(error=error))
        world = self.get_world()
        world.step(lambda: world.open_gate(error))
        self._check()

    def _scheduled(self) -> list[Batch]:
        """The batches whose schedules have not returned."""
        return [b for b in self.model.batches if b.state == "open" and not b.is_due]

    @precondition(lambda self: self.world and self.options.tokens and self.model.state != "closed")
    @rule()
    def take_token(self) -> None:
        """Somebody else takes a token, if there is one, or returns his."""
        world = self.get_world()

        def take() -> None:
            assert world.limiter is not None
            if world.strangers:
                world.limiter.release_on_behalf_of(world.strangers.pop())
            elif world.limiter.available_tokens:
                world.strangers.append(object())
                world.limiter.acquire_on_behalf_of_nowait(world.strangers[0])

        world.step(take)
        self._check()

    @precondition(lambda self: self.world and (self.options.schedule == "window" or self.groups))
    @rule(seconds=st.integers(1, 4))
    def advance(self, seconds: int) -> None:
        """Time goes by."""
        self.get_world().step(lambda: anyio.sleep(seconds))
        self.queued_for_tokens = math.inf  # what it was between the events nobody has seen
        until = self.now + seconds
        while True:
            times = [(group.deadline, group) for group in self.groups if self._is_waiting(group)]
            due: list[tuple[float, Any]] = [(t, group) for t, group in times if t and t < until]
            for batch in self._scheduled() if self.options.schedule == "window" else ():
                if self.opened[batch] + WINDOW < until:
                    due.append((self.opened[batch] + WINDOW, batch))
            if not due:
                break
            self.now = min(when for when, _ in due)
            for when, event in due:  # those of one moment end before anything follows from it
                if when == self.now and isinstance(event, Group):
                    self._give_up(event)
                elif when == self.now:
                    self.model.be_due(event)
            self._follow()
        self.now = until
        self._check()

    @precondition(lambda self: self.world and not self.options.streams and self._running())
    @rule(which=SERIAL, kind=st.sampled_from(RESULTS), mask=st.integers(0, 7))
    def finish(self, which: int, kind: str, mask: int) -> None:
        """A batch function ends; ``mask`` says for which keys by an error, or not at all."""
        call = self._pick(which)
        batch = call.batch
        assert batch is not None
        odd = [bool(mask >> index & 1) for index in range(len(call.keys))]
        values: list[Any] = (
            [
                (KeyError if index else Boom)(key) if odd[index % 3] else call.value(key)
                for index, key in enumerate(call.keys)
            ]
            if len(call.keys) <= 3
            else [call.value(key) for key in call.keys]
        )
        outcomes = [Outcome(error=v) if isinstance(v, Exception) else Outcome(v) for v in values]
        result: Any = None
        order: Any
        if kind in ("list", "generator"):
            order, result = values, outcomes
            if kind == "generator":
                order = lambda: (value for value in values)  # noqa: E731
        elif kind == "mapping":
            cache_keys = [self.model.get_cache_key(key) for key in call.keys]
            order = {
                k: call.value(k2) for k, k2, gone in zip(cache_keys, call.keys, odd * 9) if not gone
            }
            result = {key: Outcome(value) for key, value in order.items()}
        elif kind in ("raise", "stop", "cancel"):
            order, result = self._ending(kind)
        else:
            wrong = {"short": values[1:], "long": [*values, 1], "str": "x" * len(values)}
            order = wrong.get(kind, lambda: None)
            result = Outcome(error=BatchResultError)
        self.model.finish(batch, result)
        self._tell(call, order, kind)

    def _ending(self, kind: str) -> tuple[Any, Outcome]:
        if kind == "raise":
            error = Boom("batch")
            return error, Outcome(error=error)
        return (Stop() if kind == "stop" else "cancel"), CANCELLED

    def _tell(self, call: Call, order: Any, kind: str) -> None:
        self.get_world().step(lambda: call.tell(order))
        if kind == "stop":
            # Its token may have let another one start before the end of the group was known.
            self._observe()
            self._start_batches()
            self.model.leave(cancelled=True)
            self.left = order
        self._check()

    @precondition(lambda self: self.world and self.options.streams and self._running())
    @rule(which=SERIAL, kind=st.sampled_from(STREAM_RESULTS), index=SERIAL, fails=st.booleans())
    def go_on(self, which: int, kind: str, index: int, fails: bool) -> None:
        """A stream gives a pair, or ends."""
        call = self._pick(which)
        batch = call.batch
        assert batch is not None
        if kind == "pair":
            key = call.keys[index % len(call.keys)]
            value: Any = Boom(key) if fails else call.value(key)
            order: Any = (key, value)
            cache_key = self.model.get_cache_key(key)
            if any(e.cache_key == cache_key and e.loads[0].settled for e in batch.entries):
                self.model.finish(batch, Outcome(error=BatchResultError))
            else:
                outcome = Outcome(error=value) if fails else Outcome(value)
                self.model.settle_key(batch, cache_key, outcome)
                # It may have been the last one that somebody awaited, as part of a load_many.
                self.model.go_on_leaving()
        elif kind == "end":
            order = None
            self.model.finish(batch, {})
        elif kind in ("raise", "stop", "cancel"):
            order, result = self._ending(kind)
            self.model.finish(batch, result)
        else:
            order = (Key(99), 1) if kind == "unknown" else "ab"
            self.model.finish(batch, Outcome(error=BatchResultError))
        self._tell(call, order, kind)

    def _running(self) -> list[Call]:
        world = self.get_world()
        return [call for call in world.calls if call.batch and call.batch.state == "running"]

    def _pick(self, which: int) -> Call:
        running = self._running()
        return running[which % len(running)]

    @precondition(lambda self: self.world and self.model.state != "closed")
    @rule(how=st.sampled_from(["done", "raise", "cancel"]), sure=st.sampled_from([0, 0, 1]))
    def leave(self, how: str, sure: int) -> None:
        """The body of the ``async with`` ends, or is cancelled, or its leaving is."""
        if not sure:
            return
        world = self.get_world()
        if self.model.state == "leaving":
            how = "cancel"

        def leave() -> None:
            if how == "raise":
                world.body_error = Boom("body")
            if how == "cancel":
                world.left_scope.cancel()
            else:
                world.leave.set()

        self.model.leave(cancelled=how != "done")
        self.left = {"done": "done", "raise": Boom, "cancel": "cancelled"}[how]
        world.step(leave)
        self._check()

    # What has to agree

    def get_world(self) -> World:
        assert self.world is not None
        return self.world

    def _pair(self, handle: Any, load: Load) -> None:
        if handle in self.known:
            assert self.known[handle] is load, f"{handle!r} stands for another load"
            return
        self.known[handle] = load
        self.pairs.append((handle, load))

    def _follow(self) -> None:
        """Let the model do what happens by itself until all is quiet."""
        model = self.model
        before: Any = None
        while before != (now := self._progress()):
            before = now
            for batch in self._scheduled():
                if self.options.schedule in ("quiescent", "rounds"):
                    model.be_due(batch)
                else:
                    self.opened.setdefault(batch, self.now)
            self._start_batches()
            self._wait_for_tokens()
            if model.state != "closed":
                model.delete_values()
            for group in self.groups:
                for waiter in group.waiters:
                    if waiter.expected is None and waiter.load.outcome is not None:
                        waiter.expected = waiter.load.outcome
                        model.stop_waiting(waiter.load, cancelled=False)

    def _progress(self) -> object:
        model = self.model
        waiting = sum(waiter.expected is None for group in self.groups for waiter in group.waiters)
        states = [(id(batch), batch.state) for batch in model.batches]
        return (
            states,
            waiting,
            model.state,
            sum(start.batch is not None for start in self.get_world().starts),
        )

    def _start_batches(self) -> None:
        # What cannot start now may when time has gone on; what never can is found by _check.
        for start in self.get_world().starts:
            if start.batch is None:
                self._start(start)

    def _observe(self) -> anyio.CapacityLimiterStatistics | None:
        world = self.get_world()
        limiter = world.step(world.limiter.statistics) if world.limiter else None
        self.queued_for_tokens = limiter.tasks_waiting if limiter else 0
        return limiter

    def _wait_for_tokens(self) -> None:
        waiting = list(self.model.waiting())
        if self._tokens_left() == 0:
            for batch in waiting:
                self.model.wait_for_token(batch)
        if all(start.batch for start in self.get_world().starts):
            # One that nobody wants any more ends when it gets its token, which nothing else tells.
            for batch in waiting:
                if not batch.is_wanted and self.queued_for_tokens < len(waiting):
                    self.model.seal(batch)

    def _tokens_left(self) -> int | None:
        running = sum(batch.state == "running" for batch in self.model.batches)
        taken = running + len(self.get_world().strangers)
        return None if self.options.tokens is None else self.options.tokens - taken

    def _start(self, start: Start) -> None:
        found = [b for b in self.model.waiting() if first_wanted(b) is start.keys[0]]
        if not found or self._tokens_left() == 0:
            return
        (start.batch,) = found
        keys = self.model.start(start.batch)
        called = start.call.keys if start.call else []
        assert [id(key) for key in keys] == [id(key) for key in called], (keys, called)
        call = start.call
        if call is None:
            return
        call.batch = start.batch
        if not self.options.held:
            if self.options.streams:
                for key in keys:
                    outcome = Outcome(call.value(key))
                    self.model.settle_key(call.batch, self.model.get_cache_key(key), outcome)
                self.model.finish(call.batch, {})
            else:
                self.model.finish(call.batch, [Outcome(call.value(key)) for key in keys])

    def _check(self) -> None:
        steps["made"] += 1
        world, model = self.get_world(), self.model
        limiter = self._observe()
        self._follow()
        for start in world.starts:
            assert start.batch is not None, f"an unexpected batch of {start.keys}"
        world.starts.clear()
        for call in world.calls:
            assert call.batch is not None, f"an unexpected call with {call.keys}"
            running = call.batch.state == "running"
            assert (call.ended is None) == running, f"{call.keys}: {call.ended}, {call.batch}"
        waiting = len(list(model.waiting()))
        assert not waiting or self._tokens_left() == 0, f"{waiting} batches were not sent"
        if limiter:
            taken = len(self._running()) + len(world.strangers)
            assert (limiter.borrowed_tokens, limiter.tasks_waiting) == (taken, waiting), (
                limiter,
                taken,
                waiting,
            )
        for handle, load in self.pairs:
            got = None if load.parts is not None else outcome_of(handle)
            expected = None if load.parts is not None else load.outcome
            assert (got is None) == (expected is None), f"{handle!r}, expected {expected}"
            assert expected is None or got is None or agree(got, expected), (got, expected)
        for group in self.groups:
            for waiter in group.waiters:
                assert (waiter.got is None) == (waiter.expected is None), waiter
                if waiter.expected is not None and waiter.got is not None:
                    assert agree(waiter.got, waiter.expected), waiter
        self.groups = [group for group in self.groups if self._is_waiting(group)]
        self.pairs = self.pairs[-8:]
        world.calls[:] = [c for c in world.calls if c.batch and c.batch.state == "running"]

        keys = [Key(number) for number in range(5)]
        peeked, statistics = world.step(lambda: world.context.run(self._look, keys))
        if self._refuses_all:
            keys = []
        for key, theirs in zip(keys, peeked):
            mine = model.cached(key)
            assert (mine is None) == (theirs is None), f"{key}: {theirs!r}, expected {mine}"
            if mine is not None:
                got, expected = outcome_of(theirs), mine.outcome
                assert (got is None) == (expected is None), (theirs, mine)
                assert expected is None or got is None or agree(got, expected), (got, expected)
                assert self.known.get(theirs, mine) is mine, f"{theirs!r} is another load"
        # A load_many that a group which has ended refuses may have told of its hits by then.
        told_late = {"hits"} if model.state == "closed" else set()
        for name, number in model.statistics().items():
            assert name in told_late or getattr(statistics, name) == number, (
                name,
                statistics,
                number,
            )

        if world.events and model.state != "closed":
            told = world.events[LoadHit], world.events["shared"]
            assert told == (model.hits, model.shared), told
            loads = world.events[LoadQueued] + world.events[LoadHit]
            assert loads == statistics.loads, (loads, statistics)
        assert world.values.items == (model.values or {}), (world.values.items, model.values)

        assert (world.left is not None) == (model.state == "closed"), (world.left, model.state)
        if model.state == "closed" and self.options.place != "foreign":
            left = self.left
            same = type(world.left) is left if isinstance(left, type) else world.left is left
            assert same, f"the block ended by {world.left!r}, expected {left!r}"

    def _look(self, keys: list[Key]) -> Any:
        loader = self.get_world().loader
        peeked = [] if self._refuses_all else [loader.peek(key) for key in keys]
        return peeked, loader.statistics()

    @property
    def _refuses_all(self) -> bool:
        """A loader that a scope was found for tells nothing after that has ended."""
        return self.options.place == "scope" and self.model.state != "open"

    def teardown(self) -> None:
        if self.world is None:
            return
        world = self.world
        try:
            if sys.exc_info()[0] is None and self.model.state != "closed":
                self.model.leave(cancelled=True)
                self.left = "cancelled"
                world.step(world.left_scope.cancel)
                self._check()
        finally:
            world.close()


def run_machine(backend: str, examples: int, seed: int | None = None, **options: Any) -> None:
    machine: Any = type("Machine", (Machine,), {"backend": backend})
    if seed is not None:
        machine = hypothesis.seed(seed)(machine)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            **options,
        ),
    )


@pytest.mark.timeout(600)
def test_loader_and_model_agree(shuffled_backend: str) -> None:
    before = steps["made"]
    turns = itertools.count()
    while (missing := STEPS - steps["made"] + before) > 0:
        # Without a seed hypothesis would, under CI, take the same examples in each turn.
        seed = next(turns) if settings().derandomize else None
        run_machine(shuffled_backend, max(10, missing // 30), seed, database=None)
