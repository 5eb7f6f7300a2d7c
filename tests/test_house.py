"""How the package is laid out: who imports whom, and that all that is public is documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_origin

import pytest

import anyloader

PACKAGE = Path(anyloader.__file__).parent
TESTS = Path(__file__).parent
REFERENCE = Path(__file__).parents[1] / "docs" / "reference"

#: Of a file of tests, or of what they share.
MOST_LINES = 600

# From the leaves up: a module imports only what stands before it, or beside it without a circle.
LAYERS = [
    {"_errors", "_statistics", "_backend"},
    {"_results", "_split", "_limits"},
    {"_cache", "_deadlock", "schedules", "hooks"},
    {"_options", "_weights"},
    {"_batch"},
    {"_streams", "_values", "_required", "_threads"},
    {"_workers"},
    {"_dispatcher"},
    {"_gather", "_place", "_portal"},
    {"_cached"},
    {"_loader"},
    {"_dataloader"},
    {"_sources"},
    {"_scope"},
    {"__init__"},
    {"_watch"},
    {
        *("compat", "compat_strawberry", "testing", "trace", "integrations"),
        *("_pytest", "_pytest_unbatched"),
    },
]
LEVELS = {module: level for level, layer in enumerate(LAYERS) for module in layer}

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
CORE = [module for module in MODULES if module.split(".")[0] not in LAYERS[-1]]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk through all but what stands under ``if TYPE_CHECKING``."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not is_type_checking(child):
            yield from runtime_nodes(child)


def imports(module: str) -> set[str]:
    """Give the full names of the modules that ``module`` imports at run time."""
    package = ["anyloader", *module.split(".")[:-1]]
    found: set[str] = set()
    for node in runtime_nodes(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            # ``from . import a`` imports a module, ``from .a import b`` a name of one
            found.update(
                f"{name}.{alias.name}" if f"{name}.{alias.name}" in OWN_NAMES else name
                for alias in node.names
            )
    return found


OWN_NAMES = {f"anyloader.{module}" for module in MODULES}


def own_imports(module: str) -> set[str]:
    """Of these, our own modules, as named in ``MODULES``."""
    found = set()
    for name in imports(module):
        if name.split(".")[0] == "anyloader":
            inner = name.partition(".")[2]
            found.add(inner if inner in MODULES else f"{inner}.__init__".lstrip("."))
    return found


def level(module: str) -> int:
    top = module.split(".")[0]
    assert top in LEVELS, f"say in LAYERS where {top} stands"
    return LEVELS[top]


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards_only(module: str) -> None:
    assert {other for other in own_imports(module) if level(other) > level(module)} == set()


def test_imports_make_no_circle() -> None:
    left = {module: own_imports(module) - {module} for module in MODULES}
    while free := {module for module, needs in left.items() if not needs & left.keys()}:
        left = {module: needs for module, needs in left.items() if module not in free}
    assert left == {}


@pytest.mark.parametrize("module", CORE)
def test_only_the_backend_imports_asyncio_and_trio(module: str) -> None:
    tops = {name.split(".")[0] for name in imports(module)}
    assert tops & {"asyncio", "trio"} <= ({"asyncio"} if module == "_backend" else set())


@pytest.mark.parametrize("module", CORE)
def test_the_core_imports_anyio_and_the_standard_library_alone(module: str) -> None:
    tops = {name.split(".")[0] for name in imports(module)}
    # anyio itself needs exceptiongroup on Python 3.10
    assert tops - set(sys.stdlib_module_names) <= {"anyio", "anyloader", "exceptiongroup"}


def test_importing_the_package_imports_nothing_else() -> None:
    code = (
        "import sys, anyio.lowlevel, anyio.to_thread; before = set(sys.modules);"
        "import anyloader; print(*(set(sys.modules) - before), sep='\\n')"
    )
    command = [sys.executable, "-c", code]
    # in the folder of the very package that is tested, which Python then looks at first
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    new = done.stdout.split()
    assert "anyloader._loader" in new
    tops = {name.split(".")[0] for name in new}
    # The last two are anyio's own, for the older versions of Python.
    allowed = {"anyloader", "anyio", "exceptiongroup", "typing_extensions"}
    assert tops - set(sys.stdlib_module_names) <= allowed
    assert [name for name in new if "integrations" in name or name == "anyloader.testing"] == []


# --- size, and who touches whose private names ---

MOST_LINES_OF_A_FUNCTION = 45
MOST_LINES_OF_A_CLASS = 300
MOST_PRIVATE_TOUCHES = 20  # in all files together

_HAVE_BODIES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_lines(module: str) -> set[int]:
    """Give the numbers of the lines that are code: no blanks, comments, docstrings, imports or overloads."""
    source = MODULES[module].read_text()
    lines = {
        number
        for number, line in enumerate(source.splitlines(), 1)
        if line.strip() and not line.strip().startswith("#")
    }
    for node in ast.walk(ast.parse(source)):
        apart: list[Any] = []
        if isinstance(node, _HAVE_BODIES) and ast.get_docstring(node, clean=False) is not None:
            apart = [node.body[0]]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            apart = [node]
        if "overload" in map(ast.unparse, getattr(node, "decorator_list", ())):
            apart = [node]
        for part in apart:
            lines -= set(range(part.lineno, part.end_lineno + 1))
    return lines


@pytest.mark.parametrize("module", MODULES)
def test_no_function_and_no_class_is_longer_than_a_reader_can_hold(module: str) -> None:
    lines = code_lines(module)
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, _HAVE_BODIES[1:]):
            size = len(lines & set(range(node.lineno, (node.end_lineno or 0) + 1)))
            is_class = isinstance(node, ast.ClassDef)
            most = MOST_LINES_OF_A_CLASS if is_class else MOST_LINES_OF_A_FUNCTION
            assert size <= most, f"{node.name} has {size} lines of code"


def private_names(tree: ast.AST) -> set[str]:
    """Give the private names that a module's classes define or set on themselves."""
    names: set[str] = set()
    for cls in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        for node in ast.walk(cls):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                names.add(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names |= {node.attr} if ast.unparse(node.value) == "self" else set()
    return {name for name in names if name.startswith("_") and not name.endswith("__")}


def test_private_names_are_left_to_their_modules() -> None:
    trees = {module: ast.parse(path.read_text()) for module, path in MODULES.items()}
    owned = {module: private_names(tree) for module, tree in trees.items()}
    everywhere = set().union(*owned.values())
    touches = [
        f"{module}:{node.lineno} {node.attr}"
        for module, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in everywhere - owned[module]
        if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    ]
    assert len(touches) <= MOST_PRIVATE_TOUCHES, touches


# --- documentation ---

DIRECTIVE = re.compile(
    r"^\.\. (currentmodule|module|automodule|auto(?:class|function|exception|data|decorator)):: "
    r"*([\w.]+)"
)


def documented() -> list[str]:
    """Give the full name of all that the reference has a directive for, in its order."""
    module = ""
    names: list[str] = []
    text = "\n".join(path.read_text() for path in sorted(REFERENCE.glob("*.rst")))
    for line in text.splitlines():
        match = DIRECTIVE.match(line)
        if match is None:
            continue
        directive, name = match.groups()
        if directive in ("currentmodule", "module"):
            module = f"{name}."
        elif directive == "automodule":
            names.append(name)
            names += [f"{name}.{member}" for member in importlib.import_module(name).__all__]
        else:
            names.append(name if name.startswith("anyloader.") else module + name)
    return names


def test_the_reference_documents_what_is_public_and_each_thing_once() -> None:
    names = documented()
    assert len(names) == len(set(names))
    top = [name for name in names if name.count(".") == 1]
    assert sorted(top) == sorted(f"anyloader.{name}" for name in anyloader.__all__)


@pytest.mark.parametrize(
    "module", [anyloader, anyloader.schedules, anyloader.hooks], ids=["top", "schedules", "hooks"]
)
def test_what_is_public_is_there_and_sorted(module: ModuleType) -> None:
    # "@": pytest's own, as it rewrites the package for the sake of the plugin in it
    public = [name for name in vars(module) if not name.startswith(("_", "@"))]
    assert set(module.__all__) <= set(public)
    assert len(module.__all__) == len(set(module.__all__))
    if module is anyloader:
        others = [name for name in public if isinstance(getattr(anyloader, name), ModuleType)]
        inner = {name.split(".")[0] for name in MODULES}
        assert set(public) - set(others) <= set(module.__all__)
        assert set(others) <= inner


def public_things() -> Iterator[tuple[str, Any]]:
    """Give the public classes and functions, and the public methods and properties of the former."""
    for module in anyloader, anyloader.schedules, anyloader.hooks:
        yield module.__name__, module
        for name in module.__all__:
            thing = getattr(module, name)
            # On Python 3.10 an alias such as Callable[...] passes for a class.
            is_class = inspect.isclass(thing) and get_origin(thing) is None
            if not (is_class or inspect.isfunction(thing)):
                continue
            yield f"{module.__name__}.{name}", thing
            for attribute, member in vars(thing).items() if is_class else ():
                function = getattr(member, "__func__", member)
                if not attribute.startswith("_") and (
                    inspect.isfunction(function) or isinstance(member, property)
                ):
                    yield f"{module.__name__}.{name}.{attribute}", function


@pytest.mark.parametrize("name", dict(public_things()))
def test_everything_public_has_a_docstring(name: str) -> None:
    doc = dict(public_things())[name].__doc__
    assert doc
    assert doc.strip().split("\n\n")[0].rstrip().endswith((".", "::")), "a sentence comes first"


def test_no_room_is_too_large_to_be_read() -> None:
    long = {path.name: len(path.read_text().splitlines()) for path in TESTS.rglob("*.py")}
    assert {name: lines for name, lines in long.items() if lines > MOST_LINES} == {}
