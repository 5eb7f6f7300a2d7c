"""Runs other loaders' own tests against anyloader, from an sdist or a checkout of theirs.

``pip download --no-binary aiodataloader --no-deps aiodataloader==0.4.3`` and then
``python tools/witness.py aiodataloader aiodataloader-0.4.3.tar.gz``; or
``python tools/witness.py strawberry path/to/a/checkout/of/strawberry``.

Likewise the whole suites of two libraries that are built upon aiodataloader, ``graphene-sqlalchemy`` and
``pydantic-resolve``, in an environment that has all that their tests need: pytest<9, pytest-asyncio, and
graphene, promise, SQLAlchemy<2.1, aiosqlite, sqlalchemy_utils, nest_asyncio, pytest-benchmark, or pydantic, fastapi,
fastmcp, django, tortoise-orm, psutil.

Each test runs in a ``LoaderScope`` of its own. What fails is listed with the reason why it has to;
the exit status is 1 if a test fails for which there is no reason here, or passes against one.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import io
import os
import sys
import tarfile
import tempfile
from contextlib import redirect_stdout
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

from anyloader import BatchResultError, LoaderScope
from anyloader.compat import DataLoader
from anyloader.compat_strawberry import AbstractCache
from anyloader.compat_strawberry import DataLoader as StrawberryLoader

_TWO_LOADS = (
    "two loads of one key share its value, but each has a handle of its own, so that one can be "
    "given up without the other"
)
_NO_RESULT = "nobody can settle a load from outside and so give other waiters a value of his own"
_TEXT = "expects another text in the error"
_PRIVATE = "looks at attributes of the other loader's inside"
_TURNS = (
    "counts turns of the event loop: a batch leaves after one whole quiet round, which takes two "
    "turns more"
)

#: By test: why it has to fail.
REASONS: dict[str, dict[str, str]] = {
    "aiodataloader": {
        "test_coalesces_identical_requests": _TWO_LOADS,
        "test_does_not_attempt_to_set_future_with_result": _NO_RESULT,
        "test_does_not_attempt_to_set_future_with_exception": _NO_RESULT,
        "test_does_not_attempt_to_set_done_future_in_failed_dispatch": _NO_RESULT,
    },
    "strawberry": {
        "test_returning_wrong_number_of_results": _TEXT,
        "test_caches_by_id": _TWO_LOADS,
        "test_caches_by_id_when_loading_many": _TWO_LOADS,
        "test_prime": "prime() leaves a key that is pending alone, unless force=True",
        "test_prime_nocache": "with the cache off prime() changes nothing",
        "test_dont_dispatch_cancelled": "a timeout ends the await and not the load of others",
        "test_cancelled_future_with_failing_loader": _TURNS,
        "test_cancelled_futures_cancel_dispatch_task": _PRIVATE,
        "test_cancelled_futures_cancel_running_dispatch": _PRIVATE,
        "test_partial_cancellation_still_dispatches": _TURNS,
        "test_works_when_created_in_a_different_loop": "loads without any scope to run in",
    },
    "graphene-sqlalchemy": {},
    "pydantic-resolve": {
        "test_field_fn_returns_none": _TEXT,
        "test_load_many_fn_returns_none": _TEXT,
    },
}

#: A file of tests, which runs with nothing around it.
TESTS = {"aiodataloader": "test_aiodataloader.py", "strawberry": "tests/test_dataloaders.py"}

#: By a file in it, the folder of a whole suite, which runs with its own configuration and plugins.
SUITES = {
    "graphene-sqlalchemy": "graphene_sqlalchemy/tests/test_batching.py",
    "pydantic-resolve": "tests/core/test_field.py",
}


def stand_ins(peer: str) -> dict[str, ModuleType]:
    """The modules that the tests import, by their names."""

    def module(name: str, **content: Any) -> ModuleType:
        made = ModuleType(name)
        vars(made).update(content)
        return made

    if peer != "strawberry":
        names = ("aiodataloader", "graphene.utils.dataloader")  # of which the latter is a copy
        return {name: module(name, DataLoader=DataLoader) for name in names}
    return {
        "strawberry": module("strawberry", __path__=[]),
        "strawberry.dataloader": module(
            "strawberry.dataloader", DataLoader=StrawberryLoader, AbstractCache=AbstractCache
        ),
        "strawberry.exceptions": module(
            "strawberry.exceptions", WrongNumberOfResultsReturned=BatchResultError
        ),
        "pytest_mock": module("pytest_mock", MockerFixture=object),
    }


class Plugin:
    """Keeps what failed."""

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}
        self.passed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("::")[2]
        if report.failed:
            lines = str(report.longreprtext).splitlines()
            error = next((line for line in reversed(lines) if line.startswith("E ")), lines[-1])
            self.failed[name] = error.removeprefix("E").strip()
        elif report.when == "call":
            self.passed.append(name)


class PluginOfTests(Plugin):
    """Runs async tests, each in a scope."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool | None:
        if not inspect.iscoroutinefunction(pyfuncitem.obj):
            return None
        names = inspect.signature(pyfuncitem.obj).parameters
        arguments = {name: pyfuncitem.funcargs[name] for name in names}

        async def run() -> None:
            async with LoaderScope():
                await asyncio.wait_for(pyfuncitem.obj(**arguments), 10)

        asyncio.run(run())
        return True

    @pytest.fixture
    def mocker(self) -> Any:
        return mock


