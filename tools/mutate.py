"""Breaks the core in small ways, one at a time, and looks whether a test notices.

``python tools/mutate.py --sample 200`` tries that many mutants, chosen by ``--seed``; without, it tries
all, which takes a night. What survives is looked at by somebody: a test is missing, or nobody can notice
the change. ``surviving_mutants.txt`` has those of the second kind that are known, by their reasons; the
exit status is 1 if another one survives.

Everything happens in a copy of the project, in one pytest session that has collected the tests. They run
once under coverage, which tells what tests come by what line. For each mutant the session forks; the child
gives the function its broken code and runs the tests that come by, those first that have killed others and
then the fast ones, until one fails. One function of each module is put in place as it is before: no test
may fail by what is done here. What happens at import is not broken.

It is a script of our own because mutmut calls every function through a wrapper, whose frames stand in
each traceback: the tests of tracebacks fail before the first mutant is made. And cosmic-ray starts
all of Python and pytest for each mutant.
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
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import pytest
from coverage import Coverage

ROOT = Path(__file__).parents[1]
REASONS = Path(__file__).with_name("surviving_mutants.txt")

#: What does not belong to the core, and files of tests of what stands on it or beside it.
NO_CORE = ("__init__", "_pytest", "_pytest_unbatched", "compat", "compat_strawberry", "trace")
OTHERS = (
    *("ariadne", "asgi", "asgi_endings", "asgi_servers", "compat", "compat_futures", "docs"),
    *("compat_strawberry", "examples_web", "extras", "frameworks", "graphql", "graphql_batches"),
    *("graphql_cancellation", "graphql_errors", "graphql_failing_field", "graphql_limits"),
    *("graphql_server", "house", "observed_services", "postgres", "pytest_option", "redis"),
    *("redis_failures", "redis_keys", "shared_scope", "soak", "sqlalchemy", "strawberry"),
    *("sqlalchemy_sessions", "support", "support_orders", "telemetry", "trace", "trace_shown"),
)
MOST = "not uvloop and not eager"  # what these find, the two others mostly do

#: How many seconds of a processor a mutant takes that no test kills.
CAP = 60
#: After how many seconds more than ten times what it takes otherwise a test counts as hanging.
HANG = 4

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


def changes(node: Any) -> Iterator[tuple[str, Callable[[], object]]]:
    """What can be broken about a node: its name, and what does it."""
    change = partial(partial, setattr, node)
    match node:
        case ast.Compare() if type(node.ops[0]) in SWAPS:
            ops = [SWAPS[type(node.ops[0])](), *node.ops[1:]]
            yield "comparison turned", change("ops", ops)
        case ast.BoolOp():
            yield "and/or swapped", change("op", SWAPS[type(node.op)]())
            for i, operand in enumerate(node.values):
                rest = [one for one in node.values if one is not operand]
                yield f"operand {i} dropped", change("values", rest if len(rest) > 1 else rest * 2)
        case ast.UnaryOp(op=ast.Not()):
            yield "not dropped", change("operand", ast.UnaryOp(ast.Not(), node.operand))
        case ast.BinOp() | ast.AugAssign() if type(node.op) in SWAPS:
            yield "+/- swapped", change("op", SWAPS[type(node.op)]())
        case ast.Constant(value=bool()):
            yield "turned", change("value", not node.value)
        case ast.Constant(value=int() as integer):
            yield "plus one", change("value", integer + 1)
        case ast.If() | ast.IfExp():
            yield "always", change("test", ast.Constant(True))
            yield "never", change("test", ast.Constant(False))
        # Instead of ``return False`` there is ``return True``, from above.
        case ast.Return(value=ast.expr() as value) if ast.unparse(value) not in ("None", "False"):
            yield "returns None", change("value", None)
        case (
            ast.Expr(value=ast.Call() | ast.Await())
            | ast.Assign(targets=[ast.Attribute() | ast.Subscript(), *_])
            | ast.Delete()
            | ast.Break()
            | ast.Continue()
        ):
            yield "dropped", partial(_drop, node)


def _drop(statement: Any) -> None:
    where = {name: value for name, value in vars(statement).items() if name in ast.stmt._attributes}
    statement.__class__ = ast.Expr
    statement.__dict__ = {**where, "value": ast.Constant(...)}


def _is_skipped(node: ast.AST) -> bool:
    """Texts, types, what only checkers read, and what is for another Python."""
    match node:
        case ast.If():
            return "TYPE_CHECKING" in ast.unparse(node.test) or "version_info" in ast.unparse(
                node.test
            )
        case ast.ClassDef():
            return any("Protocol" in ast.unparse(base) for base in node.bases)
        case ast.FunctionDef():
            decorators = [ast.unparse(one) for one in node.decorator_list]
            return "overload" in decorators or node.name == "__repr__"
        case ast.Expr():
            return isinstance(node.value, ast.Constant)
    return isinstance(node, ast.JoinedStr | ast.Raise | ast.arg)


class Mutant(NamedTuple):
    module: str
    #: The function that has it in its body, as it stands in the module or in a class of it.
    owner: str
    function: tuple[str, int]
    what: str
    #: Which node of the tree, and which of its changes; none: as it is.
    place: int
    number: int | None
    #: The lines of its statement.
    lines: range

    def tree(self, root: Path) -> ast.Module:
        tree = ast.parse((root / "anyloader" / f"{self.module}.py").read_text())
        if self.number is not None:
            _, change = list(changes(list(ast.walk(tree))[self.place]))[self.number]
            change()
        return ast.fix_missing_locations(tree)

    @property
    def name(self) -> str:
        return f"{self.module}.{self.owner}: {self.what}"


def mutants(path: Path) -> Iterator[Mutant]:
    tree = ast.parse(path.read_text())
    places = {id(node): place for place, node in enumerate(ast.walk(tree))}
    for owner, function in _functions(tree, ""):
        skipped = {
            id(i) for node in ast.walk(function) if _is_skipped(node) for i in ast.walk(node)
        }
        lines: dict[int, range] = {}
        # An inner statement comes after the one around it.
        statements: list[Any] = [one for one in ast.walk(function) if isinstance(one, ast.stmt)]
        for statement in statements:
            body = getattr(statement, "body", None)
            last = max(statement.lineno, body[0].lineno - 1) if body else statement.end_lineno
            lines.update((id(i), range(statement.lineno, last + 1)) for i in ast.walk(statement))
        first = min(one.lineno for one in (function, *function.decorator_list))
        for node in (inner for statement in function.body for inner in ast.walk(statement)):
            if id(node) in skipped:
                continue
            text = ast.unparse(node).partition("\n")[0]
            for number, (what, _) in enumerate(changes(node)):
                where = (path.stem, owner, (function.name, first), f"{what}: {text}")
                yield Mutant(*where, places[id(node)], number, lines[id(node)])


def _functions(around: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for node in around.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not _is_skipped(node):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef) and not _is_skipped(node):
            yield from _functions(node, f"{prefix}{node.name}.")


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

    def break_(self, mutant: Mutant) -> None:
        path = str(self._root / "anyloader" / f"{mutant.module}.py")
        name, line = mutant.function
        (new,) = _codes(compile(mutant.tree(self._root), path, "exec"), mutant.function)
        for function in self._found[path, name, line]:
            old = function.__code__
            # types.coroutine() marks a function by a flag of its code.
            new = new.replace(co_flags=new.co_flags | old.co_flags)
            function.__code__ = new
            for codes in self._sets:
                if old in codes:
                    codes.add(new)


def _codes(code: CodeType, function: tuple[str, int]) -> list[CodeType]:
    """The code of a function of a module, or of a class in it."""
    inner = [one for one in code.co_consts if isinstance(one, CodeType)]
    found = [one for one in inner if (one.co_name, one.co_firstlineno) == function]
    return found or [deeper for one in inner for deeper in _codes(one, function)]


class Campaign:
    """A pytest plugin that tries mutants where other sessions would run their tests."""

    def __init__(self, root: Path, todo: list[Mutant]) -> None:
        self._root, self._todo = root, todo
        self._failed: str | None = None
        #: By module: how many of its mutants each test has killed so far.
        self._kills: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.killed = 0
        self.survivors: list[Mutant] = []
        self.untried: list[Mutant] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed = report.nodeid

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self._items = session.items
        self._functions = Functions(self._root)
        # For the fixtures of the session; those of this file are torn down, as another one is next.
        self._run(session.items[0], session.items[-1])
        gc.collect()
        gc.freeze()
        self._tests, self._seconds, failing = self._in_child(self._measure)
        print(f"{len(session.items)} tests, {sum(self._seconds):.0f} s", flush=True)
        for name in failing:
            print(f"without {name}, which fails in here as it is")
        for mutant in {one.module: one for one in self._todo}.values():
            if by := self._in_child(self._killer, mutant._replace(number=None)):
                raise SystemExit(f"{mutant.owner} is not broken, and yet {by} fails")
        for mutant in self._todo:
            if not self._passing(mutant):
                self.untried.append(mutant)
            elif by := self._in_child(self._killer, mutant):
                self._kills[mutant.module][by] += 1
                self.killed += 1
                print(f"killed   {mutant.name}   {by}", flush=True)
            else:
                self.survivors.append(mutant)
                print(f"SURVIVED {mutant.name}   (line {mutant.lines[0]})", flush=True)
        return True

    @staticmethod
    def _in_child(function: Callable[..., Any], *args: Any) -> Any:
        with tempfile.TemporaryFile("w+") as file:
            child = os.fork()
            if not child:
                try:
                    os.setpgid(0, 0)
                    nothing = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(nothing, 1)
                    os.dup2(nothing, 2)
                    json.dump(function(*args), file)
                except BaseException:
                    json.dump(traceback.format_exc(), file)
                finally:
                    file.flush()
                    os._exit(0)
            _, status = os.waitpid(child, 0)
            try:
                os.killpg(child, signal.SIGKILL)  # servers that it started
            except ProcessLookupError:
                pass
            file.seek(0)
            # No text: it was ended by a signal, such as that of its timer.
            return json.loads(file.read() or json.dumps(f"status {status}"))

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

    def _passing(self, mutant: Mutant) -> list[int]:
        """The numbers of the tests that come by, in the order in which to try them."""
        lines = self._tests.get(mutant.module, {})
        numbers = {n for line in mutant.lines for n in lines.get(str(line), ())}
        kills = self._kills[mutant.module]
        return sorted(numbers, key=lambda n: (-kills[self._items[n].nodeid], self._seconds[n]))

    def _killer(self, mutant: Mutant) -> str | None:
        """The test that fails, or ``None``."""
        self._functions.break_(mutant)
        deadline = time.process_time() + (1 if mutant.number is None else CAP)
        passing = self._passing(mutant)
        items = [self._items[number] for number in passing]
        for number, (item, following) in zip(passing, pairwise([*items, None])):
            assert item is not None
            signal.setitimer(signal.ITIMER_REAL, HANG + 10 * self._seconds[number])
            try:
                self._run(item, following)
            except BaseException:
                self._failed = item.nodeid
            if self._failed or time.process_time() > deadline:
                break
        return self._failed


def reasons() -> set[str]:
    """The names of mutants that no test can notice."""
    lines = REASONS.read_text().splitlines()
    return {line.strip() for line in lines if line.strip() and not line.startswith("#")}


def main() -> int:
    core = [path.stem for path in sorted(ROOT.glob("anyloader/*.py")) if path.stem not in NO_CORE]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--module", action="append", choices=core, help="only this; repeatable")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("anyloader", "tests", "tools"):
            shutil.copytree(ROOT / name, root / name)
        shutil.copy(ROOT / "pyproject.toml", root)
        modules = options.module or core
        todo = [m for name in modules for m in mutants(root / "anyloader" / f"{name}.py")]
        random.Random(options.seed).shuffle(todo)
        print(f"{len(todo)} mutants, {len(todo[: options.sample])} of them to be tried", flush=True)
        campaign = Campaign(root, todo[: options.sample])
        os.environ["MODEL_STEPS"] = "1000"
        os.chdir(root)
        sys.path[0] = str(root)
        arguments = ["-s", "-n", "0", "-p", "no:terminal", "-p", "no:cacheprovider", "-k", MOST]
        arguments += ["-p", "no:randomly", "--timeout=0", "--timeout-method=thread"]
        ignored = [f"--ignore=tests/test_{name}.py" for name in OTHERS]
        status = pytest.main([*arguments, *ignored, "tests"], plugins=[campaign])
        os.chdir(ROOT)
        if status:
            return int(status)

    known = reasons()
    unknown = [mutant for mutant in campaign.survivors if mutant.name not in known]
    print(f"{campaign.killed} killed, {len(campaign.survivors)} survived", end=", ")
    print(f"{len(campaign.untried)} in lines that run at import alone")
    print(f"{len(unknown)} of the survivors are not in {REASONS.name}:")
    for mutant in unknown:
        print(f"    {mutant.name}")
    return int(bool(unknown))


if __name__ == "__main__":
    sys.exit(main())
