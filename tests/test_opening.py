"""Where a loader runs: its own ``async with`` or somebody else's task group; nowhere else."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from types import ModuleType
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import (
    DataLoader,
    LoadCancelledError,
    LoaderClosedError,
    LoaderNotOpenError,
    LoaderScope,
    LoadHandle,
    schedules,
)
from anyloader.hooks import BatchOpened, Event
from support import BACKENDS, Recorder, backend_options, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio

Group = AbstractAsyncContextManager[Any]
OpenGroup = Callable[[], Group]


@pytest.fixture(params=["anyio", "native"])
def open_group(request: pytest.FixtureRequest, anyio_backend_name: str) -> OpenGroup:
    """Make a task group: anyio's, trio's or asyncio's."""
    if request.param == "anyio":
        return anyio.create_task_group
    if anyio_backend_name == "trio":
        import trio

        return trio.open_nursery
    if sys.version_info < (3, 11):
        pytest.skip("this Python has no asyncio.TaskGroup")
    return asyncio.TaskGroup


def start(group: Any, function: Any, *args: object) -> None:
    """Start a task in a group of any kind."""
    if hasattr(group, "start_soon"):
        group.start_soon(function, *args)
    else:
        group.create_task(function(*args))


def tasks() -> int:
    return len(anyio.get_running_tasks())


def loads(loader: DataLoader[int, int]) -> dict[str, Callable[[], object]]:
    return {"load": lambda: loader.load(1), "load_many": lambda: loader.load_many([1, 2])}


BOTH = pytest.mark.parametrize("load", ["load", "load_many"])


# --- making it ---


@pytest.mark.parametrize("backend", BACKENDS)
def test_making_a_loader_needs_no_loop(backend: str) -> None:
    batches = Recorder[int, int](abs)
    loader = DataLoader(batches).prime(3, 33)

    async def main() -> list[int]:
        async with loader:
            return await loader.load_many([1, 2, 3])

    name, options = backend_options(backend)
    assert anyio.run(main, backend=name, backend_options=options) == [1, 2, 33]
    assert batches.calls == [[1, 2]]


# --- not open ---


@BOTH
async def test_load_is_refused_where_the_loader_is_not_open(load: str) -> None:
    loader = DataLoader(Recorder[int, int](abs), name="users")
    with pytest.raises(LoaderNotOpenError, match=r"users .*async with.*task_group") as caught:
        loads(loader)[load]()
    assert isinstance(caught.value, RuntimeError)


@BOTH
async def test_hit_is_refused_where_the_loader_is_not_open(load: str) -> None:
    loader = DataLoader(Recorder[int, int](abs)).prime_many({1: 1, 2: 2})
    with pytest.raises(LoaderNotOpenError):
        loads(loader)[load]()


@BOTH
async def test_load_that_was_refused_leaves_no_trace(load: str) -> None:
    batches = Recorder[int, int](abs)
    loader = DataLoader(batches)
    before = loader.statistics(), repr(loader)
    with pytest.raises(LoaderNotOpenError):
        loads(loader)[load]()
    assert (loader.statistics(), repr(loader)) == before
    assert loader.peek(1) is None
    async with loader:
        await wait_all_tasks_blocked()
        assert batches.calls == []
        assert await loader.load_many([2, 1]) == [2, 1]
    assert batches.calls == [[2, 1]]


async def test_cache_needs_no_open_loader() -> None:
    batches = Recorder[int, int](abs)
    loader = DataLoader(batches)
    assert loader.peek(1) is None
    loader.prime(1, 11).prime_many({2: 22, 3: 33, 4: 44, 5: 55}).prime(2, 23, force=True)
    loader.clear(3).clear_many([4])
    primed = loader.peek(1)
    assert primed is not None
    assert await primed == 11
    async with loader:
        assert await loader.load_many([1, 2, 3, 4, 5]) == [11, 23, 3, 4, 55]
    assert batches.calls == [[3, 4]]

    primed = loader.prime(6, 66).clear_many([1, 2]).peek(6)
    assert primed is not None
    assert primed.return_value == 66
    assert loader.peek(1) is None
    assert loader.clear_all().peek(6) is None


