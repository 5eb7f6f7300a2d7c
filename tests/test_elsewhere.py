"""Calls from other threads and other event loops are refused (contract 4.7)."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from anyloader import (
    DataLoader,
    LoaderClosedError,
    LoaderNotOpenError,
    LoaderScope,
    schedules,
)
from support import BACKENDS, Recorder, backend_options, wait_all_tasks_blocked
from support.loads import outcome

pytestmark = pytest.mark.anyio

# --- 7: foreign threads and loops ---


CALLS: dict[str, Callable[[DataLoader[int, int]], object]] = {
    "load": lambda loader: loader.load(1),
    "load of a hit": lambda loader: loader.load(0),
    "load_many": lambda loader: loader.load_many([1, 2]),
    "prime": lambda loader: loader.prime(1, 1),
    "prime_many": lambda loader: loader.prime_many({1: 1}),
    "clear": lambda loader: loader.clear(0),
    "clear_many": lambda loader: loader.clear_many([0]),
    "clear_all": lambda loader: loader.clear_all(),
    "peek": lambda loader: loader.peek(0),
    "dispatch": lambda loader: loader.dispatch(),
}

Elsewhere = Callable[..., Awaitable[object]]


async def check_refusal(loader: DataLoader[int, int], elsewhere: Elsewhere, call: str) -> None:
    """The call is refused, and what is cached, queued and counted stays as it was."""
    loader.prime(0, 0)
    queued = loader.load(5)
    before = loader.statistics()
    with pytest.raises(RuntimeError) as caught:
        await elsewhere(CALLS[call], loader)
    assert not isinstance(caught.value, (LoaderNotOpenError, LoaderClosedError))
    message = str(caught.value)
    assert "anyio.from_thread.run(loader.load, key, token=token)" in message
    assert "another event loop" in message
    assert loader.statistics() == before
    assert loader.peek(0) is not None
    assert loader.peek(1) is None
    many = loader.load_many([1, 2])
    loader.dispatch()
    assert (await outcome(queued), await outcome(many)) == (50, [10, 20])


def tens() -> Recorder[int, int]:
    return Recorder(lambda key: key * 10)


MANUAL = schedules.manual()  # so that nothing changes while the other thread is at work


@pytest.mark.parametrize("call", CALLS)
async def test_a_call_from_a_foreign_thread_is_refused(call: str) -> None:
    async with DataLoader(tens(), schedule=MANUAL) as loader:
        await check_refusal(loader, anyio.to_thread.run_sync, call)
    async with anyio.create_task_group() as tg:
        loader = DataLoader(tens(), task_group=tg, schedule=MANUAL)
        await check_refusal(loader, anyio.to_thread.run_sync, call)


def in_a_loop_of_its_own(backend: str, fn: Callable[..., Any], *args: Any) -> Any:
    """To be called in a thread: run a plain function inside an event loop made for it."""

    async def main() -> Any:
        return fn(*args)

    library, options = backend_options(backend)
    return anyio.run(main, backend=library, backend_options=options)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("other", BACKENDS)
async def test_a_call_from_another_event_loop_is_refused(call: str, other: str) -> None:
    def elsewhere(*args: Any) -> Awaitable[object]:
        return anyio.to_thread.run_sync(partial(in_a_loop_of_its_own, other, *args))

    async with DataLoader(tens(), schedule=MANUAL) as loader:
        await check_refusal(loader, elsewhere, call)


@pytest.mark.parametrize("call", ["load", "load_many"])
@pytest.mark.parametrize("other", BACKENDS)
async def test_a_handle_is_not_awaited_in_another_event_loop(other: str, call: str) -> None:
    """To be refused is not to give up the load; once settled, it is read there too."""
    gate = anyio.Event()

    async def wait_for(load: Any) -> Any:
        return await load

    def await_elsewhere(load: Any) -> Any:
        library, options = backend_options(other)
        return anyio.run(wait_for, load, backend=library, backend_options=options)

    async with DataLoader(Recorder[int, int](abs, gate=gate)) as loader:
        load: Any = loader.load(-1) if call == "load" else loader.load_many([-1])
        await wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match="another event loop"):
            await anyio.to_thread.run_sync(await_elsewhere, load)
        gate.set()
        assert await outcome(load) in (1, [1])
        assert await anyio.to_thread.run_sync(await_elsewhere, load) in (1, [1])


async def test_the_way_that_the_message_shows_for_what_is_not_awaited_works() -> None:
    user: ContextVar[int] = ContextVar("user")

    async def fetch(keys: list[int]) -> list[int]:
        return [user.get()] * len(keys)

    def work() -> int:
        with pytest.raises(RuntimeError, match=r"run_sync for what is not awaited, such as .*set"):
            scope.set(user, 7)
        anyio.from_thread.run_sync(scope.set, user, 7, token=token)
        anyio.from_thread.run_sync(loader.prime, 1, 1, token=token)
        anyio.from_thread.run_sync(loader.clear, 1, token=token)
        return anyio.from_thread.run(loader.load, 1, token=token)

    async with LoaderScope() as scope:
        loader = scope.get(fetch)
        token = anyio.lowlevel.current_token()
        assert await anyio.to_thread.run_sync(work) == 7


async def test_the_way_that_the_message_shows_works() -> None:
    def work() -> tuple[int, threading.Thread]:
        return anyio.from_thread.run(loader.load, 1), threading.current_thread()

    async with DataLoader(tens()) as loader:
        value, thread = await anyio.to_thread.run_sync(work)
    assert value == 10
    assert thread is not threading.current_thread()


async def test_a_scope_forgets_nothing_for_another_thread() -> None:
    async with LoaderScope() as scope:
        loader = scope.get(Recorder[int, int](abs))
        await loader.load(1)
        with pytest.raises(RuntimeError, match="another thread"):
            await anyio.to_thread.run_sync(scope.clear_all)
        assert loader.peek(1) is not None
