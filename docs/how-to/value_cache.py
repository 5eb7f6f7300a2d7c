import json
from collections.abc import Mapping, Sequence

import anyio

from anyloader import LoaderScope, batch_loader

User = dict[str, str]
SERVER: dict[str, str] = {}  # stands in for a server that several processes share


class SharedUsers:
    """Has the three methods of ``anyloader.ValueCache``."""

    async def get_many(self, keys: Sequence[int]) -> Mapping[int, User]:
        return {key: json.loads(SERVER[f"user:{key}"]) for key in keys if f"user:{key}" in SERVER}

    async def set_many(self, items: Mapping[int, User]) -> None:
        SERVER.update({f"user:{key}": json.dumps(user) for key, user in items.items()})

    async def delete_many(self, keys: Sequence[int]) -> None:
        for key in keys:
            SERVER.pop(f"user:{key}", None)


@batch_loader(value_cache=SharedUsers())
async def fetch_users(ids: list[int]) -> list[User]:
    print("fetch", ids)
    return [{"name": f"user {id}"} for id in ids]


async def main() -> None:
    async with LoaderScope():
        print(await fetch_users.load_many([1, 2]))
    async with LoaderScope():  # another request, perhaps in another process
        print(await fetch_users.load_many([2, 3]))
        await fetch_users.clear(2).load(2)


if __name__ == "__main__":
    anyio.run(main)
