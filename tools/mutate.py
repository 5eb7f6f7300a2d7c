"""Breaks the core in small ways, one at a time, and looks whether a test notices.

``python tools/mutate.py`` tries all mutants, ``--sample 200`` that many of them, chosen by ``--seed``.
``--results FILE`` keeps what was found, and goes on from there: a mutant is tried once more if its
function has changed or, with ``--again``, if it survived for no reason that is known.
``surviving_mutants.txt`` has the reasons; the exit status is 1 if a survivor is not in there.

Everything happens in a copy, inside one pytest session that has collected the tests. They run once
under coverage, which tells what tests execute what line. For each mutant the session then forks; the
child gives the function its broken code and runs the tests that come by that line, until one fails:
those first that have killed others of the module. What happens at import (class attributes,
defaults, tables) cannot be put in place like this; such a mutant is a file in a copy of its own, for
a pytest of its own, and so is one that survives in a function which has run at import. Before all
this one function of each module is put in place as it is: no test may fail by what is done here.

It is a script of our own because mutmut calls every function through a wrapper, whose frames stand in
each traceback: the tests of tracebacks fail before the first mutant is made. And cosmic-ray starts
all of Python and pytest for each mutant, which for some 2,000 of them takes a night.
"""

from __future__ import annotations

import argparse
import ast
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, NamedTuple, NoReturn

import pytest
from coverage import Coverage

ROOT = Path(__file__).parents[1]
REASONS = Path(__file__).with_name("surviving_mutants.txt")

#: By module: the files of tests that kill most of its mutants.
FIRST = {
    "_batch": ["batching", "handle", "abandonment", "cancellation", "errors", "deadlock", "prime"],
    "_deadlock": ["deadlock", "threads_and_deadlocks"],
    "_dispatcher": ["leaving", "leaving_and_waiters", "opening", "errors", "context"],
    "_workers": ["limiter", "seal_at_token", "quiet_scope", "rounds", "foreign_groups"],
    "_place": ["opening", "scopes", "foreign_groups"],
    "_cached": ["cache", "prime", "value_cache"],
    "_loader": ["cache", "prime", "defer_hits", "opening", "key_and_entry", "queue_bound"],
    "_dataloader": ["constructor", "subclass_names", "cache"],
    "_options": ["constructor", "subclass_names"],
    "_cache": ["cache", "errors"],
    "_limits": ["limiters_and_loops", "limiter"],
    "_required": ["required"],
    "_results": ["rows", "batch_function", "errors", "strange_errors"],
    "_scope": ["scopes", "arguments", "scope_values", "leaving"],
    "_sources": ["arguments", "scopes"],
    "_split": ["split_on_error"],
    "_streams": ["batch_function", "leaving_and_waiters"],
    "_weights": ["weights"],
    "schedules": ["schedules", "rounds"],
    "_backend": ["opening", "errors", "handle", "cancellation", "stack_room"],
    "_values": ["value_cache"],
    "_statistics": ["batching", "cache"],
    "hooks": ["hooks", "warn_unbatched"],
    "_threads": ["batch_function", "context", "threads_and_deadlocks"],
    "_watch": ["testing", "trace"],
    "_errors": ["errors", "messages"],
}
#: Those of what stands on the core, or beside it.
OTHERS = (
    *("ariadne", "asgi", "compat", "docs", "examples_web", "graphql", "graphql_batches"),
    *("graphql_server", "house", "soak", "strawberry", "support", "telemetry", "value_caches"),
)
#: Long ones, which share fixtures: one file after the other, after all others.
LAST = ("nothing_left", "faults", "orders", "model")
MOST = "not uvloop and not eager"  # what these find, the two others mostly do