# --- async with ---


async def test_entering_gives_the_loader() -> None:
    loader = DataLoader(Recorder[int, int](abs))
    async with loader as entered:
        assert entered is loader


async def test_entering_is_no_checkpoint() -> None:
    seen: list[str] = []

    async def other() -> None:
        seen.append("other task")

    async with anyio.create_task_group() as tg:
        tg.start_soon(other)
        seen.clear()  # an eager task is through already
        async with DataLoader(Recorder[int, int](abs)):
            seen.append("entered")
    assert seen[0] == "entered"


async def test_entering_twice_is_refused_while_it_is_open() -> None:
    async with DataLoader(Recorder[int, int](abs)) as loader:
        handle = loader.load(1)
        with pytest.raises(RuntimeError, match="once"):
            async with loader:
                pytest.fail("entered twice")
        assert await handle == 1
        assert await loader.load(2) == 2


async def test_entering_twice_is_refused_after_its_end() -> None:
    loader = DataLoader(Recorder[int, int](abs))
    async with loader:
        await loader.load(1)
    with pytest.raises(RuntimeError, match="once"):
        async with loader:
            pytest.fail("entered twice")
    with pytest.raises(LoaderClosedError):
        loader.load(1)


# --- somebody else's task group ---


async def test_loader_runs_in_a_group_of_any_kind(open_group: OpenGroup) -> None:
    batches = Recorder[int, int](abs)
    async with open_group() as group:
        loader = DataLoader(batches, task_group=group)
        assert await loader.load_many([1, 2]) == [1, 2]
        assert [await loader.load(1), await loader.load(3)] == [1, 3]
    assert batches.calls == [[1, 2], [3]]


async def test_tasks_of_a_group_share_a_batch(open_group: OpenGroup) -> None:
    batches = Recorder[int, int](abs)
    values: list[int] = []

    async def use(loader: DataLoader[int, int], key: int) -> None:
        values.append(await loader.load(key))

    async with open_group() as group:
        loader = DataLoader(batches, task_group=group)
        for key in range(5):
            start(group, use, loader, key)
    assert sorted(values) == [0, 1, 2, 3, 4]
    assert [sorted(keys) for keys in batches.calls] == [[0, 1, 2, 3, 4]]


async def test_key_is_queued_before_a_task_of_the_group_runs(open_group: OpenGroup) -> None:
    """An eager task would otherwise send a batch without its key, even under ``rounds(0)``."""
    batches = Recorder[int, int](abs)
    async with open_group() as group:
        loader = DataLoader(batches, task_group=group, schedule=schedules.rounds(0))
        handles = [loader.load(1), loader.load(2)]
        assert batches.calls == []
        assert [await handle for handle in handles] == [1, 2]
    assert batches.calls == [[1, 2]]


async def test_loads_that_nobody_awaits_finish_in_a_foreign_group(open_group: OpenGroup) -> None:
    """It is the group that waits for its tasks, and it is not told who awaits them."""
    handles: list[LoadHandle[int]] = []
    async with open_group() as group:
        loader = DataLoader(Recorder[int, int](abs), task_group=group)
        handles.append(loader.load(1))
    assert handles[0].return_value == 1


async def test_own_block_goes_before_the_group(open_group: OpenGroup) -> None:
    async with open_group() as group:
        async with DataLoader(Recorder[int, int](abs), task_group=group) as loader:
            assert await loader.load(1) == 1
        with pytest.raises(LoaderClosedError):
            loader.load(1)


async def test_entering_is_refused_once_it_runs_in_a_group(open_group: OpenGroup) -> None:
    async with open_group() as group:
        loader = DataLoader(Recorder[int, int](abs), task_group=group)
        assert await loader.load(1) == 1
        with pytest.raises(RuntimeError, match="once"):
            async with loader:
                pytest.fail("entered")
        assert await loader.load(2) == 2


