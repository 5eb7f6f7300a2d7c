"""The option ``anyloader_unbatched`` of our pytest plugin fails tests whose loads do not batch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.programs import PYTEST

HELPERS = """
import asyncio
import sys
import threading

import anyio
import pytest

from anyloader import DataLoader, LoaderScope, batch_loader

@batch_loader
async def fetch(keys):
    return keys

async def show(key):
    return await fetch.load(key)

async def one_by_one(n):
    for key in range(n):
        await show(key)  # the loop
"""


class Run:
    def __init__(self, folder: Path, test: str, *options: str, ini: str = "") -> None:
        (folder / "test_it.py").write_text(HELPERS + test)
        (folder / "pytest.ini").write_text(f"[pytest]\n{ini}\n")
        command = [*PYTEST, *options, "--strict-markers", "-W", "error", "test_it.py"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=50)
        self.out = done.stdout + done.stderr
        self.code = done.returncode

    def counts(self) -> dict[str, int]:
        last = self.out.splitlines()[-1]
        return {word: int(n) for n, word in re.findall(r"(\d+) (\w+)", last) if word != "in"}


SCOPED = """
@pytest.fixture
async def scope():
    async with LoaderScope() as scope:
        yield scope

@pytest.mark.anyio
async def test_one_by_one(scope):
    for key in range(10):
        await show(key)  # the loop

@pytest.mark.anyio
async def test_nine(scope):
    for key in range(9):
        await show(key)

@pytest.mark.anyio
async def test_together(scope):
    await fetch.load_many(range(30))

@pytest.mark.anyio
async def test_requests():
    for key in range(20):
        async with LoaderScope():
            await show(key)
"""


@pytest.mark.parametrize("backends", ["asyncio", "trio"])
def test_it_fails_a_test_and_names_the_line_of_the_loop(tmp_path: Path, backends: str) -> None:
    fixture = f"@pytest.fixture\ndef anyio_backend(): return '{backends}'\n"
    run = Run(tmp_path, fixture + SCOPED, ini="anyloader_unbatched = 10")
    assert run.counts() == {"failed": 1, "passed": 3}, run.out
    assert "fetch got 10 batches of one key in a row from one line" in run.out
    lines = (HELPERS + fixture + SCOPED).splitlines()
    load, loop = (
        number
        for number, line in enumerate(lines, 1)
        if "fetch.load(key)" in line or ("# the loop" in line and number > 25)
    )
    assert f"test_it.py:{load}, called at {tmp_path}/test_it.py:{loop};" in run.out


def test_it_is_off_by_default(tmp_path: Path) -> None:
    test = SCOPED + (
        "\ndef test_unused(): assert 'anyloader._pytest_unbatched' not in sys.modules\n"
        "@pytest.mark.anyloader_unbatched(3)\ndef test_marked(): pass\n"
    )
    run = Run(tmp_path, "@pytest.fixture\ndef anyio_backend(): return 'asyncio'\n" + test)
    assert run.counts() == {"passed": 6}, run.out


EVERYWHERE = """
def run_one_by_one():
    async def main():
        async with LoaderScope():
            await one_by_one(5)
    asyncio.run(main())

def test_a_run_of_its_own():
    run_one_by_one()

def test_a_thread():
    thread = threading.Thread(target=run_one_by_one)
    thread.start()
    thread.join()

def test_with_a_hook_of_its_own():
    async def main():
        async with LoaderScope(hooks=[print]) as scope:
            await one_by_one(5)
    asyncio.run(main())

@pytest.fixture(scope="module")
def loop():
    with asyncio.Runner() as runner:  # its tasks have the context of the first test
        yield runner

@pytest.mark.parametrize("n", [1, 2, 5, 5])
def test_a_loop_and_a_scope_of_several_tests(loop, n):
    if not hasattr(loop, "anyloader"):
        loop.anyloader = loop.run(LoaderScope().open())
    async def main():
        loader = loop.anyloader.get(fetch)
        loader.clear_all()
        for key in range(n):
            await loader.load(key)
    loop.run(main())

def test_leave(loop):
    loop.run(loop.anyloader.aclose())

@pytest.mark.anyloader_unbatched(0)
def test_allowed():
    run_one_by_one()

@pytest.mark.anyloader_unbatched(6)
def test_another_number():
    run_one_by_one()

@pytest.mark.xfail(strict=True)
def test_expected():
    run_one_by_one()

def test_that_fails_by_itself():
    run_one_by_one()
    assert False, "its own"

@pytest.fixture
def teardown():
    yield
    run_one_by_one()

def test_teardown(teardown):
    pass

def test_that_is_good():
    pass

@pytest.mark.parametrize("marker", [
    pytest.param(1, marks=pytest.mark.anyloader_unbatched),
    pytest.param(2, marks=pytest.mark.anyloader_unbatched("2")),
    pytest.param(3, marks=pytest.mark.anyloader_unbatched(-1)),
])
def test_marked_wrongly(marker):
    pass
"""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.Runner")
def test_it_sees_all_loops_and_threads_and_each_test_for_itself(tmp_path: Path) -> None:
    run = Run(tmp_path, EVERYWHERE, "--anyloader-unbatched=5", "-rA", ini="anyloader_unbatched=99")
    outcomes = {
        test: outcome
        for outcome, test in re.findall(r"^([A-Z]+) test_it.py::(\S+)", run.out, re.MULTILINE)
    }
    name = "test_a_loop_and_a_scope_of_several_tests"
    assert outcomes == {
        "test_a_run_of_its_own": "FAILED",
        "test_a_thread": "FAILED",
        "test_with_a_hook_of_its_own": "FAILED",
        f"{name}[1]": "PASSED",
        f"{name}[2]": "PASSED",
        f"{name}[5_0]": "FAILED",
        f"{name}[5_1]": "FAILED",
        "test_leave": "PASSED",
        "test_allowed": "PASSED",
        "test_another_number": "PASSED",
        "test_expected": "XFAIL",
        "test_that_fails_by_itself": "FAILED",
        "test_teardown": "ERROR",
        "test_that_is_good": "PASSED",
        "test_marked_wrongly[1]": "ERROR",
        "test_marked_wrongly[2]": "ERROR",
        "test_marked_wrongly[3]": "ERROR",
    }, run.out
    assert "AssertionError: its own" in run.out
    assert run.out.count("takes an int >= 0") >= 3


@pytest.mark.parametrize("wrong", ["many", "-1", ""])
def test_a_wrong_number_is_refused(tmp_path: Path, wrong: str) -> None:
    run = Run(tmp_path, "", f"--anyloader-unbatched={wrong}")
    assert run.code == pytest.ExitCode.USAGE_ERROR
    assert f"anyloader_unbatched must be an int >= 0, not {wrong!r}" in run.out


NESTED = """
@batch_loader
async def with_details(keys):
    await one_by_one(5)
    return keys

@pytest.mark.anyio
async def test_in_a_batch_function():
    async with LoaderScope():
        await with_details.load(1)
"""


def test_it_sees_loaders_that_a_batch_function_uses_first(tmp_path: Path) -> None:
    fixture = "@pytest.fixture\ndef anyio_backend(): return 'asyncio'\n"
    run = Run(tmp_path, fixture + NESTED, ini="anyloader_unbatched = 5")
    assert run.counts() == {"failed": 1}, run.out
    assert "fetch got 5 batches of one key in a row from one line" in run.out
