"""
The picture on the first page: what ``examples/quickstart.py`` sends, one square for each statement.

    python docs/_ext/saving.py > docs/_static/saving.svg

It is a file, and not drawn by a directive, because README.md shows it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

#: What is asked for, and how many statements that takes without a loader. With it each takes one.
STATEMENTS = [
    ("which countries there are", 1, "#c2528b"),
    ("a country by its code", 1768, "#d0662b"),
    ("the subdivisions of a country", 80, "#2f9e6e"),
    ("a subdivision by its code", 717, "#4a80d4"),
]
COLUMNS, PITCH, SIDE = 92, 5, 4
LEFT, TOP = 10, 34

# On a page of the documentation the theme has the colour of text, elsewhere the reader's system.
STYLE = """
.saving { font: 15px system-ui, sans-serif; --saving-text: #1f2328; max-width: 560px; }
@media (prefers-color-scheme: dark) { .saving { --saving-text: #e6edf3; } }
.saving text { fill: var(--color-foreground-primary, var(--saving-text)); }
.saving .title { font-weight: 600; }
"""


def squares(kind: int, start: int, end: int, top: int) -> Iterator[str]:
    """The places from ``start`` to ``end`` of a field that is filled row by row, in few rectangles."""
    while start < end:
        row, column = divmod(start, COLUMNS)
        # Full rows at once, else to the end of this one.
        if column == 0 and end - start >= COLUMNS:
            rows, columns = (end - start) // COLUMNS, COLUMNS
        else:
            rows, columns = 1, min(COLUMNS - column, end - start)
        yield (
            f'<rect x="{LEFT + column * PITCH}" y="{top + row * PITCH}" width="{columns * PITCH}" '
            f'height="{rows * PITCH}" fill="url(#saving-{kind})"/>'
        )
        start += rows * columns


def draw() -> str:
    total = sum(count for _, count, _ in STATEMENTS)
    ends = list(accumulate(count for _, count, _ in STATEMENTS))
    field = -(-total // COLUMNS) * PITCH
    below = TOP + field + 52  # where the four squares stand
    height = below + 28 + 24 * len(STATEMENTS)
    said = f"{total:,} SQL statements without a loader, {len(STATEMENTS)} with anyloader."
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="saving" viewBox="0 0 480 {height}" '
        f'role="img" aria-label="{said}">',
        f"<style>{STYLE}</style>",
        "<defs>",
    ]
    for kind, (_, _, colour) in enumerate(STATEMENTS):
        parts.append(
            f'<pattern id="saving-{kind}" width="{PITCH}" height="{PITCH}" x="{LEFT}" y="{TOP}" '
            f'patternUnits="userSpaceOnUse"><rect width="{SIDE}" height="{SIDE}" fill="{colour}"/>'
            "</pattern>"
        )
    parts.append("</defs>")
    parts.append(
        f'<text class="title" x="{LEFT}" y="22">Without a loader: {total:,} SQL statements</text>'
    )
    for kind, end in enumerate(ends):
        parts += squares(kind, end - STATEMENTS[kind][1], end, TOP)
    parts.append(
        f'<text class="title" x="{LEFT}" y="{below - 12}">'
        f"With anyloader: {len(STATEMENTS)}, and the same answer</text>"
    )
    for kind, (what, count, colour) in enumerate(STATEMENTS):
        y = below + 36 + 24 * kind
        square = f'width="{SIDE}" height="{SIDE}" fill="{colour}"'
        parts += [
            f'<rect x="{LEFT + kind * PITCH}" y="{below}" {square}/>',
            f'<rect x="{LEFT}" y="{y - 11}" width="12" height="12" fill="{colour}"/>',
            f'<text x="104" y="{y}" text-anchor="end">{count:,} → 1</text>',
            f'<text x="116" y="{y}">{what}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    print(draw(), end="")
