"""What a scope knows and bounds: ``scope.set``, its limiter, shared scopes (contract 7)."""

from __future__ import annotations

from contextvars import ContextVar, copy_context
from typing import Any

import anyio
import pytest

from anyloader import (
    DataLoader,
    LoaderNotOpenError,
    LoaderScope,
    batch_loader,
    current_scope,
)
from support import Recorder, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio

user: ContextVar[str] = ContextVar("user", default="anonymous")


async def who(keys: list[int]) -> list[str]:
    return [user.get()] * len(keys)


# --- scope.set ---


async def test_a_value_that_is_set_reaches_the_batch_functions_called_from_now_on() -> None:
    async with LoaderScope() as scope:
        loader = scope.get(who)
        assert await loader.load(1) == "anonymous"
        scope.set(user, "Ann")
        assert await loader.load(2) == "Ann"
        assert await DataLoader(who).load(2) == "Ann"
        scope.set(user, "Bob")
        assert await loader.load(3) == "Bob"
        assert await loader.load(1) == "anonymous", "that is cached"


async def test_a_batch_that_is_queued_sees_it_too() -> None:
    async with LoaderScope() as scope:
        handle = scope.get(who).load(1)
        scope.set(user, "Ann")
        assert await handle == "Ann"


async def test_a_task_of_the_request_can_set_it_for_the_others() -> None:
    async def authenticate() -> None:
        user.set("only in this task")
        current_scope().set(user, "Ann")

    async with LoaderScope() as scope:
        async with anyio.create_task_group() as tg:
            tg.start_soon(authenticate)
        assert await scope.get(who).load(1) == "Ann"
        assert user.get() == "anonymous", "for batch functions, not for the caller"


async def test_another_scope_does_not_see_it() -> None:
    async with LoaderScope() as scope:
        scope.set(user, "Ann")
        assert await scope.get(who).load(1) == "Ann"
    async with LoaderScope() as scope:
        assert await scope.get(who).load(1) == "anonymous"


async def test_a_scope_inside_does_not_take_it_over() -> None:
    async with LoaderScope() as scope:
        scope.set(user, "Ann")
        async with LoaderScope() as inner:
            assert await inner.get(who).load(1) == "anonymous"
        assert await scope.get(who).load(1) == "Ann"


async def test_what_a_batch_function_sets_does_not_leak_and_does_not_hide_it() -> None:
    async def rude(keys: list[int]) -> list[str]:
        seen = user.get()
        user.set("somebody")
        return [seen] * len(keys)

    async with LoaderScope() as scope:
        scope.set(user, "Ann")
        loader = scope.get(rude)
        assert [await loader.load(1), await loader.load(2)] == ["Ann", "Ann"]


async def test_nested_loads_see_it() -> None:
    async def outer(keys: list[int]) -> list[str]:
        return await current_scope().get(who).load_many(keys)

    async with LoaderScope() as scope:
        scope.set(user, "Ann")
        assert await scope.get(outer).load(1) == "Ann"


async def test_only_a_context_variable_can_be_set() -> None:
    name: Any = "user"
    async with LoaderScope() as scope:
        with pytest.raises(TypeError):
            scope.set(name, "Ann")


# --- LoaderScope(limiter=) ---


async def test_a_limiter_bounds_all_batches_of_the_scope_together() -> None:
    gate = anyio.Event()
    fetches = [Recorder[int, int](int, gate=gate) for _ in range(3)]
    async with LoaderScope(limiter=anyio.CapacityLimiter(1)) as scope:
        loads = [scope.get(fetch).load(1) for fetch in fetches]
        await wait_all_tasks_blocked()
        assert sum(len(fetch.calls) for fetch in fetches) == 1
        gate.set()
        assert [await load for load in loads] == [1] * 3


async def test_together_with_the_limiter_of_a_loader() -> None:
    gate = anyio.Event()
    fetch = Recorder[int, int](int, gate=gate)
    scope_limiter, own = anyio.CapacityLimiter(3), anyio.CapacityLimiter(2)
    async with LoaderScope(limiter=scope_limiter):
        loader = DataLoader(fetch, batch=False, limiter=own)
        many = loader.load_many(range(5))
        await wait_all_tasks_blocked()
        assert len(fetch.calls) == 2
        gate.set()
        assert await many == [*range(5)]
    assert (scope_limiter.borrowed_tokens, own.borrowed_tokens) == (0, 0)


@pytest.mark.parametrize("limiter", [5, "1", object()])
def test_a_limiter_of_another_kind_is_refused(limiter: Any) -> None:
    with pytest.raises(TypeError, match="limiter"):
        LoaderScope(limiter=limiter)


# --- shared scopes ---


def shared_model(**options: Any) -> tuple[Any, list[list[int]]]:
    options = {"cache": "pending", **options}

    @batch_loader(shared=True, **options)  # type: ignore[untyped-decorator]
    async def embed(keys: list[int]) -> list[int]:
        calls.append(sorted(keys))
        return keys

    calls: list[list[int]] = []
    return embed, calls


