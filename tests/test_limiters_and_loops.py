"""A limiter belongs to one event loop; ``limit(n)`` gives each loop its own (contract 2.5)."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import DataLoader, LoaderScope, batch_loader, limit
from support import BACKENDS, Recorder, backend_options, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio

first_backend = pytest.mark.parametrize("first", BACKENDS)
second_backend = pytest.mark.parametrize("second", BACKENDS)


def run(backend: str, function: Callable[..., Any], *args: Any) -> Any:
    library, options = backend_options(backend)
    return anyio.run(function, *args, backend=library, backend_options=options)


def loader_function(limiter: Any) -> Any:
    @batch_loader(limiter=limiter)
    async def fetch(keys: list[int]) -> list[int]:
        await checkpoint()
        return keys

    return fetch


async def request(fetch: Any, key: int) -> int:
    async with LoaderScope():
        with anyio.fail_after(5):
            value: int = await fetch.load(key)
        return value


@first_backend
@second_backend
def test_a_limit_stated_at_import_serves_one_event_loop_after_the_other(
    first: str, second: str
) -> None:
    fetch = loader_function(limit(1))
    assert [run(backend, request, fetch, 1) for backend in (first, second, first)] == [1, 1, 1]


@first_backend
@second_backend
def test_a_limit_serves_event_loops_in_several_threads_at_once(first: str, second: str) -> None:
    meeting = threading.Barrier(2)
    answers: list[int] = []

    @batch_loader(limiter=limit(1))
    async def fetch(keys: list[int]) -> list[int]:
        meeting.wait(5)  # each holds the one token of its loop
        return keys

    threads = [
        threading.Thread(
            target=lambda key, backend: answers.append(run(backend, request, fetch, key)),
            args=(key, backend),
            daemon=True,
        )
        for key, backend in enumerate((first, second))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(answers) == [0, 1]


async def test_within_a_loop_it_bounds_all_loaders_that_share_it() -> None:
    gate = anyio.Event()
    shared = limit(2)
    fetches = [Recorder[int, int](int, gate=gate) for _ in range(2)]
    async with LoaderScope():
        loads = [
            DataLoader(fetch, batch=False, limiter=shared).load_many(range(3)) for fetch in fetches
        ]
        await wait_all_tasks_blocked()
        assert sum(len(fetch.calls) for fetch in fetches) == 2
        gate.set()
        assert [await load for load in loads] == [[0, 1, 2]] * 2


async def test_two_limits_are_two_limiters() -> None:
    gate = anyio.Event()
    fetch = Recorder[int, int](int, gate=gate)
    async with LoaderScope():
        loads = [DataLoader(fetch, limiter=limit(1)).load(key) for key in range(3)]
        await wait_all_tasks_blocked()
        assert len(fetch.calls) == 3
        gate.set()
        assert [await load for load in loads] == [0, 1, 2]


async def test_any_callable_that_gives_a_limiter_will_do() -> None:
    limiter = anyio.CapacityLimiter(1)
    gate = anyio.Event()
    fetch = Recorder[int, int](int, gate=gate)
    async with DataLoader(fetch, batch=False, limiter=lambda: limiter) as loader:
        many = loader.load_many([1, 2])
        await wait_all_tasks_blocked()
        assert len(fetch.calls) == limiter.borrowed_tokens == 1
        gate.set()
        assert await many == [1, 2]


@pytest.mark.parametrize("tokens", [0, -1, True, 1.5, "1", None])
def test_a_limit_is_an_int_of_at_least_one(tokens: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        limit(tokens)


def test_a_limit_does_not_keep_event_loops_that_have_ended() -> None:
    fetch = loader_function(limit(1))

    async def main() -> Any:
        loop = asyncio.get_running_loop()
        assert await request(fetch, 1) == 1
        return weakref.ref(loop)

    loops = [run("asyncio", main) for _ in range(3)]
    gc.collect()
    assert [loop() for loop in loops[:-1]] == [None, None]


# --- a limiter of another event loop ---


@first_backend
@second_backend
def test_a_limiter_that_is_met_in_a_second_event_loop_is_refused(first: str, second: str) -> None:
    fetch = loader_function(anyio.CapacityLimiter(1))
    assert run(first, request, fetch, 1) == 1
    with pytest.raises(RuntimeError, match=r"limit\("):
        run(second, request, fetch, 2)
    assert_no_key_in_the_text(second, fetch)


def assert_no_key_in_the_text(backend: str, fetch: Any) -> None:
    with pytest.raises(RuntimeError) as caught:
        run(backend, request, fetch, 424242)
    assert "424242" not in str(caught.value)


@first_backend
def test_also_while_the_first_loop_runs_in_another_thread(first: str) -> None:
    fetch = loader_function(anyio.CapacityLimiter(1))
    outcomes: list[Any] = []

    def elsewhere() -> None:
        try:
            outcomes.append(run(first, request, fetch, 2))
        except RuntimeError as exc:
            outcomes.append(exc)

    async def main() -> None:
        async with LoaderScope():
            assert await fetch.load(1) == 1
            thread = threading.Thread(target=elsewhere, daemon=True)
            thread.start()
            thread.join(10)
            assert await fetch.load(3) == 3

    run(first, main)
    (outcome,) = outcomes
    assert isinstance(outcome, RuntimeError)
    assert "limit(" in str(outcome)
