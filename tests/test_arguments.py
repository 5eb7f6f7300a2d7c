"""Batch functions with arguments: one loader for each set of them in a scope (contract 7)."""

from __future__ import annotations

import linecache
from functools import partial, wraps
from typing import Any, cast, get_args

import pytest

from anyloader import (
    BatchLoader,
    BatchResultError,
    DataLoader,
    LoaderScope,
    batch_loader,
    in_thread,
    split_on_error,
)
from support import Recorder
from support.value_caches import Store

pytestmark = pytest.mark.anyio

Call = tuple[list[int], dict[str, Any]]


def books() -> tuple[Any, list[Call]]:
    @batch_loader
    async def fetch_books(keys: list[int], *, first: int = 10, order: str = "id") -> list[str]:
        calls.append((keys, {"first": first, "order": order}))
        return [f"{first} of {key} by {order}" for key in keys]

    calls: list[Call] = []
    return fetch_books, calls


async def test_the_function_gets_them_as_keywords() -> None:
    fetch_books, calls = books()
    async with LoaderScope() as scope:
        assert await fetch_books.bind(first=3).load(1) == "3 of 1 by id"
        assert await scope.get(fetch_books, first=3, order="name").load(1) == "3 of 1 by name"
        assert await fetch_books.load(1) == "10 of 1 by id"
    assert [options for _, options in calls] == [
        {"first": 3, "order": "id"},
        {"first": 3, "order": "name"},
        {"first": 10, "order": "id"},
    ]


async def test_equal_arguments_mean_the_same_loader() -> None:
    fetch_books, calls = books()
    async with LoaderScope() as scope:
        loads = [
            fetch_books.bind(first=3, order="name").load(1),
            fetch_books.bind(order="name", first=3).load(2),
            scope.get(fetch_books, first=3, order="name").load(3),
            fetch_books.bind(first=4).load(1),
        ]
        for load in loads:
            await load
        one = scope.get(fetch_books, first=3, order="name")
        assert one is scope.get(fetch_books, order="name", first=3)
        assert one is not scope.get(fetch_books, first=4)
        assert one is not scope.get(fetch_books)
    assert sorted(keys for keys, _ in calls) == [[1], [1, 2, 3]]


async def test_each_scope_has_its_own() -> None:
    fetch_books, calls = books()
    for _ in range(2):
        async with LoaderScope():
            assert await fetch_books.bind(first=3).load_many([1, 2]) == [
                "3 of 1 by id",
                "3 of 2 by id",
            ]
    assert len(calls) == 2


async def test_what_is_bound_can_be_kept_from_scope_to_scope() -> None:
    fetch_books, calls = books()
    bound = fetch_books.bind(first=3)
    for _ in range(2):
        async with LoaderScope():
            assert await bound.load(1) == "3 of 1 by id"
            assert await bound.load_required(1) == "3 of 1 by id"
    assert len(calls) == 2


async def test_the_options_of_the_function_hold_for_all_of_them() -> None:
    @batch_loader(max_batch_size=2)
    async def fetch(keys: list[int], *, first: int = 10) -> list[int]:
        sizes.append(len(keys))
        return keys

    sizes: list[int] = []
    async with LoaderScope():
        await fetch.bind(first=3).load_many(range(4))
    assert sizes == [2, 2]


async def test_clear_forgets_the_key_under_all_arguments_of_this_scope() -> None:
    fetch_books, calls = books()
    async with LoaderScope():
        for first in (3, 4):
            await fetch_books.bind(first=first).load_many([1, 2])
        await fetch_books.load_many([1, 2])
        calls.clear()
        fetch_books.clear(1)
        for first in (3, 4):
            await fetch_books.bind(first=first).load_many([1, 2])
        await fetch_books.load_many([1, 2])
        assert [keys for keys, _ in calls] == [[1]] * 3


