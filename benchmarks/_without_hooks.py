"""
anyloader as it would be had it no hooks, to show what they cost where none is given.

The package is loaded a second time, under another name, with every ``if ...hooks is not None:``
and every look for a watching block cut out of its source.
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import anyloader

_NAME = "anyloader_without_hooks"
_HOME = Path(anyloader.__file__).parent


@cache
def without_hooks() -> Any:
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        module = import_module(_NAME)
    finally:
        sys.meta_path.remove(finder)
    if finder.cuts < 10:
        raise RuntimeError(f"only {finder.cuts} looks for hooks were found in {_HOME}")
    return module


class _Finder(MetaPathFinder, Loader):
    cuts = 0

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != _NAME:
            return None
        file = _HOME / f"{name or '__init__'}.py"
        spec = ModuleSpec(fullname, self, origin=str(file), is_package=not name)
        spec.has_location = True
        return spec if file.exists() else None

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        assert spec.origin is not None
        cut = _Cut()
        tree = ast.fix_missing_locations(cut.visit(ast.parse(Path(spec.origin).read_text())))
        self.cuts += cut.cuts
        exec(compile(tree, spec.origin, "exec"), module.__dict__)


class _Cut(ast.NodeTransformer):
    cuts = 0

    def visit_If(self, node: ast.If) -> Any:
        self.generic_visit(node)
        is_look = isinstance(node.test, ast.Compare)
        return self._cut(node, is_look and ast.unparse(node.test).endswith("hooks is not None"))

    def visit_For(self, node: ast.For) -> Any:
        self.generic_visit(node)
        return self._cut(node, ast.unparse(node.iter) == "watches.get()")

    def _cut(self, node: ast.If | ast.For, fits: bool) -> Any:
        self.cuts += fits
        return (node.orelse or ast.Pass()) if fits else node
