"""
What a loader tells of its work, while it works.

A hook is any callable that takes one event; the events are the records below. It is called where
things happen, synchronously, so it must not block. :class:`LoadQueued`, :class:`LoadHit` and
:class:`BatchOpened` come in the task and the context of the caller; :class:`BatchStarted` comes in
the task of the batch and the context of its function, just before that is called. All others come in
whatever task brings them about: that of the batch, or of whoever filled, dispatched, gave up or
cancelled it. What a hook raises harms no load; it is logged, once for each loader, and the hook goes on being called.
"""

# No annotations from __future__: of strings a NamedTuple would compile each, at import.
import os.path
import sys
import warnings
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE
from types import MethodType
from typing import Any, NamedTuple, Protocol

from ._results import log_exception

__all__ = (
    "BatchCancelled",
    "BatchFailed",
    "BatchFinished",
    "BatchOpened",
    "BatchSealed",
    "BatchStarted",
    "Event",
    "Hook",
    "Hooks",
    "LoadHit",
    "LoadQueued",
    "ValueCacheFailed",
    "ValueCacheHit",
    "ValueCacheMiss",
    "warn_unbatched",
)


class LoadQueued(NamedTuple):
    """A load brought a key into a batch, or joined the entry of one that is on its way."""

    loader: str
    key: Any
    #: The number of the batch, unique in the process.
    batch: int
    #: Whether the key was there already.
    shared: bool


class LoadHit(NamedTuple):
    """A load was answered by a settled entry of the cache."""

    loader: str
    key: Any


class BatchOpened(NamedTuple):
    """A first key made a batch necessary."""

    loader: str
    batch: int


class BatchSealed(NamedTuple):
    """A batch takes no more keys."""

    loader: str
    batch: int
    #: "schedule", "full", "dispatch" or "close"
    reason: str
    #: How many keys it goes with; those that nobody wanted any more have left.
    size: int


class BatchStarted(NamedTuple):
    """The batch function is about to be called, or the value cache asked."""

    loader: str
    batch: int
    keys: tuple[Any, ...]


class BatchFinished(NamedTuple):
    """The batch function has given its result."""

    loader: str
    batch: int
    #: How many single keys failed.
    errors: int


class BatchFailed(NamedTuple):
    """All loads of the batch that were not settled got this error."""

    loader: str
    batch: int
    error: BaseException


class BatchCancelled(NamedTuple):
    """All loads of the batch that were not settled got a ``LoadCancelledError``."""

    loader: str
    batch: int
    why: str


class ValueCacheHit(NamedTuple):
    """The value cache had these cache keys."""

    loader: str
    batch: int
    keys: tuple[Any, ...]


class ValueCacheMiss(NamedTuple):
    """The value cache did not have these cache keys."""

    loader: str
    batch: int
    keys: tuple[Any, ...]


class ValueCacheFailed(NamedTuple):
    """A call of the value cache raised, or returned what it must not; loads do without it."""

    loader: str
    #: 0 where what was cleared is deleted by no batch: at once, or when the scope is left.
    batch: int
    #: "get_many", "set_many" or "delete_many"
    operation: str
    error: Exception


Event = (
    LoadQueued
    | LoadHit
    | BatchOpened
    | BatchSealed
    | BatchStarted
    | BatchFinished
    | BatchFailed
    | BatchCancelled
    | ValueCacheHit
    | ValueCacheMiss
    | ValueCacheFailed
)

Hook = Callable[[Event], object]

_new_tuple = tuple.__new__


class Watch(Protocol):
    """A hook for all loaders that are used in a block of code."""

    def add(self, loader: Any, /) -> None:
        """Hear of this loader too."""
        ...

    def __call__(self, event: Event, /) -> object: ...


class Hooks:
    """
    Some hooks to call. One that raises harms nobody: it is logged, once, and called again.

    Loaders with no hooks at all have no such object.
    """

    __slots__ = ("_calls", "_logged", "_watches", "hooks")

    def __init__(self, hooks: tuple[Hook, ...]) -> None:
        self.hooks: tuple[Hook, ...] = tuple(
            hook.anew() if isinstance(hook, FindUnbatched) else hook for hook in hooks
        )
        self.watches = ()
        self._logged: set[int] = set()

    @property
    def watches(self) -> tuple[Watch, ...]:
        """Those of the hooks that are there for a while only."""
        return self._watches

    @watches.setter
    def watches(self, watches: tuple[Watch, ...]) -> None:
        self._watches = watches
        self._calls = (*map(_call_of, self.hooks), *map(_call_of, watches))

    def tell(self, kind: type[Event], *fields: Any) -> None:
        """Call the hooks with an event of this class; calling that takes twice as long."""
        event: Any = _new_tuple(kind, fields)
        for call in self._calls:
            try:
                call(event)
            except Exception:
                if id(call) not in self._logged:
                    self._logged.add(id(call))
                    hook: Any = call
                    if isinstance(hook, MethodType) and hook.__name__ == "__call__":
                        hook = hook.__self__
                    log_exception(f"hook {hook!r} raised; it will not be logged again")


