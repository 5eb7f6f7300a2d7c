"""What users of other loaders suffer, case by case, and that none of it happens here."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import BatchResultError, DataLoader, LoadCancelledError, LoadDeadlockError
from support import BACKENDS, Recorder, backend_options, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio


async def outcome(load: Awaitable[Any]) -> Any:
    with anyio.fail_after(5):
        try:
            return await load
        except Exception as exc:
            return exc


async def give_up(scope: anyio.CancelScope) -> None:
    """Cancel what waits in ``scope``, once the batch function runs."""
    await wait_all_tasks_blocked()
    scope.cancel()
    await wait_all_tasks_blocked()


@pytest.mark.parametrize("handles", ["one handle", "two handles"])
async def test_a_cancelled_waiter_does_not_cancel_another_one_of_its_key(handles: str) -> None:
    gate = anyio.Event()
    got: list[int] = []
    scope = anyio.CancelScope()

    async def first(load: Awaitable[int]) -> None:
        with scope:
            await load
            got.append(0)

    async def second(load: Awaitable[int]) -> None:
        got.append(await load)

    async with DataLoader(Recorder[int, int](abs, gate=gate)) as loader:
        async with anyio.create_task_group() as tg:
            load = loader.load(-1)
            tg.start_soon(first, load)
            tg.start_soon(second, load if handles == "one handle" else loader.load(-1))
            await give_up(scope)
            gate.set()
        assert got == [1]
        assert await loader.load(-1) == 1


@pytest.mark.virtual_time
async def test_a_waiter_that_times_out_does_not_cancel_another_one_of_its_key() -> None:
    got: list[Any] = []

    async def fetch(keys: list[int]) -> list[int]:
        await anyio.sleep(10)
        return keys

    async def impatient() -> None:
        with anyio.move_on_after(1) as scope:
            await loader.load(1)
        got.append(scope.cancelled_caught)

    async def patient() -> None:
        got.append(await loader.load(1))

    async with DataLoader(fetch) as loader, anyio.create_task_group() as tg:
        tg.start_soon(impatient)
        tg.start_soon(patient)
    assert got == [True, 1]


@asynccontextmanager
async def native_group(backend: str) -> AsyncIterator[Any]:
    """A task group of the event loop's own library, as its users would write it."""
    if backend == "trio":
        import trio

        async with trio.open_nursery() as nursery:
            yield nursery.start_soon
    elif sys.version_info < (3, 11):
        pytest.skip("asyncio.TaskGroup is new in Python 3.11")
    else:
        async with asyncio.TaskGroup() as tg:
            yield lambda fn, *args: tg.create_task(fn(*args))


async def test_a_task_group_does_not_end_with_a_waiter_silently_cancelled(
    anyio_backend_name: str,
) -> None:
    gate = anyio.Event()
    got: list[int] = []
    scope = anyio.CancelScope()

    async def cancelled() -> None:
        with scope:
            await loader.load(-1)

    async def waiter() -> None:
        got.append(await loader.load(-1))

    async with DataLoader(Recorder[int, int](abs, gate=gate)) as loader:
        async with native_group(anyio_backend_name) as start:
            start(cancelled)
            start(waiter)
            await give_up(scope)
            gate.set()
        assert got == [1]


@pytest.mark.parametrize("running", [True, False], ids=["while it runs", "after it ran"])
async def test_a_key_that_was_cancelled_can_be_loaded_later(running: bool) -> None:
    gate = anyio.Event()
    fetch = Recorder[int, int](abs, gate=gate)
    async with DataLoader(fetch) as loader:
        async with anyio.create_task_group() as tg:
            tg.start_soon(loader.load, -1)
            await wait_all_tasks_blocked()
            if not running:
                gate.set()
                await wait_all_tasks_blocked()
            tg.cancel_scope.cancel()
        gate.set()
        assert await outcome(loader.load(-1)) == 1


class Fatal(BaseException):
    pass


async def raises_cancelled() -> None:
    cancelled = anyio.get_cancelled_exc_class()
    raise cancelled.__new__(cancelled)


async def cancels_its_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await checkpoint()


@pytest.mark.parametrize("end", [raises_cancelled, cancels_its_task])
async def test_a_cancelled_batch_function_hangs_nobody_and_poisons_no_key(
    end: Callable[[], Awaitable[None]], anyio_backend_name: str
) -> None:
    if anyio_backend_name == "trio" and end is cancels_its_task:
        pytest.skip("asyncio's")
    calls: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        calls.append(keys)
        if len(calls) == 1:
            await end()
        return keys

    async with DataLoader(fetch) as loader:
        assert type(await outcome(loader.load(1))) is LoadCancelledError
        assert await outcome(loader.load(1)) == 1
    assert calls == [[1], [1]]