async def test_no_task_is_in_the_group_while_no_batch_is_outstanding(
    open_group: OpenGroup,
) -> None:
    async with open_group() as group:
        before = tasks()
        loader = DataLoader(Recorder[int, int](abs), task_group=group, max_batch_size=2)
        assert tasks() == before
        for keys in ([1], [2, 3, 4, 5, 6], [7]):
            handles = [loader.load(key) for key in keys]
            assert tasks() > before
            for handle in handles:
                await handle
            await wait_all_tasks_blocked()
            assert tasks() == before


@pytest.mark.virtual_time
async def test_loader_never_holds_the_group_open(open_group: OpenGroup) -> None:
    with anyio.fail_after(1):
        async with open_group() as group:
            loader = DataLoader(Recorder[int, int](abs), task_group=group)
            idle = DataLoader(Recorder[int, int](abs), task_group=group)
            waiting = DataLoader(
                Recorder[int, int](abs), task_group=group, schedule=schedules.manual()
            )
            await loader.load(1)
            idle.prime(1, 1)
            waiting.load(1)


async def test_batch_under_a_manual_schedule_has_no_task_before_it_is_dispatched(
    open_group: OpenGroup,
) -> None:
    gate = anyio.Event()
    async with open_group() as group:
        before = tasks()
        batches = Recorder[int, int](abs, gate=gate)
        loader = DataLoader(batches, task_group=group, schedule=schedules.manual())
        many = loader.load_many([1, 2])
        await wait_all_tasks_blocked()
        assert (tasks(), batches.calls) == (before, [])
        loader.dispatch()
        assert tasks() == before + 1
        await wait_all_tasks_blocked()
        assert (tasks(), batches.calls) == (before + 1, [[1, 2]])
        gate.set()
        assert await many == [1, 2]
        await wait_all_tasks_blocked()
        assert tasks() == before


async def test_full_batch_under_a_manual_schedule_is_sent(open_group: OpenGroup) -> None:
    batches = Recorder[int, int](abs)
    async with open_group() as group:
        loader = DataLoader(
            batches, task_group=group, schedule=schedules.manual(), max_batch_size=2
        )
        first, second, _ = (loader.load(key) for key in (1, 2, 3))
        assert [await first, await second] == [1, 2]
        await wait_all_tasks_blocked()
        assert batches.calls == [[1, 2]]


# --- the end of somebody else's task group ---


@BOTH
@pytest.mark.parametrize("schedule", [schedules.quiescent(), schedules.manual()], ids=repr)
async def test_load_that_needs_a_batch_is_refused_after_the_end(
    open_group: OpenGroup, load: str, schedule: schedules.Schedule
) -> None:
    batches = Recorder[int, int](abs)
    async with open_group() as group:
        loader = DataLoader(batches, task_group=group, schedule=schedule)
        loader.prime(1, 1)
    before = loader.statistics()
    for _ in range(2):
        loader.clear_all()
        with pytest.raises(LoaderClosedError) as caught:
            loads(loader)[load]()
        assert isinstance(caught.value, anyio.ClosedResourceError)
        assert loader.peek(1) is None
    await wait_all_tasks_blocked()
    now = loader.statistics()
    assert (now.queued, now.running, now.batches) == (0, 0, before.batches)
    assert batches.calls == []


async def test_load_that_would_join_a_batch_is_refused_after_the_end(
    open_group: OpenGroup,
) -> None:
    """A batch that was not dispatched in time is there still, but can never be sent."""
    async with open_group() as group:
        loader = DataLoader(Recorder[int, int](abs), task_group=group, schedule=schedules.manual())
        loader.load(1)
    with pytest.raises(LoaderClosedError):
        loader.load(2)
    with pytest.raises(LoaderClosedError):
        loader.load_many([3, 4])


