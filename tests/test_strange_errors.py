"""An error is the load's alone, whatever kind of object it is (contract 1, 4.1 to 4.4)."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyloader import (
    DataLoader,
    LoadCancelledError,
    LoaderScope,
    LoadHandle,
    hooks,
    in_thread,
)
from support import wait_all_tasks_blocked

pytestmark = pytest.mark.anyio


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    key: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlots(Exception):
    key: int = 0


@dataclasses.dataclass
class Unhashable(Exception):
    keys: list[int] = dataclasses.field(default_factory=list)


class NoAttributes(Exception):
    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise PermissionError(name)


class Liar(Exception):
    """Says of itself that it is of another class, as mocks and proxies do."""

    says: Any

    @property
    def __class__(self) -> Any:
        return self.says

    @__class__.setter
    def __class__(self, value: Any) -> NoReturn:
        raise PermissionError


class SaysInterrupt(Liar):
    says = KeyboardInterrupt


class SaysCancelled(Liar):
    says = asyncio.CancelledError


class SaysText(Liar):
    says = str


class NoComparison(Exception):
    def __eq__(self, other: object) -> bool:
        raise PermissionError

    def __hash__(self) -> int:
        raise PermissionError


class NoText(Exception):
    def __repr__(self) -> str:
        raise PermissionError

    __str__ = __repr__


class NoNotes(Exception):
    def add_note(self, note: str) -> NoReturn:
        raise PermissionError


class NoTraceback(Exception):
    def __getattribute__(self, name: str) -> Any:
        if name == "__traceback__":
            raise PermissionError
        return super().__getattribute__(name)


STRANGE: dict[str, Callable[[], Exception]] = {
    kind.__name__: kind
    for kind in (
        *(Frozen, FrozenSlots, Unhashable, NoAttributes, SaysInterrupt, SaysCancelled, SaysText),
        *(NoComparison, NoText, NoNotes, NoTraceback),
    )
}


def every_error(test: Callable[..., Any]) -> Any:
    """Run a test with each of them, and tell pytest of one that gets out in words it can bear."""

    @functools.wraps(test)
    async def plainly(*args: Any, **kwargs: Any) -> None:
        try:
            await test(*args, **kwargs)
        except AssertionError:
            raise
        except Exception as exc:
            raise AssertionError(f"out came {type(exc).__name__}") from None

    return pytest.mark.parametrize("make", STRANGE.values(), ids=STRANGE)(plainly)


@contextmanager
def raises(error: Exception) -> Iterator[None]:
    """As ``pytest.raises``, which looks at more of an error than its type."""
    try:
        yield
    except Exception as exc:
        assert exc is error  # noqa: PT017
    else:
        raise AssertionError("nothing was raised")


async def good(keys: list[int]) -> list[int]:
    await wait_all_tasks_blocked()
    return [key * 10 for key in keys]


async def fails_alone(error: Exception, loader: DataLoader[int, Any]) -> None:
    """Three waiters of a loader get the error, and the rest of the scope hears nothing of it."""

    async def waits(handle: Any) -> None:
        with raises(error):
            await handle
        ends.append("error")

    ends: list[str] = []
    other = DataLoader(good).load(1)
    async with anyio.create_task_group() as tg:
        first = loader.load(1)
        for handle in (first, loader.load(1), loader.load_many([1])):
            tg.start_soon(waits, handle)
    assert ends == ["error"] * 3
    with raises(error):
        await first  # pyright: ignore[reportGeneralTypeIssues, reportPossiblyUnboundVariable]
    assert first.status is LoadHandle.Status.FAILED  # pyright: ignore[reportPossiblyUnboundVariable]
    assert first.exception is error  # pyright: ignore[reportPossiblyUnboundVariable]
    assert await other == 10
    assert await DataLoader(good).load(2) == 20, "the scope goes on"


# --- raised by ---


@every_error
async def test_a_batch_function(make: Callable[[], Exception]) -> None:
    async def fetch(keys: list[int]) -> list[int]:
        await checkpoint()
        raise error

    error = make()
    async with LoaderScope():
        await fails_alone(error, DataLoader(fetch))


@every_error
async def test_a_batch_function_at_its_call(make: Callable[[], Exception]) -> None:
    def fetch(keys: list[int]) -> Any:
        raise error

    error = make()
    async with LoaderScope():
        await fails_alone(error, DataLoader(fetch))


@every_error
async def test_a_batch_function_in_a_foreign_group(make: Callable[[], Exception]) -> None:
    async def fetch(keys: list[int]) -> list[int]:
        raise error

    error = make()
    async with anyio.create_task_group() as tg:
        async with LoaderScope(task_group=tg):
            await fails_alone(error, DataLoader(fetch))
        loader = DataLoader(fetch, task_group=tg)
        with raises(error):
            await loader.load(1)


@every_error
async def test_a_schedule(make: Callable[[], Exception]) -> None:
    async def schedule(batch: object) -> None:
        raise error

    error = make()
    async with LoaderScope():
        await fails_alone(error, DataLoader(good, schedule=schedule))


@every_error
async def test_a_stream(make: Callable[[], Exception]) -> None:
    async def stream(keys: list[int]) -> AsyncIterator[tuple[int, int]]:
        yield 2, 20
        raise error

    error = make()
    async with LoaderScope():
        loader = DataLoader(stream)
        second = loader.load(2)
        await fails_alone(error, loader)
        assert await second == 20


@every_error
async def test_a_thread(make: Callable[[], Exception]) -> None:
    def fetch(keys: list[int]) -> list[int]:
        raise error

    error = make()
    async with LoaderScope():
        loader = DataLoader(in_thread(fetch))
        with raises(error):
            await loader.load(1)
        assert await DataLoader(good).load(2) == 20


@every_error
async def test_a_mapping_that_is_looked_at(make: Callable[[], Exception]) -> None:
    class Rows(dict[int, int]):
        def __getitem__(self, key: int) -> int:
            raise error

    async def fetch(keys: list[int]) -> Rows:
        return Rows({key: key for key in keys})

    error = make()
    async with LoaderScope():
        await fails_alone(error, DataLoader(fetch))


@every_error
async def test_a_generator_of_values(make: Callable[[], Exception]) -> None:
    def values() -> Iterator[int]:
        raise error
        yield 1

    async def fetch(keys: list[int]) -> Iterator[int]:
        return values()

    error = make()
    async with LoaderScope():
        await fails_alone(error, DataLoader(fetch))


@every_error
async def test_on_missing(make: Callable[[], Exception]) -> None:
    def on_missing(key: int) -> int:
        raise error

    async def fetch(keys: list[int]) -> dict[int, int]:
        return {}

    error = make()
    async with LoaderScope():
        await fails_alone(error, DataLoader(fetch, on_missing=on_missing))


@every_error
async def test_a_hook_harms_nobody(
    make: Callable[[], Exception], caplog: pytest.LogCaptureFixture
) -> None:
    def hook(event: hooks.Event) -> None:
        raise error

    error = make()
    async with LoaderScope(hooks=[hook]):
        assert await DataLoader(good, hooks=[hook]).load_many([1, 2]) == [10, 20]


@every_error
@pytest.mark.parametrize("operation", ["get_many", "set_many", "delete_many"])
async def test_a_value_cache_fails_no_load(
    make: Callable[[], Exception], operation: str, caplog: pytest.LogCaptureFixture
) -> None:
    def perhaps(name: str) -> None:
        if name == operation:
            raise error

    class Values:
        async def get_many(self, keys: Sequence[int]) -> Mapping[int, int]:
            perhaps("get_many")
            return {}

        async def set_many(self, items: Mapping[int, int]) -> None:
            perhaps("set_many")

        async def delete_many(self, keys: Sequence[int]) -> None:
            perhaps("delete_many")

    error = make()
    events: list[Any] = []
    async with LoaderScope():
        loader = DataLoader(good, value_cache=Values(), hooks=[events.append])
        assert await loader.load(1) == 10
        assert await loader.clear(1).load_many([1, 2]) == [10, 20]
    failures = [event for event in events if type(event) is hooks.ValueCacheFailed]
    assert failures
    for failure in failures:
        assert failure.error is error


# --- given as ---


@every_error
async def test_a_value(make: Callable[[], Exception]) -> None:
    async def fetch(keys: list[int]) -> list[Any]:
        return [error if key == 1 else key for key in keys]

    error = make()
    async with LoaderScope():
        loader = DataLoader(fetch)
        second = loader.load(2)
        await fails_alone(error, loader)
        assert await second == 2
        with raises(error):
            await loader.load(1)


@every_error
async def test_a_pair_of_a_stream(make: Callable[[], Exception]) -> None:
    async def stream(keys: list[int]) -> AsyncIterator[tuple[int, Any]]:
        for key in keys:
            yield key, error

    error = make()
    async with LoaderScope():
        await fails_alone(error, DataLoader(stream))


@every_error
async def test_a_primed_value(make: Callable[[], Exception]) -> None:
    error = make()
    async with LoaderScope():
        await fails_alone(error, DataLoader(good).prime(1, error))


@every_error
async def test_the_cause_of_an_error(make: Callable[[], Exception]) -> None:
    async def fetch(keys: list[int]) -> list[int]:
        try:
            raise cause
        except Exception as exc:
            raise error from exc

    cause, error = make(), LookupError("no such row")
    async with LoaderScope():
        await fails_alone(error, DataLoader(fetch))
    assert error.__cause__ is cause


@every_error
async def test_the_error_that_ends_a_cleanup_of_a_cancelled_function(
    make: Callable[[], Exception],
) -> None:
    async def fetch(keys: list[int]) -> list[int]:
        try:
            await anyio.sleep_forever()
        finally:
            raise error

    error = make()
    async with LoaderScope():
        loader = DataLoader(fetch)
        handle = loader.load(1)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tg:
                tg.start_soon(handle.wait)
                await wait_all_tasks_blocked()
                scope.cancel()
        await wait_all_tasks_blocked()
        assert handle.status is not LoadHandle.Status.PENDING
        assert await DataLoader(good).load(1) == 10


@every_error
async def test_the_error_of_a_body_comes_out_as_it_is(make: Callable[[], Exception]) -> None:
    error = make()
    with raises(error):
        async with LoaderScope():
            DataLoader(good).load(1)
            raise error
    with raises(error):
        async with DataLoader(good) as loader:
            loader.load(1)
            raise error


# --- a cancellation among the values is an error of its key ---


async def cancellation() -> BaseException:
    """Return a cancellation of the running library, as ``gather(return_exceptions=True)`` does."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await checkpoint()
        except BaseException as exc:
            caught = exc
            raise
    return caught  # pyright: ignore[reportPossiblyUnboundVariable]


