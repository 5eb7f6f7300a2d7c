import pytest

from anyloader import DataLoader
from anyloader.testing import RecordingBatchFn, assert_batches, max_batches

pytestmark = pytest.mark.anyio


async def one_by_one(loader: DataLoader[int, str], ids: list[int]) -> list[str]:
    return [await loader.load(id) for id in ids]  # each await before the next load


async def together(loader: DataLoader[int, str], ids: list[int]) -> list[str]:
    return await loader.load_many(ids)


async def test_loading_together_takes_one_batch() -> None:
    fetch = RecordingBatchFn[int, str](lambda id: f"user {id}")
    async with DataLoader(fetch) as loader:
        with max_batches(1):
            assert await together(loader, [1, 2, 3]) == ["user 1", "user 2", "user 3"]
        assert_batches(loader, [[1, 2, 3]])


async def test_loading_one_by_one_is_found() -> None:
    async with DataLoader(RecordingBatchFn[int, str](str)) as loader:
        with pytest.raises(AssertionError, match="expected at most 1 batch, got 3"):
            with max_batches(1):
                await one_by_one(loader, [1, 2, 3])