class PluginOfSuites(Plugin):
    """Gives each async test a scope; pytest-asyncio runs them."""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            test = getattr(item, "obj", None)
            if inspect.iscoroutinefunction(test):
                item.obj = _in_a_scope(test)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


def _in_a_scope(test: Any) -> Any:
    @wraps(test)
    async def run(*args: Any, **kwargs: Any) -> None:
        async with LoaderScope():
            await test(*args, **kwargs)

    return run


def run(peer: str, folder: Path) -> Plugin:
    name = Path(TESTS.get(peer) or SUITES[peer])
    found = [path for path in folder.rglob(name.name) if path.match(str(name))]
    if len(found) != 1:
        raise SystemExit(f"expected one {name} in {folder}, found {len(found)}")
    options = ["-q", "--no-header", "--tb=short", "--show-capture=no", "-W", "ignore"]
    options += ["-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:xdist"]
    plugin: Plugin
    if peer in TESTS:
        plugin, tests = PluginOfTests(), found[0]
        options += ["--noconftest", "-p", "no:anyio", "-p", "no:asyncio", "-c", "/dev/null"]
        options += ["--rootdir", str(folder)]
    else:
        root = found[0].parents[len(name.parts) - 1]
        plugin, tests = (
            PluginOfSuites(),
            root.joinpath(*name.parts[: name.parts.index("tests") + 1]),
        )
        options += ["--rootdir", str(root), "--ignore-glob", "*test_benchmark.py"]
        os.chdir(root)
    with mock.patch.dict(sys.modules, stand_ins(peer)), redirect_stdout(io.StringIO()):
        pytest.main([*options, str(tests)], plugins=[plugin])
    return plugin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=REASONS)
    parser.add_argument("path", type=Path, help="an sdist, or a folder")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.path
        if folder.is_file():
            with tarfile.open(folder) as archive:
                archive.extractall(temporary, filter="data")
            folder = Path(temporary)
        found = run(options.peer, folder.resolve())

    reasons = REASONS[options.peer]
    for name, error in found.failed.items():
        print(f"{name}\n    fails: {error}\n    {reasons.get(name, 'NOT KNOWN WHY')}")
    for name in found.passed:
        if name in reasons:
            print(f"{name}\n    passes, though: {reasons[name]}")
    print(f"{options.peer}: {len(found.passed)} passed, {len(found.failed)} failed")
    return int(not found.passed or found.failed.keys() != reasons.keys())


if __name__ == "__main__":
    sys.exit(main())
