"""``hooks.warn_unbatched`` says where loads do not batch (contract 7)."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from anyloader import DataLoader, LoaderScope, batch_loader
from anyloader.hooks import warn_unbatched
from support import Recorder

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def no_hook_raises(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """As a warning does that is an error: what raises in a hook is logged, and fails no load."""
    yield
    assert not caplog.get_records("call")


async def one_by_one(loader: DataLoader[int, int], keys: range) -> None:
    for key in keys:
        await loader.load(key)


@pytest.mark.parametrize("options", [{}, {"threshold": 4}], ids=str)
async def test_loads_one_by_one_from_one_line_are_a_warning_that_names_it(
    options: dict[str, int],
) -> None:
    threshold = options.get("threshold", 10)
    hook = warn_unbatched(**options)
    async with DataLoader(Recorder[int, int](int), name="fetch_users", hooks=[hook]) as loader:
        with warnings.catch_warnings(record=True) as early:
            warnings.simplefilter("always")
            await one_by_one(loader, range(threshold - 1))
        assert not early
        with pytest.warns(Warning, match="fetch_users") as caught:
            await one_by_one(loader, range(100, 140))
    (warning,) = caught
    assert "test_warn_unbatched.py" in str(warning.message) or warning.filename == __file__
    assert "100" not in str(warning.message)


async def test_loads_that_batch_are_none() -> None:
    async with DataLoader(Recorder[int, int](int), hooks=[warn_unbatched(3)]) as loader:
        for start in range(0, 40, 2):
            await loader.load_many([start, start + 1])


async def test_a_batch_of_several_keys_starts_the_count_anew() -> None:
    async with DataLoader(Recorder[int, int](int), hooks=[warn_unbatched(4)]) as loader:
        for start in range(0, 100, 10):
            await one_by_one(loader, range(start, start + 3))
            await loader.load_many([start + 3, start + 4])


async def test_loads_that_join_one_and_hits_that_wait_are_none() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        if keys == [1]:
            joined.append(loader.load(1))
        return keys

    joined: list[Any] = []
    hook = warn_unbatched(2)
    async with DataLoader(fetch, hooks=[hook], defer_hits=True) as loader:
        await loader.load(1)
        for _ in range(5):
            await loader.load(1)
    assert len(joined) == 1


@pytest.mark.parametrize("options", [{"batch": False}, {"max_batch_size": 1}], ids=str)
async def test_batches_that_may_hold_one_key_only_are_none(options: dict[str, Any]) -> None:
    async with DataLoader(Recorder[int, int](int), hooks=[warn_unbatched(3)], **options) as loader:
        await loader.load_many(range(10))


async def test_on_a_scope_it_tells_loaders_apart() -> None:
    async with LoaderScope(hooks=[warn_unbatched(4)]) as scope:
        loaders: list[Any] = [scope.get(Recorder[int, int](int)) for _ in range(5)]
        for loader in loaders:
            await one_by_one(loader, range(3))


async def test_one_key_in_each_of_many_scopes_is_none() -> None:
    function = batch_loader(hooks=[warn_unbatched(3)])(Recorder[int, int](int))
    for key in range(10):
        async with LoaderScope():
            await function.load(key)


async def test_the_loop_around_a_helper_is_named_too() -> None:
    async def show(key: int) -> int:
        return await loader.load(key)

    async with DataLoader(Recorder[int, int](int), hooks=[warn_unbatched(3)]) as loader:
        with pytest.warns(RuntimeWarning) as caught:  # noqa: PT031
            for key in range(10, 13):
                await show(key)
    (warning,) = caught
    first = show.__code__.co_firstlineno
    assert f"{__file__}:{first + 1}, called at {__file__}:{first + 6}" in str(warning.message)


@pytest.mark.parametrize("threshold", [0, -1, True, "3"])
def test_a_threshold_is_an_int_of_at_least_one(threshold: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        warn_unbatched(threshold)


PROGRAM = """
import anyio
from anyloader import DataLoader

async def fetch(keys):
    return keys

async def main():
    async with DataLoader(fetch) as loader:
        for key in range(30):
            await loader.load(key)

anyio.run(main)
"""


@pytest.mark.parametrize("flags", [[], ["-X", "dev"]], ids=str)
def test_it_is_on_by_itself_in_development_mode_and_never_else(flags: list[str]) -> None:
    process = subprocess.run(
        [sys.executable, *flags, "-c", PROGRAM], capture_output=True, text=True, timeout=30
    )
    assert process.returncode == 0, process.stderr
    lines = [line for line in process.stderr.splitlines() if "Warning" in line]
    assert len(lines) == (1 if flags else 0), process.stderr
