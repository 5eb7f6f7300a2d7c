"""Running in any order: each order comes, each run can be had again, and a dependence is found."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from support import all_orders, run_choices, run_seeds, run_shuffled, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio
pytest_plugins = ["pytester"]


# --- any order ---


async def arrivals(tasks: int, rounds: int = 1) -> tuple[tuple[int, ...], ...]:
    """The order in which the tasks of a group run, in each of their rounds."""
    seen: list[list[int]] = [[] for _ in range(rounds)]

    async def step(number: int) -> None:
        for order in seen:
            order.append(number)
            await checkpoint()

    async with anyio.create_task_group() as tg:
        for number in range(tasks):
            tg.start_soon(step, number)
    return tuple(map(tuple, seen))


def test_every_seed_gives_some_order_and_the_same_again(shuffled_backend: str) -> None:
    orders = [run_shuffled(shuffled_backend, seed, arrivals, 3, 2) for seed in range(300)]
    assert len(set(orders)) == 36  # 3! in each of two rounds
    again = [run_shuffled(shuffled_backend, seed, arrivals, 3, 2) for seed in range(50)]
    assert again == orders[:50]


def test_all_orders_gives_each_order_equally_often(shuffled_backend: str) -> None:
    # A task runs once more than it records, so two rounds are permuted here, and three below.
    orders = Counter(all_orders(shuffled_backend, arrivals, 4))
    assert len(orders) == 24
    assert set(orders.values()) == {24}

    orders = Counter(all_orders(shuffled_backend, arrivals, 2, 2))
    assert len(orders) == 4
    assert set(orders.values()) == {2}


async def batch_count(quiet: int) -> int:
    """Batch numbers that come 0 to 2 rounds late, until ``quiet`` checkpoints brought none."""
    queue: list[int] = []
    batches: list[list[int]] = []

    async def dispatch() -> None:
        calm, seen = 0, len(queue)
        while calm < quiet:
            await checkpoint()
            calm = calm + 1 if len(queue) == seen else 0
            seen = len(queue)
        batches.append(queue.copy())
        queue.clear()

    async with anyio.create_task_group() as tg:

        async def load(number: int) -> None:
            for _ in range(number % 3):
                await checkpoint()
            queue.append(number)
            if len(queue) == 1:
                tg.start_soon(dispatch)

        for number in range(6):
            tg.start_soon(load, number)
    return len(batches)


def test_dependence_on_the_schedule_is_found(shuffled_backend: str) -> None:
    assert run_seeds(shuffled_backend, range(100), batch_count, 2) == 1
    with pytest.raises(AssertionError, match="seed 0 gave"):
        run_seeds(shuffled_backend, range(100), batch_count, 1)


def test_choices_can_be_run_again(shuffled_backend: str) -> None:
    choices = [(first, second) for first in range(3) for second in range(2)]
    found = {run_choices(shuffled_backend, chosen, arrivals, 3) for chosen in choices}
    assert found == set(all_orders(shuffled_backend, arrivals, 3))


def test_callbacks_keep_their_place_among_what_the_same_task_queued() -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        seen: list[str] = []

        async def step(name: str) -> None:
            seen.append(name)

        tasks = [asyncio.create_task(step(name)) for name in "ab"]
        loop.call_soon(seen.append, "1")
        loop.call_soon(seen.append, "2")
        tasks += [asyncio.create_task(step(name)) for name in "cd"]
        loop.call_soon(seen.append, "3")
        await asyncio.gather(*tasks)
        return "".join(seen)

    fair = {"ab12cd3", "ba12cd3", "ab12dc3", "ba12dc3"}
    assert {run_shuffled("asyncio", seed, main) for seed in range(50)} == fair
    assert set(all_orders("asyncio", main)) == fair


def test_steps_pass_callbacks_that_another_task_queued() -> None:
    async def main() -> str:
        seen: list[str] = []

        async def calling() -> None:
            seen.append("a")
            asyncio.get_running_loop().call_soon(seen.append, "1")
            asyncio.get_running_loop().call_soon(seen.append, "2")
            await asyncio.sleep(0)
            seen.append("A")

        async def other() -> None:
            seen.append("b")
            await asyncio.sleep(0)
            seen.append("B")

        await asyncio.gather(calling(), other())
        return "".join(seen)

    second_rounds = {"B12A", "1B2A", "12BA", "12AB"}  # nobody passes what it called itself
    fair = {first + second for first in ("ab", "ba") for second in second_rounds}
    assert {run_shuffled("asyncio", seed, main) for seed in range(100)} == fair
    assert set(all_orders("asyncio", main)) == fair


def test_task_resumes_after_what_it_called_whoever_wakes_it() -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        seen: list[str] = []

        async def waiter() -> None:
            loop.call_soon(seen.append, "called")
            if not woken.done():
                await woken
                seen.append("resumed")

        async def waker() -> None:
            woken.set_result(None)

        await asyncio.gather(waiter(), waker())
        return " ".join(seen)

    assert {run_shuffled("asyncio", seed, main) for seed in range(50)} == {
        "called",
        "called resumed",
    }


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there are no eager tasks")
def test_shuffled_tasks_are_eager() -> None:
    async def main() -> list[str]:
        seen: list[str] = []

        async def step() -> None:
            seen.append("step")

        task = asyncio.create_task(step())
        seen.append("created")
        await task
        return seen

    assert run_seeds("asyncio", range(5), main) == ["created", "step"]
    assert run_seeds("asyncio+eager", range(5), main) == ["step", "created"]


def test_done_callbacks_of_a_future_keep_their_order() -> None:
    async def main() -> str:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        seen: list[str] = []

        async def waiter(name: str) -> None:
            await future
            seen.append(name)

        async with anyio.create_task_group() as tg:
            future.add_done_callback(lambda _: seen.append("1"))
            tg.start_soon(waiter, "a")
            tg.start_soon(waiter, "b")
            await wait_all_tasks_blocked()
            future.add_done_callback(lambda _: seen.append("2"))
            future.set_result(None)
        return "".join(seen)

    assert {run_shuffled("asyncio", seed, main) for seed in range(50)} == {"1ab2", "1ba2"}


def test_cancelling_a_task_is_a_callback_and_no_step() -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        seen: list[str] = []

        async def step(name: str) -> None:
            seen.append(name)

        tasks = [asyncio.create_task(step(name)) for name in "abc"]
        loop.call_soon(tasks[2].cancel)  # comes after the first step of that task: too late
        await asyncio.wait(tasks)
        return "".join(sorted(seen))

    assert run_seeds("asyncio", range(50), main) == "abc"


def test_same_seed_gives_same_run_where_tasks_are_kept_in_sets(shuffled_backend: str) -> None:
    async def main() -> list[int]:
        cancelled: list[int] = []

        async def sleeper(number: int) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                cancelled.append(number)

        async with anyio.create_task_group() as tg:
            for number in range(6):
                tg.start_soon(sleeper, number)
            await wait_all_tasks_blocked()
            tg.cancel_scope.cancel()
        return cancelled

    for seed in range(10):
        run_seeds(shuffled_backend, [seed] * 3, main)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there are no eager tasks")
def test_same_seed_gives_same_run_where_eager_tasks_are_kept_in_sets() -> None:
    async def main() -> list[int]:
        cancelled: list[int] = []

        async def sleeper(number: int) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                cancelled.append(number)

        tasks = {asyncio.create_task(sleeper(number)) for number in range(6)}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return cancelled

    for seed in range(10):
        run_seeds("asyncio+eager", [seed] * 3, main)


def test_anyio_itself_works_in_any_order(shuffled_backend: str) -> None:
    async def main() -> tuple[Any, ...]:
        event, lock, limiter = anyio.Event(), anyio.Lock(), anyio.CapacityLimiter(2)
        send, receive = anyio.create_memory_object_stream[int]()
        received: list[int] = []
        most = inside = 0

        async def worker(number: int) -> None:
            nonlocal most, inside
            await event.wait()
            async with limiter:
                inside += 1
                most = max(most, inside)
                async with lock:
                    await checkpoint()
                inside -= 1
            with anyio.move_on_after(number):
                await anyio.sleep(2.5)
                await send.send(number)

        async def receiver() -> None:
            async for item in receive:
                received.append(item)

        async def started(*, task_status: anyio.abc.TaskStatus[str]) -> None:
            task_status.started("up")

        async with send, receive, anyio.create_task_group() as outer:
            outer.start_soon(receiver)
            async with anyio.create_task_group() as tg:
                assert await tg.start(started) == "up"
                for number in range(5):
                    tg.start_soon(worker, number)
                await wait_all_tasks_blocked()
                event.set()
            send.close()
        return most, sorted(received), anyio.current_time()

    assert run_seeds(shuffled_backend, range(100), main) == (2, [3, 4], 2.5)


def test_failure_names_seed(shuffled_backend: str) -> None:
    async def main() -> None:
        order = await arrivals(3)
        raise KeyError(order)

    with pytest.raises(KeyError) as caught:
        run_shuffled(shuffled_backend, 17, main)
    assert _notes(caught.value) == [f"under run_shuffled({shuffled_backend!r}, seed=17)"]


def test_failure_names_choices(shuffled_backend: str) -> None:
    async def main() -> None:
        assert await arrivals(3) != ((2, 1, 0),)

    with pytest.raises(AssertionError) as caught:
        list(all_orders(shuffled_backend, main))
    (note,) = _notes(caught.value)
    assert note.startswith(f"under run_choices({shuffled_backend!r}, [")

    choices = [int(number) for number in note[note.index("[") + 1 : -2].split(", ")]
    with pytest.raises(AssertionError):
        run_choices(shuffled_backend, choices, main)


def _notes(exc: BaseException) -> list[str]:
    notes: list[str] = getattr(exc, "__notes__", [])
    return notes


def test_hang_is_a_failure(shuffled_backend: str) -> None:
    async def main() -> None:
        await anyio.Event().wait()

    with pytest.raises(AssertionError, match="hangs: after 1000000 s") as caught:
        run_shuffled(shuffled_backend, 3, main)
    assert "seed=3" in _notes(caught.value)[0]


def test_seeds_that_differ_are_named(shuffled_backend: str) -> None:
    with pytest.raises(AssertionError, match=r"seed 0 gave \(.*, but seed \d+ gave \("):
        run_seeds(shuffled_backend, range(100), arrivals, 3)
    with pytest.raises(ValueError, match="got none"):
        run_seeds(shuffled_backend, [], arrivals, 3)


def test_too_many_orders_is_a_failure(shuffled_backend: str) -> None:
    runs = 0
    with pytest.raises(AssertionError, match="there are more than 20 orders"):
        for _ in all_orders(shuffled_backend, arrivals, 4, limit=20):
            runs += 1
    assert runs == 20


@pytest.mark.parametrize("same", [1, 24])  # the next to change is the last choice, or the first
def test_what_changes_from_run_to_run_is_a_failure(shuffled_backend: str, same: int) -> None:
    tasks = iter([3] * same + [2])

    async def main() -> None:
        await arrivals(next(tasks))

    with pytest.raises(AssertionError, match="not deterministic"):
        list(all_orders(shuffled_backend, main))