async def test_a_base_exception_of_a_batch_function_hangs_nobody() -> None:
    got: list[Any] = []

    async def fetch(keys: list[int]) -> list[int]:
        raise Fatal

    async def wait() -> None:
        with anyio.CancelScope(shield=True):
            got.append(type(await outcome(loader.load(1))))

    with pytest.raises(Fatal):
        async with DataLoader(fetch) as loader:
            async with anyio.create_task_group() as tg:
                tg.start_soon(wait)
    assert got == [LoadCancelledError]


async def test_stop_iteration_among_the_values_is_the_error_of_its_key() -> None:
    error = StopIteration()
    values = {1: 1, 2: error, 3: 3}
    async with DataLoader[int, Any](Recorder(values.get)) as loader:
        many = loader.load_many([1, 2, 3], return_exceptions=True)
        assert await outcome(many) == [1, error, 3]
        assert await outcome(loader.load(3)) == 3
        assert isinstance(await outcome(loader.load(2)), (StopIteration, RuntimeError))


async def test_a_wrong_signature_of_the_batch_function_hangs_nobody() -> None:
    async def fetch() -> list[int]:
        return []

    fn: Any = fetch
    async with DataLoader[int, int](fn) as loader:
        assert isinstance(await outcome(loader.load(1)), TypeError)


async def test_a_mapping_gives_values_and_not_its_keys() -> None:
    async def fetch(keys: list[int]) -> dict[int, str]:
        return {2: "b", 1: "a"}

    async with DataLoader(fetch) as loader:
        assert await loader.load_many([1, 2]) == ["a", "b"]


@pytest.mark.parametrize("result", [{1, 2}, "ab"], ids=["set", "str"])
async def test_a_set_or_a_str_is_no_list_of_values(result: Any) -> None:
    async def fetch(keys: list[int]) -> Any:
        return result

    async with DataLoader[int, Any](fetch) as loader:
        assert isinstance(await outcome(loader.load_many([1, 2])), BatchResultError)


async def test_a_batch_that_loads_its_own_key_gets_an_error() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        return await loader.load_many(keys)

    async with DataLoader(fetch) as loader:
        assert isinstance(await outcome(loader.load(1)), LoadDeadlockError)


async def test_batches_that_load_each_other_in_a_circle_get_an_error() -> None:
    async def to_b(keys: list[int]) -> list[int]:
        return await b.load_many(keys)

    async def to_a(keys: list[int]) -> list[int]:
        return await a.load_many(keys)

    async with DataLoader(to_b) as a, DataLoader(to_a) as b:
        assert isinstance(await outcome(a.load(1)), LoadDeadlockError)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loader_can_be_made_before_there_is_a_loop(backend: str) -> None:
    async def fetch(keys: list[int]) -> list[int]:
        return keys

    async def main() -> int:
        async with loader:
            return await loader.load(1)

    loader = DataLoader(fetch)
    library, options = backend_options(backend)
    assert anyio.run(main, backend=library, backend_options=options) == 1


async def test_keys_of_a_batch_that_failed_are_fetched_again() -> None:
    calls: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        calls.append(keys)
        if len(calls) == 1:
            raise ConnectionError
        return keys

    async with DataLoader(fetch) as loader:
        assert isinstance(await outcome(loader.load(1)), ConnectionError)
        assert await outcome(loader.load(1)) == 1
    assert calls == [[1], [1]]


async def test_a_batch_that_fails_evicts_no_newer_entry() -> None:
    gate = anyio.Event()

    async def fetch(keys: list[int]) -> list[int]:
        if not gate.is_set():
            await gate.wait()
            raise ConnectionError
        return keys

    async with DataLoader(fetch) as loader:
        old = loader.load(1)
        await wait_all_tasks_blocked()
        new = loader.clear(1).load(1)
        gate.set()
        assert isinstance(await outcome(old), ConnectionError)
        assert loader.peek(1) is new
        assert await new == 1


async def test_a_load_that_fails_and_was_not_awaited_makes_no_noise(leftovers: list[str]) -> None:
    async def fetch(keys: list[int]) -> list[int]:
        raise ConnectionError

    async with DataLoader(fetch) as loader:
        loader.load(1)
        await wait_all_tasks_blocked()
        assert loader.statistics().batches == 1
    del loader
    assert leftovers == []  # and again, by the fixture, after all of this was collected


async def test_a_query_is_cancelled_once_its_last_waiter_is_gone() -> None:
    events: list[str] = []
    scope = anyio.CancelScope()

    async def fetch(keys: list[int]) -> list[int]:
        events.append("query")
        try:
            await anyio.sleep_forever()
        finally:
            events.append("cancelled")
        return keys

    async def wait() -> None:
        with scope:
            await loader.load(1)

    async with DataLoader(fetch) as loader:
        async with anyio.create_task_group() as tg:
            tg.start_soon(wait)
            await wait_all_tasks_blocked()
            assert events == ["query"]
            await give_up(scope)
            assert events == ["query", "cancelled"]


