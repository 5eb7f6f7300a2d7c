"""The directive ``batch-states``: draws the states of a batch from the table in the code."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive

from anyloader._batch import TRANSITIONS

WIDTH, HEIGHT = 110, 36  # of a state
STEP = 92  # from one state to the next
LEFT = 165  # of the column of states
MIDDLE = LEFT + WIDTH / 2


def edges(table: Mapping[str, Mapping[str, str]]) -> dict[tuple[str, str], str]:
    """From two states to the events that lead from the one to the other."""
    found: dict[tuple[str, str], str] = {}
    for state, events in table.items():
        for event, target in events.items():
            before = found.get((state, target))
            found[state, target] = event if before is None else f"{before}, {event}"
    return found


def draw(table: Mapping[str, Mapping[str, str]]) -> str:
    """Stack the states; moves to the next one go straight down, others around it."""
    states = list(table)
    parts = []
    for state in states:
        y = states.index(state) * STEP + 4
        parts.append(
            f'<rect x="{LEFT}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="8"/>'
            f'<text x="{MIDDLE}" y="{y + 23}" text-anchor="middle">{escape(state)}</text>'
        )
    side = -1
    for (state, target), label in edges(table).items():
        start, end = states.index(state), states.index(target)
        if end == start + 1:
            y = start * STEP + 4 + HEIGHT
            parts.append(
                f'<path d="M {MIDDLE} {y} V {end * STEP + 2}"/>'
                f'<text x="{MIDDLE + 8}" y="{y + 32}">{escape(label)}</text>'
            )
            continue
        x = LEFT if side < 0 else LEFT + WIDTH
        # The second curve is closer to the column; the labels stand beside their middles.
        bend = x + side * (90 if side < 0 else 130)
        y, y_end = start * STEP + 4 + HEIGHT / 2, end * STEP + 4 + HEIGHT / 2
        label_x = x + side * (0.75 * abs(bend - x) + 6)
        anchor = "end" if side < 0 else "start"
        parts.append(
            f'<path d="M {x} {y} C {bend} {y + 20}, {bend} {y_end - 20}, {x + 2 * side} {y_end}"/>'
            f'<text x="{label_x}" y="{(y + y_end) / 2 + 4}" text-anchor="{anchor}">'
            f"{escape(label)}</text>"
        )
        side = -side
    height = (len(states) - 1) * STEP + HEIGHT + 8
    said = "; ".join(f"{a} to {b}: {events}" for (a, b), events in edges(table).items())
    return (
        f'<svg class="batch-states" viewBox="0 0 520 {height}" role="img" '
        f'aria-label="States of a batch. {escape(said)}">'
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto-start-reverse"><polygon points="0 0, 8 4, 0 8"/></marker>'
        f"</defs>{''.join(parts)}</svg>"
    )


class BatchStates(Directive):
    def run(self) -> list[nodes.Node]:
        return [nodes.raw("", draw(TRANSITIONS), format="html")]


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("batch-states", BatchStates)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
