"""A value cache in Redis, shared between processes and machines, on ``coredis``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ._extras import missing

try:
    import coredis
    from coredis import exceptions
except ModuleNotFoundError as _exc:
    raise missing("redis", _exc) from _exc

from ._redis import DEFAULT_PAUSE, DEFAULT_TIMEOUT, JSON, BaseRedisValueCache, Serializer, name_of

__all__ = ("JSON", "RedisValueCache", "Serializer")

K = TypeVar("K")
V = TypeVar("V")


class RedisValueCache(BaseRedisValueCache[K, V]):
    """
    Stores values in Redis: one ``MGET`` for up to 250 keys, one pipelined write for up to 100. ::

        async with coredis.Redis(
            "cache.internal",
            connect_timeout=0.2,
            stream_timeout=0.2,
            retry_policy=coredis.retry.NoRetryPolicy(),
        ) as client:
            users = RedisValueCache(client, prefix="users:1", ttl=300)
            async with LoaderScope():
                await DataLoader(fetch_users, value_cache=users).load(1)

    **Keys** are stored as the prefix, ``|`` and a name: ``users:1|42``, ``users:1|"ada"``. Equal keys
    have one name, keys of other types have others. ``None``, ``str``, ``int``, ``bool``, ``float``,
    ``Decimal``, ``bytes``, ``UUID``, ``date``, ``datetime``, members of enums and tuples of these have
    names; for others there is ``key``.

    **Values** come back as they were, types and all, or are not stored: that is logged once, and
    nothing else depends on it. ``JSON`` stores ``None``, ``bool``, ``int``, ``float``, ``str``, and
    lists and dicts of these, but no subclasses and no tuples.

    **When Redis is away**, or slow, loads go on without it. No command takes longer than
    ``timeout``. After one that got no answer Redis is left alone for ``pause`` seconds, and then a
    single call looks whether it is back; writes that get no answer stop no reads. An answer with an
    error, such as of a Redis that is full or read-only, stops nothing. The first failure of a row is
    logged. A key that is cleared meanwhile cannot be deleted: other processes see its old value
    until its ``ttl`` ends. Give the client shorter timeouts than ``timeout``, and no retries, as
    above: where coredis 6.9 is stopped while it connects, its pool has one connection less from then
    on; so it has each time that a ``Sentinel`` knows of no primary.

    **Cancellation.** A command that has begun goes on until it ends or ``timeout`` does, and its
    caller waits for that. It runs in a task and a ``contextvars`` context of its own, so that the
    connection that it may make keeps nothing of the request alive; a span that the client makes has
    no parent, therefore.

    :param client: a client that is open in this event loop: one server, a cluster, or what
        ``Sentinel.primary_for`` gives
    :param prefix: stands before each key. Give each loader its own, with what its values depend on
        beside the key, and another one whenever the form of its values changes
    :param ttl: for how many seconds a value is stored; ``None`` for as long as Redis keeps it
    :param timeout: how long one ``MGET``, or one pipelined write, may take, in seconds
    :param pause: how long Redis is left alone after a command without an answer, in seconds
    :param serializer: ``JSON``, or anything with ``dumps`` and ``loads``. One that runs code that it
        finds in the data, as ``pickle`` does, lets whoever can write to Redis run code here
    :param key: makes a string of a cache key, the same one for equal keys and for no others
    :param cache_none: whether ``None`` is stored. If so, what did not exist when it was loaded is
        missing for as long, unless it is cleared when it is made
    :raises TypeError: if ``prefix`` is not a string, or a time is not a number
    :raises ValueError: if ``prefix`` is empty or contains ``|``, or a time is too short or infinite
    """

    _away = (
        exceptions.ConnectionError,
        exceptions.PrimaryNotFoundError,
        exceptions.ReplicaNotFoundError,
    )

    def __init__(
        self,
        client: coredis.Redis[Any] | coredis.RedisCluster[Any],
        *,
        prefix: str,
        ttl: float | None,
        timeout: float = DEFAULT_TIMEOUT,
        pause: float = DEFAULT_PAUSE,
        serializer: Serializer = JSON,
        key: Callable[[K], str] = name_of,
        cache_none: bool = False,
    ) -> None:
        super().__init__(prefix, ttl, timeout, pause, serializer, key, cache_none)
        self._client = client

    async def _get(self, names: Sequence[bytes]) -> Sequence[Any]:
        return await self._client.mget(names)

    async def _set(self, items: Sequence[tuple[bytes, str | bytes]]) -> None:
        # The error that a pipeline raises has the whole command in its text, with the value.
        async with self._client.pipeline(transaction=False, raise_on_error=False) as pipeline:
            for name, data in items:
                pipeline.set(name, data, px=self._ttl)
        for result in pipeline.results or ():
            if isinstance(result, Exception):
                raise result

    async def _delete(self, names: Sequence[bytes]) -> None:
        await self._client.unlink(names)