async def test_clear_of_what_is_bound_forgets_it_there_alone() -> None:
    fetch_books, calls = books()
    async with LoaderScope():
        for first in (3, 4):
            await fetch_books.bind(first=first).load(1)
        calls.clear()
        fetch_books.bind(first=3).clear(1)
        for first in (3, 4):
            await fetch_books.bind(first=first).load(1)
        assert [options["first"] for _, options in calls] == [3]


# --- checked where they are bound ---


def test_an_argument_that_the_function_does_not_take() -> None:
    fetch_books, _ = books()
    with pytest.raises(TypeError, match="last"):
        fetch_books.bind(last=3)


def test_an_argument_that_is_missing() -> None:
    @batch_loader
    async def fetch(keys: list[int], *, session: str, first: int = 1) -> list[int]:
        return keys

    untyped: Any = fetch
    with pytest.raises(TypeError, match="session"):
        untyped.bind(first=3)


async def test_arguments_are_given_by_name() -> None:
    fetch_books, _ = books()
    async with LoaderScope() as scope:
        for call in (
            lambda: fetch_books.bind(3),
            lambda: scope.get(fetch_books, 3),
        ):
            with pytest.raises(TypeError, match="by name, such as first=3"):
                call()


async def test_an_argument_may_be_called_source() -> None:
    async def fetch(keys: list[int], *, source: str = "") -> list[str]:
        return [f"{source} {key}" for key in keys]

    async with LoaderScope() as scope:
        assert await scope.get(fetch, source="db").load(1) == "db 1"


def test_its_type_may_say_what_it_takes_or_not() -> None:
    assert get_args(BatchLoader[int, str])[:2] == (int, str)
    assert get_args(BatchLoader[int, str, [int]])[:2] == (int, str)
    with pytest.raises(TypeError):
        BatchLoader[int]  # type: ignore[misc]  # pyright: ignore[reportInvalidTypeArguments]


def test_an_argument_that_cannot_be_hashed() -> None:
    fetch_books, _ = books()
    with pytest.raises(TypeError, match="order"):
        fetch_books.bind(first=3, order=["id", "name"])


async def test_scope_get_checks_them_too() -> None:
    fetch_books, _ = books()
    async with LoaderScope() as scope:
        with pytest.raises(TypeError, match="last"):
            scope.get(fetch_books, last=3)
        with pytest.raises(TypeError, match="order"):
            scope.get(fetch_books, order=[])


# --- other sources ---


async def test_a_plain_batch_function() -> None:
    async def fetch(keys: list[int], *, factor: int = 1) -> list[int]:
        return [key * factor for key in keys]

    async with LoaderScope() as scope:
        assert await scope.get(fetch, factor=3).load(2) == 6
        assert scope.get(fetch, factor=3) is scope.get(fetch, factor=3)
        assert await scope.get(fetch).load(2) == 2


async def test_a_class_gets_them_in_its_constructor() -> None:
    class BooksOf(DataLoader[int, str]):
        def __init__(self, first: int = 10) -> None:
            super().__init__()
            self.first = first

        async def batch_load_fn(self, keys: list[int]) -> list[str]:
            return [f"{self.first} of {key}" for key in keys]

    async with LoaderScope() as scope:
        assert await scope.get(BooksOf, first=3).load(1) == "3 of 1"
        assert scope.get(BooksOf, first=3) is scope.get(BooksOf, first=3)
        assert await scope.get(BooksOf).load(1) == "10 of 1"
        with pytest.raises(TypeError, match="first"):
            scope.get(BooksOf, first=[])


async def test_equal_partials_are_one_source() -> None:
    fetch = Recorder[int, int](lambda key: key)

    async def from_table(table: str, keys: list[int]) -> list[int]:
        return await fetch(keys)

    async with LoaderScope() as scope:
        loads = [scope.get(partial(from_table, "users")).load(key) for key in range(4)]
        assert [await load for load in loads] == [*range(4)]
        assert fetch.calls == [[0, 1, 2, 3]]
        assert scope.get(partial(from_table, "a")) is not scope.get(partial(from_table, "b"))
        assert scope.get(partial(from_table, "a")) is scope.get(partial(from_table, "a"))


