"""Near Python's recursion limit a load fails and changes nothing, or works (contract 2.9).

In a process of its own, as what goes wrong there hangs beyond cancellation.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from anyloader import _backend
from support import BACKENDS
from support.programs import run_program

SOURCE = """
from anyloader import DataLoader

OPERATIONS = {
    "load": lambda: users.load(1),
    "load_many": lambda: users.load_many([1, 2]),
    "dispatch": lambda: (users.load(1), users.dispatch())[0],
    "prime": lambda: users.prime(1, 1, force=True),
    "clear": lambda: users.clear(1),
    "second load": lambda: (users.load(3), users.load(1))[1],
}
CHANGE_NOTHING = "load", "load_many"

def deep(levels, function):
    return function() if levels <= 0 else deep(levels - 1, function)

async def fetch(keys):
    return keys

async def use(name, **options):
    global users
    refused = worked = 0
    for levels in range(880, 1_000):
        async with DataLoader(fetch, **options) as users:
            assert await users.load(0) == 0  # leaves an idle worker
            before = users.statistics()
            try:
                result = deep(levels, OPERATIONS[name])
            except RecursionError:
                refused += 1
                if name in CHANGE_NOTHING:
                    assert users.statistics() == before and users.peek(1) is None, levels
            else:
                worked += 1
                if hasattr(result, "__await__"):
                    assert await result in (1, [1, 2])
            # All that is there from before still wakes up.
            assert await users.load_many([1, 2, 3]) == [1, 2, 3]
    assert refused > 10 and worked > 10, (refused, worked)

async def main():
    for name in OPERATIONS:
        print(name)
        await use(name)
    print("load of a full batch")
    await use("load", max_batch_size=1)
    print("done")
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_operation_deep_in_the_stack_is_refused_or_works(backend: str) -> None:
    # All in one process: it takes longer to start one than to use them.
    assert run_program(SOURCE, backend).endswith("load of a full batch\ndone\n")


WAITERS = """
from anyloader import DataLoader

def deep(levels, function):
    return function() if levels <= 0 else deep(levels - 1, function)

async def main():
    for levels in range(900, 1_000):
        gate = anyio.Event()
        async def fetch(keys):
            return keys
        limiter = anyio.CapacityLimiter(1)
        values = []
        async def waits():
            values.append(await users.load(1))
        async with limiter, anyio.create_task_group() as tg:
            async with DataLoader(fetch, limiter=limiter) as users:
                for _ in range(3):
                    tg.start_soon(waits)
                for _ in range(10):
                    await anyio.lowlevel.checkpoint()
                try:
                    deep(levels, lambda: users.prime(1, 1, force=True))
                except RecursionError:
                    users.prime(1, 1, force=True)
                for _ in range(10):
                    await anyio.lowlevel.checkpoint()
                assert values == [1, 1, 1], levels
    print("done")
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_value_forced_deep_in_the_stack_wakes_all_waiters_or_none(backend: str) -> None:
    assert run_program(WAITERS, backend) == "done\n"


GIVING_UP = """
from anyloader import DataLoader, LoadCancelledError

async def deep(levels, load, scope):
    if levels:
        await deep(levels - 1, load, scope)
    else:
        await load

async def gives_up(levels, load, scope):
    with scope:
        try:
            await deep(levels, load, scope)
        except RecursionError:
            refused.append(levels)

async def fetch(keys):
    calls.append(keys)
    return keys

calls, refused = [], []

async def main():
    late = 0
    for levels in range(900, 1_000):
        calls.clear()
        limiter = anyio.CapacityLimiter(1)
        async with DataLoader(fetch, limiter=limiter) as users, anyio.create_task_group() as tg:
            scope = anyio.CancelScope()
            async with limiter:
                load = users.load(1)
                users.dispatch()
                tg.start_soon(gives_up, levels, load, scope)
                for _ in range(5):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
                for _ in range(5):
                    await anyio.lowlevel.checkpoint()
                late += load.status is load.Status.PENDING
            assert await users.load(2) == 2
            if levels in refused:  # it was never awaited, which is not giving up
                assert load.status is load.Status.FINISHED
            else:
                assert calls == [[2]] and load.status is load.Status.CANCELLED, levels
    assert late and refused
    print("done")
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_load_given_up_deep_in_the_stack_settles(backend: str) -> None:
    assert run_program(GIVING_UP, backend) == "done\n"


@pytest.mark.parametrize("is_deep", [_backend._has_frames, _backend._is_deep])
def test_how_deep_the_stack_is_can_be_told(is_deep: Callable[[int], object]) -> None:
    def deep(levels: int) -> bool:
        return deep(levels - 1) if levels else bool(is_deep(500))

    assert not deep(10)
    assert deep(500)
