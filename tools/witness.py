"""Runs other loaders' own tests against anyloader, from an sdist or a checkout of theirs.

``pip download --no-binary :all: --no-deps aiodataloader==0.4.3`` and then
``python tools/witness.py aiodataloader aiodataloader-0.4.3.tar.gz``; or
``python tools/witness.py strawberry path/to/a/checkout/of/strawberry``.

Each test runs in a ``LoaderScope`` of its own. What fails is listed with the reason why it has to;
the exit status is 1 if a test fails for which there is no reason here, or passes against one.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import io
import sys
import tarfile
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from anyloader import BatchResultError, LoaderScope
from anyloader.compat import DataLoader

if TYPE_CHECKING:
    from typing_extensions import Self

_TWO_LOADS = (
    "two loads of one key share its value, but each has a handle of its own, so that one can be "
    "given up without the other"
)
_NO_RESULT = "nobody can settle a load from outside and so give other waiters a value of his own"
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
        "test_returning_wrong_number_of_results": "expects another text in the error",
        "test_caches_by_id": _TWO_LOADS,
        "test_caches_by_id_when_loading_many": _TWO_LOADS,
        "test_prime": "prime() leaves a key that is pending alone, unless force=True",
        "test_prime_nocache": "with the cache off prime() changes nothing",
        "test_dont_dispatch_cancelled": "a timeout ends the await and not the load of others",
        "test_cancelled_future_with_failing_loader": _TURNS,
        "test_cancelled_futures_cancel_dispatch_task": _PRIVATE,
        "test_cancelled_futures_cancel_running_dispatch": _PRIVATE,
        "test_partial_cancellation_still_dispatches": _TURNS,
        "test_cache_override": "expects another text in the error, which here names the key",
        "test_works_when_created_in_a_different_loop": "loads without any scope to run in",
    },
}

TESTS = {"aiodataloader": "test_aiodataloader.py", "strawberry": "tests/test_dataloaders.py"}


class StrawberryLoader(DataLoader[Any, Any]):
    """Takes the arguments of ``strawberry.dataloader.DataLoader``."""

    def __init__(
        self,
        load_fn: Any,
        max_batch_size: int | None = None,
        cache: bool = True,
        loop: object = None,
        cache_map: Any = None,
        cache_key_fn: Any = None,
    ) -> None:
        super().__init__(
            load_fn,
            max_batch_size=max_batch_size,
            cache=cache,
            cache_map=None if cache_map is None else _AsMapping(cache_map),
            get_cache_key=cache_key_fn,
        )

    def prime(self, key: Any, value: Any, force: bool = False) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().prime(key, value, force=force)


class _AsMapping(dict[Any, Any]):
    """A cache of Strawberry's protocol as a mapping."""

    def __init__(self, cache: Any) -> None:
        super().__init__()
        self._cache = cache

    def get(self, key: Any, default: Any = None) -> Any:
        found = self._cache.get(key)
        return default if found is None else found

    def __setitem__(self, key: Any, value: Any) -> None:
        self._cache.set(key, value)

    def pop(self, key: Any, default: Any = None) -> Any:
        found = self.get(key, default)
        if found is not default:
            self._cache.delete(key)
        return found

    def clear(self) -> None:
        self._cache.clear()


class _AbstractCache:
    """Strawberry's protocol."""

    def __class_getitem__(cls, item: object) -> type:
        return cls


def stand_ins(peer: str) -> dict[str, ModuleType]:
    """The modules that the tests import, by their names."""

    def module(name: str, **content: Any) -> ModuleType:
        made = ModuleType(name)
        vars(made).update(content)
        return made

    if peer == "aiodataloader":
        return {"aiodataloader": module("aiodataloader", DataLoader=DataLoader)}
    return {
        "strawberry": module("strawberry", __path__=[]),
        "strawberry.dataloader": module(
            "strawberry.dataloader", DataLoader=StrawberryLoader, AbstractCache=_AbstractCache
        ),
        "strawberry.exceptions": module(
            "strawberry.exceptions", WrongNumberOfResultsReturned=BatchResultError
        ),
        "pytest_mock": module("pytest_mock", MockerFixture=object),
    }


class Plugin:
    """Runs async tests, each in a scope, and keeps what failed."""

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}
        self.passed: list[str] = []

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

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("::")[2]
        if report.failed:
            lines = str(report.longreprtext).splitlines()
            error = next((line for line in reversed(lines) if line.startswith("E ")), lines[-1])
            self.failed[name] = error.removeprefix("E").strip()
        elif report.when == "call":
            self.passed.append(name)


def run(peer: str, folder: Path) -> Plugin:
    name = Path(TESTS[peer])
    found = [path for path in folder.rglob(name.name) if path.match(str(name))]
    if len(found) != 1:
        raise SystemExit(f"expected one {name} in {folder}, found {len(found)}")
    tests = found[0]
    plugin = Plugin()
    with mock.patch.dict(sys.modules, stand_ins(peer)):
        options = ["-q", "--no-header", "--tb=short", "--show-capture=no", "--noconftest"]
        options += [
            "-p",
            "no:cacheprovider",
            "-p",
            "no:anyio",
            "-p",
            "no:asyncio",
            "-c",
            "/dev/null",
        ]
        options += ["-W", "ignore", "--rootdir", str(folder)]
        with redirect_stdout(io.StringIO()):
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
