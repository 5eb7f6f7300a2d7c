"""What a loader can be made of: arguments, defaults, subclasses, and clear refusals."""

from __future__ import annotations

import inspect
import re
from typing import Any

import anyio
import pytest

from anyloader import DataLoader, schedules
from support import Recorder, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio


async def double(keys: list[int]) -> list[int]:
    return [key * 2 for key in keys]


class Doubles(DataLoader[int, int]):
    async def batch_load_fn(self, keys: list[int]) -> list[int]:
        return await double(keys)


DEFAULTS: dict[str, Any] = {
    "batch": True,
    "max_batch_size": None,
    "cache": True,
    "get_cache_key": None,
    "defer_hits": False,
    "deduplicate": False,
    "cache_errors": True,
    "on_missing": None,
    "limiter": None,
}


def test_options_are_given_by_name() -> None:
    parameters = inspect.signature(DataLoader).parameters
    assert next(iter(parameters)) == "batch_load_fn"
    for option in (*DEFAULTS, "task_group", "cache_map", "schedule", "name"):
        assert parameters[option].kind is inspect.Parameter.KEYWORD_ONLY


def test_defaults() -> None:
    loader = DataLoader(double)
    assert {option: getattr(loader, option) for option in DEFAULTS} == DEFAULTS
    assert repr(loader.schedule) == repr(schedules.quiescent())


def test_defaults_can_be_given() -> None:
    loader = DataLoader(
        double, task_group=None, cache_map=None, schedule=None, name=None, **DEFAULTS
    )
    assert {option: getattr(loader, option) for option in DEFAULTS} == DEFAULTS
    assert (repr(loader.schedule), loader.name) == (repr(schedules.quiescent()), "double")


def test_a_schedule_or_name_of_none_is_that_of_the_class() -> None:
    class Doubles(DataLoader[int, int]):
        schedule: Any = schedules.rounds(3)
        name = "doubles"

    loader = Doubles(double, schedule=None, name=None)
    assert (repr(loader.schedule), loader.name) == ("rounds(3)", "doubles")


async def test_loads_of_any_number_share_a_batch_by_default() -> None:
    batches = Recorder[int, int](abs)
    async with DataLoader(batches) as loader:
        await loader.load_many(range(5_000))
    assert batches.calls == [list(range(5_000))]


async def test_batch_false_means_batches_of_one_whatever_the_size() -> None:
    batches = Recorder[int, int](abs)
    async with DataLoader(batches, batch=False, max_batch_size=10) as loader:
        await loader.load_many([1, 2])
    assert sorted(batches.calls) == [[1], [2]]


# --- wrong arguments ---


def options(**given: Any) -> dict[str, Any]:
    return given


