"""``anyloader.testing``: what users test their own batching with."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyloader import (
    DataLoader,
    LoaderScope,
    batch_loader,
    schedules,
)
from anyloader.hooks import LoadHit
from anyloader.testing import RecordingBatchFn, assert_batches, max_batches
from support import Recorder, wait_all_tasks_blocked
from support.programs import PYTEST

pytestmark = pytest.mark.anyio


async def echo(keys: list[int]) -> list[int]:
    return keys


# --- RecordingBatchFn ---


async def test_without_a_value_keys_are_their_own_values() -> None:
    fetch = RecordingBatchFn[int, int]()
    async with DataLoader(fetch) as loader:
        assert await loader.load_many([1, 2]) == [1, 2]
        assert await loader.load(3) == 3
    assert fetch.batches == [[1, 2], [3]]
    assert repr(fetch) == "<RecordingBatchFn: 2 batches [[1, 2], [3]]>"


@pytest.mark.parametrize("how", ["return", "raise"])
async def test_a_value_that_is_an_error_fails_its_key_alone(how: str) -> None:
    def value(key: int) -> str | Exception:
        if key < 0:
            if how == "raise":
                raise KeyError(key)
            return KeyError(key)
        return str(key)

    async with DataLoader(RecordingBatchFn(value)) as loader:
        got = await loader.load_many([1, -1], return_exceptions=True)
        assert got[0] == "1"
        assert repr(got[1]) == "KeyError(-1)"


async def test_an_error_fails_the_whole_batch_and_can_be_taken_back() -> None:
    fetch = RecordingBatchFn(str, error=ConnectionError("down"))
    async with DataLoader(fetch) as loader:
        with pytest.raises(ConnectionError, match="down"):
            await loader.load(1)
        fetch.error = None
        assert await loader.load(1) == "1"
    assert fetch.batches == [[1], [1]]


async def test_calls_wait_for_the_gate() -> None:
    gate = anyio.Event()
    async with DataLoader(RecordingBatchFn(str, gate=gate)) as loader:
        load = loader.load(1)
        await wait_all_tasks_blocked()
        assert load.status is load.Status.PENDING
        gate.set()
        assert await load == "1"


# --- assert_batches ---


async def test_assert_batches_compares_with_what_the_loader_has_sent() -> None:
    fetch = RecordingBatchFn(str)
    async with DataLoader(fetch, max_batch_size=2) as loader:
        assert_batches(loader, [])
        await loader.load_many([1, 2, 3])
        for source in (loader, fetch):
            assert_batches(source, [[1, 2], [3]])
            assert_batches(source, ((1, 2), (3,)))
            assert_batches(source, [[3], [2, 1]], any_order=True)
        for wrong in ([[1, 2]], [[3], [1, 2]], [[1, 2, 3]]):
            with pytest.raises(AssertionError):
                assert_batches(loader, wrong)
        with pytest.raises(AssertionError):
            assert_batches(loader, [[1], [2, 3]], any_order=True)


async def test_its_message_shows_both() -> None:
    async with DataLoader(RecordingBatchFn(str)) as loader:
        await loader.load_many([1, 2])
        with pytest.raises(AssertionError) as caught:
            assert_batches(loader, [[1], [2]])
    assert str(caught.value).splitlines() == [
        "the batches of str are not as expected",
        "expected: 2 batches",
        "  1. [1]",
        "  2. [2]",
        "actual: 1 batch",
        "  1. [1, 2]",
    ]


async def test_it_takes_a_batch_loader_too() -> None:
    users = batch_loader(RecordingBatchFn(str))
    async with LoaderScope():
        assert await users.load(1) == "1"
    assert_batches(users, [[1]])


@pytest.mark.parametrize("wrong", [1, DataLoader(echo), None])
def test_it_refuses_what_records_nothing(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"^assert_batches\(\) needs a RecordingBatchFn"):
        assert_batches(wrong, [])


# --- max_batches ---


@contextmanager
def too_many(*parts: str) -> Iterator[None]:
    with pytest.raises(AssertionError) as caught:
        yield
    for part in parts:
        assert part in str(caught.value)


async def test_as_many_as_allowed_pass() -> None:
    async with DataLoader(echo) as loader:
        with max_batches(0):
            pass
        with max_batches(2):
            await loader.load_many([1, 2])
            await loader.load(3)
            await loader.load(1)
        await loader.load(4)


async def test_one_more_fails_with_its_keys_and_the_lines_that_loaded_them() -> None:
    async def show(key: int) -> int:
        return await loader.load(key)

    async with DataLoader(echo) as loader:
        with pytest.raises(AssertionError) as caught, max_batches(1):
            for key in (1, 2, 3):
                await show(key)
    lines = str(caught.value).splitlines()
    first, name = show.__code__.co_firstlineno, "one_more_fails_with_its_keys_and_the_lines_that"
    assert lines[:4] == [
        "expected at most 1 batch, got 3; too many:",
        "  2. echo [2]",
        f"       2 from {__file__}:{first + 1} in show",
        f"         called at {__file__}:{first + 6} in test_{name}_loaded_them",
    ]
    assert lines[-1] == "  3. from the same lines: [3]"  # before it may stand what runs the tests
    assert all(__file__ in line for line in lines if ".py:" in line)


async def test_batches_that_one_loop_has_sent_are_said_once() -> None:
    async with DataLoader(echo) as loader, DataLoader(echo, name="other") as other:
        with pytest.raises(AssertionError) as caught, max_batches(1):
            for key in range(30):
                await loader.load(key)
            await other.load(1)
            await other.load(2)
            await other.load(3)
    lines = [line for line in str(caught.value).splitlines() if not line.startswith("     ")]
    assert lines == [
        "expected at most 1 batch, got 33; too many:",
        "  2. echo [1]",
        "  3. to 30. from the same lines: [2], [3], [4], [5], [6], ...",
        "  31. other [1]",
        "  32. other [2]",
        "  33. other [3]",
    ]


async def test_of_many_batches_the_first_ones_are_shown() -> None:
    async with DataLoader(echo) as one, DataLoader(echo, name="two") as two:
        with too_many("got 30; too many:", "  1. echo [0]", " 10. two [4]", "  and 20 more"):
            with max_batches(0):
                for key in range(15):
                    for loader in one, two:
                        await loader.load(key)


async def test_loaders_opened_before_the_block_and_in_it_and_in_scopes_count() -> None:
    async def other(keys: list[int]) -> list[int]:
        return keys

    async def third(keys: list[int]) -> list[int]:
        return keys

    async with LoaderScope() as scope, DataLoader(echo) as before:
        with too_many("got 3;", "echo [1]", "other [2]", "third [3]"), max_batches(0):
            await before.load(1)
            await scope.get(other).load(2)
            async with DataLoader(third) as within:
                await within.load(3)


async def test_batches_that_were_loaded_by_batch_functions_count() -> None:
    async def inner(keys: list[int]) -> list[int]:
        return keys

    async def outer(keys: list[int]) -> list[int]:
        return await low.load_many(keys)

    async with DataLoader(inner) as low, DataLoader(outer) as high:
        with too_many("got 2;", "outer [1]", "inner [1]"), max_batches(0):
            await high.load(1)


async def test_tasks_started_in_the_block_count() -> None:
    async def call(key: int) -> None:
        await loader.load(key)
        await loader.load(key)

    async with DataLoader(echo) as loader:
        with too_many("got 1;"), max_batches(0):
            loader.load_many([1, 1])
            async with anyio.create_task_group() as group:
                for key in range(3):
                    group.start_soon(call, key)


async def test_only_one_loader_can_be_guarded() -> None:
    async with DataLoader(echo, name="one") as one, DataLoader(echo, name="two") as two:
        with max_batches(1, loader="one"):
            await one.load(1)
            await two.load(1)
            await two.load(2)
        with too_many("got 1;", "two [3]"), max_batches(0, loader="two"):
            await one.load(3)
            await two.load(3)


async def test_hits_and_loads_that_nobody_wants_any_more_are_no_batches() -> None:
    async def give_up() -> None:
        await loader.load(2)

    async with DataLoader(echo) as loader:
        await loader.load(1)
        with max_batches(0):
            await loader.load(1)
            async with anyio.create_task_group() as group:
                group.start_soon(give_up)
                await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
            await wait_all_tasks_blocked()


async def test_a_batch_that_was_sent_before_the_block_does_not_count() -> None:
    async with LoaderScope() as scope:
        loader = scope.get(batch_loader(schedule=schedules.manual())(echo))
        load = loader.load(1)
        loader.dispatch()
        with max_batches(0):
            assert await load == 1


async def test_blocks_can_be_nested_and_each_counts_for_itself() -> None:
    async with DataLoader(echo) as loader:
        with max_batches(3):
            await loader.load(1)
            with too_many("got 2;"), max_batches(1):
                await loader.load(2)
                await loader.load(3)
        with max_batches(0):
            pass
        with too_many("got 1;"), max_batches(0):
            await loader.load(4)


async def test_what_the_block_raises_goes_on_alone() -> None:
    async with DataLoader(echo) as loader:
        with pytest.raises(KeyError), max_batches(0):
            await loader.load(1)
            raise KeyError


async def test_after_the_block_nothing_is_left_of_it() -> None:
    async with DataLoader(echo) as loader:
        with max_batches(1):
            await loader.load(1)
            assert loader.__anyloader__.hooks is not None
        await loader.load(2)
        assert loader.__anyloader__.hooks is None


@pytest.mark.parametrize(
    ("wrong", "error"), [(1.5, TypeError), (True, TypeError), (-1, ValueError)]
)
def test_a_wrong_number_is_refused(wrong: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"max_batches\(\) takes an int"), max_batches(wrong):
        pass


def test_it_works_around_a_whole_run() -> None:
    async def main() -> None:
        async with DataLoader(echo) as loader:
            await loader.load(1)
            await loader.load(2)

    with too_many("got 2;", "in main"), max_batches(1):
        anyio.run(main)


# --- the fixture ---


async def test_the_fixture_is_max_batches(
    max_batches: Callable[..., AbstractContextManager[None]],
) -> None:
    async with DataLoader(echo) as loader:
        with too_many("got 1;"), max_batches(0):
            await loader.load(1)


def test_the_plugin_imports_nothing_more_before_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys\n"
        "def test_unused(): assert 'anyloader.testing' not in sys.modules\n"
        "def test_used(max_batches): assert 'anyloader.testing' in sys.modules\n"
    )
    command = [*PYTEST, "-q", "test_it.py"]
    environment = {name: os.environ[name] for name in os.environ if not name.startswith("COV")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, "2 passed" in done.stdout) == (0, True), done.stdout


async def test_a_loader_keeps_its_own_hooks_after_a_block_that_counted_its_batches() -> None:
    told: list[object] = []
    async with DataLoader(Recorder[int, int](abs), hooks=[told.append]) as loader:
        with max_batches(1):
            await loader.load(1)
        told.clear()
        await loader.load(1)
    assert told == [LoadHit(loader.name, 1)]


async def test_a_loader_that_is_opened_in_a_block_is_counted_whoever_loads() -> None:
    """The task that loads was started before, so that it is in no such block itself."""
    opened = anyio.Event()
    loaders: list[DataLoader[int, int]] = []

    async def load() -> None:
        await opened.wait()
        await loaders[0].load(1)

    async with anyio.create_task_group() as tg:
        tg.start_soon(load)
        with pytest.raises(AssertionError, match="expected at most 0 batches, got 1"):
            with max_batches(0):
                async with DataLoader(Recorder[int, int](abs)) as loader:
                    loaders.append(loader)
                    opened.set()
                    await wait_all_tasks_blocked()


async def test_a_scope_of_a_task_that_was_started_before_a_block_is_outside_of_it() -> None:
    """So are the requests of a server, which run in the context in which it was started."""
    asked = anyio.Event()

    async def serve() -> None:
        await asked.wait()
        async with LoaderScope() as scope:
            assert await scope.get(echo).load(1) == 1

    async with anyio.create_task_group() as tg:
        with too_many("got 1;", "echo [1]"), max_batches(0):
            tg.start_soon(serve)
            await wait_all_tasks_blocked()
            with max_batches(0):
                asked.set()
                await wait_all_tasks_blocked()