class Repo:
    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[list[int]] = []

    @batch_loader(max_batch_size=3)
    async def users(self, keys: list[int], *, first: int = 1) -> list[str]:
        self.calls.append(keys)
        return [f"{self.name} {key} {first}" for key in keys]


async def test_beside_a_method_it_binds_to_the_instance() -> None:
    one, two = Repo("one"), Repo("two")
    async with LoaderScope():
        loads = [one.users.load(1), two.users.load(1), one.users.load(2)]
        assert [await load for load in loads] == ["one 1 1", "two 1 1", "one 2 1"]
        assert await one.users.bind(first=5).load(1) == "one 1 5"
        assert await one.users([7]) == ["one 7 1"]
    assert (one.calls, two.calls) == ([[1, 2], [1], [7]], [[1]])


async def on_shelf(cls: Any, keys: list[int]) -> list[str]:
    return [f"{cls.name} {key}" for key in keys]


class Shelf:
    name = "shelf"
    books: Any = batch_loader(cast(Any, classmethod(cast(Any, on_shelf))))


class TopShelf(Shelf):
    name = "top"


async def test_beside_a_class_method_it_binds_to_the_class() -> None:
    async with LoaderScope():
        loads = [Shelf.books.load(1), TopShelf.books.load(1), TopShelf().books.load(2)]
        assert [await load for load in loads] == ["shelf 1", "top 1", "top 2"]
        assert Shelf.books.load(1).key == 1


async def test_what_is_no_method_stands_in_a_class_as_it_is() -> None:
    async def plain(keys: list[int], *, by: int = 1) -> list[int]:
        return [key * by for key in keys]

    def blocks(keys: list[int]) -> list[int]:
        return keys

    class Library:
        blocking = batch_loader(in_thread(blocks))
        split = batch_loader(split_on_error(plain, on=KeyError))
        doubled: Any = batch_loader(cast(Any, partial(plain, by=2)))

    library = Library()
    async with LoaderScope():
        assert await library.blocking.load(1) == 1
        assert await library.split.load(1) == 1
        assert await library.doubled.load(1) == 2


# --- a loader for each call is no batching ---


async def test_many_loaders_of_the_same_code_are_a_warning_that_names_the_line() -> None:
    async with LoaderScope() as scope:
        with pytest.warns(Warning, match="test_arguments.py") as caught:  # noqa: PT031
            for number in range(30):

                async def fetch(keys: list[int], number: int = number) -> list[int]:
                    return keys

                assert await scope.get(fetch).load(1) == 1
    assert len(caught) == 1


async def make_inner(scope: LoaderScope, number: int) -> None:
    async def fetch(keys: list[int]) -> list[int]:
        return keys

    await scope.get(fetch).load(1)


async def make_decorated(scope: LoaderScope, number: int) -> None:
    @batch_loader
    async def fetch(keys: list[int]) -> list[int]:
        return keys

    await fetch.load(1)


async def make_repository(scope: LoaderScope, number: int) -> None:
    await Repo("new").users.load(1)


@pytest.mark.parametrize("make", [make_inner, make_decorated, make_repository])
async def test_the_warning_is_at_the_line_that_asks_for_them(make: Any) -> None:
    async with LoaderScope() as scope:
        with pytest.warns(RuntimeWarning, match="6 loaders of one scope") as caught:  # noqa: PT031
            for number in range(30):
                await make(scope, number)
    (warning,) = caught
    assert warning.filename == __file__
    assert ".load(1)" in linecache.getline(__file__, warning.lineno)


async def test_many_sets_of_arguments_are_no_new_functions() -> None:
    async def fetch(keys: list[int], *, after: int = 0) -> list[int]:
        return keys

    decorated = batch_loader(fetch)
    async with LoaderScope() as scope:
        for after in range(30):
            source: Any = partial(fetch, after=after + 100)
            await scope.get(fetch, after=after).load(1)
            await scope.get(source).load(1)
            await decorated.bind(after=after).load(1)