@pytest.mark.parametrize(
    ("given", "error", "expected"),
    [
        (options(batch_load_fn=42), TypeError, "callable"),
        (options(batch_load_fn=[double]), TypeError, "callable"),
        (options(task_group=42), TypeError, "anyio TaskGroup, a trio Nursery or an asyncio."),
        (options(batch=1), TypeError, "True or False"),
        (options(batch=None), TypeError, "True or False"),
        (options(max_batch_size=0), ValueError, "int >= 1"),
        (options(max_batch_size=-1), ValueError, "int >= 1"),
        (options(max_batch_size=True), TypeError, "int >= 1 or None"),
        (options(max_batch_size=10.0), TypeError, "int >= 1 or None"),
        (options(max_batch_size="10"), TypeError, "int >= 1 or None"),
        (options(cache="yes"), TypeError, 'True, False or "pending"'),
        (options(get_cache_key="id"), TypeError, "callable or None"),
        (options(cache_map=True), TypeError, "MutableMapping or None"),
        (options(cache_map=()), TypeError, "MutableMapping or None"),
        (options(schedule=0.5), TypeError, "async function"),
        (options(defer_hits=0), TypeError, "True or False"),
        (options(deduplicate="no"), TypeError, "True or False"),
        (options(cache_errors=None), TypeError, "True, False or a predicate"),
        (options(on_missing=0), TypeError, "callable or None"),
        (options(limiter=5), TypeError, "an anyio.CapacityLimiter, anyloader.limit(n) or None"),
        (options(name=7), TypeError, "a str"),
    ],
    # Without the addresses of objects: pytest-xdist compares the names that its workers have.
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_wrong_argument_is_refused_with_what_was_expected_and_got(
    given: dict[str, Any], error: type[Exception], expected: str
) -> None:
    ((option, value),) = given.items()
    make: Any = DataLoader
    with pytest.raises(error) as caught:
        make(**{"batch_load_fn": double, **given})
    assert type(caught.value) is error
    message = str(caught.value)
    assert option in message
    assert expected in message
    assert repr(value) in message


def test_wrong_argument_is_refused_by_a_subclass_too() -> None:
    with pytest.raises(ValueError, match="max_batch_size of Doubles must be an int >= 1, not 0"):
        Doubles(max_batch_size=0)


def test_wrong_class_attribute_is_refused() -> None:
    class Wrong(Doubles):
        max_batch_size = 0

    with pytest.raises(ValueError, match=r"max_batch_size of .*Wrong must be an int >= 1, not 0"):
        Wrong()


def test_loader_without_batch_function_is_refused() -> None:
    class Empty(DataLoader[int, int]):
        pass

    for make in (DataLoader, Empty):
        with pytest.raises(TypeError, match=r"batch function.*first argument.*batch_load_fn"):
            make()


def test_unknown_argument_is_refused() -> None:
    make: Any = DataLoader
    with pytest.raises(TypeError, match="max_batch"):
        make(double, max_batch=1)


# --- subclasses ---


async def test_subclass_loads_by_its_method() -> None:
    async with Doubles() as loader:
        assert await loader.load_many([1, 2]) == [2, 4]


async def test_batch_function_that_is_given_is_used_instead_of_the_method() -> None:
    async def triple(keys: list[int]) -> list[int]:
        return [key * 3 for key in keys]

    async with Doubles(triple) as loader:
        assert await loader.load(1) == 3
    async with Doubles() as loader:
        assert await loader.load(1) == 2


async def test_method_reads_what_the_constructor_of_the_subclass_kept() -> None:
    class Multiples(DataLoader[int, int]):
        def __init__(self, factor: int) -> None:
            super().__init__()
            self.factor = factor

        async def batch_load_fn(self, keys: list[int]) -> list[int]:
            return [key * self.factor for key in keys]

    async with Multiples(5) as fives, Multiples(6) as sixes:
        assert (await fives.load(1), await sixes.load(1)) == (5, 6)


class Small(DataLoader[int, int]):
    max_batch_size = 2

    def __init__(self, batches: Recorder[int, int], **given: Any) -> None:
        super().__init__(**given)
        self.batches = batches

    async def batch_load_fn(self, keys: list[int]) -> list[int]:
        return await self.batches(keys)


@pytest.mark.parametrize(
    ("given", "sizes"),
    [({}, [2, 2, 1]), ({"max_batch_size": 3}, [3, 2]), ({"max_batch_size": None}, [5])],
)
async def test_class_attribute_is_the_default_and_an_argument_goes_before(
    given: dict[str, Any], sizes: list[int]
) -> None:
    batches = Recorder[int, int](abs)
    async with Small(batches, **given) as loader:
        await loader.load_many(range(5))
    assert sorted(map(len, batches.calls), reverse=True) == sizes


async def test_argument_of_one_instance_is_not_the_default_of_another() -> None:
    Small(Recorder[int, int](abs), max_batch_size=1)
    batches = Recorder[int, int](abs)
    async with Small(batches) as loader:
        await loader.load_many(range(2))
    assert batches.calls == [[0, 1]]


async def test_every_option_but_the_places_can_be_a_class_attribute() -> None:
    class Lower(DataLoader[str, str]):
        batch = True
        max_batch_size = 10
        cache = True
        deduplicate = True
        defer_hits = True
        cache_errors = False
        limiter = anyio.CapacityLimiter(1)
        schedule = schedules.manual()
        name = "lower"
        get_cache_key = staticmethod(str.lower)
        on_missing = KeyError

        async def batch_load_fn(self, keys: list[str]) -> dict[str, str]:
            return {key.lower(): key for key in keys if key != "B"}

    async with Lower() as loader:
        first, second, missing = loader.load("A"), loader.load("a"), loader.load("B")
        await wait_all_tasks_blocked()
        assert loader.statistics().queued == 2  # get_cache_key and schedule
        loader.dispatch()
        assert (await first, await second) == ("A", "A")
        with pytest.raises(KeyError, match="B"):  # on_missing
            await missing
        assert loader.peek("b") is None  # cache_errors
    assert repr(loader).startswith("<Lower lower: ")


async def test_options_that_are_functions_can_be_methods() -> None:
    class Prefixed(DataLoader[str, str]):
        prefix = "x"

        def get_cache_key(self, key: str) -> str:
            return self.prefix + key

        def on_missing(self, key: str) -> str:
            return self.prefix + key + "?"

        def cache_errors(self, error: Exception) -> bool:
            return str(error) == self.prefix

        async def schedule(self, batch: schedules.BatchView) -> None:
            assert (self.prefix, batch.size) == ("x", 2)

        async def batch_load_fn(self, keys: list[str]) -> dict[str, Exception]:
            return {"xe": ValueError("x")}

    async with Prefixed() as loader:
        values = await loader.load_many(["a", "e"], return_exceptions=True)
        assert values[0] == "xa?"
        assert isinstance(values[1], ValueError)
        assert loader.peek("e") is not None


# --- names ---


def test_name_is_that_of_the_function_or_the_class_or_the_one_given() -> None:
    def name_of(loader: DataLoader[Any, Any]) -> str:
        match = re.match(r"<\w+ (\w+): not open", repr(loader))
        assert match
        return match[1]

    assert name_of(DataLoader(double)) == "double"
    assert name_of(DataLoader(Recorder[int, int](abs))) == "Recorder"
    assert name_of(Doubles()) == "Doubles"
    assert name_of(DataLoader(double, name="users")) == "users"
    assert name_of(Doubles(double)) == "Doubles"
    assert name_of(Doubles(name="users")) == "users"


def test_a_subclass_that_needs_no_arguments_has_an_empty_signature() -> None:
    """Frameworks that make one by its signature would ask for each option, as FastAPI asks clients."""

    class Users(DataLoader[int, int]):
        async def batch_load_fn(self, keys: list[int]) -> list[int]:
            raise NotImplementedError

    class OfTenant(Users):
        def __init__(self, tenant: str) -> None:
            super().__init__(name=tenant)

    assert not inspect.signature(Users).parameters
    assert [*inspect.signature(OfTenant).parameters] == ["tenant"]
    with pytest.raises(AttributeError):
        _ = OfTenant("a").__signature__


def test_a_constructor_that_forgets_the_one_of_its_base_is_told() -> None:
    class Forgets(DataLoader[int, int]):
        def __init__(self) -> None:
            pass

        async def batch_load_fn(self, keys: list[int]) -> list[int]:
            raise NotImplementedError

    for use in (lambda loader: loader.load(1), lambda loader: loader.clear(1), repr):
        with pytest.raises(TypeError, match=r"super\(\).__init__\(\)"):
            use(Forgets())
    assert inspect.getdoc(Forgets.__anyloader__)


@pytest.mark.parametrize("wrong", [-1, 0])
def test_a_max_batch_size_below_one_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match="max_batch_size"):
        DataLoader(Recorder[int, int](abs), max_batch_size=wrong)
