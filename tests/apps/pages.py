"""Applications of the documentation, each under the name of its file, so that a server has to start only once."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "how-to"))


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        raise RuntimeError("there is nothing to start in here")
    _, name, rest = scope["path"].split("/", 2)
    scope = {**scope, "path": f"/{rest}", "raw_path": f"/{rest}".encode()}
    await import_module(name).app(scope, receive, send)
