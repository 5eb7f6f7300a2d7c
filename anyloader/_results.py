"""What a batch function gave, made into one outcome for each key; or a clear refusal."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from itertools import islice
from types import CodeType, TracebackType
from typing import Any, Protocol

from ._errors import BatchResultError, LoadCancelledError, show

__all__ = (
    "AWAITS",
    "Failure",
    "ResultRules",
    "aligned",
    "article",
    "counted",
    "excerpt",
    "failure_of",
    "log_exception",
    "missing_value",
    "outcome_of",
    "rebased",
    "without_our_frames",
    "wrong_result",
)


class ResultRules(Protocol):
    """What a loader says about the results of its batch function."""

    name: str
    on_missing: Callable[[Any], Any] | None
    index_by: Callable[[Any], Any] | None
    group_by: Callable[[Any], Any] | None

    def cache_key(self, key: Any, /) -> Any: ...


# Outcomes

# An error of the user's may refuse to be changed, or have a ``__getattribute__`` of its own.
traceback_of: Any = vars(BaseException)["__traceback__"].__get__
_context_of: Any = vars(BaseException)["__context__"].__get__
_set_context: Any = vars(BaseException)["__context__"].__set__

#: The code of our ``__await__`` methods.
AWAITS: set[CodeType] = set()


class Failure:
    """An error as the outcome of a load, with the traceback and the context that it came with."""

    __slots__ = ("context", "exception", "traceback")

    def __init__(self, exception: BaseException, traceback: TracebackType | None = None) -> None:
        self.exception = exception
        self.traceback = traceback
        self.context: BaseException | None = _context_of(exception)

    def renewed(self) -> BaseException:
        """Return the error to be raised; :meth:`restore` is to be called where that is done."""
        # Python appends to an exception's traceback wherever it passes. Starting each time from the
        # original one keeps it from growing with every waiter that the error is raised to.
        return rebased(self.exception, self.traceback)

    def restore(self) -> None:
        """Take away the context that raising gave: what one waiter handles is none of the next."""
        _set_context(self.exception, self.context)


def rebased(exception: BaseException, traceback: TracebackType | None) -> BaseException:
    """Return the exception with this traceback, whatever it thinks of being changed."""
    return BaseException.with_traceback(exception, traceback)


def outcome_of(value: Any) -> Any:
    """
    Return what was returned, or primed, as a value: itself, or for an error its :class:`Failure`.

    The same error may have been raised to waiters before, which has put their frames, and ours, on
    top of its traceback. What counts is below these.
    """
    kind = type(value)  # isinstance would make a lazy proxy load
    if not issubclass(kind, Exception):
        if not issubclass(kind, BaseException) or not _is_cancellation(kind):
            return value
        error = LoadCancelledError("this load was cancelled: its value is a cancellation")
        error.__cause__ = value
        return Failure(error)
    traceback = tb = traceback_of(value)
    while tb is not None:
        if tb.tb_frame.f_code in AWAITS:
            traceback = tb.tb_next
        tb = tb.tb_next
    return Failure(value, traceback)


def _is_cancellation(kind: type) -> bool:
    """What ``gather(return_exceptions=True)`` puts among the values for a part that was cancelled."""
    asyncio_s = getattr(sys.modules.get("asyncio"), "CancelledError", ())
    return issubclass(kind, (asyncio_s, getattr(sys.modules.get("trio"), "Cancelled", ())))


def without_our_frames(error: BaseException) -> TracebackType | None:
    """
    Return the traceback of an error from where it leaves this package on.

    What is left leads into the user's function. It also holds no frame of ours, which would hold the
    batch, which holds the error.
    """
    tb: TracebackType | None = traceback_of(error)
    while tb is not None and tb.tb_frame.f_globals.get("__package__") == __package__:
        tb = tb.tb_next
    return tb


def failure_of(error: Exception) -> Failure:
    """Return the failure of what the user's code has raised to us."""
    traceback = without_our_frames(error)
    return Failure(rebased(error, traceback), traceback)


# What was returned


def aligned(rules: ResultRules, keys: Sequence[Any], result: object) -> Sequence[Any]:
    """
    Return one value per key, in the order of ``keys``.

    :raises BatchResultError: if ``result`` is nothing of the kind
    """
    if rules.index_by is not None or rules.group_by is not None:
        return _from_rows(rules, keys, result)
    if isinstance(result, Mapping):
        return _from_mapping(rules, keys, result)
    _check_iterable(rules, keys, result, "one value for each key, in the order of the keys")
    # One more than wanted is enough to see that there are too many, even if they never end.
    values: list[Any] = list(islice(result, len(keys) + 1))  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    if len(values) != len(keys):
        actual = f"more than {len(keys)}" if len(values) > len(keys) else str(len(values))
        if isinstance(result, Sequence):
            actual = str(len(result))
        raise wrong_result(
            rules,
            keys,
            f"returned {actual} value{'' if actual == '1' else 's'} for {counted(len(keys), 'key')}; "
            "return one value for each key, in the order of the keys, or a mapping from key to value, "
            "or give the loader index_by= or group_by=",
            result,
        )
    return values


