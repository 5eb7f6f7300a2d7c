"""Print the version, if everything agrees on it: ``python .ci/version.py [TAG]``."""

import re
import sys
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).parents[1]
URLS = {"Changelog", "Documentation", "Issues", "Source"}


def wrong(project: dict[str, object], changelog: str, tag: str | None) -> list[str]:
    """Say what keeps this version from being released."""
    found = []
    version = str(project["version"])
    if tag not in (None, version):
        found.append(f"the tag is {tag}, and pyproject.toml has {version}")
    newest = re.search(r"^\*\*(.+?)\*\* \((.+?)\)$", changelog, re.MULTILINE)
    if newest is None or newest[1] != version:
        found.append(f"the newest entry of CHANGELOG.rst is not **{version}**")
    elif not re.fullmatch(r"\d{4}-\d\d-\d\d", newest[2]):
        found.append(f"**{version}** has no date in CHANGELOG.rst, but ({newest[2]})")
    urls = project.get("urls")
    if lacking := URLS - set(urls if isinstance(urls, dict) else ()):
        found.append(f"[project.urls] in pyproject.toml lacks {', '.join(sorted(lacking))}")
    return found


def lost_links(project: dict[str, Any], substitutions: list[dict[str, str]]) -> list[str]:
    """Say whether the links of README.md do not lead to the source from the page of an index."""
    source = project.get("urls", {}).get("Source")
    if source is None or any(f"]({source}/" in each["replacement"] for each in substitutions):
        return []
    return [
        f"no replacement of links in pyproject.toml leads to {source}, as in [\\1]({source}/...)"
    ]


def main(tag: str | None = None) -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = settings["project"]
    readme = settings["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    found = wrong(project, (ROOT / "CHANGELOG.rst").read_text(), tag)
    found += lost_links(project, readme["substitutions"])
    if found:
        sys.exit("".join(f".ci/version.py: {line}\n" for line in found).rstrip())
    print(project["version"])


if __name__ == "__main__":
    main(*sys.argv[1:2])
