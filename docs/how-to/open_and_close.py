from collections.abc import AsyncIterator

import anyio

from anyloader import LoaderScope


async def fetch_users(ids: list[int]) -> list[str]:
    return [f"user {id}" for id in ids]


# With pytest-asyncio: @pytest_asyncio.fixture
async def scope() -> AsyncIterator[LoaderScope]:
    scope = await LoaderScope().open()
    yield scope
    await scope.aclose()


async def test_a_name(scope: LoaderScope) -> None:
    assert await scope.get(fetch_users).load(1) == "user 1"


async def main() -> None:  # what the plugin does
    fixture = scope()

    async def advance() -> None:
        async for opened in fixture:
            found.append(opened)
            return

    found: list[LoaderScope] = []
    for step in advance, lambda: test_a_name(*found), advance:
        async with anyio.create_task_group() as group:  # each step is a task of its own
            group.start_soon(step)
    print(found)


if __name__ == "__main__":
    anyio.run(main)
