"""An integration whose third party is not installed says which extra installs it."""

from __future__ import annotations

import importlib
import re
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: By integration: its extra, and the module that is found missing.
EXTRAS = {
    "django": ("django", "asgiref"),
    "graphql": ("graphql", "graphql"),
    "opentelemetry": ("opentelemetry", "opentelemetry"),
    "prometheus": ("prometheus", "prometheus_client"),
    "redis": ("redis", "coredis"),
    "redis_py": ("redis-py", "redis"),
    "sqlalchemy": ("sqlalchemy", "sqlalchemy"),
    "strawberry": ("strawberry", "strawberry"),
}
#: These need anyio alone.
WITHOUT = {"asgi", "memory"}


def test_every_integration_is_known_here() -> None:
    package = ROOT / "anyloader" / "integrations"
    assert {path.stem for path in package.glob("[!_]*.py")} == EXTRAS.keys() | WITHOUT


class Absent(MetaPathFinder):
    """Finds that one module is not there."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, fullname: str, *args: object) -> None:
        if fullname == self.name:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


@pytest.mark.parametrize("integration", EXTRAS)
def test_a_missing_third_party_names_the_extra(
    integration: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra, third_party = EXTRAS[integration]
    module = f"anyloader.integrations.{integration}"
    for name in list(sys.modules):
        if name == module or re.match(rf"{third_party}(\.|$)", name):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(third_party), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module(module)
    assert str(caught.value) == f"{third_party} is not installed: pip install 'anyloader[{extra}]'"
    assert caught.value.name == third_party
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_every_extra_that_is_named_exists() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    table = text.partition("[project.optional-dependencies]")[2].split("\n[")[0]
    declared = set(re.findall(r"^([\w-]+) = \[", table, re.MULTILINE))
    assert declared == {extra for extra, _ in EXTRAS.values()} | {"trio"}
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.rst")]
    named = {
        extra.strip()
        for page in pages
        for extras in re.findall(r"anyloader\[([\w, -]+)\]", page.read_text())
        for extra in extras.split(",")
    }
    assert named <= declared
