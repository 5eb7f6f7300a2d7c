"""Contract 6.3: values that come from elsewhere."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import anyio
import pytest

from anyloader import (
    DataLoader,
    schedules,
)
from support import Recorder, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio

MANUAL = schedules.manual()


class Failed(Exception):
    pass


@pytest.fixture
def recorder() -> Recorder[int, str]:
    return Recorder(lambda key: f"fetched {key}")


async def test_a_primed_key_is_not_fetched(recorder: Recorder[int, str]) -> None:
    async with DataLoader(recorder) as loader:
        assert loader.prime(1, "primed") is loader
        assert await loader.load(1) == "primed"
        assert await loader.load_many([1, 2]) == ["primed", "fetched 2"]
        now = loader.statistics()
        assert (now.loads, now.hits, now.keys, now.cached) == (3, 2, 1, 2)
    assert recorder.calls == [[2]]


async def test_prime_needs_no_open_loader(recorder: Recorder[int, str]) -> None:
    loader = DataLoader(recorder).prime(1, "primed").prime_many({2: "too"}).clear(2)
    peeked = loader.peek(1)
    assert peeked is not None
    assert peeked.return_value == "primed"
    async with loader:
        assert await loader.load_many([1, 2]) == ["primed", "fetched 2"]


async def test_none_is_no_key_to_prime(recorder: Recorder[int, str]) -> None:
    loader = DataLoader(recorder, name="Names")
    with pytest.raises(TypeError, match=r"Names\.prime\(\) takes a key, not None; leave out"):
        loader.prime(None, "primed")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert loader.statistics().cached == 0


async def test_prime_never_overwrites(recorder: Recorder[int, str]) -> None:
    recorder.gate = anyio.Event()
    async with DataLoader(recorder, schedule=MANUAL) as loader:
        running = loader.load_many([1])
        loader.dispatch()
        await wait_all_tasks_blocked()
        queued = loader.load(2)
        loader.prime(3, "first")
        for _ in range(2):
            assert loader.prime(1, "no").prime(2, "no").prime(3, "no") is loader
            loader.prime_many({1: "no", 2: "no", 3: "no"})
        loader.dispatch()
        recorder.gate.set()
        assert (await running, await queued) == (["fetched 1"], "fetched 2")
        loader.prime(1, "no").prime(2, "no")
        expected = ["fetched 1", "fetched 2", "first"]
        assert await loader.load_many([1, 2, 3]) == expected
    assert recorder.calls == [[1], [2]]


async def test_a_cleared_key_can_be_primed(recorder: Recorder[int, str]) -> None:
    async with DataLoader(recorder) as loader:
        await loader.load(1)
        assert await loader.clear(1).prime(1, "primed").load(1) == "primed"


async def test_force_replaces_a_settled_entry(recorder: Recorder[int, str]) -> None:
    async with DataLoader(recorder) as loader:
        old = loader.load(1)
        await old
        loader.prime(2, "first")
        loader.prime(1, "forced", force=True).prime_many({2: "forced"}, force=True)
        assert await loader.load_many([1, 2]) == ["forced", "forced"]
        assert await old == "fetched 1"


@pytest.mark.parametrize("when", ["queued", "sealed"])
async def test_force_settles_who_waits_for_a_key_not_yet_sent(
    recorder: Recorder[int, str], when: str
) -> None:
    outcomes: list[str] = []
    limiter = anyio.CapacityLimiter(1)
    await limiter.acquire()

    async def wait() -> None:
        outcomes.append(await handle)

    async with DataLoader(recorder, schedule=MANUAL, limiter=limiter) as loader:
        handle, second = loader.load(1), loader.load(1)
        many, alone = loader.load_many([3, 1, 2]), loader.load_many([1])
        async with anyio.create_task_group() as tg:
            tg.start_soon(wait)
            tg.start_soon(wait)
            if when == "sealed":
                loader.dispatch()
            await wait_all_tasks_blocked()
            assert loader.statistics().queued == 3
            loader.prime(1, "forced", force=True)
            assert loader.statistics().queued == 2
            assert handle.return_value == second.return_value == "forced"
            await wait_all_tasks_blocked()
            assert outcomes == ["forced", "forced"]
            assert await alone == ["forced"]
            assert await loader.load(1) == "forced"
        loader.dispatch()
        limiter.release()
        assert await many == ["fetched 3", "forced", "fetched 2"]
        assert await loader.load(1) == "forced"
    assert recorder.calls == [[3, 2]]


@pytest.mark.parametrize("when", ["queued", "sealed"])
async def test_a_batch_whose_keys_were_all_forced_is_not_sent(
    recorder: Recorder[int, str], when: str
) -> None:
    limiter = anyio.CapacityLimiter(1)
    await limiter.acquire()
    async with DataLoader(recorder, schedule=MANUAL, limiter=limiter) as loader:
        many = loader.load_many([1, 2])
        if when == "sealed":
            loader.dispatch()
        loader.prime_many({1: "forced", 2: "forced"}, force=True)
        loader.dispatch()
        limiter.release()
        assert await many == ["forced", "forced"]
        await wait_all_tasks_blocked()
        assert recorder.calls == []
        assert limiter.borrowed_tokens == 0
        fresh = loader.load(3)
        loader.dispatch()
        assert await fresh == "fetched 3"


async def test_a_forced_key_makes_room_in_a_batch(recorder: Recorder[int, str]) -> None:
    async with DataLoader(recorder, schedule=MANUAL, max_batch_size=2) as loader:
        loader.load(1)
        loader.prime(1, "forced", force=True)
        two = loader.load(2)
        await wait_all_tasks_blocked()
        assert recorder.calls == []
        assert await loader.load(3) == "fetched 3"
        assert await two == "fetched 2"
    assert recorder.calls == [[2, 3]]


async def test_a_forced_key_can_be_cleared_and_loaded_into_the_same_batch(
    recorder: Recorder[int, str],
) -> None:
    async with DataLoader(recorder) as loader:
        old, other = loader.load(1), loader.load(2)
        new = loader.prime(1, "forced", force=True).clear(1).load(1)
        assert (await old, await other, await new) == ("forced", "fetched 2", "fetched 1")
    assert recorder.calls == [[2, 1]]


@pytest.mark.parametrize("fails", [False, True])
async def test_force_on_a_running_key_leaves_its_waiters_alone(fails: bool) -> None:
    gate = anyio.Event()

    async def fetch(keys: list[int]) -> list[str]:
        await gate.wait()
        if fails:
            raise Failed
        return [f"fetched {key}" for key in keys]

    async with DataLoader(fetch) as loader:
        old = loader.load(1)
        await wait_all_tasks_blocked()
        loader.prime(1, "forced", force=True)
        assert await loader.load(1) == "forced"
        assert not gate.is_set()
        gate.set()
        if fails:
            with pytest.raises(Failed):
                await old
        else:
            assert await old == "fetched 1"
        assert await loader.load(1) == "forced"


async def test_a_forced_key_leaves_a_stream() -> None:
    calls: list[list[int]] = []

    async def stream(keys: list[int]) -> AsyncGenerator[tuple[int, str], None]:
        calls.append(keys)
        for key in keys:
            yield key, f"fetched {key}"

    async with DataLoader(stream) as loader:
        many = loader.load_many([1, 2])
        loader.prime(1, "forced", force=True)
        assert await many == ["forced", "fetched 2"]
    assert calls == [[2]]


async def test_priming_an_exception_makes_loads_raise_it(recorder: Recorder[int, str]) -> None:
    error = Failed()
    async with DataLoader(recorder, schedule=MANUAL) as loader:
        loader.prime(1, error).prime_many({2: error})
        for load in (loader.load(1), loader.load(2), loader.load_many([2])):
            with pytest.raises(Failed) as caught:
                await load
            assert caught.value is error
        assert loader.load(1).exception is error
        in_place: list[object] = [*await loader.load_many([1], return_exceptions=True)]
        assert in_place == [error]

        queued = loader.load(3)
        loader.prime(3, error, force=True)
        with pytest.raises(Failed):
            await queued
        assert await loader.prime(3, "fine", force=True).load(3) == "fine"
    assert recorder.calls == []


async def test_prime_many_and_clear_many_chain(recorder: Recorder[int, str]) -> None:
    async with DataLoader(recorder) as loader:
        assert loader.prime_many({1: "a", 2: "b"}).clear_many([2]).prime(3, "c") is loader
        assert await loader.load_many([1, 2, 3]) == ["a", "fetched 2", "c"]


@pytest.mark.parametrize("value", [None, 0, "", [], False])
async def test_any_value_can_be_primed(value: object) -> None:
    recorder = Recorder[int, object](abs)
    async with DataLoader(recorder) as loader:
        assert await loader.prime(1, value).load(1) is value
    assert recorder.calls == []


async def test_prime_with_the_cache_off_changes_nothing() -> None:
    async with DataLoader(Recorder[int, int](abs), cache=False) as loader:
        assert await loader.prime(-1, 5).clear(-1).clear_all().load(-1) == 1
        assert loader.peek(-1) is None


async def test_a_handle_that_was_primed_while_queued_stays_in_the_cache() -> None:
    async with DataLoader(Recorder[int, int](abs)) as loader:
        load = loader.load(1)
        assert loader.prime(1, 10, force=True).peek(1) is load
        assert await load == 10
