"""What value caches in Redis have in common, whatever client they use: names, values, and patience."""

from __future__ import annotations

import asyncio
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextvars import Context
from datetime import date, datetime, timezone
from decimal import Decimal
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

import anyio

__all__ = (
    "DEFAULT_PAUSE",
    "DEFAULT_TIMEOUT",
    "JSON",
    "BaseRedisValueCache",
    "Serializer",
    "name_of",
)

K = TypeVar("K")
V = TypeVar("V")
A = TypeVar("A")
T = TypeVar("T")

#: Some hundred times what a Redis in the same network takes for one command. Longer than that is
#: better spent on asking the database.
DEFAULT_TIMEOUT = 0.25

#: How much of its answers an application can do without while Redis comes back.
DEFAULT_PAUSE = 1.0

#: So many keys are one command, or one pipeline of writes: other tasks run between two of them. Clients
#: take up to 20 us of the loop for a key to read, 60 for one to write, with what JSON takes. A round
#: trip takes some 300, so that fewer at a time would cost more than they give.
READ_CHUNK = 250
WRITE_CHUNK = 100

#: Stands between prefix and name, and in no prefix.
SEPARATOR = "|"


# --- names of keys ---

#: No number of more bits is a key that somebody means, and ``Decimal("1e999999999")`` is one that
#: must not be written out.
_BITS = 4096
_DIGITS = 1233  # as many, in decimal digits


def name_of(key: object) -> str:
    """
    Name a key: equal keys have one name, others have other names.

    ``1``, ``1.0``, ``True`` and ``Decimal(1)`` are equal keys, and so is a member of an ``IntEnum``.
    A name shows the type, and the brackets and quotes in it match: no two of them make a third.

    :raises TypeError: if there is no name for keys of this kind
    :raises ValueError: if there is none for this one
    """
    kind = type(key)
    name = _NAMES.get(kind)
    if name is not None:
        return name(key)
    for base, plain in _PLAIN.items():
        if isinstance(key, base):
            same = plain(key)
            # Of a subclass with an idea of its own of what is equal, equal keys may differ here.
            if same == key and hash(same) == hash(key):
                return _NAMES[base](same)
            break
    else:
        if isinstance(key, Enum) and kind.__eq__ is object.__eq__:
            return f"enum({_quoted(f'{kind.__module__}.{kind.__qualname__}')},{_member(key)})"
    raise TypeError("there is no name for keys of this type")


def _number(number: Any) -> str:
    if type(number) is Decimal and number and abs(number.adjusted()) > _DIGITS:
        raise ValueError("too large")
    above, below = number.as_integer_ratio()  # raises for what is not finite
    if above.bit_length() > _BITS:
        raise ValueError("too large")
    return str(above) if below == 1 else f"{above}/{below}"


def _datetime(moment: datetime) -> str:
    offset = moment.utcoffset()
    if offset is not None:
        # What an hour is called that comes twice, or never, is equal to nothing in other time zones.
        if moment.replace(fold=1 - moment.fold).utcoffset() != offset:
            raise ValueError("ambiguous")
        moment = moment.astimezone(timezone.utc)
    return f"datetime({moment.isoformat()})"


def _member(key: Enum) -> str:
    # A combination of flags has no name in Python 3.10.
    return _quoted(key.name) if isinstance(key.name, str) else name_of(key.value)


_NAMES: dict[type, Callable[[Any], str]] = {
    str: json.JSONEncoder(ensure_ascii=False).encode,
    bool: _number,
    int: _number,
    float: _number,
    Decimal: _number,
    bytes: lambda key: f"bytes({key.hex()})",
    UUID: lambda key: f"uuid({key})",
    datetime: _datetime,
    date: lambda key: f"date({key.isoformat()})",
    tuple: lambda key: f"({','.join(map(name_of, key))})",
    type(None): lambda _: "null",
}
_quoted = _NAMES[str]

#: How to make one of exactly this type of one of a subclass. Subclasses come before their bases.
_PLAIN: dict[type, Callable[[Any], Any]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    Decimal: Decimal,
    bytes: lambda key: bytes(memoryview(key)),
    UUID: lambda key: UUID(int=key.int),  # such as those of asyncpg
    datetime: lambda key: datetime.combine(key.date(), key.time(), key.tzinfo),
    date: lambda key: date(key.year, key.month, key.day),
    tuple: lambda key: tuple(tuple.__iter__(key)),
}


# --- values ---


class Serializer(Protocol):
    """Makes something to store of a value, and back; modules such as ``pickle`` are some."""

    def dumps(self, value: Any, /) -> str | bytes: ...

    def loads(self, stored: Any, /) -> Any: ...


