"""All applications in one, each under its own prefix, so that a server has to start only once.

``/log/<name>`` gives what happened under that name; what comes out of an application is logged
under its path.
"""

from __future__ import annotations

import json
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from work import asked_for, log

_MODULES = {
    "starlette": ("starlette", "with_starlette", "app"),
    "fastapi": ("fastapi", "with_fastapi", "app"),
    "fastapi-dependency": ("fastapi", "with_fastapi", "app_with_dependency"),
    "litestar": ("litestar", "with_litestar", "app"),
}

_apps: dict[str, Any] = {
    name: getattr(import_module(module), attribute)
    for name, (package, module, attribute) in _MODULES.items()
    if find_spec(package)
}


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        raise RuntimeError("there is nothing to start in here")
    path = scope["path"]
    _, first, rest = path.split("/", 2)
    if first == "log":
        if rest in asked_for:
            asked_for[rest].set()
        await _respond(send, log[rest])
        return
    scope = {**scope, "path": f"/{rest}", "raw_path": f"/{rest}".encode()}
    try:
        await _apps[first](scope, receive, send)
    except Exception as exc:
        log[path].append(type(exc).__name__)
        raise


async def _respond(send: Any, content: object) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(content).encode()})
