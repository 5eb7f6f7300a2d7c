"""What breaks off in the middle, by code of the user's or from outside, leaves nothing hanging."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import Context, copy_context
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup

from anyloader import (
    DataLoader,
    LoadCancelledError,
    LoadDeadlockError,
    LoaderClosedError,
    LoaderNotOpenError,
    LoaderScope,
    batch_loader,
    current_scope,
    schedules,
)
from anyloader._batch import Parked, park
from anyloader._workers import _in_context
from anyloader.hooks import BatchSealed, Event, LoadQueued
from support import Recorder, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio


# --- who waits, and is interrupted ---


async def test_a_wait_that_a_predicate_closes_as_its_batch_settles() -> None:
    async def fail(keys: list[int]) -> list[Exception]:
        return [KeyError()] * len(keys)

    def closes(_: Exception) -> bool:
        if steps:
            steps.pop().close()
        return False

    steps: list[Any] = []
    async with DataLoader(fail, cache_errors=closes) as loader:  # type: ignore[var-annotated]
        many = loader.load_many([1, 2])
        waits = many.__await__()
        next(waits)
        steps.append(waits)
        with pytest.raises(KeyError):
            await loader.load(3)
        assert steps == []
        with pytest.raises(KeyError):
            await many


@pytest.mark.only_on("trio")
async def test_a_load_many_that_is_resumed_too_early_says_so() -> None:
    from trio.lowlevel import current_task, reschedule

    tasks: list[Any] = []
    errors: list[Exception] = []

    async def waits() -> None:
        tasks.append(current_task())
        try:
            await many
        except RuntimeError as exc:
            errors.append(exc)

    async with DataLoader(Recorder[int, str](str), schedule=schedules.manual()) as loader:
        many = loader.load_many([1, 2])
        async with anyio.create_task_group() as tg:
            tg.start_soon(waits)
            await wait_all_tasks_blocked()
            reschedule(tasks[0])
        again = loader.load_many([1, 2])
        loader.dispatch()
        assert await again == ["1", "2"]
    assert "resumed before it settled" in str(errors)


async def test_who_is_called_back_and_comes_too_late() -> None:
    class Waits(Parked):
        resumed = 0

        def resume(self) -> None:
            self.resumed += 1

    async with DataLoader(Recorder[int, str](str)) as loader:
        load, many = loader.load(1), loader.load_many([1, 2])
        waits = Waits()
        assert park(load, waits)
        await many
        assert waits.resumed == 1
        waits.leave()  # has no effect any more
        assert not park(load, waits)
        assert not park(many, waits)
    assert waits.resumed == 1


async def test_a_load_many_whose_group_has_ended_unheard() -> None:
    async with anyio.create_task_group() as tg:
        loader = DataLoader(Recorder[int, str](str), task_group=tg, schedule=schedules.manual())
        many = loader.load_many([1, 2])
    with pytest.raises(LoaderClosedError):
        await many  # pyright: ignore[reportGeneralTypeIssues, reportPossiblyUnboundVariable]


# --- batch functions ---


async def test_a_stream_of_which_only_what_was_given_is_wanted_still_ends_there() -> None:
    ended: list[str] = []
    give = anyio.Event()

    async def stream(keys: list[int]) -> AsyncIterator[tuple[int, int]]:
        try:
            await give.wait()
            yield keys[0], keys[0]
            await anyio.sleep_forever()
        finally:
            ended.append("stream")

    async with DataLoader(stream) as loader:
        async with anyio.create_task_group() as tg:
            wanted = loader.load(1)
            scope = anyio.CancelScope()
            tg.start_soon(give_up, loader.load(2), scope)
            await wait_all_tasks_blocked()
            scope.cancel()
            await wait_all_tasks_blocked()
            give.set()
            assert await wanted == 1
        await wait_all_tasks_blocked()
        assert ended == ["stream"]


async def give_up(load: Awaitable[object], scope: anyio.CancelScope) -> None:
    with scope:
        await load


class Group:
    """A task group of which the next task can be refused."""

    def __init__(self, group: TaskGroup) -> None:
        self._group = group
        self.refusal: BaseException | None = None

    def start_soon(self, *args: Any, **options: Any) -> None:
        if self.refusal is not None:
            raise self.refusal
        self._group.start_soon(*args, **options)


async def test_a_group_that_fails_to_start_a_task() -> None:
    async with anyio.create_task_group() as tg:
        group: Any = Group(tg)
        loader = DataLoader(Recorder[int, str](str), task_group=group)
        group.refusal = MemoryError()
        with pytest.raises(MemoryError):
            loader.load(1)
        group.refusal = None
        assert await loader.load(1) == "1"


async def test_a_group_that_takes_no_more_tasks_as_its_batches_leave() -> None:
    async with anyio.create_task_group() as tg:
        group: Any = Group(tg)
        limiter = anyio.CapacityLimiter(2)
        async with LoaderScope(task_group=group):
            loads = [DataLoader(Recorder[int, str](str), limiter=limiter).load(1) for _ in range(2)]
            group.refusal = RuntimeError("this task group is not active")
            # The task that counts the rounds is there, and runs the first of the two.
            assert await loads[0] == "1"
            with pytest.raises(LoaderClosedError):
                await loads[1]
            group.refusal = None
    assert limiter.borrowed_tokens == 0  # pyright: ignore[reportPossiblyUnboundVariable]


async def test_what_was_cleared_as_the_group_refuses_tasks() -> None:
    class Store:
        async def get_many(self, keys: object) -> dict[int, str]:
            return {}

        async def set_many(self, items: object) -> None:
            pass

        async def delete_many(self, keys: object) -> None:
            raise AssertionError("there is no task for it")

    async with anyio.create_task_group() as tg:
        group: Any = Group(tg)
        loader = DataLoader(Recorder[int, str](str), task_group=group, value_cache=Store())
        await loader.load(1)
        group.refusal = RuntimeError("this task group is not active")
        loader.clear(1)
        group.refusal = None


class Stop(BaseException):
    pass


@pytest.mark.parametrize("ends", [False, True])
async def test_a_hook_that_stops_the_program_as_batches_leave(ends: bool) -> None:
    def hook(event: Event) -> None:
        if isinstance(event, BatchSealed):
            if ends:
                scope.cancel("enough")
            raise Stop

    limiter = anyio.CapacityLimiter(2)
    with pytest.raises(Stop):
        async with LoaderScope(hooks=[hook]) as scope:
            first = DataLoader(Recorder[int, str](str), limiter=limiter)
            second = DataLoader(Recorder[int, str](str), limiter=limiter)
            loads = [first.load(1), second.load(1)]
            await loads[1].wait()
    for load in loads:  # pyright: ignore[reportPossiblyUnboundVariable]
        with pytest.raises(LoadCancelledError):
            await load
    assert limiter.borrowed_tokens == 0


async def test_a_body_that_fails_before_any_task_of_its_scope_has_begun() -> None:
    async with anyio.create_task_group() as tg:
        with pytest.raises(ZeroDivisionError):
            async with LoaderScope(task_group=tg):
                load = DataLoader(Recorder[int, str](str)).load(1)
                raise ZeroDivisionError
        assert load.status is load.Status.CANCELLED  # pyright: ignore[reportPossiblyUnboundVariable]


async def test_a_batch_that_lacks_one_of_its_two_tokens_has_none() -> None:
    own, shared = anyio.CapacityLimiter(1), anyio.CapacityLimiter(1)
    async with LoaderScope(limiter=shared):
        loader = DataLoader(Recorder[int, str](str), limiter=own)
        async with shared:
            load = loader.load(1)
            await wait_all_tasks_blocked()
            assert own.borrowed_tokens == 0
        assert await load == "1"
    assert own.borrowed_tokens == shared.borrowed_tokens == 0


@pytest.mark.parametrize("fails", [False, True])
async def test_a_hook_that_stops_the_program_at_each_event(fails: bool) -> None:
    def hook(event: Event) -> None:
        raise Stop

    with pytest.raises(Stop):
        async with DataLoader(Recorder[int, str](str), hooks=[hook]) as loader:
            if fails:
                loader.load(1)
            await loader.load(2)
    with anyio.fail_after(5):  # the scopes of this task are in order
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("full", [False, True])
async def test_a_dispatch_that_is_interrupted_after_the_seal_has_sent_the_batch(full: bool) -> None:
    def hook(event: Event) -> None:
        if isinstance(event, BatchSealed):
            raise Stop

    fetch = Recorder[int, str](str)
    loader = DataLoader(
        fetch, schedule=schedules.manual(), max_batch_size=2 if full else None, hooks=[hook]
    )
    async with loader:
        first = loader.load(1)
        with pytest.raises(Stop):
            loader.load(2) if full else loader.dispatch()
        with anyio.fail_after(5):
            assert await first == "1"


async def test_a_hook_that_is_interrupted_at_the_last_key_has_sent_the_batch() -> None:
    def hook(event: Event) -> None:
        if isinstance(event, LoadQueued) and event.key == 2:
            raise Stop

    fetch = Recorder[int, str](str)
    loader = DataLoader(fetch, schedule=schedules.manual(), max_batch_size=2, hooks=[hook])
    async with loader:
        first = loader.load(1)
        with pytest.raises(Stop):
            loader.load(2)
        with anyio.fail_after(5):
            assert await first == "1"


async def test_a_hook_that_is_interrupted_at_the_seal_of_no_keys_sends_nothing() -> None:
    def hook(event: Event) -> None:
        if isinstance(event, BatchSealed):
            raise Stop

    fetch = Recorder[int, str](str)
    async with DataLoader(fetch, schedule=schedules.manual(), hooks=[hook]) as loader:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await loader.load(1)
        with pytest.raises(Stop):
            loader.dispatch()
        await wait_all_tasks_blocked()
        assert fetch.calls == []


# --- the cache ---


@pytest.mark.parametrize("ends", [False, True])
async def test_a_cache_that_refuses_a_key_and_ends_the_scope(ends: bool) -> None:
    class Cache(dict[Any, Any]):
        armed = False

        def __setitem__(self, key: object, value: object) -> None:
            self.armed = ends
            raise MemoryError("full")

        def get(self, key: object, default: object = None) -> Any:
            if self.armed:
                scope.cancel("enough")
            return super().get(key, default)

    async with LoaderScope() as scope:
        loader = DataLoader(Recorder[int, str](str), cache_map=Cache())
        with pytest.raises(MemoryError):
            loader.load(1)
        with pytest.raises(LoaderClosedError if ends else MemoryError):
            loader.load(2)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_cache_that_cannot_be_counted(fails: bool) -> None:
    class Cache(dict[Any, Any]):
        def __len__(self) -> int:
            raise ZeroDivisionError

    async def body() -> None:
        async with DataLoader(Recorder[int, str](str), cache_map=Cache()) as loader:
            assert await loader.load(1) == "1"
            if fails:
                raise KeyError

    if fails:
        with pytest.raises(KeyError):
            await body()
    else:
        await body()


@pytest.mark.parametrize("when", ["sealed", "sent"])
async def test_a_cache_that_ends_the_scope_as_a_key_is_dropped(when: str) -> None:
    class Cache(dict[Any, Any]):
        armed = False

        def get(self, key: object, default: object = None) -> Any:
            if self.armed:
                scope.cancel("enough")
            return super().get(key, default)

    cache, limiter = Cache(), anyio.CapacityLimiter(1)
    options: Any = {"cache_map": cache, "limiter": limiter, "schedule": schedules.manual()}
    async with LoaderScope() as scope, limiter:
        loader = DataLoader(Recorder[int, str](str), **options)
        wanted = loader.load(2)
        if when == "sent":
            dropped = loader.load(1)
            loader.dispatch()
        else:
            dropped = loader.load(1)
        with anyio.CancelScope() as given_up:
            async with anyio.create_task_group() as tg:
                tg.start_soon(dropped.wait)
                await wait_all_tasks_blocked()
                given_up.cancel()
        cache.armed = True
        if when == "sealed":
            loader.dispatch()
        limiter.release()
        with pytest.raises(LoadCancelledError):
            await wanted
        await limiter.acquire()
        now = loader.statistics()
        assert (now.queued, now.running) == (0, 0)


async def test_prime_where_nothing_settled_is_kept() -> None:
    fetch = Recorder[int, str](str)
    async with DataLoader(fetch, cache="pending") as loader:
        loader.prime(1, "primed")
        assert await loader.load(1) == "1"


async def test_clearing_a_batch_loader_clears_it_under_all_arguments() -> None:
    calls: list[tuple[str, list[int]]] = []

    @batch_loader
    async def names(keys: list[int], *, language: str = "en") -> list[str]:
        calls.append((language, keys))
        return [language] * len(keys)

    clears: list[Callable[[], object]] = [
        lambda: names.clear(1),
        lambda: names.clear_many([1]),
        names.clear_all,
    ]
    async with LoaderScope():
        for clear in clears:
            for loader in (names, names.bind(language="de")):
                await loader.load(1)
            clear()
    assert calls == [("en", [1]), ("de", [1])] * 3


# --- contexts ---


@pytest.mark.parametrize("knows", [False, True])
async def test_a_scope_that_is_left_in_another_context_than_it_was_entered_in(knows: bool) -> None:
    async def within(context: Context, steps: Any) -> None:
        try:
            yielded = context.run(steps.send, None)
        except StopIteration:
            return
        await _in_context(context, steps, yielded)

    scope = LoaderScope()
    entered = copy_context()
    await within(entered, scope.__aenter__())
    assert entered.run(current_scope) is scope
    left = entered.copy() if knows else copy_context()
    await within(left, scope.__aexit__(None, None, None))
    with pytest.raises(LoaderNotOpenError):
        left.run(current_scope)


# --- errors ---


async def test_a_log_handler_that_raises_harms_no_load() -> None:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("the disk is full")

    def hook(_: Event) -> None:
        raise ValueError

    handler = Handler()
    logger = logging.getLogger("anyloader")
    logger.addHandler(handler)
    try:
        async with DataLoader(Recorder[int, str](str), hooks=[hook]) as loader:
            assert await loader.load(1) == "1"
    finally:
        logger.removeHandler(handler)


async def test_looking_at_a_subclass_that_forgot_its_parent_raises_nothing() -> None:
    class Forgets(DataLoader[int, str]):
        def __init__(self) -> None:
            pass

    assert not hasattr(Forgets().__anyloader__, "__wrapped__")
    with pytest.raises(TypeError, match=r"super\(\).__init__\(\)"):
        Forgets().load(1)


# --- who waits for whom ---


async def test_a_batch_that_somebody_may_dispatch_is_no_deadlock() -> None:
    manual: DataLoader[int, str] = DataLoader(Recorder[int, str](str), schedule=schedules.manual())

    async def inner(keys: list[int]) -> list[str]:
        return [await manual.load(key) for key in keys]

    async def outer(keys: list[int]) -> list[str]:
        return [await middle.load(key) for key in keys]

    async with LoaderScope(), anyio.create_task_group() as tg:
        middle: DataLoader[int, str] = DataLoader(inner)
        top = DataLoader(outer)
        manual.prime(0, "0")  # opens it in this scope

        async def dispatch() -> None:
            await wait_all_tasks_blocked()
            manual.dispatch()

        tg.start_soon(dispatch)
        assert await top.load(1) == "1"


async def test_a_token_that_some_of_its_holders_will_give_back_is_no_deadlock() -> None:
    go_on = anyio.Event()

    async def slow(keys: list[int]) -> list[int]:
        await go_on.wait()
        return keys

    async def waits_for_slow(keys: list[int]) -> list[int]:
        return [await slowly.load(key) for key in keys]

    async def waits_for_a_token(keys: list[int]) -> list[int]:
        return [await third.load(key) for key in keys]

    async def above(keys: list[int]) -> list[int]:
        return [await second.load(key) for key in keys]

    limiter = anyio.CapacityLimiter(3)
    async with LoaderScope(), anyio.create_task_group() as tg:
        slowly = DataLoader(slow)
        first = DataLoader(waits_for_slow, limiter=limiter, max_batch_size=1)
        second = DataLoader(waits_for_a_token, limiter=limiter)
        third: DataLoader[int, int] = DataLoader(Recorder[int, int](int), limiter=limiter)
        top = DataLoader(above)
        tg.start_soon(first.load, 1)
        tg.start_soon(first.load, 2)
        tg.start_soon(top.load, 1)
        await wait_all_tasks_blocked()
        go_on.set()
        assert await top.load(1) == 1


async def test_a_function_that_awaits_more_than_the_cycle_it_is_in() -> None:
    go_on = anyio.Event()
    errors: list[Exception] = []

    async def apart(keys: list[int]) -> list[int]:
        await go_on.wait()
        return keys

    async def two(keys: list[int]) -> list[int]:
        async with anyio.create_task_group() as tg:
            tg.start_soon(others.load, 1)
            await wait_all_tasks_blocked()
            await back.load(1)
        return keys

    async def to_two(keys: list[int]) -> list[int]:
        await twos.load(1)
        return keys

    async def closes_the_cycle(keys: list[int]) -> list[int]:
        try:
            await top.load(1)
        except LoadDeadlockError as exc:
            errors.append(exc)
            go_on.set()
        return keys

    async with LoaderScope():
        others = DataLoader(apart)
        twos = DataLoader(two)
        back = DataLoader(closes_the_cycle)
        top = DataLoader(to_two)
        with anyio.fail_after(5):
            assert await top.load(1) == 1
    assert "closes_the_cycle -> to_two -> two -> closes_the_cycle" in str(errors[0]).replace(
        "test_a_function_that_awaits_more_than_the_cycle_it_is_in.<locals>.", ""
    )
