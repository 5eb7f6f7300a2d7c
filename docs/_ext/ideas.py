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
    "explanation/comparison": ["alternatives", "aiodataloader vs anyloader", "dloader"],
    "explanation/cost": ["benchmark", "overhead", "latency", "how fast"],
    "how-to/blocking": ["blocking call in batch function", "blocking", "requests", "sync driver"],
    "how-to/caching": [
        "lru cache",
        "ttl",
        "cachetools",
        "memory grows",
        "duplicate keys in a batch",
    ],
    "how-to/databases": [
        "in clause",
        "where id in",
        "rows in the wrong order",
        "transaction",
        "cancelled query goes on",
        "too many clients",
    ],
    "how-to/graphql": ["resolver", "stale subscription", "subscription events"],
    "how-to/groups": ["task group outside scope", "asyncio.taskgroup", "nursery", "exceptiongroup"],
    "how-to/http": ["rate limit", "rate limit concurrency", "bulk api", "rest api"],
    "how-to/model-calls": [
        "503",
        "overload",
        "backpressure",
        "embedding",
        "llm",
        "single flight",
        "queue full",
    ],
    "how-to/move-from-aiodataloader": [
        "attribute loop",
        "graphene",
        "graphene-sqlalchemy",
        "migrate from aiodataloader",
        "migration",
    ],
    "how-to/move-from-strawberry": [
        "load_fn",
        "cache_key_fn",
        "abstractcache",
        "migrate from strawberry",
    ],
    "how-to/mutations": [
        "update a row",
        "invalidate",
        "stale value",
        "same row loaded twice",
        "cache invalidation",
    ],
    "how-to/not-batching": [
        "n+1",
        "not batching",
        "loads do not batch",
        "lambda",
        "batches of one",
        "loader called once per key",
        "await in a loop",
    ],
    "how-to/observing": ["logging", "tracing", "metrics", "spans"],
    "how-to/relations": [
        "arguments",
        "loader with arguments",
        "books(first: 3)",
        "foreign key",
        "first n of each",
        "list of children per parent",
        "limit per group",
        "multiple keys tuple",
        "has many",
    ],
    "how-to/required": ["404", "not found", "type checker none", "v | none", "keynotfounderror"],
    "how-to/schedules": [
        "max_batch_size order",
        "max_batch_size composition",
        "delay",
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
    "how-to/sqlalchemy": [
        "session per request",
        "session per request sqlalchemy",
        "asyncsession",
        "detached instance",
        "psycopg",
        "lazy loading relationship",
    ],
    "how-to/synchronous": ["celery", "flask", "without asyncio", "sync code", "script"],
    "how-to/testing": [
        "notebook",
        "ipython",
        "pytest-asyncio",
        "fixture",
        "jupyter notebook",
        "count queries in tests",
    ],
    "how-to/threads": ["wrong thread", "different event loop", "executor", "thread pool"],
    "how-to/troubleshooting": [
        "is not async",
        "cannot be awaited",
        "forgotten await",
        "wrong user",
        "module-level loader",
        "none is cached",
        "deadlock",
        "pool exhausted",
        "sync batch function",
        "class as a dependency",
        "called lambda in logs",
        "lambda loader name",
        "module-level dataloader closed",
        "error messages",
        "loadernotopenerror",
        "loaderclosederror",
        "missing rows",
        "memory leak",
        "memory leak scope",
    ],
    "how-to/value-cache": ["redis wrong password", "redis is away", "second level", "uuid keys"],
    "how-to/web": [
        "background task",
        "client disconnect",
        "disconnect cancels request",
        "streaming response",
        "abandoned async generator",
        "depends session",
        "dependency user",
        "dataloader context",
        "async generator",
        "per request",
        "middleware",
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
    words = [(idea, section["ids"][0]) for idea in IDEAS.get(page, ())]
    for term in doctree.findall(nodes.term) if page.startswith("how-to/") else ():
        term["ids"].append(nodes.make_id(term.astext()))
        # In an index entry a semicolon begins a part of its own.
        words.append((term.astext().replace(";", ","), term["ids"][0]))
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
