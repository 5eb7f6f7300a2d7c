"""Runs graphql-core's own tests of execution with `AnyioExecutor` in place of the stock executor.

    python tools/graphql_core_suite.py PATH [--backend asyncio|trio] [pytest options]

PATH is an sdist of graphql-core (`graphql_core-3.3.2.tar.gz`, also unpacked) or a checkout, of the
version that is installed; `pip download --no-deps --no-binary graphql-core graphql-core==3.3.2` gets
one. Needs `pytest-describe`.

A test that is to fail is named below, with the reason; the run fails if another test does, or if one
of these passes. Under trio the tests that use asyncio themselves are left out, and so are those of
what is not supported there.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from inspect import iscoroutinefunction, signature
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import anyio
import graphql
import pytest

from anyloader.integrations.graphql import AnyioExecutor

_ORDER = "wants errors in the order in which they come on asyncio; under trio they are sorted"
_SIBLING = "wants the error of a sibling that failed later; here it was cancelled before"

#: By backend and line, and by a part of the test's name: why it fails.
INTENDED: dict[tuple[str, str], dict[str, str]] = {
    ("asyncio", "3.3"): {
        "::suppresses_sibling_errors_after_a_non_null_error_bubbles": (
            "counts ticks: it wants a sibling to be pending still three ticks after a field failed; "
            "here it was cancelled before"
        ),
        "::returns_iterator_and_ignores_error_when_stream_payloads_are_filtered[True]": (
            "counts ticks: it wants a stream to have begun when its sibling fails; here a field that "
            "waits for nobody fails a tick earlier"
        ),
    },
    ("trio", "3.3"): {
        "::describe_nulls_a_complex_tree_of_nullable_fields_each::throws": _ORDER,
        "::nullable_and_non_nullable_root_fields_throw_nested_errors": _ORDER,
        "::nullable_and_non_nullable_nested_fields_throw_nested_errors": _ORDER,
    },
    ("asyncio", "3.2"): {
        "::slower_nullable_after_non_nullable_root_field": _SIBLING,
        "::slower_nullable_after_non_nullable_nested_field": _SIBLING,
    },
    ("trio", "3.2"): {},
}

_INCREMENTAL = "@defer and @stream are not supported under trio"
_SUBSCRIPTION = "graphql-core executes subscriptions with asyncio"

#: By line, and by a part of the test's name: why it is left out under trio.
NOT_UNDER_TRIO = {
    "3.3": {
        "/execution/incremental/": _INCREMENTAL,
        "::throws_if_encountering_async_iterable_execution": _INCREMENTAL,
    },
    "3.2": {"/test_map_async_iterator.py": _SUBSCRIPTION, "/test_subscribe.py": _SUBSCRIPTION},
}

LINE = graphql.version[:3]

#: What graphql-core made with asyncio.
ASYNCIO_PARTS = ("graphql.pyutils.simple_pub_sub", "graphql.pyutils.abort_signal")


class Plugin:
    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.failed: dict[str, str] = {}
        self.passed: list[str] = []
        self.left_out: dict[str, list[str]] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool | None:
        if not iscoroutinefunction(pyfuncitem.obj):
            return None
        arguments = {
            name: pyfuncitem.funcargs[name] for name in signature(pyfuncitem.obj).parameters
        }
        anyio.run(partial(pyfuncitem.obj, **arguments), backend=self.backend)
        return True

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        if self.backend != "trio":
            return
        kept = []
        for item in items:
            reason = self._reason(item)
            if reason is None:
                kept.append(item)
            else:
                self.left_out.setdefault(reason, []).append(item.nodeid)
        items[:] = kept

    def _reason(self, item: pytest.Item) -> str | None:
        for part, reason in NOT_UNDER_TRIO[LINE].items():
            if part in item.nodeid:
                return reason
        if uses_asyncio(getattr(item, "function", None), set()):
            return "uses asyncio itself"
        return None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed[report.nodeid] = str(report.longrepr).splitlines()[-1]
        elif report.passed and report.when == "call":
            self.passed.append(report.nodeid)


def uses_asyncio(thing: object, seen: set[int]) -> bool:
    """Whether a test uses asyncio: by itself, or through helpers beside it."""
    if id(thing) in seen:
        return False
    seen.add(id(thing))
    if isinstance(thing, ModuleType):
        return thing.__name__.partition(".")[0] == "asyncio"
    module = str(getattr(thing, "__module__", ""))
    if module.partition(".")[0] in ("asyncio", "_asyncio") or module in ASYNCIO_PARTS:
        return True
    if not module.startswith("tests."):
        return False
    if isinstance(thing, type):
        return any(uses_asyncio(value, seen) for value in vars(thing).values())
    if not isinstance(thing, FunctionType):
        return False
    used = [thing.__globals__.get(name) for name in names(thing.__code__)]
    used += [cell.cell_contents for cell in thing.__closure__ or () if cell_is_set(cell)]
    return any(uses_asyncio(value, seen) for value in used)


def names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names(constant)


def cell_is_set(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def use_anyio_executor() -> None:
    """Make it the executor that is used where none is named."""
    module: Any = import_module("graphql.execution.execute")
    if hasattr(module, "IncrementalExecutor"):
        throwing = module.ExecutorThrowingOnIncremental

        # What it overrides raises where a payload would come later, so its methods go first.
        module.IncrementalExecutor = AnyioExecutor
        module.ExecutorThrowingOnIncremental = type("AnyioThrowing", (throwing, AnyioExecutor), {})
    else:
        module.ExecutionContext = AnyioExecutor


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
        (inner,) = Path(folder).iterdir()
        yield inner


def check_version(folder: Path) -> None:
    source = folder / "src" / "graphql" / "version.py"
    if f'version = "{graphql.version}"' not in source.read_text():
        sys.exit(f"{folder} is not of graphql-core {graphql.version}, which is installed")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("path", type=Path, help="an sdist of graphql-core, or a checkout")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    options, rest = parser.parse_known_args()
    if find_spec("pytest_describe") is None:
        sys.exit("pytest-describe is not installed")
    with unpacked(options.path.resolve()) as folder:
        check_version(folder)
        use_anyio_executor()
        plugin = Plugin(options.backend)
        arguments = [
            *("--rootdir", str(folder), "-c", str(folder / "pyproject.toml")),
            *("-o", "addopts=", "-o", "python_classes=PyTest*"),
            *("-p", "no:asyncio", "-p", "no:anyio", "-p", "no:cacheprovider", "-q", "--tb=short"),
            *("-W", "ignore::pytest.PytestUnknownMarkWarning"),
            str(folder / "tests" / "execution"),
            *rest,
        ]
        sys.path.insert(0, str(folder))
        pytest.main(arguments, plugins=[plugin])
    return report(plugin)


def report(plugin: Plugin) -> int:
    intended = INTENDED[plugin.backend, LINE]
    unexpected = {}
    met = set()
    for name, message in plugin.failed.items():
        known = [key for key in intended if key in name]
        met.update(known)
        if not known:
            unexpected[name] = message
    print(f"\n{len(plugin.passed)} passed, {len(plugin.failed)} failed on {plugin.backend}")
    for reason, left_out in plugin.left_out.items():
        print(f"{len(left_out)} left out: {reason}")
    for key in sorted(met):
        print(f"failed as intended: {key}: {intended[key]}")
    passing = intended.keys() - met
    for key in sorted(passing):
        print(f"PASSED, though it is to fail: {key}")
    for name, message in unexpected.items():
        print(f"FAILED: {name}: {message}")
    return 1 if unexpected or passing or not plugin.passed else 0


if __name__ == "__main__":
    sys.exit(main())