@pytest.mark.virtual_time
async def test_load_that_was_never_dispatched_does_not_hang_after_the_end(
    open_group: OpenGroup,
) -> None:
    async with open_group() as group:
        loader = DataLoader(Recorder[int, int](abs), task_group=group, schedule=schedules.manual())
        handle, many = loader.load(1), loader.load_many([1, 2])
    with anyio.fail_after(1):
        for awaitable in (handle, many, handle):
            with pytest.raises((LoaderClosedError, LoadCancelledError)):
                await awaitable


async def test_dispatch_after_the_end_fails_what_was_queued(open_group: OpenGroup) -> None:
    async with open_group() as group:
        loader = DataLoader(Recorder[int, int](abs), task_group=group, schedule=schedules.manual())
        handle = loader.load(1)
    with pytest.raises(LoaderClosedError):
        loader.dispatch()
    with pytest.raises(LoaderClosedError):
        await handle
    assert loader.peek(1) is None


@pytest.mark.virtual_time
async def test_load_that_would_fill_a_batch_is_refused_after_the_end(
    open_group: OpenGroup,
) -> None:
    async with open_group() as group:
        loader = DataLoader(
            Recorder[int, int](abs),
            task_group=group,
            schedule=schedules.manual(),
            max_batch_size=2,
        )
        handle = loader.load(1)
    with pytest.raises(LoaderClosedError):
        loader.load(2)
    assert loader.peek(2) is None
    with anyio.fail_after(1), pytest.raises((LoaderClosedError, LoadCancelledError)):
        await handle


async def test_handle_that_has_settled_stays_readable_after_the_end(
    open_group: OpenGroup,
) -> None:
    async def one_fails(keys: list[int]) -> list[int | Exception]:
        return [ValueError() if key == 1 else key for key in keys]

    async with open_group() as group:
        loader = DataLoader(one_fails, task_group=group)
        handles = [loader.load(1), loader.load(2)]
        many = loader.load_many([1, 2], return_exceptions=True)
    values = await many
    assert isinstance(values[0], ValueError)
    assert values[1] == 2
    assert await handles[1] == handles[1].return_value == 2
    assert handles[0].exception is values[0]
    peeked = loader.peek(2)
    assert peeked is not None
    assert peeked.return_value == 2


async def test_group_that_is_ending_still_takes_loads_of_its_tasks(
    open_group: OpenGroup,
) -> None:
    seen: list[int] = []
    ending = anyio.Event()

    async def use(loader: DataLoader[int, int], keys: range) -> None:
        await ending.wait()
        for _ in range(5):
            await checkpoint()  # until the body has ended and the group waits for this task alone
        for key in keys:
            seen.append(await loader.load(key))

    async with open_group() as group:
        start(group, use, DataLoader(Recorder[int, int](abs), task_group=group), range(3))
        manual = DataLoader(
            Recorder[int, int](abs),
            task_group=group,
            schedule=schedules.manual(),
            max_batch_size=1,
        )
        start(group, use, manual, range(3, 6))
        ending.set()
    assert sorted(seen) == [0, 1, 2, 3, 4, 5]


class Abort(Exception):
    pass


async def wait_outside(handle: LoadHandle[int], seen: list[object]) -> None:
    try:
        seen.append(await handle)
    except (LoadCancelledError, LoaderClosedError) as exc:
        seen.append(type(exc))


@pytest.mark.virtual_time
@pytest.mark.parametrize("stage", ["no step made", "queued", "running"])
async def test_group_that_is_cancelled_cancels_its_batches(
    open_group: OpenGroup, stage: str
) -> None:
    seen: list[object] = []
    schedule = schedules.quiescent() if stage == "running" else schedules.window(1_000)
    loader: DataLoader[int, int]
    async with anyio.create_task_group() as outside:
        with pytest.raises(BaseException) as caught:
            async with open_group() as group:
                batches = Recorder[int, int](abs, gate=anyio.Event())
                loader = DataLoader(batches, task_group=group, schedule=schedule)
                outside.start_soon(wait_outside, loader.load(1), seen)
                if stage != "no step made":
                    await wait_all_tasks_blocked()
                assert len(batches.calls) == (stage == "running")
                raise Abort
        await wait_all_tasks_blocked()
        assert seen == [LoadCancelledError]
        assert isinstance(getattr(caught.value, "exceptions", [caught.value])[0], Abort)


