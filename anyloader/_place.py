"""Where a loader runs, and whether a call may be made here: the one gate of all public calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from weakref import ref

from ._batch import Batch
from ._dispatcher import Dispatcher, ambient
from ._errors import LoaderNotOpenError
from ._options import Options
from ._results import counted, excerpt
from ._statistics import Counts, LoaderStatistics
from .hooks import Hooks, LoadHit, LoadQueued, watches
from .schedules import Manual

__all__ = ("Place",)

#: ``token`` of a loader that takes no loads as it is; equal to no event loop.
_CLOSED: Any = object()


def _nowhere() -> object:
    return None


def _in_scope(dispatcher: Dispatcher) -> object:
    """Return the running event loop, but only where the scope of ``dispatcher`` is ambient."""
    return dispatcher.backend.current() if ambient.get() is dispatcher else None


class Place:
    """
    The part of a loader that knows its scope.

    :param front: the public object
    :param options: what it was told
    """

    __slots__ = (
        "__weakref__",
        "_found_scope",
        "arguments",
        "counts",
        "front",
        "hooks",
        "name",
        "options",
        "running",
        "scope",
        "token",
    )

    def __init__(self, front: Any, options: Options) -> None:
        self.front = ref(front)
        self.options = options
        self.name = options.name
        #: What its source was given, for people.
        self.arguments: Mapping[str, Any] = {}
        self.counts = Counts()
        self.hooks: Hooks | None = None
        #: Where batches run; set once.
        self.scope: Dispatcher | None = None
        #: Whether it was found, rather than given, and so has to be ambient at every load.
        self._found_scope = False
        # A load is let in without further questions if these two agree.
        self.running: Callable[[], object] = _nowhere
        self.token: object = _CLOSED

    def listen(self, hooks: Hooks | None) -> None:
        """Tell these from now on."""
        self.hooks = hooks

    def tell(self, key: Any, batch: Batch | None, *, shared: bool) -> None:
        """Tell of a load; ``batch`` is ``None`` if it has settled."""
        hooks: Any = self.hooks
        if batch is None:
            hooks.tell(LoadHit, self.name, key)
        else:
            hooks.tell(LoadQueued, self.name, key, batch.number, shared)

    def attach(self, scope: Dispatcher) -> None:
        """Run there, for good."""
        self.scope = scope
        if scope.hooks:
            own = () if self.hooks is None else self.hooks.hooks
            self.listen(Hooks((*own, *scope.hooks)))
        scope.attach(self)
        for watch in watches.get():
            watch.add(self)

    @property
    def is_manual(self) -> bool:
        return isinstance(self.options.schedule, Manual)

    def bind(self, token: object) -> None:
        if token is None:
            self.running, self.token = _nowhere, _CLOSED
        else:
            scope: Any = self.scope
            self.token = token
            self.running = partial(_in_scope, scope) if self._found_scope else scope.backend.current

    async def enter(self) -> None:
        if self.scope is not None and (self.scope.entered or self.counts.snapshot().loads):
            raise RuntimeError(
                f"{self.name} is or was open already; a loader can be entered once, for a new "
                "request make a new one"
            )
        scope = Dispatcher()
        await scope.enter()
        self.attach(scope)

    def admit(self) -> None:
        """Let in a load that does not surely come from where the loader is open, or refuse it."""
        scope = self.scope
        if scope is None:
            scope = ambient.get()
            if scope is None:
                raise LoaderNotOpenError(
                    f"{self.name} has nowhere to run: use `async with` on it, give it a task_group, or "
                    "load inside `async with LoaderScope()`; in a web application LoaderScopeMiddleware "
                    "opens one for each request, and over a WebSocket each message opens its own"
                )
            scope.admit(self)
            self._found_scope = True
            self.attach(scope)
            return
        if self._found_scope:
            scope.check_ambient(self.name)
        scope.admit(self)

    def statistics(self) -> LoaderStatistics:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def describe(self, kind: str) -> str:
        now = self.statistics()
        state = "not open" if self.scope is None else self.scope.state
        given = f" {excerpt(dict(self.arguments))}" if self.arguments else ""
        return (
            f"<{kind} {self.name}{given}: {state}, {counted(now.queued, 'key')} queued, "
            f"{counted(now.running, 'batch', 'batches')} running, {now.cached} cached>"
        )

    def check_place(self) -> None:
        """Refuse calls that touch the cache from where no load would be let in."""
        if self.scope is None:
            return
        if self._found_scope and self.running() is not self.token:
            self.admit()
        elif self.scope.state != "closed":
            self.scope.check_thread()
