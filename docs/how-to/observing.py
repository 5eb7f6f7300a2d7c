import anyio

from anyloader import DataLoader
from anyloader.hooks import BatchFinished, BatchSealed, Event, LoadHit


def show(event: Event) -> None:
    """Called for each event, where it happens. It must not block."""
    if isinstance(event, BatchSealed):
        print(f"{event.loader}: a batch of {event.size} leaves, reason: {event.reason}")
    elif isinstance(event, BatchFinished):
        print(f"{event.loader}: a batch has finished, {event.errors} errors")
    elif isinstance(event, LoadHit):
        print(f"{event.loader}: {event.key!r} was there")


async def fetch_users(ids: list[int]) -> list[str]:
    return [f"user {id}" for id in ids]


async def main() -> None:
    async with DataLoader(fetch_users, hooks=[show], max_batch_size=2) as users:
        await users.load_many([1, 2, 3])
        await users.load(1)


if __name__ == "__main__":
    anyio.run(main)
