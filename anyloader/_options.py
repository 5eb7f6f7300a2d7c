"""The options of a loader: their types, and what each of them has to be."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import ref

from ._limits import is_limiter

if TYPE_CHECKING:
    import asyncio
    import sys
    from collections.abc import MutableMapping, Sequence
    from typing import Concatenate, Literal, ParamSpec, Protocol, TypedDict

    import anyio.abc
    import trio

    from ._batch import LoadHandle
    from ._limits import LimiterOption
    from ._values import ValueCache
    from .hooks import Hook
    from .schedules import Schedule

    if sys.version_info >= (3, 12):
        from typing import Unpack as Unpack
    else:
        from typing_extensions import Unpack as Unpack

    class _AsyncioTaskGroup(Protocol):
        """``asyncio.TaskGroup``, which Python 3.10 has not."""

        def create_task(
            self, coro: Coroutine[Any, Any, Any], *, name: str | None = None
        ) -> asyncio.Task[Any]: ...

    TaskGroup = anyio.abc.TaskGroup | trio.Nursery | _AsyncioTaskGroup

    class LoaderOptions(TypedDict, total=False):
        """The options that can be stated once for all loaders of a function."""

        batch: bool
        max_batch_size: int | None
        max_batch_weight: float | None
        weigh: Callable[[Any], float] | None
        max_queue_size: int | None
        cache: bool | Literal["pending"]
        get_cache_key: Callable[[Any], Any] | None
        schedule: Schedule | None
        defer_hits: bool
        deduplicate: bool
        cache_errors: bool | Callable[[Exception], bool]
        limiter: LimiterOption | None
        value_cache: ValueCache[Any, Any] | None
        name: str | None
        hooks: Sequence[Hook]

    class OwnOptions(LoaderOptions, total=False):
        """The options of a single loader."""

        task_group: TaskGroup | None
        cache_map: MutableMapping[Any, LoadHandle[Any]] | None


__all__ = ("RULES", "Options", "default_name", "unknown_options")

K = TypeVar("K")
V = TypeVar("V")

if TYPE_CHECKING:
    P = ParamSpec("P")
    S = TypeVar("S")

    # What a batch function gives, by kind. In overloads from the most special to the most general: a
    # mapping is an iterable too, of its keys. Never in one union, of which mypy would infer nothing.
    # Values with and without errors apart, as checkers infer V from either.
    Mapped = Awaitable[Mapping[Any, V | Exception] | Mapping[Any, V]]
    Listed = Awaitable[Iterable[V | Exception] | Iterable[V]]
    Streamed = AsyncIterator[tuple[Any, V | Exception]] | AsyncIterator[tuple[Any, V]]

    # How it is called: with keys; with keyword arguments that a scope or bind() gives; as a method.
    MappingFn = Callable[[list[K]], Mapped[V]]
    IterableFn = Callable[[list[K]], Listed[V]]
    StreamFn = Callable[[list[K]], Streamed[V]]
    BindMappingFn = Callable[Concatenate[list[K], P], Mapped[V]]
    BindIterableFn = Callable[Concatenate[list[K], P], Listed[V]]
    BindStreamFn = Callable[Concatenate[list[K], P], Streamed[V]]
    MappingMethod = Callable[Concatenate[S, list[K], P], Mapped[V]]
    IterableMethod = Callable[Concatenate[S, list[K], P], Listed[V]]
    StreamMethod = Callable[Concatenate[S, list[K], P], Streamed[V]]


class _Rule:
    __slots__ = ("expected", "fits")

    def __init__(self, fits: Callable[[Any], bool], expected: str) -> None:
        self.fits = fits
        self.expected = expected


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_function_or_none(value: Any) -> bool:
    return value is None or callable(value)


def _is_size(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _is_value_cache(value: Any) -> bool:
    methods = ("get_many", "set_many", "delete_many")
    return value is None or all(callable(getattr(value, method, None)) for method in methods)


_SIZE: Final = _Rule(_is_size, "an int >= 1 or None")
_BOOL: Final = _Rule(_is_bool, "True or False")
_FUNCTION: Final = _Rule(_is_function_or_none, "callable or None")

#: What each option has to be. Their defaults are class attributes of ``DataLoader``.
RULES: Final = {
    "batch": _BOOL,
    "max_batch_size": _SIZE,
    "max_batch_weight": _Rule(_is_number, "a number > 0 or None"),
    "weigh": _FUNCTION,
    "max_queue_size": _SIZE,
    "cache": _Rule(lambda value: value == "pending" or _is_bool(value), 'True, False or "pending"'),
    "get_cache_key": _FUNCTION,
    "schedule": _Rule(callable, "an async function"),
    "defer_hits": _BOOL,
    "deduplicate": _BOOL,
    "cache_errors": _Rule(lambda v: _is_bool(v) or callable(v), "True, False or a predicate"),
    "on_missing": _FUNCTION,
    "index_by": _FUNCTION,
    "group_by": _FUNCTION,
    "limiter": _Rule(is_limiter, "an anyio.CapacityLimiter, anyloader.limit(n) or None"),
    "value_cache": _Rule(
        _is_value_cache, "an object with get_many, set_many, delete_many, or None"
    ),
    "name": _Rule(lambda value: isinstance(value, str), "a str"),
    "hooks": _Rule(
        lambda v: isinstance(v, (tuple, list)) and all(map(callable, v)), "a sequence of callables"
    ),
}


class Options:
    """
    What one loader was told, read once and checked.

    :param front: the public object, whose class attributes are the defaults
    :raises TypeError: if an option is unknown or has the wrong type, or one excludes another
    :raises ValueError: if a size or weight is too small
    """

    __slots__ = tuple(RULES)

    batch: bool
    max_batch_size: int | None
    max_batch_weight: float | None
    weigh: Callable[[Any], float] | None
    max_queue_size: int | None
    cache: bool | str
    get_cache_key: Callable[[Any], Any] | None
    schedule: Any
    defer_hits: bool
    deduplicate: bool
    cache_errors: bool | Callable[[Exception], bool]
    on_missing: Callable[[Any], Any] | None
    index_by: Callable[[Any], Any] | None
    group_by: Callable[[Any], Any] | None
    limiter: Any
    value_cache: Any
    name: str
    hooks: Sequence[Hook]

    def __init__(self, front: Any, given: dict[str, Any]) -> None:
        if given.keys() - RULES.keys():
            raise unknown_options("DataLoader", given.keys() - RULES.keys())
        for option in ("schedule", "name"):  # where None stands for the default
            if given.get(option, 0) is None:
                del given[option]
        name = given.get("name") or front.name
        for option, rule in RULES.items():
            value = given[option] if option in given else getattr(front, option)
            if not rule.fits(value):
                raise TypeError(f"{option} of {name} must be {rule.expected}, not {value!r}")
            setattr(self, option, _unbound(value, front))
        self._check_numbers()
        self._check_pairs()

    def _check_numbers(self) -> None:
        for option in ("max_batch_size", "max_queue_size"):
            if (value := getattr(self, option)) is not None and value < 1:
                raise ValueError(f"{option} of {self.name} must be an int >= 1, not {value!r}")
        if (weight := self.max_batch_weight) is not None and not 0 < weight < float("inf"):
            raise ValueError(
                f"max_batch_weight of {self.name} must be a finite number > 0, not {weight!r}"
            )

    def _check_pairs(self) -> None:
        if (self.weigh is None) != (self.max_batch_weight is None):
            missing = "weigh" if self.weigh is None else "max_batch_weight"
            raise TypeError(
                f"{self.name} needs {missing} too: weigh and max_batch_weight go together"
            )
        if self.index_by is not None and self.group_by is not None:
            raise TypeError(
                f"{self.name} takes index_by (one row for each key) or group_by (a list of rows for "
                "each key), not both"
            )


def unknown_options(who: str, unknown: Iterable[str]) -> TypeError:
    return TypeError(
        f"{who} has no option {', '.join(sorted(unknown))}; it takes {', '.join(RULES)}"
    )


def _unbound(value: Any, front: object) -> Any:
    """
    Let a method of the loader's own be called without keeping the loader.

    Who calls it sees to it that the loader is there: whoever called that, or its batch.
    """
    if isinstance(value, MethodType) and value.__self__ is front:
        return partial(_call_method, ref(front), value.__func__)
    return value


def _call_method(front: ref[Any], function: Any, *args: Any) -> Any:
    return function(front(), *args)


def default_name(function: Any) -> str:
    """Return what to call the loader of a function."""
    while isinstance(function, partial):
        function = function.func
    name: str = getattr(function, "__qualname__", type(function).__qualname__)
    return name
