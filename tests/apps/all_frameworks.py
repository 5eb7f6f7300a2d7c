"""All applications in one, each under its own prefix, so that a server has to start only once.

``/log/<name>`` gives what happened under that name; what comes out of an application is logged
under its path.
"""

from __future__ import annotations

import json
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from work import log

_MODULES = {
    "starlette": ("starlette", "with_starlette:app"),
    "fastapi": ("fastapi", "with_fastapi:app"),
    "fastapi-dependency": ("fastapi", "with_fastapi:app_with_dependency"),
    "litestar": ("litestar", "with_litestar:app"),
}

#: The names of those whose framework is installed.
FRAMEWORKS = [name for name, (package, _) in _MODULES.items() if find_spec(package)]

_apps: dict[str, Any] = {}


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    path = scope["path"]
    _, first, rest = path.split("/", 2)
    if first == "log":
        await _respond(send, log[rest])
        return
    scope = {**scope, "path": f"/{rest}", "raw_path": f"/{rest}".encode()}
    try:
        await _apps[first](scope, receive, send)
    except Exception as exc:
        log[path].append(type(exc).__name__)
        raise


async def _lifespan(receive: Any, send: Any) -> None:
    await receive()
    for name in FRAMEWORKS:
        module, attribute = _MODULES[name][1].split(":")
        _apps[name] = getattr(import_module(module), attribute)
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def _respond(send: Any, content: object) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(content).encode()})
