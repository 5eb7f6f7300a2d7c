"""The exceptions that anyloader raises; each says who raises it and when."""

from __future__ import annotations

import anyio

__all__ = (
    "BatchResultError",
    "LoadCancelledError",
    "LoadDeadlockError",
    "LoaderClosedError",
    "LoaderError",
    "LoaderNotOpenError",
)


class LoaderError(Exception):
    """Base class of the errors that anyloader itself raises."""


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


class BatchResultError(LoaderError, TypeError):
    """
    Raised by every load of a batch whose function did not return one value for each key.

    The message gives the loader's name, the expected and the actual result, and an excerpt of
    keys and values.
    """


class LoadCancelledError(LoaderError):
    """
    Raised by a load whose batch ended without an outcome of its own.

    The batch function was cancelled or ended by something that is no ``Exception``, or the scope
    of the loader was left while the load was pending. ``__cause__`` is what ended it, where there
    is such an exception. The key is not cached, so it can be loaded again.
    """


class LoadDeadlockError(LoaderError, RuntimeError):
    """
    Raised in a batch function that awaits a load which only that function could let settle.

    Either the load belongs to its own batch or to a batch that waits for it, or the load needs
    the last token of a limiter that one of them holds. The message names the cycle.
    """