@pytest.mark.parametrize("kind", ["asyncio", "of this library"])
@pytest.mark.parametrize("shape", ["list", "mapping", "stream"])
async def test_a_cancellation_among_the_values(kind: str, shape: str) -> None:
    async def fetch(keys: list[int]) -> Any:
        calls.append(keys)
        values = {key: stray if key == 2 else ValueError() if key == 3 else key for key in keys}
        return values if shape == "mapping" else [*values.values()]

    async def stream(keys: list[int]) -> AsyncIterator[tuple[int, Any]]:
        for key, value in zip(keys, await fetch(keys)):
            yield key, value

    calls: list[list[int]] = []
    stray = asyncio.CancelledError() if kind == "asyncio" else await cancellation()
    function: Any = stream if shape == "stream" else fetch
    async with DataLoader(function) as loader:
        one, two, three = map(loader.load, (1, 2, 3))
        assert await one == 1
        with pytest.raises(LoadCancelledError) as caught:
            await two
        assert caught.value.__cause__ is stray
        with pytest.raises(ValueError):
            await three
        assert loader.peek(2) is None
        with pytest.raises(LoadCancelledError):
            await loader.load(2)
        assert calls == [[1, 2, 3], [2]], "it was not cached"


# --- one waiter's context does not reach the next ---


@pytest.mark.parametrize("whole_batch", [True, False])
async def test_the_context_of_one_waiter_does_not_reach_the_next(whole_batch: bool) -> None:
    async def fetch(keys: list[int]) -> list[Any]:
        if whole_batch:
            raise error
        return [error for _ in keys]

    error = LookupError("no such row")
    async with DataLoader(fetch) as loader:
        handle = loader.load(1)
        try:
            raise PermissionError
        except PermissionError:
            with pytest.raises(LookupError) as first:
                await handle
        assert first.value is error
        with pytest.raises(LookupError) as second:
            await handle
        assert second.value.__context__ is None


async def test_a_context_that_the_batch_function_gave_stays() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        try:
            raise OSError("refused")
        except OSError:
            raise LookupError("no such row")  # noqa: B904

    async with DataLoader(fetch) as loader:
        handle = loader.load(1)
        for _ in range(2):
            try:
                raise PermissionError
            except PermissionError:
                with pytest.raises(LookupError) as caught:
                    await handle
            assert type(caught.value.__context__) is OSError
