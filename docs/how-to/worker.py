import anyio
from anyio.abc import ObjectReceiveStream

from anyloader import LoaderScope, batch_loader


@batch_loader
async def fetch_names(ids: list[int]) -> list[str]:
    return [f"user {id}" for id in ids]


async def work(messages: ObjectReceiveStream[list[int]]) -> None:
    async with messages:
        async for message in messages:
            async with LoaderScope() as scope:
                names = await fetch_names.load_many(message)
                print(names, "in", scope.statistics().batches, "batch")


async def main() -> None:
    send, receive = anyio.create_memory_object_stream[list[int]](10)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work, receive)
        async with send:
            for message in [1, 2, 1], [2]:
                await send.send(message)


if __name__ == "__main__":
    anyio.run(main)