async def test_many_tables_decorated_by_one_function_are_no_new_functions() -> None:
    def table() -> BatchLoader[int, int]:
        @batch_loader
        async def fetch(keys: list[int]) -> list[int]:
            return keys

        return fetch

    tables = [table() for _ in range(30)]
    async with LoaderScope():
        for fetch in tables:
            await fetch.load_many([1, 2])


def timed(fetch: Any) -> Any:
    @wraps(fetch)
    async def batch_load_fn(keys: list[int]) -> list[int]:
        return cast("list[int]", await fetch(keys))

    return batch_load_fn


async def test_functions_under_one_decorator_are_no_new_functions() -> None:
    async def echo(keys: list[int], number: int) -> list[int]:
        return keys

    fetches: list[Any] = [
        lambda keys: echo(keys, 1),
        lambda keys: echo(keys, 2),
        lambda keys: echo(keys, 3),
        lambda keys: echo(keys, 4),
        lambda keys: echo(keys, 5),
        lambda keys: echo(keys, 6),
    ]
    async with LoaderScope() as scope:
        for fetch in map(timed, fetches):
            await scope.get(fetch).load(1)


async def test_but_one_that_is_decorated_at_each_call_is() -> None:
    async def fetch(keys: list[int]) -> list[int]:
        return keys

    async with LoaderScope() as scope:
        with pytest.warns(RuntimeWarning, match="6 loaders of one scope"):  # noqa: PT031
            for _ in range(10):
                await scope.get(split_on_error(fetch, on=KeyError)).load(1)


async def test_a_few_are_none() -> None:
    async with LoaderScope() as scope:
        for number in range(3):
            function: Any = lambda keys, number=number: Recorder[int, int](int)(keys)  # noqa: E731
            await scope.get(function).load(1)


class ByKind(DataLoader[int, str]):
    async def batch_load_fn(self, keys: list[int], *, kind: str = "any") -> list[str]:
        return [f"{kind} {key}" for key in keys]


async def test_a_class_with_no_constructor_of_its_own_gives_them_to_its_batch_function() -> None:
    async with LoaderScope() as scope:
        loaders = [scope.get(ByKind, kind=kind) for kind in ("cat", "dog")]
        assert [await loader.load(1) for loader in loaders] == ["cat 1", "dog 1"]
        assert scope.get(ByKind, kind="cat") is loaders[0]
        assert scope.get(ByKind) is not loaders[0]
        with pytest.raises(TypeError, match=r"scope\.get\(\) of ByKind\.batch_load_fn: .*colour"):
            scope.get(ByKind, colour="red")


class OfTenant(DataLoader[int, str]):
    def __init__(self, tenant: str) -> None:
        super().__init__()
        self.tenant = tenant

    async def batch_load_fn(self, keys: list[int]) -> list[str]:
        return [f"{self.tenant} {key}" for key in keys]


async def test_a_partial_of_a_class_is_a_source() -> None:
    async with LoaderScope() as scope:
        of_a: Any = partial(OfTenant, tenant="a")
        loader = scope.get(of_a)
        assert await loader.load(1) == "a 1"
        assert scope.get(of_a) is loader
        with pytest.raises(TypeError, match="OfTenant"):
            scope.get(OfTenant)


async def test_a_partial_of_a_class_gives_what_it_has_by_position() -> None:
    part: Any = partial
    async with LoaderScope() as scope:
        for tenant in "a", "b":
            assert await scope.get(part(OfTenant, tenant)).load(1) == f"{tenant} 1"
        assert scope.get(part(OfTenant, "a")) is scope.get(part(OfTenant, "a"))
        with pytest.raises(TypeError, match=r"cannot make a OfTenant: .* positional arguments"):
            scope.get(part(OfTenant, "a", "b"))
        assert scope.get(part(DataLoader, Recorder(str), max_batch_size=2)).max_batch_size == 2


