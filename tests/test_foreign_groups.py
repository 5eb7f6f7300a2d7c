"""A loader in somebody else's task group, once that has been cancelled or ended (contract 1, 4.4).

In a process of its own, as what goes wrong there takes the event loop for ever.
"""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import DataLoader, LoadCancelledError, LoaderClosedError, LoaderScope
from support import BACKENDS, run_shuffled
from support.programs import run_program

pytestmark = pytest.mark.anyio

RETRYING = """
from anyloader import DataLoader, LoaderScope, LoadCancelledError, LoaderClosedError

async def main():
    late = []

    async def fetch(keys):
        if cancelled:
            late.append(keys)
        await anyio.sleep({seconds})
        return keys

    cancelled, errors = False, []
    async with anyio.create_task_group() as users:

        async def user():  # outside the group; it goes on after an error, as a retry does
            for key in range(5):
                try:
                    await loader.load(key)
                except (LoadCancelledError, LoaderClosedError) as exc:
                    errors.append(exc)

        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                loader = {loader}
                users.start_soon(user)
                await anyio.sleep(0.02)
                cancelled = True
                group.cancel_scope.cancel()
    assert len(errors) == 5, errors
    assert not late, late
    print("done")
"""

LOADERS = {
    "plain": "DataLoader(fetch, task_group=group)",
    "limiter": "DataLoader(fetch, task_group=group, limiter=anyio.CapacityLimiter(1))",
    "no cache": "DataLoader(fetch, task_group=group, cache=False)",
    "batches of one": "DataLoader(fetch, task_group=group, max_batch_size=1)",
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loader", LOADERS)
def test_loads_after_a_foreign_group_was_cancelled_are_refused(backend: str, loader: str) -> None:
    source = RETRYING.format(loader=LOADERS[loader], seconds=0.5)
    assert run_program(source, backend, seconds=8) == "done\n"


# --- in this process ---


@pytest.mark.parametrize("outside", ["awaits", "loads"])
def test_who_is_outside_is_told_when_the_group_is_cancelled(
    shuffled_backend: str, outside: str
) -> None:
    async def main() -> list[Any]:
        seen: list[Any] = []

        async def slow(keys: list[int]) -> list[int]:
            await anyio.sleep(10)
            return keys

        async def user(handle: Any) -> None:
            try:
                seen.append(await (handle if outside == "awaits" else loader.load(2)))
            except (LoadCancelledError, LoaderClosedError) as exc:
                seen.append(type(exc))

        async with anyio.create_task_group() as users:
            async with anyio.create_task_group() as group:
                loader = DataLoader(slow, task_group=group)
                users.start_soon(user, loader.load(1))
                await anyio.sleep(1)
                group.cancel_scope.cancel()
        return seen

    for seed in range(20):
        assert run_shuffled(shuffled_backend, seed, main) == [LoadCancelledError]


async def test_a_load_after_the_end_of_a_group_that_ended_in_peace() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        return keys

    async with anyio.create_task_group() as group:
        loader = DataLoader(fetch, task_group=group)
        assert await loader.load(1) == 1
    with pytest.raises(LoaderClosedError):
        loader.load(2)  # pyright: ignore[reportPossiblyUnboundVariable]
    with pytest.raises(LoaderClosedError):
        loader.load_many([2, 3])  # pyright: ignore[reportPossiblyUnboundVariable]
    assert loader.peek(2) is None  # pyright: ignore[reportPossiblyUnboundVariable]


async def test_a_load_in_a_group_that_was_cancelled_and_still_has_a_task() -> None:
    """Refused or answered by a cancellation, but no function runs on in there."""
    calls: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        calls.append(keys)
        await anyio.sleep_forever()
        return keys

    async def cleanup() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(5):
                    await checkpoint()
                try:
                    await loader.load(1)
                except (LoadCancelledError, LoaderClosedError):
                    refused.append(1)

    refused: list[int] = []
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            loader = DataLoader(fetch, task_group=group)
            group.start_soon(cleanup)
            await checkpoint()
            await checkpoint()
            group.cancel_scope.cancel()
    assert refused == [1]


async def test_the_same_loader_scope_in_a_foreign_group() -> None:
    async def slow(keys: list[int]) -> list[int]:
        await anyio.sleep_forever()
        return keys

    async def user() -> None:
        for key in range(3):
            try:
                await loader.load(key)
            except (LoadCancelledError, LoaderClosedError) as exc:
                seen.append(type(exc))

    seen: list[type[Exception]] = []
    with anyio.fail_after(5):
        async with anyio.create_task_group() as users:
            async with anyio.create_task_group() as group:
                async with LoaderScope(task_group=group) as scope:
                    loader = scope.get(slow)
                    handle = loader.load(0)
                    users.start_soon(user)
                    for _ in range(5):
                        await checkpoint()
                    group.cancel_scope.cancel()
                    try:
                        await handle
                    except LoadCancelledError:
                        pass
    assert len(seen) == 3