class JSON:
    """Stores values as JSON, in UTF-8."""

    @staticmethod
    def dumps(value: Any, /) -> bytes:
        """
        :raises TypeError: if JSON cannot hold the value
        :raises ValueError: if it cannot hold this one: not a number, or half a character
        """
        return _compact(value).encode()

    @staticmethod
    def loads(stored: Any, /) -> Any:
        """:raises ValueError: if it is no JSON"""
        return json.loads(stored)


_compact = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def _same(value: Any, other: Any) -> bool:
    """Whether both are of the same types all through, and the same where that can be told."""
    kind = type(value)
    if kind is not type(other):
        return False
    if kind in _SCALARS:
        return bool(value == other or value != value)
    if isinstance(value, (list, tuple)):
        return len(value) == len(other) and all(map(_same, value, other))
    if isinstance(value, dict):
        return (
            len(value) == len(other)
            and all(map(_same, value, other))
            and all(map(_same, value.values(), other.values()))
        )
    return True


_SCALARS = frozenset((bool, float, int, str))


# --- patience ---


class _Door:
    """
    Lets calls through until one gets no answer, and from then on a single one after each ``pause``.

    While that one is under way the others go on without Redis, as they do during the pause.
    """

    def __init__(self, pause: float) -> None:
        self._pause = pause
        #: In words: the error itself would lead to the request that met it, and keep it.
        self.reason: str | None = None
        self._until = 0.0
        self._probing = False

    def enter(self) -> bool:
        """
        :return: whether this call is the one that looks whether Redis is back
        :raises ConnectionError: if Redis is to be left alone
        """
        if self.reason is None:
            return False
        if self._probing or anyio.current_time() < self._until:
            raise ConnectionError(f"Redis is left alone for a while, after {self.reason}")
        self._probing = True
        return True

    def leave(self, probing: bool) -> None:
        if probing:
            self._probing = False

    def shut(self, reason: str) -> None:
        self.reason = reason
        self._until = anyio.current_time() + self._pause

    def open(self) -> None:
        self.reason = None


#: asyncio itself holds a task that waits for a stream by weak references only.
_tasks: set[asyncio.Task[None]] = set()