async def test_an_error_in_a_constructor_comes_out_as_it_is() -> None:
    class Broken(DataLoader[int, int]):
        def __init__(self) -> None:
            raise TypeError("its own")

    async with LoaderScope() as scope:
        with pytest.raises(TypeError, match="its own"):
            scope.get(Broken)


def test_a_function_that_does_not_tell_its_signature_takes_all_that_is_bound() -> None:
    function: Any = dict  # its calls are checked in C
    assert batch_loader(function).bind(value=1)([(2, 3)]) == {2: 3, "value": 1}
    with pytest.raises(TypeError, match="value of dict"):
        batch_loader(function).bind(value=[])


def test_a_batch_loader_looked_at_on_its_class_is_itself() -> None:
    class Repository:
        @batch_loader
        async def users(self, ids: list[int]) -> list[int]:
            return ids

    assert Repository.users is vars(Repository)["users"]
    assert repr(Repository().users).startswith("<BatchLoader of <bound method")


# --- names ---


async def test_names_say_the_arguments_and_hold_no_values() -> None:
    """Names stand in errors, which reach clients, and in metrics, which have a series for each."""

    async def fetch(keys: list[int], *, token: str = "", first: int = 1) -> list[int]:
        return []

    class Own(DataLoader[int, int]):
        def __init__(self, token: str) -> None:
            super().__init__(name="own")

        async def batch_load_fn(self, keys: list[int]) -> list[int]:
            return []

    class Plain(DataLoader[int, int]):
        async def batch_load_fn(self, keys: list[int], *, token: str = "") -> list[int]:
            return []

    told: list[Any] = []
    of_token: Any = partial(fetch, token="s3cret")
    async with LoaderScope(hooks=[told.append]) as scope:
        loaders = {
            "users(first, token)": scope.get(
                batch_loader(name="users")(fetch).bind(token="s3cret", first=3)
            ),
            "fetch(token)": scope.get(fetch, token="s3cret"),
            "own(token)": scope.get(Own, token="s3cret"),
            "Plain(token)": scope.get(Plain, token="s3cret"),
        }
        assert scope.get(of_token) is loaders["fetch(token)"]
        for name, loader in loaders.items():
            assert loader.name.rpartition(".")[2] == name
            assert "'s3cret'" in repr(loader)
            with pytest.raises(BatchResultError) as caught:
                await loader.load(1)
            assert name in str(caught.value)
            assert "s3cret" not in str(caught.value)
        assert {event.loader.rpartition(".")[2] for event in told} == set(loaders)
        assert "fetch:" in repr(scope.get(fetch))


async def test_the_name_of_a_partial_says_its_keywords() -> None:
    async def fetch(keys: list[int], *, table: str) -> list[int]:
        return keys

    source: Any = partial(fetch, table="users")
    async with LoaderScope() as scope:
        assert scope.get(source).name.endswith("fetch(table)")


async def test_a_value_cache_knows_nothing_of_them() -> None:
    class Plain(DataLoader[int, str]):
        value_cache = Store()

        async def batch_load_fn(self, keys: list[int], *, first: int = 10) -> list[str]:
            return [f"{first} of {key}" for key in keys]

    @batch_loader(value_cache=Store())
    async def fetch_books(keys: list[int], *, first: int = 10) -> list[str]:
        return [f"{first} of {key}" for key in keys]

    async with LoaderScope() as scope:
        assert await fetch_books.bind().load(1) == "10 of 1"
        assert await scope.get(Plain).load(1) == "10 of 1"
        for refused in (
            lambda: fetch_books.bind(first=3),
            lambda: scope.get(fetch_books, first=3),
            lambda: scope.get(Plain, first=3),
        ):
            with pytest.raises(TypeError, match="has a value_cache, which would mix up"):
                refused()
