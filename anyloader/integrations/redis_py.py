"""A value cache in Redis, shared between processes and machines, on ``redis-py``, for asyncio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ._extras import missing

try:
    from redis import asyncio as aioredis
    from redis import exceptions
except ModuleNotFoundError as _exc:
    raise missing("redis-py", _exc) from _exc

from ._redis import DEFAULT_PAUSE, DEFAULT_TIMEOUT, JSON, BaseRedisValueCache, Serializer, name_of

__all__ = ("RedisValueCache",)

K = TypeVar("K")
V = TypeVar("V")


class RedisValueCache(BaseRedisValueCache[K, V]):
    """
    The same as :class:`anyloader.integrations.redis.RedisValueCache`, which runs on trio too, for
    those who have a client of redis-py, which runs on asyncio only. What either stores the other can
    read. ::

        client = redis.asyncio.Redis(
            host="cache.internal",
            socket_connect_timeout=0.2,
            socket_timeout=0.2,
            retry=None,
        )
        users = RedisValueCache(client, prefix="users:1", ttl=300)

    :param client: a client of ``redis.asyncio``: one server, a cluster, or what
        ``Sentinel.master_for`` gives
    """

    _away = (exceptions.ConnectionError, exceptions.TimeoutError)

    def __init__(
        self,
        client: aioredis.Redis | aioredis.RedisCluster,
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
        self._client: Any = client
        # A cluster takes keys of several nodes only under this name.
        self._mget: Any = getattr(client, "mget_nonatomic", None) or client.mget

    async def _get(self, names: Sequence[bytes]) -> Sequence[Any]:
        return await self._mget(names)  # type: ignore[no-any-return]

    async def _set(self, items: Sequence[tuple[bytes, str | bytes]]) -> None:
        async with self._client.pipeline(transaction=False) as pipeline:
            for name, data in items:
                pipeline.set(name, data, px=self._ttl)
            # The error that it raises otherwise has the command in its text, with the value.
            for result in await pipeline.execute(raise_on_error=False):
                if isinstance(result, Exception):
                    raise result

    async def _delete(self, names: Sequence[bytes]) -> None:
        await self._client.unlink(*names)
