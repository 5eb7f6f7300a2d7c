"""What comes out: a table, a plot and the raw numbers."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable
from dataclasses import asdict
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ._measure import Result, Row

HEADER = (
    f"{'work':42} {'loop':8} {'ratio':46} {'median':>7} {'quartiles':>13}  {'target':8} {'met':3}  "
    "costs"
)

_PACKAGES = (
    "anyloader", "anyio", "trio", "uvloop", "aiodataloader", "strawberry-graphql", "dloader",
    "graphql-core",
)  # fmt: skip


def line(row: Row, result: Result) -> str:
    first, third = result.quartiles
    costs = f"{result.cost_over * row.scale:.3g} / {result.cost_under * row.scale:.3g} {row.unit}"
    return (
        f"{row.title:42} {result.where:8} {result.over + ' / ' + result.under:46} "
        f"{result.ratio:7.2f} {f'{first:.2f}-{third:.2f}':>13}  {row.promise(result.over):8} "
        f"{'yes' if result.met else 'NO':3}  {costs}"
    )


def environment(*packages: str) -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.platform()}
    for package in packages or _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def write(folder: Path, rows: Iterable[Row], results: list[Result]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    raw = {"environment": environment(), "results": [asdict(result) for result in results]}
    (folder / "results.json").write_text(json.dumps(raw, indent=1) + "\n")
    (folder / "results.svg").write_text(plot({row.name: row for row in rows}, results))


def plot(rows: dict[str, Row], results: list[Result]) -> str:
    """
    Draw how far each result is on the good side of its target, which is the vertical line.

    The axis is logarithmic; a bar reaches from one quartile to the other, a dot is the median.
    """
    left, width, height, most = 520, 400, 18, 8.0

    def x(ratio: float, row: Row) -> float:
        margin = result.target / ratio if row.at_most else ratio / result.target
        place = math.log(min(max(margin, 1 / most), most)) / math.log(most)
        return left + width * (1 + place) / 2

    bottom = 40 + height * len(results)
    parts = [
        # A grey that can be read on light and on dark.
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 20} {bottom + 30}" '
        'font-family="sans-serif" font-size="12" fill="#767676">',
        f'<text x="{left + width / 2 + 6}" y="20">better than its target &#8594;</text>',
    ]
    for margin in (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8):
        at = left + width * (1 + math.log(margin) / math.log(most)) / 2
        parts.append(
            f'<path d="M{at:.1f} 28V{bottom}" stroke="#767676" opacity="{1 if margin == 1 else 0.35}"/>'
            f'<text x="{at:.1f}" y="{bottom + 15}" text-anchor="middle">{margin:g}x</text>'
        )
    for number, result in enumerate(results):
        row = rows[result.row]
        y = 40 + height * number
        colour = "seagreen" if result.met else "firebrick"
        ends = sorted(x(ratio, row) for ratio in result.quartiles)
        text = f"{row.title}, {result.where}: {result.over} / {result.under}, {row.promise(result.over)}"
        parts.append(
            f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{escape(text)}</text>'
            f'<path d="M{ends[0]:.1f} {y}H{ends[1]:.1f}" stroke="{colour}" stroke-width="5" '
            f'opacity="0.4"/><circle cx="{x(result.ratio, row):.1f}" cy="{y}" r="3.5" '
            f'fill="{colour}"/>'
        )
    return "\n".join([*parts, "</svg>", ""])
