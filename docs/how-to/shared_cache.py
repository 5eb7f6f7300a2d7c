from contextvars import ContextVar

import anyio

from anyloader import LoaderScope, batch_loader
from anyloader.integrations.memory import MemoryValueCache

TENANT = ContextVar[str]("TENANT")
DATABASE = {("red", 1): "Ada", ("blue", 1): "Grace"}


# Wrong: the key says nothing of the tenant, on whom the value depends.
@batch_loader(value_cache=MemoryValueCache(maxsize=1000, ttl=60))
async def fetch_names(ids: list[int]) -> list[str]:
    return [DATABASE[TENANT.get(), id] for id in ids]


# Right: all that the value depends on is in the key.
@batch_loader(value_cache=MemoryValueCache(maxsize=1000, ttl=60))
async def fetch_names_of(keys: list[tuple[str, int]]) -> list[str]:
    return [DATABASE[key] for key in keys]


async def request(tenant: str) -> None:
    TENANT.set(tenant)
    async with LoaderScope():
        wrong = await fetch_names.load(1)
        right = await fetch_names_of.load((tenant, 1))
        print(f"{tenant}: {wrong} by id, {right} by tenant and id")


async def main() -> None:
    for tenant in "red", "blue":
        await request(tenant)


if __name__ == "__main__":
    anyio.run(main)
