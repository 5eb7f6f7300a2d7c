"""``gather``: several awaitables at the same time, and the first error as it is."""

from __future__ import annotations

from collections.abc import Awaitable
from inspect import iscoroutine
from typing import Any, TypeVar, overload

import anyio

from ._dispatcher import ambient

__all__ = ("gather",)

T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")


@overload
async def gather(a1: Awaitable[T1], a2: Awaitable[T2], /) -> tuple[T1, T2]: ...
@overload
async def gather(
    a1: Awaitable[T1], a2: Awaitable[T2], a3: Awaitable[T3], /
) -> tuple[T1, T2, T3]: ...
@overload
async def gather(
    a1: Awaitable[T1], a2: Awaitable[T2], a3: Awaitable[T3], a4: Awaitable[T4], /
) -> tuple[T1, T2, T3, T4]: ...
@overload
async def gather(
    a1: Awaitable[T1],
    a2: Awaitable[T2],
    a3: Awaitable[T3],
    a4: Awaitable[T4],
    a5: Awaitable[T5],
    /,
) -> tuple[T1, T2, T3, T4, T5]: ...
@overload
async def gather(*awaitables: Awaitable[T1]) -> tuple[T1, ...]: ...
async def gather(*awaitables: Awaitable[Any]) -> tuple[Any, ...]:
    """
    Await all of these at the same time, and return their values in the order of the arguments::

        async with DataLoader(fetch_users) as users:

            async def manager_of(id):
                return await users.load(await users.load(id))

            managers = await gather(manager_of(1), manager_of(2))

    For coroutines that load as they go: each runs in a task of its own, so that their loads share
    batches. Batches of the :class:`~anyloader.LoaderScope` around wait while these tasks begin and
    end. Loads alone need no tasks: make them all, then await one after the other.

    The first error cancels the others, waits for them, and comes out as it is, where a task group
    raises an ``ExceptionGroup``; errors that come after it are dropped. A checkpoint. If the caller is
    cancelled, all are, and they are waited for.

    :param awaitables: coroutines, loads, or anything else that can be awaited
    :raises TypeError: if one of them cannot be awaited; then none has been
    """
    for awaitable in awaitables:
        if not isinstance(awaitable, Awaitable):
            for other in awaitables:
                if iscoroutine(other):
                    other.close()  # else Python says that it was never awaited
            raise TypeError(f"gather() takes awaitables, not {type(awaitable).__name__}")
    values: list[Any] = [None] * len(awaitables)
    errors: list[BaseException] = []
    scope = ambient.get()

    def announce() -> None:
        """That tasks begin and end takes rounds that are not quiet: they, and who waits, may load."""
        if scope is not None:
            scope.woken()

    async def run(index: int, awaitable: Awaitable[Any]) -> None:
        try:
            values[index] = await awaitable
        except Exception as exc:
            errors.append(exc)
            group.cancel_scope.cancel()
        except anyio.get_cancelled_exc_class() as exc:
            # If it was somebody else's, as of a future that was cancelled, the group takes no notice.
            errors.append(exc)
            raise
        finally:
            announce()

    async with anyio.create_task_group() as group:
        for index, awaitable in enumerate(awaitables):
            group.start_soon(run, index, awaitable)
        announce()
    if errors:
        try:
            raise errors[0]
        finally:
            errors.clear()  # what is raised holds this frame
    return tuple(values)
