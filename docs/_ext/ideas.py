"""
What people type into the search, and the page that answers it.

Sphinx knows of titles and of words, and so does ``_static/scorer.js``, which ranks the pages. What stands in
bold as a term, as most parts of the how-to pages do, is a title to the reader; here it becomes one to the
search. ``IDEAS`` are questions in other words than the page's own. Each becomes an entry of the index.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.util import logging

IDEAS = {
    "explanation/comparison": ["alternatives", "aiodataloader vs anyloader"],
    "explanation/cost": ["benchmark", "overhead", "latency"],
    "how-to/blocking": ["sync driver", "requests"],
    "how-to/caching": ["ttl", "memory grows"],
    "how-to/databases": ["in clause", "where id in", "cancelled query goes on", "too many clients"],
    "how-to/graphql": ["stale subscription"],
    "how-to/groups": ["exceptiongroup"],
    "how-to/http": ["rate limit", "rate limit concurrency", "rest api"],
    "how-to/model-calls": ["503", "backpressure", "llm", "queue full"],
    "how-to/move-from-aiodataloader": ["migration"],
    "how-to/mutations": ["invalidate", "same row loaded twice", "cache invalidation"],
    "how-to/not-batching": [
        "loader called once per key",
        "await in a loop",
        "n+1",
        "not batching",
        "lambda",
        "batches of one",
    ],
    "how-to/relations": ["foreign key", "list of children per parent", "limit per group"],
    "how-to/required": ["404", "v | none"],
    "how-to/schedules": [
        "max_batch_size order",
        "max_batch_size composition",
        "debounce",
        "tick",
        "batchschedulefn",
    ],
    "how-to/shared-cache": [
        "stampede",
        "stale value written back",
        "thundering herd",
        "tenant",
        "security",
        "authorization",
    ],
    "how-to/sqlalchemy": ["psycopg"],
    "how-to/synchronous": ["without asyncio", "sync code"],
    "how-to/testing": ["ipython"],
    "how-to/threads": [
        "different event loop",
        "got future attached to a different loop",
        "thread pool",
    ],
    "how-to/troubleshooting": [
        "is not async",
        "module-level loader",
        "none is cached",
        "deadlock",
        "pool exhausted",
        "sync batch function",
        "module-level dataloader closed",
        "memory leak",
        "memory leak scope",
    ],
    "how-to/value-cache": ["second level"],
    "how-to/web": [
        "class as a dependency",
        "client disconnect",
        "disconnect cancels request",
        "depends session",
        "dataloader context",
        "per request",
        "middleware",
        "celery worker",
        "async_to_sync deadlock",
    ],
    "reference/scopes": ["method batch_loader", "batch_loader on a method"],
    "tutorial/cancellation": ["timeout", "time limit", "fail_after"],
    "versionhistory": ["changelog", "release notes"],
}


def add(app: Any, doctree: nodes.document) -> None:
    page = app.env.docname
    section = next(iter(doctree.findall(nodes.section)), None)
    if section is None:
        return
    top = section["ids"][0]
    words = [(idea, top) for idea in IDEAS.get(page, ())]
    for term in doctree.findall(nodes.term) if page.startswith("how-to/") else ():
        target = nodes.make_id(term.astext())
        if target and doctree.ids.setdefault(target, term) is term:
            term["ids"].append(target)
        else:
            target = top
        # In an index entry a semicolon begins a part of its own.
        words.append((term.astext().replace(";", ","), target))
    entries = [("single", text, target, "main", None) for text, target in words]
    section.insert(1, addnodes.index(entries=entries))
    app.env.get_domain("index").process_doc(app.env, page, doctree)


def check(app: Any, env: Any) -> None:
    for page in IDEAS.keys() - env.all_docs.keys():
        logging.getLogger(__name__).warning("ideas.py names the page %s, which is gone", page)


def setup(app: Any) -> dict[str, Any]:
    app.connect("doctree-read", add)
    app.connect("env-updated", check)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
