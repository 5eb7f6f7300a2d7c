"""Shows the name of each program above it, so that a reader knows what to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.directives import code


class LiteralInclude(code.LiteralInclude):
    def run(self) -> list[nodes.Node]:
        path = Path(self.arguments[0])
        if path.suffix == ".py" and "pyobject" not in self.options:
            self.options.setdefault("caption", path.name)
        return super().run()


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("literalinclude", LiteralInclude, override=True)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
