"""A value cache in Redis, shared between processes and machines, on ``coredis``."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import anyio
from coredis import Redis

__all__ = ("JSON", "RedisValueCache", "Serializer")

K = TypeVar("K")
V = TypeVar("V")

#: Some hundred times what a Redis in the same network takes for a batch. Longer than that is better
#: spent on asking the database.
DEFAULT_TIMEOUT = 0.25

#: While Redis is away one batch in this time waits for it, instead of all.
DEFAULT_PAUSE = 1.0


class Serializer(Protocol):
    """Makes something to store of a value, and back; modules such as ``msgpack`` are some."""

    def dumps(self, value: Any, /) -> str | bytes: ...

    def loads(self, stored: Any, /) -> Any: ...


class JSON:
    """
    Stores values as JSON, if that gives them back as they are.

    What JSON would change (a tuple becomes a list, a key of a dict a string) or cannot hold raises,
    so that it is fetched each time, rather than being a different one the second time.
    """

    @staticmethod
    def dumps(value: Any, /) -> str:
        """
        :raises TypeError: if JSON cannot hold the value
        :raises ValueError: if it would be another one afterwards
        """
        text = json.dumps(value, separators=(",", ":"))
        if json.loads(text) != value:
            raise ValueError(f"JSON would change this {type(value).__name__}")
        return text

    @staticmethod
    def loads(stored: Any, /) -> Any:
        """:raises ValueError: if it is no JSON"""
        return json.loads(stored)


def _json_key(key: Any) -> str:
    return json.dumps(key, separators=(",", ":"))


class RedisValueCache(Generic[K, V]):
    """
    Stores values in Redis: one ``MGET`` and one pipelined write for a batch. ::

        async with coredis.Redis(
            "cache.internal",
            connect_timeout=0.2,
            stream_timeout=0.2,
            retry_policy=coredis.retry.NoRetryPolicy(),
        ) as client:
            users = RedisValueCache(client, prefix="users:1:", ttl=300)
            async with LoaderScope():
                await DataLoader(fetch_users, value_cache=users).load(1)

    **When Redis is away**, or slow, loads go on without it. No call takes longer than ``timeout``,
    and after one that failed all calls fail at once for ``pause`` seconds. A key that is cleared
    meanwhile cannot be deleted: other processes see its old value until its ``ttl`` ends. Give the
    client shorter timeouts than ``timeout``, and no retries, as above: where coredis 6.9 is stopped
    while it connects, its pool has one connection less from then on.

    **Cancellation.** A call that has begun goes on until it ends or ``timeout`` does.

    A value that the serializer refuses is not stored, and one that it cannot read is fetched anew;
    the other keys of the batch are not affected. The hooks of the loader hear of the former.

    :param client: a client that is open in this event loop
    :param prefix: stands before each key. Give each loader its own, and another one whenever the
        form of its values changes
    :param ttl: for how many seconds a value is stored; ``None`` for as long as Redis keeps it
    :param timeout: how long one call may take, in seconds
    :param pause: how long Redis is left alone after a call that failed, in seconds
    :param serializer: ``JSON``, or anything with ``dumps`` and ``loads``. One that runs code that it
        finds in the data, as ``pickle`` does, lets whoever can write to Redis run code here
    :param key: makes a string of a cache key, a different one for each; JSON by default
    :param cache_none: whether ``None`` is stored. If so, what did not exist when it was loaded is
        missing for as long, unless it is cleared when it is made
    :raises TypeError: if ``prefix`` is not a string
    :raises ValueError: if ``ttl``, ``timeout`` or ``pause`` is no time
    """

    def __init__(
        self,
        client: Redis[Any],
        *,
        prefix: str,
        ttl: float | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        pause: float = DEFAULT_PAUSE,
        serializer: Serializer = JSON,
        key: Callable[[K], str] = _json_key,
        cache_none: bool = False,
    ) -> None:
        if not isinstance(prefix, str):
            raise TypeError(f"prefix must be a str, not {prefix!r}")
        if ttl is not None and not 0.001 <= ttl < math.inf:
            raise ValueError(f"ttl must be at least 0.001, or None, not {ttl!r}")
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout must be greater than 0, not {timeout!r}")
        if not 0 <= pause < math.inf:
            raise ValueError(f"pause must be at least 0, not {pause!r}")
        self._client = client
        self._prefix = prefix
        self._ttl = None if ttl is None else round(ttl * 1000)
        self._timeout = timeout
        self._pause = pause
        self._serializer = serializer
        self._key = key
        self._cache_none = cache_none
        #: What to raise at once, until when.
        self._error: Exception | None = None
        self._until = 0.0

    async def get_many(self, keys: Sequence[K]) -> Mapping[K, V]:
        """See :meth:`ValueCache.get_many <anyloader.ValueCache.get_many>`."""
        names: dict[K, str] = {}
        for key in keys:
            try:
                names[key] = self._prefix + self._key(key)
            except Exception:  # set_many will tell
                pass
        if not names:
            return {}

        async def get() -> Sequence[Any]:
            return await self._client.mget(list(names.values()))

        found: dict[K, Any] = {}
        for key, stored in zip(names, await self._try(get)):
            if stored is not None:
                try:
                    value: Any = self._serializer.loads(stored)
                except Exception:  # fetched again, and stored again
                    continue
                if value is not None or self._cache_none:
                    found[key] = value
        return found

    async def set_many(self, items: Mapping[K, V]) -> None:
        """
        See :meth:`ValueCache.set_many <anyloader.ValueCache.set_many>`.

        :raises Exception: what the serializer, or ``key``, raised first, once the rest is stored
        """
        stored: dict[str, str | bytes] = {}
        error: Exception | None = None
        for key, value in items.items():
            if value is None and not self._cache_none:
                continue
            try:
                stored[self._prefix + self._key(key)] = self._serializer.dumps(value)
            except Exception as exc:
                error = error or exc

        async def write() -> None:
            async with self._client.pipeline(transaction=False) as pipeline:
                for name, data in stored.items():
                    pipeline.set(name, data, px=self._ttl)

        if stored:
            await self._try(write)
        if error is not None:
            raise error

    async def delete_many(self, keys: Sequence[K]) -> None:
        """See :meth:`ValueCache.delete_many <anyloader.ValueCache.delete_many>`."""
        names: list[str] = []
        for key in keys:
            try:
                names.append(self._prefix + self._key(key))
            except Exception:  # was never stored
                pass

        async def delete() -> None:
            await self._client.unlink(names)

        if names:
            await self._try(delete)

    async def _try(self, call: Callable[[], Awaitable[Any]]) -> Any:
        if self._error is not None and anyio.current_time() < self._until:
            raise ConnectionError("Redis is left alone for a while after an error") from self._error
        try:
            # Shielded: coredis loses a place in its pool where it is cancelled while it connects.
            with anyio.fail_after(self._timeout, shield=True):
                result = await call()
        except Exception as exc:
            self._error = exc.with_traceback(None)
            self._until = anyio.current_time() + self._pause
            raise
        self._error = None
        return result

    def __repr__(self) -> str:
        state = "" if self._error is None else f", the last call failed: {self._error!r}"
        return f"<RedisValueCache {self._prefix!r}{state}>"
