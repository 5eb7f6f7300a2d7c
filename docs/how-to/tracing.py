import anyio

from anyloader import DataLoader
from anyloader.trace import record


async def fetch_users(ids: list[int]) -> list[str]:
    return [f"user {id}" for id in ids]


async def main() -> None:
    async with DataLoader(fetch_users) as users:
        with record() as trace:
            for load in [users.load(id) for id in (1, 2, 3)]:
                await load
            await users.load(4)

    for batch in trace.batches:
        keys = [loaded.key for loaded in batch.loads]
        print(batch.loader, batch.number, keys, batch.reason, batch.outcome)
    # trace.text() shows it in a terminal, with times; trace.save("trace.html") as a page.


if __name__ == "__main__":
    anyio.run(main)
