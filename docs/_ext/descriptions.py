"""Describes each page to search engines by its first paragraph, unless it says how itself."""

from __future__ import annotations

from html import escape
from typing import Any

from docutils import nodes


def describe(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    if doctree is None or 'name="description"' in context.get("metatags", ""):
        return
    for paragraph in doctree.findall(nodes.paragraph):
        words = " ".join(paragraph.astext().split())
        if len(words) > 300:
            words = words[:300].rpartition(" ")[0] + " ..."
        tag = f'<meta name="description" content="{escape(words)}" />'
        context["metatags"] = context.get("metatags", "") + tag
        return


def setup(app: Any) -> dict[str, Any]:
    app.connect("html-page-context", describe)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