async def test_a_batch_has_cleaned_up_before_the_session_around_it_is_closed() -> None:
    events: list[str] = []

    async def fetch(keys: list[int]) -> list[int]:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(5):
                    await checkpoint()
                events.append("cleaned up")
        return keys

    @contextmanager
    def session() -> Iterator[None]:
        try:
            yield
        finally:
            events.append("session closed")

    with pytest.raises(ConnectionError):
        with session():
            async with DataLoader(fetch) as loader:
                loader.load(1)
                await wait_all_tasks_blocked()
                raise ConnectionError
    assert events == ["cleaned up", "session closed"]


@contextmanager
def counting(steps: list[str]) -> Iterator[None]:
    """Note the lines of this package that run, each turn of a loop anew."""

    def trace_lines(frame: FrameType, event: str, arg: object) -> Any:
        steps.append(frame.f_code.co_name)
        return trace_lines

    def trace_calls(frame: FrameType, event: str, arg: object) -> Any:
        ours = frame.f_globals.get("__package__") == "anyloader"
        return trace_lines if ours else None

    before = sys.gettrace()
    sys.settrace(trace_calls)
    try:
        yield
    finally:
        sys.settrace(before)


async def steps_of_cancelling(n: int, load: Callable[[DataLoader[int, int], int], Any]) -> int:
    """Cancel ``n`` waiting tasks; say in how many steps."""
    steps: list[str] = []

    async def wait(one: Any) -> None:
        await one

    async with DataLoader(Recorder[int, int](abs, gate=anyio.Event())) as loader:
        async with anyio.create_task_group() as tg:
            for key in range(n):
                tg.start_soon(wait, load(loader, key))
            await wait_all_tasks_blocked()
            with anyio.CancelScope(shield=True), counting(steps):
                tg.cancel_scope.cancel()
                await wait_all_tasks_blocked()
        assert loader.statistics().running == 0
    return len(steps)


def of_one_key(loader: DataLoader[int, int], key: int) -> Any:
    return loader.load(0)


def one_handle(loader: DataLoader[int, int], key: int) -> Any:
    return loader.peek(0) or loader.load(0)


def many_of_one(loader: DataLoader[int, int], key: int) -> Any:
    return loader.load_many([key])


@pytest.mark.parametrize(
    "load",
    [DataLoader.load, of_one_key, one_handle, many_of_one],
    ids=["a key each", "one key", "one handle", "a load_many each"],
)
async def test_cancelling_n_waiters_takes_steps_in_proportion_to_n(load: Any) -> None:
    few, many = await steps_of_cancelling(50, load), await steps_of_cancelling(200, load)
    assert few > 50
    assert many < 5 * few


@pytest.mark.parametrize("wrong", [-1, 0])
def test_a_max_batch_size_below_one_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match="max_batch_size"):
        DataLoader(Recorder[int, int](abs), max_batch_size=wrong)


@pytest.mark.only_on("asyncio")
@pytest.mark.parametrize("same_handle", [False, True], ids=["two loads", "one load"])
async def test_a_failing_field_of_stock_graphql_fails_no_other_field(same_handle: bool) -> None:
    """``a.boom`` cancels ``a.x``; ``b.x``, which loads the same key, goes on."""
    graphql = pytest.importorskip("graphql")
    gate = anyio.Event()
    calls: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[str]:
        calls.append(keys)
        await gate.wait()
        return [f"value {key}" for key in keys]

    async def boom(side: str, info: object) -> str:
        if side == "b":
            return "calm"
        while not calls:
            await checkpoint()
        raise ConnectionError("boom")

    field, string = graphql.GraphQLField, graphql.GraphQLString
    non_null = graphql.GraphQLNonNull(string)
    async with DataLoader(fetch) as loader:
        shared = loader.load(1) if same_handle else None

        def x(side: str, info: object) -> Any:
            return shared or loader.load(1)

        side = graphql.GraphQLObjectType(
            "Side", {"boom": field(non_null, resolve=boom), "x": field(non_null, resolve=x)}
        )
        query = graphql.GraphQLObjectType(
            "Query",
            {
                "a": field(side, resolve=lambda root, info: "a"),
                "b": field(side, resolve=lambda root, info: "b"),
            },
        )
        async with anyio.create_task_group() as tg:

            async def open_the_gate() -> None:
                await wait_all_tasks_blocked()
                gate.set()

            tg.start_soon(open_the_gate)
            result = await graphql.graphql(
                graphql.GraphQLSchema(query), "{ a { boom x } b { boom x } }"
            )
            assert [error.message for error in result.errors] == ["boom"]
            assert [error.path for error in result.errors] == [["a", "boom"]]
            assert result.data == {"a": None, "b": {"boom": "calm", "x": "value 1"}}
    assert calls == [[1]]
