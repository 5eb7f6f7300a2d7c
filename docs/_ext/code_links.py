"""Links the names that a program imports from anyloader to the reference."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

BLOCK = re.compile(r'(?<=<div class="highlight"><pre>).*?(?=</pre>)', re.DOTALL)
IMPORT = re.compile(r"^from (anyloader[\w.]*) import (\([^)]*\)|.*)$", re.MULTILINE)
#: A name that is no attribute of something else.
NAME = re.compile(r'(?<!<span class="o">\.</span>)<span class="n[cdf]?">(\w+)</span>')


def link(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    if doctree is None:
        return
    objects = app.env.get_domain("py").objects

    def linked(block: re.Match[str]) -> str:
        text = unescape(re.sub("<[^>]+>", "", block[0]))
        targets = {
            name: objects[f"{module}.{name}"]
            for module, names in IMPORT.findall(text)
            for name in re.findall(r"\w+", re.sub("#.*", "", names))
            if f"{module}.{name}" in objects
        }

        def anchor(name: re.Match[str]) -> str:
            if name[1] not in targets:
                return name[0]
            target = targets[name[1]]
            uri = app.builder.get_relative_uri(page, target.docname)
            return f'<a class="code-link" href="{uri}#{target.node_id}">{name[0]}</a>'

        return NAME.sub(anchor, block[0])

    context["body"] = BLOCK.sub(linked, context["body"])


def setup(app: Any) -> dict[str, Any]:
    app.connect("html-page-context", link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