async def test_requests_inside_share_one_loader() -> None:
    embed, calls = shared_model()

    async def request(key: int) -> None:
        async with LoaderScope():
            assert await embed.load(key) == key

    async with LoaderScope(shared=True):
        async with anyio.create_task_group() as tg:
            for key in range(5):
                tg.start_soon(request, key)
    assert calls == [[*range(5)]]


async def test_other_functions_stay_with_the_request() -> None:
    @batch_loader
    async def own(keys: list[int]) -> list[int]:
        calls.append(keys)
        return keys

    calls: list[list[int]] = []
    async with LoaderScope(shared=True):
        for _ in range(2):
            async with LoaderScope():
                assert await own.load(1) == 1
    assert calls == [[1], [1]]


async def test_a_request_that_ends_leaves_the_others_alone() -> None:
    gate = anyio.Event()
    started: list[int] = []

    @batch_loader(shared=True, cache=False)
    async def embed(keys: list[int]) -> list[int]:
        started.extend(keys)
        await gate.wait()
        return keys

    async def request(key: int) -> None:
        async with LoaderScope():
            values.append(await embed.load(key))

    async def gives_up(key: int) -> None:
        with anyio.CancelScope() as scope:
            async with LoaderScope(), anyio.create_task_group() as tg:
                tg.start_soon(embed.load, key)
                for _ in range(8):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()

    values: list[int] = []
    async with LoaderScope(shared=True), anyio.create_task_group() as tg:
        tg.start_soon(request, 1)
        tg.start_soon(gives_up, 2)
        await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        gate.set()
    assert values == [1]


async def test_nothing_is_remembered_from_request_to_request() -> None:
    embed, calls = shared_model()
    async with LoaderScope(shared=True):
        for _ in range(2):
            async with LoaderScope():
                assert await embed.load(1) == 1
    assert calls == [[1], [1]]


async def test_scope_get_gives_the_shared_loader_too() -> None:
    embed, _ = shared_model()
    async with LoaderScope(shared=True) as application:
        async with LoaderScope() as first:
            loader = first.get(embed)
        async with LoaderScope() as second:
            assert second.get(embed) is loader is application.get(embed)


@pytest.mark.parametrize("cache", [True, None])
def test_its_cache_must_not_remember(cache: Any) -> None:
    options: dict[str, Any] = {} if cache is None else {"cache": cache}
    with pytest.raises((TypeError, ValueError), match="cache"):

        @batch_loader(shared=True, **options)  # type: ignore[untyped-decorator]
        async def embed(keys: list[int]) -> list[int]:
            return keys


@pytest.mark.parametrize("cache", [False, "pending"])
async def test_these_are_fine(cache: Any) -> None:
    embed, calls = shared_model(cache=cache)
    async with LoaderScope(shared=True), LoaderScope():
        assert await embed.load_many([1, 1]) == [1, 1]
    assert calls == ([[1]] if cache == "pending" else [[1, 1]])


def test_whether_it_is_shared_is_a_bool() -> None:
    for make in (LoaderScope, batch_loader):
        options: Any = {"shared": 1}
        with pytest.raises(TypeError, match="shared"):
            make(**options)


async def test_a_shared_function_outside_of_a_shared_scope_says_what_to_enter() -> None:
    @batch_loader(shared=True, cache=False)
    async def embed(keys: list[int]) -> list[int]:
        return keys

    async with LoaderScope():
        with pytest.raises(
            LoaderNotOpenError, match=r"embed is shared.*LoaderScope\(shared=True\)"
        ):
            embed.load(1)


async def test_a_scope_left_in_another_context_is_not_ambient_any_more() -> None:
    """As an abandoned async generator is."""
    scope = LoaderScope()

    async def enter() -> None:
        await scope.__aenter__()

    async with LoaderScope() as outer:
        await enter()
        assert current_scope() is scope
        try:
            await copy_context().run(lambda: scope.__aexit__(None, None, None))
        except RuntimeError:
            pass
        assert current_scope() is outer or "closed" in repr(current_scope())


async def test_a_callable_that_gives_no_limiter_is_refused_at_the_first_load() -> None:
    wrong: Any = int
    async with LoaderScope(limiter=wrong) as scope:
        with pytest.raises(TypeError, match=r"must give an anyio\.CapacityLimiter"):
            scope.get(Recorder[int, int](int)).load(1)


async def test_loaders_that_nobody_can_reach_are_counted_on() -> None:
    fetch = Recorder[int, int](int)
    async with LoaderScope() as scope:
        for key in range(150):
            await DataLoader(fetch).load(key)
        assert len(scope.loaders()) < 100
        assert scope.statistics().keys == 150
    assert scope.statistics().keys == 150
