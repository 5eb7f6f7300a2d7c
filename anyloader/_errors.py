"""The exceptions that anyloader raises; each says who raises it and when."""

from __future__ import annotations

import sys

import anyio

__all__ = (
    "BatchResultError",
    "KeyNotFoundError",
    "LoadCancelledError",
    "LoadDeadlockError",
    "LoaderBusyError",
    "LoaderClosedError",
    "LoaderError",
    "LoaderNotOpenError",
)


class LoaderError(Exception):
    """
    Base class of the errors that anyloader itself raises.

    Their texts reach clients, so they hold no keys and no values, but where that is said.
    """

    #: What the error is about, keys and values, as a bounded text; empty if there is nothing to show.
    #: A traceback shows it too, as a note (from Python 3.11 on).
    excerpt: str = ""


class LoaderNotOpenError(LoaderError, RuntimeError):
    """
    Raised by ``load`` and ``load_many`` when the loader has nowhere to run.

    The loader was not entered, has no ``task_group=``, and there is no ambient
    :class:`LoaderScope` to bind to (or the ambient scope is not the one it is bound to).
    """


class LoaderClosedError(LoaderError, anyio.ClosedResourceError):
    """
    Raised when the scope of a loader has ended.

    ``load`` and ``load_many`` raise it from the end of the body of the ``async with`` on, except
    to batch functions of the same scope, and in a foreign task group as soon as that group
    accepts no more tasks.
    """


class LoaderBusyError(LoaderError):
    """
    Raised by ``load`` and ``load_many`` when ``max_queue_size`` keys wait to be sent already.

    Nothing is queued then. A server answers 503 to it, or waits and tries again.
    """


class KeyNotFoundError(LoaderError, LookupError):
    """
    Raised by a ``load_required`` whose value is ``None``.

    The message names the loader and the key, which is also in :attr:`key`.
    """

    #: The key, as it was given.
    key: object = None


class BatchResultError(LoaderError, TypeError):
    """
    Raised by every load of a batch whose function did not return one value for each key.

    The message says what is wrong and what to do, with the loader's name and the expected and actual
    length. Keys and values are in :attr:`excerpt` only.
    """


class LoadCancelledError(LoaderError):
    """
    Raised by a load whose batch ended without an outcome of its own.

    The batch function was cancelled or ended by something that is no ``Exception``, or the scope
    of the loader was left while the load was pending. ``__cause__`` is what ended it, where there
    is such an exception. The key is not cached, so it can be loaded again.

    Leaving a scope raises it, on asyncio, where ``task.cancel()`` of somebody else's has hit a task of the
    scope before it began, which cancels the body.
    """


class LoadDeadlockError(LoaderError, RuntimeError):
    """
    Raised in a batch function, or a schedule, that awaits a load which only itself could let settle.

    Either the load belongs to its own batch or to a batch that waits for it, or the load needs
    the last token of a limiter that one of them holds. The message names the loaders of the cycle.
    """


def show(error: LoaderError, excerpt: str) -> None:
    """Let an error have this as its excerpt."""
    error.excerpt = excerpt
    if sys.version_info >= (3, 11):
        error.add_note(excerpt)
