"""Near Python's recursion limit a load fails and changes nothing, or works (contract 2.9).

In a process of its own, as what goes wrong there hangs beyond cancellation.
"""

from __future__ import annotations

import pytest

from support import BACKENDS
from support.programs import run_program

OPERATIONS = {
    "load": "users.load(1)",
    "load_many": "users.load_many([1, 2])",
    "dispatch": "(users.load(1), users.dispatch())[0]",
    "prime": "users.prime(1, 1, force=True)",
    "clear": "users.clear(1)",
    "second load": "(users.load(3), users.load(1))[1]",
}

SOURCE = """
from anyloader import DataLoader

def deep(levels, function):
    return function() if levels <= 0 else deep(levels - 1, function)

async def fetch(keys):
    return keys

async def main():
    refused = worked = 0
    for levels in range({first}, 1_000):
        async with DataLoader(fetch{options}) as users:
            assert await users.load(0) == 0  # leaves an idle worker
            before = users.statistics()
            try:
                result = deep(levels, lambda: {operation})
            except RecursionError:
                refused += 1
                {after}
            else:
                worked += 1
                if hasattr(result, "__await__"):
                    assert await result in (1, [1, 2])
            # All that is there from before still wakes up.
            assert await users.load_many([1, 2, 3]) == [1, 2, 3]
    assert refused > 10 and worked > 10, (refused, worked)
    print("done")
"""

CHANGES_NOTHING = "assert users.statistics() == before and users.peek(1) is None, levels"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_deep_in_the_stack_is_refused_or_works(backend: str, operation: str) -> None:
    exact = operation in ("load", "load_many")
    source = SOURCE.format(
        first=880,
        options="",
        operation=OPERATIONS[operation],
        after=CHANGES_NOTHING if exact else "pass",
    )
    assert run_program(source, backend) == "done\n"


@pytest.mark.parametrize("backend", BACKENDS)
def test_with_a_full_batch_too(backend: str) -> None:
    source = SOURCE.format(
        first=880, options=", max_batch_size=1", operation="users.load(1)", after=CHANGES_NOTHING
    )
    assert run_program(source, backend) == "done\n"


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
