"""What a release rests on: one version, one changelog, a README that an index can show."""

from __future__ import annotations

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
URLS = dict.fromkeys(("Changelog", "Documentation", "Issues", "Source"), "https://example.com")


@pytest.fixture
def version() -> Any:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    spec = spec_from_file_location("version", ROOT / ".ci" / "version.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("tag", [None, "1.2.0"])
def test_a_version_that_all_agree_on_may_be_released(version: Any, tag: str | None) -> None:
    project = {"version": "1.2.0", "urls": URLS}
    assert version.wrong(project, "**1.2.0** (2030-01-31)\n\n**1.1.0** (2029-12-01)\n", tag) == []


@pytest.mark.parametrize(
    ("changelog", "tag", "urls", "said"),
    [
        ("**1.2.0** (2030-01-31)", "1.2", URLS, "the tag is 1.2, and"),
        ("**1.2.0** (2030-01-31)", "v1.2.0", URLS, "the tag is v1.2.0, and"),
        ("**1.1.0** (2030-01-31)", None, URLS, "the newest entry of CHANGELOG.rst is not"),
        ("**1.3.0** (2030-01-31)\n**1.2.0** (2030-01-31)", None, URLS, "the newest entry"),
        ("", None, URLS, "the newest entry"),
        ("**1.2.0** (unreleased)", None, URLS, "**1.2.0** has no date"),
        ("**1.2.0** (2030-01-31)", None, {}, "lacks Changelog, Documentation, Issues, Source"),
        ("**1.2.0** (2030-01-31)", None, {"Source": "https://example.com"}, "lacks Changelog, Doc"),
    ],
)
def test_what_does_not_agree_is_refused(
    version: Any, changelog: str, tag: str | None, urls: dict[str, str], said: str
) -> None:
    (found,) = version.wrong({"version": "1.2.0", "urls": urls}, changelog, tag)
    assert said in found


@pytest.mark.parametrize(
    ("urls", "replacement", "is_lost"),
    [
        ({}, r"\1", False),  # there is nothing to lead to, which is refused anyway
        ({"Source": "https://example.com/a"}, r"\1", True),
        ({"Source": "https://example.com/a"}, r"[\1](https://example.com/b/\2)", True),
        ({"Source": "https://example.com/a"}, r"[\1](https://example.com/a/\2)", False),
    ],
)
def test_the_readme_on_an_index_leads_to_the_source(
    version: Any, urls: dict[str, str], replacement: str, is_lost: bool
) -> None:
    substitutions = [{"replacement": ""}, {"replacement": replacement}]
    assert bool(version.lost_links({"urls": urls}, substitutions)) == is_lost


def test_the_newest_entry_of_the_changelog_is_this_version() -> None:
    version = re.search('^version = "(.+?)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    newest = re.search(r"^\*\*(.+?)\*\* \(", (ROOT / "CHANGELOG.rst").read_text(), re.MULTILINE)
    assert version is not None
    assert newest is not None
    assert newest[1] == version[1]


def test_the_readme_on_an_index_links_to_nothing_that_is_not_there() -> None:
    tables = (ROOT / "pyproject.toml").read_text().split("[[tool.hatch.metadata.hooks.fancy")[1:]
    text = (ROOT / "README.md").read_text()
    for table in tables:
        (pattern,) = re.findall("^pattern = '(.+)'$", table, re.MULTILINE)
        (replacement,) = re.findall("""^replacement = ["'](.*)["']$""", table, re.MULTILINE)
        # As in a literal string of TOML: backslashes stand for themselves.
        text = re.sub(pattern, replacement, text)
    assert [link for link in re.findall(r"\]\((.+?)\)", text) if "://" not in link] == []
    assert "](" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "name", re.findall(r"\]\((?!https://|#)(.+?)\)", (ROOT / "README.md").read_text())
)
def test_the_readme_links_to_what_is_there(name: str) -> None:
    assert (ROOT / name).exists()
