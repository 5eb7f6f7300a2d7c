"""What a batch function returned, made into one value for each key; or a clear refusal."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import islice
from types import TracebackType
from typing import Any, Protocol

from ._errors import BatchResultError

__all__ = (
    "ResultRules",
    "aligned",
    "excerpt",
    "log_exception",
    "on_missing_value",
    "without_our_frames",
    "wrong_result",
)

_EXPECTED = (
    "an iterable with one value per key, a mapping from key to value, "
    "or an async generator of (key, value) pairs"
)


class ResultRules(Protocol):
    """What a loader says about the results of its batch function."""

    @property
    def name(self) -> str: ...

    def _cache_key(self, key: Any) -> Any: ...

    def _missing(self, key: Any) -> Any: ...


def aligned(rules: ResultRules, keys: Sequence[Any], result: object) -> Sequence[Any]:
    """
    Return one value per key, in the order of ``keys``.

    :raises BatchResultError: if ``result`` is nothing of the kind
    """
    if isinstance(result, Mapping):
        values: list[Any] = []
        for key in keys:
            cache_key = rules._cache_key(key)
            # Not ``get``: a mapping may make values for absent keys, as a defaultdict does.
            present = cache_key in result
            values.append(result[cache_key] if present else on_missing_value(rules, key))
        return values
    if isinstance(result, (str, bytes, bytearray, Set)) or not isinstance(result, Iterable):
        raise wrong_result(rules, keys, f"returned {excerpt(result)}, a {type(result).__name__}")
    # One more than wanted is enough to see that there are too many, even if they never end.
    values = list(islice(result, len(keys) + 1))
    if len(values) != len(keys):
        actual = f"more than {len(keys)}" if len(values) > len(keys) else str(len(values))
        if isinstance(result, Sequence):
            actual = str(len(result))
        raise wrong_result(
            rules, keys, f"returned {actual} values for {len(keys)} keys: {excerpt(result)}"
        )
    return values


def on_missing_value(rules: ResultRules, key: Any) -> Any:
    """Return what ``on_missing`` gives for ``key``; what it raises becomes that key's error."""
    try:
        return rules._missing(key)
    except Exception as exc:
        return exc


def wrong_result(rules: ResultRules, keys: Sequence[Any], problem: str) -> BatchResultError:
    return BatchResultError(
        f"the batch function of {rules.name} must give {_EXPECTED}; "
        f"called with {len(keys)} keys {excerpt(keys)} it {problem}"
    )


def excerpt(thing: object) -> str:
    """Return a bounded ``repr``; one that raises is no second error, which reprlib sees to."""
    return reprlib.repr(thing)


def without_our_frames(tb: TracebackType | None) -> TracebackType | None:
    """
    Return the traceback from where it leaves this package on.

    What is left leads into the user's function. It also holds no frame of ours, which would hold the
    batch, which holds the error.
    """
    while tb is not None and tb.tb_frame.f_globals.get("__package__") == __package__:
        tb = tb.tb_next
    return tb


def log_exception(message: str) -> None:
    """Log what user code raised where nobody can be told; call it where that is handled."""
    import logging  # takes long to import, and is hardly ever needed

    logging.getLogger("anyloader").exception(message)
