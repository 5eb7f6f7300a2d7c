"""Finds what a test leaves behind and nobody would see.

That is asyncio's alone: it silently cancels the tasks that are left, and only logs errors that
nobody retrieved. On trio a nursery waits for its tasks, and every exception has somewhere to go.
Warnings and exceptions that nothing can catch ("never awaited", an error in a ``__del__``) are
pytest's to find, which runs with warnings as errors.
"""

from __future__ import annotations

import asyncio
import asyncio.runners
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest

# Runners call `_cancel_all_tasks` before they close a loop: the last moment to see what is left.
_CANCELLING_MODULES: list[Any] = [asyncio.runners]
if sys.version_info < (3, 11):
    _CANCELLING_MODULES.append(import_module("anyio._backends._asyncio"))

_LOOP_CLASSES: list[Any] = [asyncio.BaseEventLoop]
if find_spec("uvloop"):
    _LOOP_CLASSES.append(import_module("uvloop").Loop)

# anyio's pytest plugin keeps one task of its own in the loop, which runs the tests and fixtures.
_PLUGIN_TASK = "TestRunner._run_tests_and_fixtures"


@contextmanager
def watch_leftovers() -> Iterator[list[str]]:
    """Collect a line for each task that a loop still has when it is shut down, and for each call of
    a loop's exception handler; what these do otherwise, they do as ever.
    """
    # Lines and not objects: who keeps a task or an exception keeps alive what is to be collected.
    found: list[str] = []

    with pytest.MonkeyPatch.context() as patch:
        for module in _CANCELLING_MODULES:
            cancel_all_tasks = _watch_tasks(module._cancel_all_tasks, found)
            patch.setattr(module, "_cancel_all_tasks", cancel_all_tasks)
        for loop_class in _LOOP_CLASSES:
            handler = _watch_handler(loop_class.call_exception_handler, found)
            patch.setattr(loop_class, "call_exception_handler", handler)
        yield found


def _watch_tasks(cancel_all_tasks: Any, found: list[str]) -> Any:
    def watching(loop: asyncio.AbstractEventLoop) -> None:
        for task in asyncio.all_tasks(loop):
            if getattr(task.get_coro(), "__qualname__", None) != _PLUGIN_TASK:
                found.append(f"left pending: {task!r}")
        cancel_all_tasks(loop)

    return watching


def _watch_handler(call_exception_handler: Any, found: list[str]) -> Any:
    def watching(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        details = [f"{key}={value!r}" for key, value in context.items() if key != "message"]
        found.append(f"{context['message']}: {', '.join(details)}")
        call_exception_handler(loop, context)

    return watching
