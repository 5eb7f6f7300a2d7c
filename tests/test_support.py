"""The suite's own tools do what they say."""

from __future__ import annotations

import asyncio
import gc
import math
import selectors
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from support import BACKENDS, Recorder, VirtualTimeLoop, backend_options, wait_all_tasks_blocked
from support.programs import PYTEST

pytestmark = pytest.mark.anyio
pytest_plugins = ["pytester"]


# --- backends ---


def test_backends_are_those_that_are_installed() -> None:
    expected = ["asyncio"]
    if _installed("uvloop"):
        expected.append("asyncio+uvloop")
    if sys.version_info >= (3, 12):
        expected.append("asyncio+eager")
    if _installed("trio"):
        expected.append("trio")
    assert list(BACKENDS) == expected


def _installed(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        return False
    return True


async def test_backend_is_what_its_id_says(
    request: pytest.FixtureRequest, anyio_backend_name: str
) -> None:
    name = request.node.callspec.id
    assert name in BACKENDS
    assert anyio_backend_name == name.split("+")[0]
    if anyio_backend_name == "asyncio":
        loop = asyncio.get_running_loop()
        assert type(loop).__module__.startswith("uvloop") == (name == "asyncio+uvloop")

        ran: list[bool] = []

        async def first_step() -> None:
            ran.append(True)

        task = asyncio.create_task(first_step())
        assert bool(ran) == (name == "asyncio+eager")
        await task


_loops: list[object] = []


@pytest.mark.only_on("asyncio")
@pytest.mark.parametrize("time", ["first", "second"])
async def test_each_test_has_a_loop_of_its_own(time: str) -> None:
    loop = asyncio.get_running_loop()
    assert loop not in _loops
    _loops.append(loop)


@pytest.mark.only_on("trio")
async def test_only_on(anyio_backend_name: str) -> None:
    assert anyio_backend_name == "trio"


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match=r"expected one of asyncio, .*, got 'curio'"):
        backend_options("curio")
    with pytest.raises(ValueError, match=r"got 'asyncio\+uvloop'"):
        backend_options("asyncio+uvloop", virtual_time=True)


# --- virtual time ---