def _call_of(hook: Hook) -> Hook:
    """Find ``__call__`` of an object once, as calling it takes half as long as calling the object."""
    found: Any = hook
    kind: Any = type(hook)
    call: Any = found.__call__
    return call if isinstance(call, MethodType) and call.__func__ is kind.__call__ else hook


#: Those of the whole process, wherever no block is: in threads, and in tasks of other event loops.
everywhere: list[Watch] = []

#: Those of the blocks around the running code. Looked at where a loader is opened or opens a batch;
#: a batch function runs in the blocks that watch its loader.
watches: ContextVar[Sequence[Watch]] = ContextVar("anyloader_watches", default=everywhere)


#: Where calls come from that no reader of a report has written.
_NOT_USERS = ("site-packages", "dist-packages", "<frozen ")
_ASYNC = CO_COROUTINE | CO_ASYNC_GENERATOR
_NOT_USERS_EITHER = (os.path.dirname(__file__), os.path.dirname(warnings.__file__))


def users_lines(
    frame: Any, most: int, *, async_callers: bool = False
) -> tuple[tuple[str, int, str], ...]:
    """
    Return file, line and function of the user's own code that led to here, innermost first.

    :param async_callers: of those after the first one leave out what cannot await, and so cannot have
        the loop that does
    """
    found: list[tuple[str, int, str]] = []
    while frame is not None and len(found) < most:
        code = frame.f_code
        path = code.co_filename
        if (
            not path.startswith(_NOT_USERS_EITHER)
            and not any(p in path for p in _NOT_USERS)
            and (not async_callers or not found or code.co_flags & _ASYNC)
        ):
            found.append((path, frame.f_lineno, code.co_name))
        frame = frame.f_back
    return tuple(found)


def warn_unbatched(threshold: int = 10) -> Hook:
    """
    Return a hook that warns of loads which do not batch.

    That is once for each loader and line of code, when ``threshold`` batches of one key came from
    that line in a row: mostly a loop that awaits each load before it makes the next one. In Python's
    development mode (``python -X dev``) all loaders have it. In tests, the option
    ``anyloader_unbatched`` of our pytest plugin makes it an error.

    :param threshold: so many batches of one key in a row are a warning, a ``RuntimeWarning``
    :raises TypeError: if ``threshold`` is not an int
    :raises ValueError: if ``threshold`` is less than 1
    """
    if isinstance(threshold, bool) or not isinstance(threshold, int):
        raise TypeError(f"warn_unbatched() takes an int >= 1, not {threshold!r}")
    if threshold < 1:
        raise ValueError(f"warn_unbatched() takes an int >= 1, not {threshold!r}")

    def warn(message: str, path: str, number: int) -> None:
        warnings.warn_explicit(message, RuntimeWarning, path, number)

    return FindUnbatched(threshold, warn)


#: How many of the lines that led to a load are looked at: enough to reach the loop around a helper.
_MOST_LINES = 5


class FindUnbatched:
    """
    The hook of :func:`warn_unbatched`. Each loader has one of its own, made by :meth:`anew`.

    Loaders of two requests may have the same name, and a key each from one line: these cannot batch.

    :param tell: called with a message, file and line
    """

    def __init__(self, threshold: int, tell: Callable[[str, str, int], object]) -> None:
        self._made_with = threshold, tell
        #: The lines that led to the first key of an open batch, and how many keys it has.
        self._opened: dict[int, list[Any]] = {}
        #: The last lines, and how many batches of one key they have sent in a row.
        self._lines: tuple[Any, ...] = ()
        self._row = 0
        #: The loaders and lines that were told of, for all loaders together.
        self._told: set[Any] = set()

    def anew(self) -> "FindUnbatched":
        """Return one for another loader."""
        other = FindUnbatched(*self._made_with)
        other._told = self._told
        return other

    def __call__(self, event: Event) -> None:
        if isinstance(event, LoadQueued):
            if event.batch in self._opened:
                self._opened[event.batch][1] += not event.shared
            elif not event.shared:
                lines = users_lines(sys._getframe(1), _MOST_LINES, async_callers=True)
                self._opened[event.batch] = [lines or (("somewhere", 0, ""),), 1]
        elif isinstance(event, (BatchSealed, BatchFailed, BatchCancelled)):
            lines, keys = self._opened.pop(event.batch, ((), 0))
            # One that was full could hold no more keys, with max_batch_size=1 or batch=False.
            full = isinstance(event, BatchSealed) and event.reason == "full" and keys == 1
            if lines and not full:
                self._row = self._row if keys == 1 and lines == self._lines else 0
                self._row += keys == 1
                self._lines = lines
                self._look(event.loader, lines)

    def _look(self, loader: str, lines: Sequence[tuple[str, int, str]]) -> None:
        threshold, tell = self._made_with
        if self._row < threshold or (loader, lines[0]) in self._told:
            return
        self._told.add((loader, lines[0]))
        path, number, _ = lines[0]
        callers = ", ".join(f"{path}:{at}" for path, at, _ in lines[1:])
        called = f", called at {callers}" if callers else ""  # the loop may be in one of them
        tell(
            f"{loader} got {threshold} batches of one key in a row from one line, "
            f"{path}:{number}{called}; load what is known before awaiting any of it, by "
            "load_many or several load() calls, or in tasks that run at the same time",
            path,
            number,
        )
