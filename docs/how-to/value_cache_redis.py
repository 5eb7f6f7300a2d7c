import os

import anyio
import coredis

from anyloader import DataLoader
from anyloader.integrations.redis import RedisValueCache


async def fetch_users(ids: list[int]) -> list[dict[str, str]]:
    print("fetch", ids)
    return [{"name": f"user {id}"} for id in ids]


async def main() -> None:
    client = coredis.Redis(
        port=int(os.environ.get("REDIS_PORT", "6379")),
        connect_timeout=0.2,
        stream_timeout=0.2,
        retry_policy=coredis.retry.NoRetryPolicy(),
    )
    async with client:  # for as long as the application runs
        users = RedisValueCache[int, dict[str, str]](client, prefix="users:1", ttl=300)

        async with DataLoader(fetch_users, value_cache=users) as loader:
            print(await loader.load_many([1, 2]))
        async with DataLoader(fetch_users, value_cache=users) as loader:  # in another process
            print(await loader.load_many([2, 3]))
            await loader.clear(2).load(2)


if __name__ == "__main__":
    anyio.run(main)