@pytest.mark.virtual_time
class TestVirtualTime:
    async def test_sleep_takes_no_time(self) -> None:
        assert anyio.current_time() == 0
        await anyio.sleep(3600)
        assert anyio.current_time() == 3600

    async def test_move_on_after(self) -> None:
        with anyio.move_on_after(5) as scope:
            await anyio.sleep(10)
        assert scope.cancelled_caught
        assert anyio.current_time() == 5

        with anyio.move_on_after(10) as scope:
            await anyio.sleep(5)
        assert not scope.cancelled_caught
        assert anyio.current_time() == 10

    async def test_fail_after(self) -> None:
        with pytest.raises(TimeoutError):
            with anyio.fail_after(5):
                await anyio.sleep_forever()
        assert anyio.current_time() == 5

    async def test_timers_fire_in_order(self) -> None:
        fired: list[tuple[int, float]] = []

        async def sleeper(seconds: int) -> None:
            await anyio.sleep(seconds)
            fired.append((seconds, anyio.current_time()))

        async with anyio.create_task_group() as tg:
            for seconds in (30, 10, 20):
                tg.start_soon(sleeper, seconds)
        assert fired == [(10, 10), (20, 20), (30, 30)]

    async def test_no_time_passes_while_something_can_run(self) -> None:
        async with anyio.create_task_group() as tg:
            tg.start_soon(anyio.sleep, 1)
            for _ in range(100):
                await checkpoint()
            assert anyio.current_time() == 0
        assert anyio.current_time() == 1

    async def test_no_time_passes_if_a_socket_is_ready(self) -> None:
        here, there = socket.socketpair()
        with here, there, anyio.fail_after(1):
            there.send(b"!")
            await anyio.wait_readable(here)
        assert anyio.current_time() == 0

    async def test_with_no_timer_a_thread_is_waited_for(self) -> None:
        # Most of these calls come when the loop has nothing to do and waits for the thread.
        def work() -> int:
            return sum(anyio.from_thread.run(answer) for _ in range(5))

        async def answer() -> int:
            return 2

        async with anyio.create_task_group() as tg:
            tg.start_soon(anyio.sleep_forever)  # has no timer that could be jumped to
            assert await anyio.to_thread.run_sync(work) == 10
            assert anyio.current_time() == 0
            tg.cancel_scope.cancel()


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once a selector is asked to wait without a time limit."""
    event = threading.Event()
    select = selectors.DefaultSelector.select

    def watched(self: Any, timeout: float | None = None) -> Any:
        if timeout is None:
            event.set()
        return select(self, timeout)

    monkeypatch.setattr(selectors.DefaultSelector, "select", watched)
    return event


def test_loop_in_virtual_time_really_blocks_for_a_thread(blocked: threading.Event) -> None:
    async def main() -> bool:
        return await anyio.to_thread.run_sync(blocked.wait, 5)

    backend, options = backend_options("asyncio", virtual_time=True)
    assert anyio.run(main, backend=backend, backend_options=options)


def test_loop_in_virtual_time_lets_its_default_executor_end(blocked: threading.Event) -> None:
    async def main() -> None:
        asyncio.get_running_loop().run_in_executor(None, blocked.wait, 5)

    backend, options = backend_options("asyncio", virtual_time=True)
    anyio.run(main, backend=backend, backend_options=options)  # no warning of threads left


def test_timer_at_infinity_can_be_cancelled() -> None:
    loop = VirtualTimeLoop()
    try:
        handle = loop.call_at(math.inf, print)
        handle.cancel()
        assert handle.cancelled()
    finally:
        loop.close()


# --- nothing left ---


_tasks: list[asyncio.Task[None]] = []  # asyncio alone keeps no task alive


async def _boom() -> None:
    raise ValueError("nobody asks")


def test_pending_task_is_seen(leftovers: list[str]) -> None:
    async def main() -> None:
        _tasks.append(asyncio.get_running_loop().create_task(anyio.sleep(1), name="forgotten"))

    anyio.run(main)
    (line,) = leftovers
    assert line.startswith("left pending: <Task pending name='forgotten'")
    leftovers.clear()


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "trio"])
def test_unretrieved_error_is_seen(
    backend: str, leftovers: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        task = asyncio.get_running_loop().create_task(_boom())
        await asyncio.wait([task])

    library, options = backend_options(backend)
    anyio.run(main, backend=library, backend_options=options)
    gc.collect()
    (line,) = leftovers
    leftovers.clear()
    assert line.startswith("Task exception was never retrieved")
    assert "ValueError('nobody asks')" in line
    assert "never retrieved" in caplog.text  # asyncio's own handler was called as ever


@pytest.fixture
async def group_with_a_task() -> Any:
    async with anyio.create_task_group() as tg:
        tg.start_soon(anyio.sleep_forever)
        yield tg
        tg.cancel_scope.cancel()


async def test_task_of_a_fixture_is_none_of_the_tests_leftovers(
    group_with_a_task: anyio.abc.TaskGroup, leftovers: list[str]
) -> None:
    await wait_all_tasks_blocked()
    assert leftovers == []


def test_guard_fails_a_test(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text())
    pytester.makepyfile(
        """
        import asyncio
        import pytest

        pytestmark = [pytest.mark.anyio, pytest.mark.only_on("asyncio")]
        tasks = []

        async def test_task_left():
            tasks.append(asyncio.get_running_loop().create_task(asyncio.sleep(1)))

        async def test_error_in_a_cycle():
            future = asyncio.get_running_loop().create_future()
            future.set_exception(ValueError("nobody asks"))
            future.itself = [future]

        async def test_never_awaited():
            asyncio.sleep(0)

        async def test_fine():
            await asyncio.sleep(0)

        def test_meant(leftovers):
            asyncio.run(test_task_left())
            assert len(leftovers) == 1
            leftovers.clear()
        """
    )
    result = pytester.runpytest_subprocess(
        *PYTEST[3:],
        *("--assert=rewrite", "-W", "error", "--tb=short", "-k", "not uvloop and not eager"),
    )
    result.assert_outcomes(passed=4, failed=1, errors=2)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_task_left[[]asyncio] *",
            "E *left pending: <Task pending *",
            "*ERROR at teardown of test_error_in_a_cycle[[]asyncio] *",
            "E *Future exception was never retrieved*",
            "*test_never_awaited[[]asyncio] *",
            "E *PytestUnraisableExceptionWarning: * <coroutine object sleep *",
        ]
    )


# --- recording ---


async def test_recorder() -> None:
    double: Recorder[int, int] = Recorder(lambda key: 2 * key)
    assert await double([1, 2]) == [2, 4]
    assert await double([]) == []
    assert double.calls == [[1, 2], []]


async def test_recorder_waits_at_its_gate() -> None:
    double: Recorder[int, int] = Recorder(lambda key: 2 * key, gate=anyio.Event())
    events: list[str] = []

    async def call() -> None:
        assert await double([1]) == [2]
        events.append("returned")

    async with anyio.create_task_group() as tg:
        tg.start_soon(call)
        await wait_all_tasks_blocked()
        assert double.calls == [[1]]
        assert events == []
        assert double.gate is not None
        double.gate.set()
    assert events == ["returned"]


async def test_wait_all_tasks_blocked() -> None:
    rounds = 0

    async def busy() -> None:
        nonlocal rounds
        for _ in range(25):
            await checkpoint()
            rounds += 1
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tg:
        tg.start_soon(busy)
        tg.start_soon(busy)
        await wait_all_tasks_blocked()
        assert rounds == 50
        tg.cancel_scope.cancel()


async def test_wait_all_tasks_blocked_sees_tasks_that_wake_each_other() -> None:
    events = [anyio.Event() for _ in range(40)]

    async def every_other(first: int) -> None:
        for mine, theirs in zip(events[first::2], events[1 - first :: 2], strict=True):
            if first == 0:
                mine.set()
            await theirs.wait()
            if first == 1:
                mine.set()

    async with anyio.create_task_group() as tg:
        tg.start_soon(every_other, 0)
        tg.start_soon(every_other, 1)
        await wait_all_tasks_blocked()
        assert events[-1].is_set()


@pytest.mark.virtual_time
async def test_wait_all_tasks_blocked_leaves_the_clock_alone() -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(anyio.sleep, 0.01)
        await wait_all_tasks_blocked()
        assert anyio.current_time() == 0


@pytest.mark.only_on("asyncio")
async def test_wait_all_tasks_blocked_sees_chains_of_callbacks() -> None:
    inner: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    events: list[str] = []

    async def waiter() -> None:
        await asyncio.gather(asyncio.gather(asyncio.gather(inner)))
        events.append("woken")

    async with anyio.create_task_group() as tg:
        tg.start_soon(waiter)
        await wait_all_tasks_blocked()
        inner.set_result(None)
        await wait_all_tasks_blocked()
        assert events == ["woken"]