def _check_iterable(rules: ResultRules, keys: Sequence[Any], result: object, wanted: str) -> None:
    if isinstance(result, (str, bytes, bytearray, Set)) or not isinstance(result, Iterable):
        raise wrong_result(rules, keys, f"returned {article(result)}; return {wanted}", result)


def _from_mapping(
    rules: ResultRules, keys: Sequence[Any], result: Mapping[Any, Any]
) -> Sequence[Any]:
    if rules.on_missing is None and hasattr(type(result), "__missing__"):
        return _look_up(rules, keys, result, lambda _, cached: _try(result.__getitem__, cached))
    return _look_up(rules, keys, result, lambda key, _: missing_value(rules, key))


def _from_rows(rules: ResultRules, keys: Sequence[Any], result: object) -> Sequence[Any]:
    """Sort rows that came in any order to their keys."""
    if isinstance(result, Mapping):
        raise wrong_result(
            rules, keys, "returned a mapping; with index_by= or group_by= return rows", result
        )
    _check_iterable(rules, keys, result, "rows")
    given: Any = result
    rows: dict[Any, Any] = {}
    if rules.group_by is not None:
        for row in given:
            rows.setdefault(rules.group_by(row), []).append(row)
        groups = {}
        for key in keys:  # which are the keys of rows as they were given, or as they are cached
            cached = rules.cache_key(key)
            group = rows.get(cached, [])
            if cached is not key and cached != key and _has(rows, key):
                group = group + rows[key]
            groups[cached] = group
        if rows and not any(groups.values()):
            _check_types(rules, keys, rows)
        return [groups[rules.cache_key(key)] for key in keys]
    index_by: Any = rules.index_by
    for row in given:
        key = index_by(row)
        if key in rows:
            problem = (
                "returned two rows with the same key; with index_by= give one, or use group_by="
            )
            raise wrong_result(rules, keys, problem, (rows[key], row))
        rows[key] = row
    return _from_mapping(rules, keys, rows)


def _look_up(
    rules: ResultRules,
    keys: Sequence[Any],
    result: Mapping[Any, Any],
    absent: Callable[[Any, Any], Any],
) -> Sequence[Any]:
    """
    Return the value of each key, by its cache key or as it was given.

    :param absent: makes the value of a key that is not there of the key and its cache key
    """
    values: list[Any] = []
    absentees: list[tuple[int, Any, Any]] = []
    for index, key in enumerate(keys):
        cached = rules.cache_key(key)
        # Not ``get``: a value of None is one, and a defaultdict makes values for what it lacks.
        if _has(result, cached):
            values.append(result[cached])
        elif cached is not key and _has(result, key):
            values.append(result[key])
        else:
            values.append(None)
            absentees.append((index, key, cached))
    if len(absentees) == len(keys):
        _check_types(rules, keys, result)  # before a defaultdict gets keys by being asked for them
    for index, key, cached in absentees:
        values[index] = absent(key, cached)
    return values


def _has(result: Mapping[Any, Any], key: Any) -> bool:
    try:
        return key in result
    except TypeError:  # not hashable, so the key, not its cache key
        return False


def _check_types(rules: ResultRules, keys: Sequence[Any], result: Mapping[Any, Any]) -> None:
    """Refuse a mapping that has none of the keys because its keys are of another kind."""
    asked = {type(k) for key in keys for k in (key, rules.cache_key(key))}
    given = set(map(type, result))
    if given and asked.isdisjoint(given):
        theirs, ours = (" or ".join(sorted(k.__name__ for k in kinds)) for kinds in (given, asked))
        problem = (
            f"returned keys of type {theirs}, and was asked for keys of type {ours}; "
            "make them the same, or give the loader get_cache_key="
        )
        raise wrong_result(rules, keys, problem, dict(result))


def missing_value(rules: ResultRules, key: Any) -> Any:
    """Return what ``on_missing`` gives for ``key``; what it raises becomes that key's error."""
    return None if rules.on_missing is None else _try(rules.on_missing, key)


def _try(function: Callable[[Any], Any], key: Any) -> Any:
    try:
        return function(key)
    except Exception as exc:
        return exc


# Messages


def wrong_result(
    rules: ResultRules, keys: Sequence[Any], problem: str, result: object = None
) -> BatchResultError:
    """Return the error of a batch function that ``problem``."""
    error = BatchResultError(f"the batch function of {rules.name} {problem}")
    shown = "" if result is None else f", it returned {excerpt(result)}"
    show(error, f"asked for {excerpt(keys)}{shown}")
    return error


def excerpt(thing: object) -> str:
    """Return a bounded ``repr``; one that raises is no second error, which reprlib sees to."""
    return reprlib.repr(thing)


def article(thing: object) -> str:
    """Return what kind of thing it is: "an int", or "None"."""
    if thing is None:
        return "None"
    name = type(thing).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def counted(n: int, noun: str, plural: str = "") -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {plural or noun + 's'}"


def log_exception(message: str, error: Exception | None = None) -> None:
    """
    Log what user code raised where nobody can be told.

    :param error: a warning is enough for it; without one, what is being handled here is meant
    """
    import logging  # takes long to import, and is hardly ever needed

    logger = logging.getLogger("anyloader")
    try:
        if error is None:
            logger.exception(message)
        else:
            logger.warning(message, exc_info=error)
    except Exception:
        pass  # a handler that cannot show it is no reason for a load to fail