@pytest.mark.parametrize("load", ["load", "dispatch"])
async def test_who_awaits_outside_what_was_never_dispatched_hears_of_the_end_by_the_next_call(
    open_group: OpenGroup, load: str
) -> None:
    """Nobody tells the loader that the group has ended: it has no task in there."""
    seen: list[object] = []
    loader: DataLoader[int, int]
    async with anyio.create_task_group() as outside:
        async with open_group() as group:
            loader = DataLoader(
                Recorder[int, int](abs), task_group=group, schedule=schedules.manual()
            )
            outside.start_soon(wait_outside, loader.load(1), seen)
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert seen == []
        with pytest.raises(LoaderClosedError):
            loader.dispatch() if load == "dispatch" else loader.load(2)
        await wait_all_tasks_blocked()
        assert seen == [LoaderClosedError]


@pytest.mark.virtual_time
async def test_load_into_a_group_that_is_being_cancelled_does_not_hang(
    open_group: OpenGroup,
) -> None:
    seen: list[object] = []

    async def load_at_the_end(loader: DataLoader[int, int]) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            for key in (1, 2):
                with anyio.CancelScope(shield=True):
                    try:
                        seen.append(await loader.load(key))
                    except (LoadCancelledError, LoaderClosedError) as exc:
                        seen.append(type(exc).__name__)

    with pytest.raises(BaseException):  # noqa: B017 - bare or in a group
        async with open_group() as group:
            loader = DataLoader(Recorder[int, int](abs), task_group=group)
            start(group, load_at_the_end, loader)
            await wait_all_tasks_blocked()
            raise Abort
    assert len(seen) == 2
    assert set(seen) <= {"LoadCancelledError", "LoaderClosedError"}


async def test_failing_batch_function_does_not_reach_the_group(open_group: OpenGroup) -> None:
    async def fail(keys: list[int]) -> list[int]:
        raise ValueError(keys)

    async with open_group() as group:
        loader = DataLoader(fail, task_group=group)
        loader.load(1)
        await wait_all_tasks_blocked()
        with pytest.raises(ValueError):
            await loader.load(2)


async def test_loads_in_a_group_not_yet_entered_leave_no_trace() -> None:
    group = anyio.create_task_group()
    batches = Recorder[int, int](abs)
    loader = DataLoader(batches, task_group=group)
    for load in loads(loader).values():
        with pytest.raises((LoaderNotOpenError, LoaderClosedError)):
            load()
        assert loader.peek(1) is None
    async with group:
        assert await loader.load(1) == 1
    assert batches.calls == [[1]]


@pytest.mark.only_on("asyncio")
async def test_a_module_that_another_thread_is_just_importing_is_none_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It stands in sys.modules, and its names are still to come."""
    for name in ("trio.lowlevel", "sniffio"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    async with DataLoader(Recorder[int, int](abs)) as loader:
        assert await loader.load(-1) == 1


def test_event_loops_in_several_threads_do_not_meet() -> None:
    numbers: list[int] = []

    def note(event: Event) -> None:
        if isinstance(event, BatchOpened):
            numbers.append(event.batch)

    class Squares(DataLoader[int, int]):
        hooks = (note,)

        async def batch_load_fn(self, keys: list[int]) -> list[int]:
            await checkpoint()
            return [key * key for key in keys]

    async def requests() -> None:
        for first in range(20):
            async with LoaderScope() as scope:
                keys = range(first, first + 5)
                assert await scope.get(Squares).load_many(keys) == [key * key for key in keys]

    def run(backend: str) -> None:
        name, options = backend_options(backend)
        anyio.run(requests, backend=name, backend_options=options)

    with ThreadPoolExecutor() as pool:
        list(pool.map(run, BACKENDS * 2))
    assert len(set(numbers)) == len(numbers) == 2 * len(BACKENDS) * 20
