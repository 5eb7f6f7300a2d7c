"""The schedules that there are, and those that users write (contract 2.4)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import (
    DataLoader,
    schedules,
)
from anyloader.schedules import BatchView
from support import (
    Recorder,
    all_orders,
    run_shuffled,
    wait_all_tasks_blocked,
)

pytestmark = pytest.mark.anyio


def double(key: int) -> int:
    return key * 2


async def forever(batch: BatchView) -> None:
    await anyio.sleep_forever()


# --- rounds ---


def test_rounds_lets_a_batch_leave_after_so_many_checkpoints(shuffled_backend: str) -> None:
    """The dispatcher starts a round after the first key; its place in a round is arbitrary."""

    async def load_every_round(n: int) -> list[int]:
        fetch = Recorder(double)
        async with DataLoader(fetch, schedule=schedules.rounds(n)) as loader:
            handles = []
            for key in range(n + 4):
                handles.append(loader.load(key))
                await checkpoint()
            await handles[0]
        return fetch.calls[0]

    for n in (0, 1, 2, 7):
        for seed in range(20):
            keys = run_shuffled(shuffled_backend, seed, load_every_round, n)
            assert keys in ([*range(n + 1)], [*range(n + 2)])


def test_rounds_0_sends_what_one_step_enqueued(shuffled_backend: str) -> None:
    async def load_in_two_steps() -> list[list[int]]:
        fetch = Recorder(double)
        async with DataLoader(fetch, schedule=schedules.rounds(0)) as loader:
            loader.load(1)
            loader.load_many([2, 3])
            await checkpoint()
            await checkpoint()
            assert await loader.load(4) == 8
        return fetch.calls

    for calls in all_orders(shuffled_backend, load_in_two_steps):
        assert calls == [[1, 2, 3], [4]]


async def test_rounds_does_not_wait_for_a_round_without_keys() -> None:
    fetch = Recorder(double)
    async with DataLoader(fetch, schedule=schedules.rounds(5)) as loader:
        key = 0
        while not fetch.calls:
            assert key < 20
            loader.load(key)
            key += 1
            await checkpoint()


# --- window ---


@pytest.mark.virtual_time
async def test_a_window_lets_a_batch_leave_so_long_after_its_first_key() -> None:
    left: list[tuple[float, list[int]]] = []

    async def fetch(keys: list[int]) -> list[int]:
        left.append((anyio.current_time() - start, keys))
        return keys

    start = anyio.current_time()
    async with DataLoader(fetch, schedule=schedules.window(5)) as loader:
        await anyio.sleep(1)
        loader.load(1)
        await anyio.sleep(4)
        loader.load(2)  # does not prolong it
        await anyio.sleep(3)
        loader.load(3)
        await anyio.sleep(6)
    assert left == [(6, [1, 2]), (13, [3])]


@pytest.mark.virtual_time
async def test_a_full_batch_and_dispatch_let_go_of_a_window() -> None:
    fetch = Recorder(double)
    start = anyio.current_time()
    async with DataLoader(fetch, max_batch_size=2, schedule=schedules.window(5)) as loader:
        assert await loader.load_many([1, 2]) == [2, 4]
        handle = loader.load(3)
        await checkpoint()
        loader.dispatch()
        assert await handle == 6
    assert anyio.current_time() == start
    assert fetch.calls == [[1, 2], [3]]


@pytest.mark.parametrize("seconds", [0, 0.001])
async def test_windows_may_be_of_any_length(seconds: float) -> None:
    async with DataLoader(Recorder(double), schedule=schedules.window(seconds)) as loader:
        assert await loader.load_many([1, 2]) == [2, 4]


# --- manual and dispatch ---


@pytest.mark.virtual_time
async def test_only_dispatch_sends_a_manual_batch() -> None:
    fetch = Recorder(double)
    async with DataLoader(fetch, schedule=schedules.manual()) as loader:
        many = loader.load_many([1, 2])
        await anyio.sleep(3600)
        handle = loader.load(3)
        await anyio.sleep(3600)
        assert fetch.calls == []

        loader.dispatch()
        assert fetch.calls == [], "it is a plain call, which runs no batch function itself"
        later = loader.load(4)
        assert await many == [2, 4]
        assert await handle == 6
        await anyio.sleep(3600)
        assert fetch.calls == [[1, 2, 3]], "a key loaded after dispatch() is in another batch"

        loader.dispatch()
        assert await later == 8
    assert fetch.calls == [[1, 2, 3], [4]]


async def test_a_full_manual_batch_leaves() -> None:
    fetch = Recorder(double)
    async with DataLoader(fetch, max_batch_size=2, schedule=schedules.manual()) as loader:
        assert await loader.load_many([1, 2]) == [2, 4]


@pytest.mark.parametrize(
    "schedule",
    [schedules.quiescent(), schedules.rounds(10**9), schedules.window(10_000), forever],
    ids=["quiescent", "rounds", "window", "custom"],
)
@pytest.mark.parametrize("rounds_later", [0, 1, 2])
async def test_dispatch_sends_what_is_queued_under_any_schedule(
    schedule: schedules.Schedule, rounds_later: int
) -> None:
    fetch = Recorder(double)
    async with DataLoader(fetch, schedule=schedule) as loader:
        many = loader.load_many([1, 2])
        for _ in range(rounds_later):
            await checkpoint()
        loader.dispatch()
        handle = loader.load(3)
        assert await many == [2, 4]
        loader.dispatch()
        assert await handle == 6
    assert fetch.calls == [[1, 2], [3]]


async def test_dispatch_with_nothing_queued_does_nothing() -> None:
    fetch = Recorder(double)
    async with DataLoader(fetch, schedule=schedules.manual()) as loader:
        loader.dispatch()
        handle = loader.load(1)
        loader.dispatch()
        loader.dispatch()
        assert await handle == 2
        loader.load(1)
        loader.dispatch()
        await wait_all_tasks_blocked()
    assert fetch.calls == [[1]]


# --- a schedule of one's own ---


async def test_a_batch_leaves_when_its_schedule_returns() -> None:
    fetch = Recorder(double)
    gates: list[anyio.Event] = []

    async def schedule(batch: BatchView) -> None:
        gates.append(anyio.Event())
        await gates[-1].wait()

    async with DataLoader(fetch, schedule=schedule) as loader:
        loader.load(1)
        await wait_all_tasks_blocked()
        many = loader.load_many([2, 3])
        await wait_all_tasks_blocked()
        assert len(gates) == 1, "it is called once for each batch"
        assert fetch.calls == []

        gates[0].set()
        assert await many == [4, 6]
        handle = loader.load(4)
        await wait_all_tasks_blocked()
        assert fetch.calls == [[1, 2, 3]]

        gates[1].set()
        assert await handle == 8
    assert fetch.calls == [[1, 2, 3], [4]]


async def test_a_schedule_that_returns_at_once_sends_what_one_step_enqueued() -> None:
    async def at_once(batch: BatchView) -> None:
        pass

    fetch = Recorder(double)
    async with DataLoader(fetch, schedule=at_once) as loader:
        loader.load(0)
        assert await loader.load_many([1, 2]) == [2, 4]
        assert await loader.load(3) == 6
    assert fetch.calls == [[0, 1, 2], [3]]


async def _checkpoints(number: int, batch: BatchView) -> None:
    for _ in range(number):
        await checkpoint()


class _Checkpoints:
    async def __call__(self, batch: BatchView) -> None:
        await _checkpoints(5, batch)

    method = __call__


class _Loader(DataLoader[int, int]):
    async def batch_load_fn(self, keys: list[int], /) -> list[int]:
        return keys


class _MethodLoader(_Loader):
    async def schedule(self, batch: BatchView) -> None:
        assert isinstance(self, _MethodLoader)
        await _checkpoints(5, batch)


@pytest.mark.parametrize(
    "schedule",
    [partial(_checkpoints, 5), _Checkpoints(), _Checkpoints().method],
    ids=["partial", "object", "method"],
)
async def test_a_schedule_is_any_async_callable(schedule: schedules.Schedule) -> None:
    async with _Loader(schedule=schedule) as loader:
        first = loader.load(1)
        await checkpoint()
        assert first.status is first.Status.PENDING
        assert await loader.load_many([2, 3]) == [2, 3]
        assert await first == 1


async def test_a_schedule_can_be_a_method_of_a_subclass() -> None:
    async with _MethodLoader() as loader:
        assert await loader.load_many([1, 2]) == [1, 2]


async def test_what_a_schedule_sees_of_its_batch_is_live() -> None:
    views: list[BatchView] = []

    def look() -> tuple[str, tuple[Any, ...], int, int, bool]:
        view = views[-1]
        return view.name, view.keys, view.size, view.added, view.is_open

    async def schedule(batch: BatchView) -> None:
        views.append(batch)
        seen.append(look())
        await gate.wait()

    seen: list[object] = []
    gate = anyio.Event()
    async with DataLoader(Recorder(double), schedule=schedule, name="numbers") as loader:
        loader.load(3)
        await wait_all_tasks_blocked()
        assert seen == [("numbers", (3,), 1, 1, True)]

        loader.load_many([1, 2])
        loader.load(3)
        assert look() == ("numbers", (3, 1, 2), 3, 3, True)

        loader.prime(1, 0, force=True)
        assert look() == ("numbers", (3, 2), 2, 3, True)

        handle = loader.load(4)
        assert look() == ("numbers", (3, 2, 4), 3, 4, True)

        loader.dispatch()
        assert not views[-1].is_open
        await handle
        assert not views[-1].is_open


async def test_a_full_batch_lets_go_of_a_schedule_of_ones_own() -> None:
    events: list[str] = []
    cleanup = anyio.Event()

    async def schedule(batch: BatchView) -> None:
        events.append("waits")
        try:
            await anyio.sleep_forever()
        finally:
            events.append("let go")
            with anyio.CancelScope(shield=True):
                await cleanup.wait()

    async def fetch(keys: list[int]) -> list[int]:
        await checkpoint()  # the cancellation was for the schedule alone
        events.append(f"fetch {keys}")
        return keys

    async with DataLoader(fetch, max_batch_size=2, schedule=schedule) as loader:
        first = loader.load(1)
        await wait_all_tasks_blocked()
        assert events == ["waits"]
        loader.load(2)
        await wait_all_tasks_blocked()
        assert events == ["waits", "let go"]
        cleanup.set()
        assert await first == 1
    assert events == ["waits", "let go", "fetch [1, 2]"]


async def test_a_batch_that_is_full_at_once_leaves_at_once() -> None:
    fetch = Recorder(double)
    async with DataLoader(fetch, max_batch_size=2, schedule=forever) as loader:
        assert await loader.load_many([1, 2]) == [2, 4]


async def test_a_schedule_that_raises_fails_its_batch_with_that_error() -> None:
    error = OSError("no schedule today")
    fetch = Recorder(double)
    errors = [error]

    async def schedule(batch: BatchView) -> None:
        await checkpoint()
        if errors:
            raise errors.pop()

    async with DataLoader(fetch, schedule=schedule) as loader:
        handle = loader.load(1)
        others = loader.load(2), loader.load(3)
        with pytest.raises(OSError) as caught:
            await handle
        assert caught.value is error
        assert [other.exception for other in others] == [error] * 2
        assert fetch.calls == []

        assert await loader.load_many([1, 2, 3]) == [2, 4, 6]
    assert fetch.calls == [[1, 2, 3]]


async def test_a_schedule_that_raises_as_it_is_let_go_fails_its_batch_too() -> None:
    async def schedule(batch: BatchView) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise OSError("in cleanup")

    fetch = Recorder(double)
    async with DataLoader(fetch, max_batch_size=2, schedule=schedule) as loader:
        handle = loader.load(1)
        await wait_all_tasks_blocked()
        loader.load(2)
        with pytest.raises(OSError, match="in cleanup"):
            await handle
    assert fetch.calls == []


async def test_a_schedule_that_is_not_async_fails_its_batch() -> None:
    schedule: Any = lambda batch: None  # noqa: E731
    async with DataLoader(Recorder(double), schedule=schedule) as loader:
        with pytest.raises(TypeError):
            await loader.load(1)


# --- wrong arguments ---

untyped: Any = schedules

AnyLoader: Any = DataLoader


@pytest.mark.parametrize(
    ("make", "error", "expected"),
    [
        (lambda: schedules.quiescent(max_rounds=0), ValueError, "max_rounds .* 1, not 0"),
        (lambda: schedules.quiescent(max_rounds=-5), ValueError, "max_rounds .* 1, not -5"),
        (lambda: untyped.quiescent(max_rounds=2.5), TypeError, "max_rounds .* int, not 2.5"),
        (lambda: schedules.quiescent(max_rounds=True), TypeError, "max_rounds .* int, not True"),
        (lambda: untyped.quiescent(max_rounds=None), TypeError, "max_rounds .* int, not None"),
        (lambda: schedules.rounds(-1), ValueError, "n .* 0, not -1"),
        (lambda: untyped.rounds("3"), TypeError, "n .* int, not '3'"),
        (lambda: schedules.rounds(False), TypeError, "n .* int, not False"),
        (lambda: schedules.window(-0.5), ValueError, "seconds .* negative, not -0.5"),
        (lambda: schedules.window(math.nan), ValueError, "seconds .* not nan"),
        (lambda: schedules.window(math.inf), ValueError, "seconds .* not inf"),
        (lambda: untyped.window("1"), TypeError, "seconds .* number, not '1'"),
        (lambda: schedules.window(True), TypeError, "seconds .* number, not True"),
        (lambda: AnyLoader(double, schedule=5), TypeError, "schedule .* function, not 5"),
    ],
)
def test_wrong_arguments_are_refused_at_once(
    make: Callable[[], object], error: type[Exception], expected: str
) -> None:
    with pytest.raises(error, match=expected):
        make()


@pytest.mark.parametrize(
    ("inner", "rounds"),
    [(schedules.rounds(3), 3), (schedules.quiescent(), 2), (schedules.rounds(0), 0)],
)
async def test_within_a_schedule_of_the_users_own_rounds_are_counted_for_its_batch_alone(
    inner: Any, rounds: int
) -> None:
    passed: list[int] = []

    class Counting:
        """A view that counts its checkpoints."""

        def __init__(self, batch: BatchView) -> None:
            self._batch = batch

        def __getattr__(self, name: str) -> Any:
            return getattr(self._batch, name)

        async def checkpoint(self) -> None:
            passed.append(1)
            await self._batch.checkpoint()

    async def schedule(batch: BatchView) -> None:
        await inner(Counting(batch))

    recorder = Recorder[int, int](abs)
    async with DataLoader(recorder, schedule=schedule) as loader:
        assert await loader.load(-1) == 1
    assert len(passed) == rounds


async def test_schedules_say_what_they_are() -> None:
    made = schedules.quiescent(max_rounds=7), schedules.rounds(2), schedules.window(0.5)
    assert [repr(s) for s in (schedules.quiescent(), *made, schedules.manual())] == [
        "quiescent(max_rounds=100)",
        "quiescent(max_rounds=7)",
        "rounds(2)",
        "window(0.5)",
        "manual()",
    ]