#: How many seconds of a processor a mutant takes that no test kills.
CAP = 60
#: After how many seconds more than ten times what it takes otherwise a test counts as hanging.
HANG = 4
UNBROKEN = -1

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
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Mutant(NamedTuple):
    module: str
    #: The function around it, or the class; "" for the module.
    owner: str
    line: int
    what: str
    #: Which node of the tree, and which of its changes.
    place: int
    number: int
    #: The lines of its statement.
    lines: range
    #: The name and first line of the function that has it in its body.
    function: tuple[str, int] | None
    #: Remains the same while the function does.
    key: str

    def tree(self, root: Path) -> ast.Module:
        tree = ast.parse((root / "anyloader" / f"{self.module}.py").read_text())
        if self.number != UNBROKEN:
            _apply(list(ast.walk(tree))[self.place], self.number)
        return ast.fix_missing_locations(tree)

    @property
    def name(self) -> str:
        return f"{self.module}.{self.owner}: {self.what}"

    def __str__(self) -> str:
        return f"{self.module}.py:{self.line}: {self.owner}: {self.what}"


def mutants(path: Path) -> Iterator[Mutant]:
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if _is_skipped(node)
        for inner in ast.walk(node)
    }  # fmt: skip
    around = {id(inner): node for node in ast.walk(tree) for inner in ast.iter_child_nodes(node)}
    counted: Counter[str] = Counter()
    for place, node in enumerate(list(ast.walk(tree))):
        if id(node) in skipped:
            continue
        changes = _changes(node)
        if not changes:
            continue
        chain = [node]
        while id(chain[-1]) in around:
            chain.append(around[id(chain[-1])])
        statement: Any = next(one for one in chain if isinstance(one, ast.stmt))
        last = statement.end_lineno
        if hasattr(statement, "body"):
            last = max(statement.lineno, statement.body[0].lineno - 1)
        functions = [one for one in chain if isinstance(one, _FUNCTIONS)]
        outermost: Any = functions[-1] if functions else None
        function = None
        if outermost is not None and chain[chain.index(outermost) - 1] in outermost.body:
            first = min(one.lineno for one in (outermost, *outermost.decorator_list))
            function = (outermost.name, first)
        owner = ".".join(
            one.name for one in reversed(chain) if isinstance(one, (*_FUNCTIONS, ast.ClassDef))
        )
        digest = f"{zlib.crc32(ast.unparse(outermost or statement).encode()):08x}"
        before = ast.unparse(node).partition("\n")[0]
        for number, what in enumerate(changes):
            key = f"{path.stem} {owner} {digest}"
            counted[key] += 1
            yield Mutant(
                path.stem,
                owner,
                getattr(node, "lineno", 0),
                f"{what}: {before}",
                place,
                number,
                range(statement.lineno, last + 1),
                function,
                f"{key} {counted[key]}",
            )


def _is_skipped(node: ast.AST) -> bool:
    """Texts, types, what only checkers read, and what is for another Python."""
    if isinstance(node, ast.If):
        test = ast.unparse(node.test)
        return "TYPE_CHECKING" in test or test.startswith("sys.version_info")
    if isinstance(node, ast.keyword) and node.arg in ("covariant", "total"):
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
    # Instead of ``return False`` there is ``return True``, from above.
    nothing = ("return", "return None", "return False")
    if isinstance(node, ast.Return) and ast.unparse(node) not in nothing:
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


# Trying one


