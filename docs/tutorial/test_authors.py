import anyio
import pytest

from anyloader import DataLoader

pytestmark = pytest.mark.anyio  # each test runs on asyncio, and on trio if it is installed


class FakeAuthors:
    """A batch function that remembers how it was called."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    async def __call__(self, ids: list[int]) -> list[str]:
        self.calls.append(sorted(ids))  # trio runs tasks in any order, so keys come in any
        return [f"author {id}" for id in ids]


async def titles(loader: DataLoader[int, str], author_ids: list[int]) -> list[str]:
    """The code under test."""
    found: list[str] = []

    async def add(author_id: int) -> None:
        found.append(f"by {await loader.load(author_id)}")

    async with anyio.create_task_group() as tasks:
        for author_id in author_ids:
            tasks.start_soon(add, author_id)
    return sorted(found)


async def test_all_authors_are_fetched_at_once() -> None:
    fetch = FakeAuthors()
    async with DataLoader(fetch) as loader:
        assert await titles(loader, [2, 1, 2]) == ["by author 1", "by author 2", "by author 2"]
        assert loader.statistics().batches == 1
    assert fetch.calls == [[1, 2]]


async def test_what_is_primed_is_not_fetched() -> None:
    fetch = FakeAuthors()
    async with DataLoader(fetch) as loader:
        loader.prime(1, "Ursula")
        assert await titles(loader, [1]) == ["by Ursula"]
    assert fetch.calls == []