async def _apart(call: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """
    Run a call in a task and a context that have nothing to do with those of the caller.

    Clients start tasks, timers and streams for a connection. These live as long as it does, and hold
    the context in which it was made, on trio the task too: a request, and all that it has loaded.
    A cancellation does not reach the call either, which is right for coredis: where it is cancelled
    while it connects, its pool loses a place.
    """
    results: list[T] = []
    errors: list[Exception] = []
    done = anyio.Event()

    async def run() -> None:
        try:
            results.append(await call())
        except Exception as exc:
            errors.append(exc)
        finally:
            done.set()

    def finished(task: asyncio.Task[None]) -> None:
        _tasks.discard(task)
        done.set()  # again, as a task that is cancelled before its first step does not

    if anyio.get_cancelled_exc_class() is asyncio.CancelledError:
        task = Context().run(asyncio.create_task, run())
        _tasks.add(task)
        task.add_done_callback(finished)
    else:
        import trio

        trio.lowlevel.spawn_system_task(run, context=Context())
    with anyio.CancelScope(shield=True):
        await done.wait()
    if errors:
        try:
            raise errors[0]
        finally:
            errors.clear()  # its traceback leads here
    if not results:  # somebody cancels all tasks that there are
        raise ConnectionError("the call was cancelled")
    return results[0]


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _seconds(name: str, value: Any, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not of type {type(value).__name__}")
    if not least <= value < math.inf:
        raise ValueError(f"{name} must be at least {least} seconds, not {value!r}")


def _kind(thing: object) -> str:
    return type(thing).__name__[:100]


def _reason(error: BaseException | None) -> str:
    """Say what Redis or its client said; no value is in there, as no command is."""
    said: list[str] = []
    while error is not None and len(said) < 3:
        said.append(f"{type(error).__name__}: {str(error)[:200]}")
        error = error.__cause__
    return ", caused by ".join(said)


class BaseRedisValueCache(ABC, Generic[K, V]):
    """The subclasses call the client, and know which of its errors say that there was no answer."""

    _away: tuple[type[Exception], ...]

    def __init__(
        self,
        prefix: str,
        ttl: float | None,
        timeout: float,
        pause: float,
        serializer: Serializer,
        key: Callable[[K], str],
        cache_none: bool,
    ) -> None:
        if not isinstance(prefix, str):
            raise TypeError(f"prefix must be a str, not of type {_kind(prefix)}")
        if not prefix or SEPARATOR in prefix:
            raise ValueError(
                f"prefix must not be empty, and without {SEPARATOR!r}, not {prefix!r:.100}"
            )
        if ttl is not None:
            _seconds("ttl", ttl, 0.001)
        _seconds("timeout", timeout, 0.001)
        _seconds("pause", pause, 0)
        self._prefix = prefix
        self._ttl = None if ttl is None else round(ttl * 1000)
        self._timeout = timeout
        self._serializer = serializer
        self._key = key
        self._cache_none = cache_none
        # A write that takes too long says nothing of reads; a read that does says it of writes, too.
        self._reads, self._writes = _Door(pause), _Door(pause)

    @abstractmethod
    async def _get(self, names: Sequence[bytes]) -> Sequence[Any]:
        """Return what is stored, or ``None``, for each name."""

    @abstractmethod
    async def _set(self, items: Sequence[tuple[bytes, str | bytes]]) -> None: ...

    @abstractmethod
    async def _delete(self, names: Sequence[bytes]) -> None: ...

    async def get_many(self, keys: Sequence[K]) -> Mapping[K, V]:
        """See :meth:`ValueCache.get_many <anyloader.ValueCache.get_many>`."""
        found: dict[K, Any] = {}
        for chunk in _chunks(keys, READ_CHUNK):
            named = self._named(chunk)
            stored = await self._try("get_many", self._get, list(named)) if named else ()
            for key, data in zip(named.values(), stored):
                if data is not None:
                    try:
                        value: Any = self._serializer.loads(data)
                    except Exception:  # fetched again, and stored again
                        continue
                    if value is not None or self._cache_none:
                        found[key] = value
        return found

    async def set_many(self, items: Mapping[K, V]) -> None:
        """
        See :meth:`ValueCache.set_many <anyloader.ValueCache.set_many>`.

        :raises TypeError: if a key has no name, or a value would come back as another one; the rest
            is stored
        """
        refused: str | None = None
        for chunk in _chunks(list(items.items()), WRITE_CHUNK):
            stored: list[tuple[bytes, str | bytes]] = []
            for key, value in chunk:
                if value is not None or self._cache_none:
                    try:
                        stored.append((self._name(key), self._dumps(value)))
                    except TypeError as exc:
                        refused = refused or str(exc)
            if stored:
                await self._try("set_many", self._set, stored)
        if refused is not None:
            raise TypeError(refused)

    async def delete_many(self, keys: Sequence[K]) -> None:
        """See :meth:`ValueCache.delete_many <anyloader.ValueCache.delete_many>`."""
        for chunk in _chunks(keys, READ_CHUNK):
            named = self._named(chunk)
            if named:
                await self._try("delete_many", self._delete, list(named))

    def _named(self, keys: Sequence[K]) -> dict[bytes, K]:
        """Leave out those that have no name: they were never stored, and ``set_many`` tells of them."""
        named: dict[bytes, K] = {}
        for key in keys:
            try:
                named[self._name(key)] = key
            except TypeError:
                pass
        return named

    # The errors of these two say nothing of what they were given, and are not caused by one that may.

    def _name(self, key: K) -> bytes:
        try:
            name = self._key(key)
            if isinstance(name, str):  # what is not, such as None, may be the same for all keys
                return f"{self._prefix}{SEPARATOR}{name}".encode()
        except Exception:
            pass
        raise TypeError(
            f"a key of type {_kind(key)} has no name in Redis, its value is not stored: give "
            f"RedisValueCache key=, or the loader get_cache_key=, a function that makes a str of it"
        )

    def _dumps(self, value: V) -> str | bytes:
        try:
            data = self._serializer.dumps(value)
            if _same(value, self._serializer.loads(data)):
                return data
            why = "it would come back with other types in it"
        except Exception as exc:
            why = f"its serializer raised {_kind(exc)}"
        raise TypeError(
            f"a value of type {_kind(value)} is not stored in Redis, as {why}: make the batch function "
            f"return plain values, or give RedisValueCache a serializer= for these"
        )

    async def _try(
        self, operation: str, call: Callable[[A], Coroutine[Any, Any, T]], argument: A
    ) -> T:
        async def in_time() -> T:
            with anyio.fail_after(self._timeout):
                return await call(argument)

        # Within the call nothing is cancelled, but who has many keys need not wait for the others.
        await anyio.lowlevel.checkpoint_if_cancelled()
        door = self._reads if operation == "get_many" else self._writes
        probing = door.enter()
        try:
            result = await _apart(in_time)
        except Exception as exc:
            reason = _reason(exc)
            if isinstance(exc, (OSError, *self._away)):
                door.shut(reason)
                self._writes.shut(reason)
            else:  # an answer, if not the one that was hoped for
                door.open()
            raise
        finally:
            door.leave(probing)
        door.open()
        return result

    def __repr__(self) -> str:
        reason = self._reads.reason or self._writes.reason
        state = "" if reason is None else f", the last call failed: {reason:.100}"
        return f"<RedisValueCache {self._prefix!r:.100}{state}>"
