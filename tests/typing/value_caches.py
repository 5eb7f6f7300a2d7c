"""Type-checked, not run: the clients that a value cache in Redis takes, and who takes it."""

from __future__ import annotations

from typing import Any

import coredis
import redis.asyncio
import redis.asyncio.sentinel

from anyloader import DataLoader, ValueCache
from anyloader.integrations import redis_py
from anyloader.integrations.memory import MemoryValueCache
from anyloader.integrations.redis import RedisValueCache


async def fetch(keys: list[int]) -> list[str]:
    return list(map(str, keys))


def clients_of_coredis(
    one: coredis.Redis[bytes],
    text: coredis.Redis[str],
    cluster: coredis.RedisCluster[bytes],
    sentinel: coredis.Sentinel[bytes],
) -> list[ValueCache[int, str]]:
    return [
        RedisValueCache(one, prefix="a", ttl=1),
        RedisValueCache(text, prefix="a", ttl=0.5),
        RedisValueCache(cluster, prefix="a", ttl=None),
        RedisValueCache(sentinel.primary_for("main"), prefix="a", ttl=1),
    ]


def clients_of_redis_py(
    one: redis.asyncio.Redis,
    cluster: redis.asyncio.RedisCluster,
    sentinel: redis.asyncio.sentinel.Sentinel,
) -> list[ValueCache[int, str]]:
    main: Any = sentinel.master_for("main")
    return [redis_py.RedisValueCache(each, prefix="a", ttl=1) for each in (one, cluster, main)]


def loaders(client: coredis.Redis[bytes]) -> None:
    cache = RedisValueCache[int, str](client, prefix="a", ttl=1)
    DataLoader(fetch, value_cache=cache)
    DataLoader(fetch, value_cache=MemoryValueCache(10, 60))


def a_ttl_is_asked_for(client: coredis.Redis[bytes]) -> None:
    RedisValueCache[int, str](client, prefix="a")  # type: ignore[call-arg]  # pyright: ignore
    MemoryValueCache[int, str](10)  # type: ignore[call-arg]  # pyright: ignore
