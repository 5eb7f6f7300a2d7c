import sys

import anyio

import anyloader.compat

# Before the library is imported: it finds this module where it looks for aiodataloader.
sys.modules["aiodataloader"] = anyloader.compat

from pydantic import BaseModel
from pydantic_resolve import Loader, Resolver

from anyloader import LoaderScope

OWNERS = {1: "Ada", 2: "Grace"}


async def owners(ids: list[int]) -> list[str]:
    print("owners", ids)
    return [OWNERS[id] for id in ids]


class TagsOfTask(anyloader.compat.DataLoader[int, list[str]]):
    async def batch_load_fn(self, keys: list[int]) -> list[list[str]]:
        print("tags", keys)
        return [["new"] * (key % 3) for key in keys]


class Task(BaseModel):
    id: int
    owner_id: int
    owner: str = ""
    tags: list[str] = []

    def resolve_owner(self, loader=Loader(owners)):
        return loader.load(self.owner_id)

    def resolve_tags(self, loader=Loader(TagsOfTask)):
        return loader.load(self.id)


class Sprint(BaseModel):
    tasks: list[Task] = []

    def resolve_tasks(self) -> list[Task]:
        return [Task(id=i, owner_id=1 + i % 2) for i in range(3)]


async def main() -> None:
    async with LoaderScope():
        sprint = await Resolver().resolve(Sprint())
    for task in sprint.tasks:
        print(task.id, task.owner, task.tags)


if __name__ == "__main__":
    anyio.run(main)
