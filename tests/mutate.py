"""Breaks the core in small ways, one at a time, and looks whether a test notices.

``python tests/mutate.py --sample 200`` tries that many mutants, chosen by ``--seed``; without it
all. Each is made in a copy and gets the tests of its module first, then the others, until one
fails. What survives is listed with its line.
"""

from __future__ import annotations

import argparse
import ast
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

FIRST = {
    "_batch": ["batching", "abandonment", "errors", "batch_function", "deadlock", "prime"],
    "_handle": ["handle", "cancellation", "abandonment", "deadlock", "errors"],
    "_dispatcher": ["leaving", "opening", "errors", "context", "limiter", "faults"],
    "_loader": ["constructor", "cache", "prime", "defer_hits", "opening", "handle"],
    "_cache": ["cache", "errors"],
    "_results": ["batch_function", "errors"],
    "_scope": ["scopes", "leaving"],
    "schedules": ["schedules", "rounds"],
    "_backend": ["opening", "errors", "handle", "cancellation"],
}
THEN = (
    *("batching", "abandonment", "cache", "errors", "batch_function", "cancellation", "handle"),
    *("leaving", "opening", "prime", "defer_hits", "deadlock", "limiter", "rounds", "schedules"),
    *("context", "constructor", "scopes", "field", "hooks", "value_cache", "nothing_left"),
    *("faults", "shrunk", "model"),
)
BACKENDS = "not uvloop and not eager"  # what these find, the two others mostly do
SECONDS = 240

SWAPS: dict[type[Any], type[Any]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


class Mutant(NamedTuple):
    module: str
    line: int
    what: str
    #: Which node of the tree, and which of its changes.
    place: int
    number: int

    def source(self) -> str:
        tree = ast.parse((ROOT / "anyloader" / f"{self.module}.py").read_text())
        _apply(list(ast.walk(tree))[self.place], self.number)
        return ast.unparse(ast.fix_missing_locations(tree))

    def __str__(self) -> str:
        return f"{self.module}.py:{self.line}: {self.what}"


def mutants(path: Path) -> Iterator[Mutant]:
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if _is_skipped(node)
        for inner in ast.walk(node)
    }  # fmt: skip
    nodes = list(ast.walk(tree))
    for index, node in enumerate(nodes):
        if id(node) in skipped:
            continue
        for number, what in enumerate(_changes(node)):
            before = ast.unparse(node).partition("\n")[0]
            yield Mutant(path.stem, getattr(node, "lineno", 0), f"{what}: {before}", index, number)


def _is_skipped(node: ast.AST) -> bool:
    """Texts, types and what only checkers read."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return True
    if isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(b) for b in node.bases):
        return True
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        overloaded = any("overload" in ast.unparse(one) for one in node.decorator_list)
        return overloaded or node.name == "__repr__"
    if isinstance(node, ast.JoinedStr | ast.Raise | ast.Import | ast.ImportFrom | ast.arg):
        return True
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _changes(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        return ["comparison turned"]
    if isinstance(node, ast.BoolOp):
        return ["and/or swapped", *(f"operand {i} dropped" for i in range(len(node.values)))]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ["not dropped"]
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in SWAPS:
        return ["+/- swapped"]
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        return ["turned"]
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return ["plus one"]
    if isinstance(node, ast.If):
        return ["always", "never"]
    if isinstance(node, ast.IfExp):
        return ["always", "never"]
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await):
        return ["dropped"]
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript):
        return ["dropped"]
    if isinstance(node, ast.Delete | ast.Break | ast.Continue):
        return ["dropped"]
    if isinstance(node, ast.Return) and ast.unparse(node) not in ("return", "return None"):
        return ["returns None"]
    return []


def _apply(node: Any, number: int) -> None:
    if type(node) is ast.Compare:
        node.ops[0] = SWAPS[type(node.ops[0])]()
    elif isinstance(node, ast.BoolOp):
        if number:
            del node.values[number - 1]
            if len(node.values) == 1:
                node.values *= 2
        else:
            node.op = SWAPS[type(node.op)]()
    elif isinstance(node, ast.UnaryOp):
        node.op = ast.UAdd()  # True and False become 1 and 0
        node.operand = ast.Call(ast.Name("bool", ast.Load()), [node.operand], [])
    elif isinstance(node, ast.BinOp | ast.AugAssign):
        node.op = SWAPS[type(node.op)]()
    elif isinstance(node, ast.Constant):
        value: Any = node.value
        node.value = not value if isinstance(value, bool) else value + 1
    elif isinstance(node, ast.If | ast.IfExp):
        node.test = ast.Constant(not number)
    elif isinstance(node, ast.Return):
        node.value = None
    else:
        _replace_by_pass(node)


def _replace_by_pass(node: Any) -> None:
    node.__class__ = ast.Expr
    node.__dict__ = {**{k: v for k, v in vars(node).items() if "lineno" in k or "offset" in k}}
    node.value = ast.Constant(...)


class Workplace:
    """A copy of the project in which one mutant after the other is tried."""

    def __init__(self, folder: str) -> None:
        self.root = Path(folder)
        for name in ("anyloader", "tests"):
            shutil.copytree(ROOT / name, self.root / name)
        shutil.copy(ROOT / "pyproject.toml", self.root)

    def notices(self, mutant: Mutant) -> str | None:
        """The test that fails, or ``None``."""
        path = self.root / "anyloader" / f"{mutant.module}.py"
        original = path.read_text()
        path.write_text(mutant.source())
        first = FIRST[mutant.module]
        try:
            # One file after the other at first: most mutants do not live to see the second.
            for names in ([first[0]], first[1:], [name for name in THEN if name not in first]):
                failed = self._failing_test([f"tests/test_{name}.py" for name in names])
                if failed:
                    return failed
        finally:
            path.write_text(original)
        return None

    def _failing_test(self, files: list[str]) -> str | None:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
        try:
            result = subprocess.run(
                [*command, "--timeout=20", "-k", BACKENDS, *files],
                cwd=self.root,
                env={**os.environ, "PYTHONPATH": str(self.root), "MODEL_STEPS": "3000"},
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            return "timeout"
        if result.returncode in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
            return None
        lines = result.stdout.splitlines()
        return next((line for line in lines if line.startswith(("FAILED", "ERROR"))), "crash")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("modules", nargs="*", default=list(FIRST))
    options = parser.parse_args()

    todo = [m for name in options.modules for m in mutants(ROOT / "anyloader" / f"{name}.py")]
    print(f"{len(todo)} mutants", flush=True)
    random.Random(options.seed).shuffle(todo)
    work: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    for mutant in todo[: options.sample]:
        work.put(mutant)
    counted: Counter[str] = Counter()

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            place = Workplace(folder)
            while not stopped.is_set():
                try:
                    mutant = work.get_nowait()
                except queue.Empty:
                    return
                by = place.notices(mutant)
                counted["killed" if by else "survived"] += 1
                print(f"killed   {mutant}   {by}" if by else f"SURVIVED {mutant}", flush=True)

    stopped = threading.Event()
    threading.Timer(options.seconds, stopped.set).start() if options.seconds < 1e9 else None
    threads = [threading.Thread(target=run) for _ in range(options.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tried = sum(counted.values())
    print(f"{counted['killed']} of {tried} killed, {counted['killed'] / max(tried, 1):.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