class Functions:
    """Those of the package, to be broken in place. Made before the collector is told to forget them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._found: defaultdict[tuple[str, str, int], list[FunctionType]] = defaultdict(list)
        #: Sets of code, by which somebody finds his own frames.
        self._sets: list[set[CodeType]] = []
        for thing in gc.get_objects():
            if isinstance(thing, FunctionType):
                code = thing.__code__
                self._found[code.co_filename, code.co_name, code.co_firstlineno].append(thing)
            elif type(thing) is set and any(isinstance(one, CodeType) for one in thing):
                self._sets.append(thing)

    def break_(self, mutant: Mutant) -> bool:
        """Give the function its broken code; say whether that can be done."""
        if mutant.function is None:
            return False
        path = str(self._root / "anyloader" / f"{mutant.module}.py")
        (new,) = _codes(compile(mutant.tree(self._root), path, "exec"), mutant.function)
        name, line = mutant.function
        found = self._found[path, name, line]
        for function in found:
            old = function.__code__
            # types.coroutine() marks a function by a flag of its code.
            new = new.replace(co_flags=new.co_flags | old.co_flags)
            try:
                function.__code__ = new
            except ValueError:  # uses other variables of a function around it
                return False
            for codes in self._sets:
                if old in codes:
                    codes.add(new)
        return bool(found)


def _codes(code: CodeType, function: tuple[str, int]) -> list[CodeType]:
    """The code of a function of a module, or of a class in it."""
    found = []
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            if (inner.co_name, inner.co_firstlineno) == function:
                found.append(inner)
            else:
                found += _codes(inner, function)
    return found


class Campaign:
    """A pytest plugin that tries mutants where other sessions would run their tests."""

    def __init__(
        self,
        root: Path,
        todo: list[Mutant],
        jobs: int,
        cap: float,
        told: Callable[[Mutant, str | None], None],
    ) -> None:
        self._root, self._todo, self._jobs, self._told = root, todo, jobs, told
        #: One function of each module, as it is: no test may fail by what is done here itself.
        functions = {mutant.module: mutant for mutant in todo if mutant.function}
        self._unbroken = [mutant._replace(number=UNBROKEN) for mutant in functions.values()]
        self._cap = cap
        #: Functions that have run before they can be broken, where modules were imported.
        self._run_before: set[tuple[str, str, int]] = set()
        self._functions: Functions
        self._failed: str | None = None
        #: By module: how many of its mutants each test has killed so far.
        self._kills: defaultdict[str, Counter[str | None]] = defaultdict(Counter)
        # From before pytest starts, as the package has a plugin that pytest then imports.
        sys.setprofile(self._watch)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed = report.nodeid

    def _watch(self, frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(self._root / "anyloader")):
            self._run_before.add((code.co_filename, code.co_name, code.co_firstlineno))

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Iterator[None]:
        try:
            return (yield)
        finally:
            sys.setprofile(None)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self._items = session.items
        self._functions = Functions(self._root)
        # For the fixtures of the session; those of this file are torn down, as another one is next.
        self._run(session.items[0], session.items[-1])
        gc.collect()
        gc.freeze()
        start = time.monotonic()
        self._tests, self._seconds, failing = self._in_child(self._measure)
        print(f"{len(session.items)} tests, {time.monotonic() - start:.0f} s", flush=True)
        for name in failing:
            print(f"without {name}, which fails in here as it is")
        self._try_all(self._unbroken, self._expect_nothing)
        self._try_all(self._todo, self._told)
        return True

    @staticmethod
    def _expect_nothing(mutant: Mutant, by: str | None) -> None:
        if by:
            raise SystemExit(f"{mutant.owner} is not broken, and yet {by} fails")

    def _try_all(
        self, mutants: Iterable[Mutant], told: Callable[[Mutant, str | None], None]
    ) -> None:
        running: dict[int, tuple[Mutant, Any]] = {}
        todo = iter(mutants)
        while True:
            while len(running) < self._jobs and (mutant := next(todo, None)):
                file = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed below
                child = os.fork()
                if not child:
                    self._child(partial(self._killer, mutant), file)
                running[child] = mutant, file
            if not running:
                return
            child, status = os.wait()
            mutant, file = running.pop(child)
            file.seek(0)
            # No text: it was ended by a signal, such as that of its timer.
            text = file.read() or json.dumps(f"status {status}")
            by = json.loads(text)
            self._kills[mutant.module][by] += 1
            told(mutant, by)
            file.close()

    def _in_child(self, function: Callable[[], Any]) -> Any:
        with tempfile.TemporaryFile("w+") as file:
            child = os.fork()
            if not child:
                self._child(function, file)
            _, status = os.waitpid(child, 0)
            file.seek(0)
            text = file.read()
            if not text.startswith("["):
                raise SystemExit(f"the tests ended with status {status}\n{text}")
            return json.loads(text)

    @staticmethod
    def _child(function: Callable[[], Any], file: Any) -> NoReturn:
        try:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, 1)
            os.dup2(nothing, 2)
            json.dump(function(), file)
            file.flush()
        except BaseException:
            traceback.print_exc(file=file)
            file.flush()
        finally:
            os._exit(0)

    def _run(self, item: pytest.Item, following: pytest.Item | None) -> None:
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)

    def _measure(self) -> tuple[dict[str, dict[str, list[int]]], list[float], list[str]]:
        """
        By module and line the numbers of the tests that execute it; how long each test takes; and
        those that fail.
        """
        package = self._root / "anyloader"
        coverage = Coverage(data_file=None, config_file=False, include=[f"{package}/*"])
        coverage.start()
        seconds, failing = [], []
        for number, (item, following) in enumerate(pairwise([*self._items, None])):
            assert item is not None
            coverage.switch_context(str(number))
            start = time.monotonic()
            self._run(item, following)
            seconds.append(time.monotonic() - start)
            if self._failed:
                failing.append(number)
                self._failed = None
        coverage.stop()
        data = coverage.get_data()
        tests = {}
        for path in data.measured_files():
            lines = data.contexts_by_lineno(path)
            tests[Path(path).stem] = {
                str(line): sorted({int(number) for number in numbers if number} - {*failing})
                for line, numbers in lines.items()
            }
        return tests, seconds, [self._items[number].nodeid for number in failing]

    def _killer(self, mutant: Mutant) -> str | None:
        """The test that fails, or ``None``."""
        os.setpgid(0, 0)
        if not self._functions.break_(mutant):
            return self._killer_elsewhere(mutant)
        lines = self._tests.get(mutant.module, {})
        numbers = {n for line in mutant.lines for n in lines.get(str(line), ())}
        deadline = time.process_time() + (self._cap if mutant.number != UNBROKEN else 5)
        chosen = sorted(numbers, key=lambda number: self._rank(mutant, number))
        items = [self._items[number] for number in chosen]
        for number, (item, following) in zip(chosen, pairwise([*items, None])):
            assert item is not None
            signal.setitimer(signal.ITIMER_REAL, HANG + 10 * self._seconds[number])
            try:
                self._run(item, following)
            except BaseException:
                self._failed = item.nodeid
            if self._failed:
                break
            if time.process_time() > deadline:
                break
        path = str(self._root / "anyloader" / f"{mutant.module}.py")
        if not self._failed and (path, *(mutant.function or ())) in self._run_before:
            signal.setitimer(signal.ITIMER_REAL, 0)
            return self._killer_elsewhere(mutant)
        return self._failed

    def _rank(self, mutant: Mutant, number: int) -> tuple[int, bool, int, float]:
        name = self._items[number].nodeid
        file = Path(name.partition("::")[0]).stem.removeprefix("test_")
        last = LAST.index(file) + 1 if file in LAST else 0
        kills = self._kills[mutant.module][name]
        return -kills, file not in FIRST[mutant.module], last, self._seconds[number]

    def _killer_elsewhere(self, mutant: Mutant) -> str | None:
        first = FIRST[mutant.module]
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            copy_project(self._root, root)
            path = root / "anyloader" / f"{mutant.module}.py"
            path.write_text(ast.unparse(mutant.tree(self._root)))
            for names in first, [name for name in all_tests(root) if name not in first]:
                failed = self._failing_test(root, [f"tests/test_{name}.py" for name in names])
                if failed:
                    return failed
        return None

    @staticmethod
    def _failing_test(root: Path, files: list[str]) -> str | None:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
        try:
            result = subprocess.run(
                [*command, "--timeout=20", "-k", MOST, *files],
                cwd=root,
                env={**os.environ, "PYTHONPATH": str(root)},
                capture_output=True,
                text=True,
                timeout=10 * CAP,
            )
        except subprocess.TimeoutExpired:
            return "timeout"
        if result.returncode in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
            return None
        lines = result.stdout.splitlines()
        return next((line for line in lines if line.startswith(("FAILED", "ERROR"))), "crash")


def copy_project(source: Path, target: Path) -> None:
    for name in ("anyloader", "tests", "tools"):
        shutil.copytree(source / name, target / name, dirs_exist_ok=True)
    shutil.copy(source / "pyproject.toml", target)


def all_tests(root: Path) -> list[str]:
    names = [path.stem.removeprefix("test_") for path in sorted(root.glob("tests/test_*.py"))]
    return [name for name in names if name not in (*OTHERS, *LAST)] + list(LAST)


def reasons() -> dict[str, str]:
    """By the names of mutants: why no test can notice them."""
    found = {}
    reason = ""
    for line in REASONS.read_text().splitlines() if REASONS.exists() else ():
        if line.startswith("# "):
            reason = line.removeprefix("# ")
        elif line.strip():
            found[line.strip()] = reason
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--cap", type=float, default=CAP, help="seconds for one that survives")
    parser.add_argument("--module", action="append", choices=FIRST, help="only this; repeatable")
    parser.add_argument("--results", type=Path, help="a file that keeps what was found")
    parser.add_argument("--again", action="store_true", help="try what survived once more")
    parser.add_argument("--all-backends", action="store_true", help="tests of uvloop and eager too")
    options = parser.parse_args()

    results: dict[str, str | None] = {}
    if options.results and options.results.exists():
        results = dict(json.loads(line) for line in options.results.read_text().splitlines())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        copy_project(ROOT, root)
        modules = options.module or list(FIRST)
        all_ = [m for name in modules for m in mutants(root / "anyloader" / f"{name}.py")]
        random.Random(options.seed).shuffle(all_)
        all_ = all_[: options.sample]

        known = reasons()

        def is_known(mutant: Mutant) -> bool:
            if options.again and results.get(mutant.key, "") is None:
                return mutant.name in known
            return mutant.key in results

        todo = [mutant for mutant in all_ if not is_known(mutant)]
        print(f"{len(all_)} mutants, {len(todo)} to be tried", flush=True)

        def told(mutant: Mutant, by: str | None) -> None:
            results[mutant.key] = by
            if options.results:
                with options.results.open("a") as file:
                    file.write(json.dumps([mutant.key, by]) + "\n")
            print(f"killed   {mutant}   {by}" if by else f"SURVIVED {mutant}", flush=True)

        if todo:
            os.environ["MODEL_STEPS"] = "1000"
            os.chdir(root)
            sys.path[0] = str(root)
            arguments = ["-s", "-p", "no:terminal", "-p", "no:cacheprovider"]
            arguments += ["--timeout=0", "--timeout-method=thread"]
            arguments += [] if options.all_backends else ["-k", MOST]
            files = [f"tests/test_{name}.py" for name in all_tests(root)]
            campaign = Campaign(root, todo, options.jobs, options.cap, told)
            status = pytest.main([*arguments, *files], plugins=[campaign])
            os.chdir(ROOT)
            if status:
                return int(status)

    lived = [mutant for mutant in all_ if results[mutant.key] is None]
    unknown = [mutant for mutant in lived if mutant.name not in known]
    by_module: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for mutant in all_:
        by_module[mutant.module]["killed" if results[mutant.key] else "survived"] += 1
    for name, counts in by_module.items():
        print(f"{name:<12} {counts['killed']:>5} killed {counts['survived']:>4} survived")
    killed = len(all_) - len(lived)
    print(f"{killed} of {len(all_)} killed, {killed / max(len(all_), 1):.1%}")
    print(f"{len(lived) - len(unknown)} survivors with a reason, {len(unknown)} without:")
    for mutant in unknown:
        print(f"    {mutant.name}   (line {mutant.line})")
    return int(bool(unknown))


if __name__ == "__main__":
    sys.exit(main())
