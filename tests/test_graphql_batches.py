"""Which loads of a GraphQL operation share a batch: those of one level, on every backend."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

graphql = pytest.importorskip("graphql")

from anyloader import DataLoader, LoaderScope, batch_loader, current_scope  # noqa: E402
from anyloader.integrations.graphql import AnyioExecutor, all_waiting  # noqa: E402
from anyloader.schedules import Schedule, quiescent, window  # noqa: E402
from support import run_seeds, run_shuffled  # noqa: E402

EXECUTOR = "executor_class" if hasattr(graphql, "Executor") else "execution_context_class"

SCHEMA = graphql.build_schema(
    """
    type Query { users: [User], deep: [[[User]]], one: User }
    type User { id: Int, name: String!, posts: [Post!]! }
    type Post { id: Int, author: User!, reviewers: [User!]! }
    """
)

Batches = list[tuple[str, list[int]]]
Late = Callable[[int], int]
"""How many rounds late the resolver of a key is."""


class Node:
    """A user or a post. Ids of different levels never meet: the cache answers nothing."""

    def __init__(self, id: int, world: World) -> None:
        self.id = id
        self.world = world

    def name(self, _info: object) -> Any:
        return self.world.resolve(self.world.names, self.id)

    def posts(self, _info: object) -> Any:
        return self.world.resolve(self.world.posts, self.id)

    def author(self, _info: object) -> Any:
        return self.world.resolve(self.world.users, self.id * 10)

    def reviewers(self, _info: object) -> Any:
        keys = [self.id * 10 + number for number in range(1, 3)]
        return [self.world.resolve(self.world.users, key) for key in keys]


class World:
    """Loaders of users, posts and names that note their batches, and how resolvers use them."""

    def __init__(self, style: str, late: Late, schedule: Schedule) -> None:
        self.style = style
        self.late = late
        self.batches: Batches = []

        def loader(name: str, value: Callable[[int], Any]) -> DataLoader[int, Any]:
            async def fetch(keys: list[int]) -> list[Any]:
                self.batches.append((name, sorted(keys)))
                await checkpoint()
                return [value(key) for key in keys]

            return DataLoader(fetch, name=name, schedule=schedule)

        self.users = loader("users", lambda key: Node(key, self))
        self.names = loader("names", str)
        self.posts = loader(
            "posts", lambda key: [Node(key * 10 + n, self) for n in range(1 + key % 3)]
        )

    def resolve(self, loader: DataLoader[int, Any], key: int) -> Any:
        if self.style == "handles":
            return loader.load(key)
        return self.load(loader, key)

    async def load(self, loader: DataLoader[int, Any], key: int) -> Any:
        if self.style == "late":
            for _ in range(self.late(key)):
                await checkpoint()
        elif self.style == "after I/O":
            await anyio.sleep(key % 3 / 1000)
        return await loader.load(key)


async def batches(
    query: str,
    style: str,
    root: Callable[[World], Any],
    *,
    late: Late = lambda key: key % 3,
    schedule: Schedule | None = None,
    stock: bool = False,
) -> Batches:
    world = World(style, late, schedule or quiescent())
    options: Any = {} if stock else {EXECUTOR: AnyioExecutor}
    async with world.users, world.posts, world.names:
        result = await graphql.execute(SCHEMA, graphql.parse(query), root(world), **options)
    assert result.errors is None
    return sorted(world.batches)


def users(*ids: int) -> Callable[[World], Any]:
    return lambda world: {"users": [Node(id, world) for id in ids], "one": Node(ids[0], world)}


def deep(*shape: Any) -> Callable[[World], Any]:
    def nodes(world: World, part: Any) -> Any:
        if isinstance(part, int):
            return Node(part, world)
        return [nodes(world, child) for child in part]

    return lambda world: {"deep": nodes(world, shape)}


def levels(*names: str, first: list[int]) -> Batches:
    """Give the batches that there are to be, one for each level."""
    expected, keys = [], first
    for name in names:
        expected.append((name, sorted(keys)))
        if name == "posts":
            keys = [key * 10 + n for key in keys for n in range(1 + key % 3)]
        elif name == "users":
            keys = [key * 10 for key in keys]
            expected[-1] = (name, sorted(keys))
    return sorted(expected)


FOUR_LEVELS = "posts { author { posts { author { name } } } }"
NAMES = ("posts", "users", "posts", "users", "names")

SHAPES: dict[str, tuple[str, Callable[[World], Any], Batches]] = {
    "even lists": (
        f"{{users {{ {FOUR_LEVELS} }}}}",
        users(2, 5, 8),
        levels(*NAMES, first=[2, 5, 8]),
    ),
    "uneven lists": (
        f"{{users {{ {FOUR_LEVELS} }}}}",
        users(1, 2, 3, 4, 5),
        levels(*NAMES, first=[1, 2, 3, 4, 5]),
    ),
    "one item": (f"{{one {{ {FOUR_LEVELS} }}}}", users(2), levels(*NAMES, first=[2])),
    "lists nested three deep": (
        "{deep {posts {author {name}}}}",
        deep([[1, 2], [3, 4]], [[5, 6, 7], [8, 9]]),
        levels("posts", "users", "names", first=[1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ),
    "two fields": (
        "{users {name posts {author {name}}}}",
        users(1, 2, 3),
        sorted(
            [
                ("names", [1, 2, 3]),
                *levels("posts", "users", "names", first=[1, 2, 3]),
            ]
        ),
    ),
}

# --- The default schedule ---


@pytest.mark.parametrize("name", SHAPES)
def test_each_level_is_one_batch(shuffled_backend: str, name: str) -> None:
    query, root, expected = SHAPES[name]
    for style in ("handles", "coroutines", "late"):
        found = run_seeds(shuffled_backend, range(40), batches, query, style, root)
        assert found == expected, style


@pytest.mark.parametrize("name", SHAPES)
def test_each_level_is_one_batch_without_our_executor_too(shuffled_backend: str, name: str) -> None:
    if shuffled_backend == "trio":
        pytest.skip("graphql-core itself runs on asyncio only")
    query, root, expected = SHAPES[name]

    async def stock_batches(style: str) -> Batches:
        return await batches(query, style, root, stock=True)

    for style in ("handles", "coroutines", "late"):
        assert run_seeds(shuffled_backend, range(20), stock_batches, style) == expected, style


def test_nested_resolvers_have_no_quiet_round_between_them(shuffled_backend: str) -> None:
    """On trio each of them begins a round later; what is nested deepest still shares the batch."""

    async def found() -> list[list[int]]:
        calls: list[list[int]] = []

        async def fetch(keys: list[int]) -> list[str]:
            calls.append(sorted(keys))
            return [str(key) for key in keys]

        async def name(_info: object) -> str:
            return await current_scope().get(fetch).load(2)

        async def nested(depth: int) -> Any:
            return [nested(depth - 1), nested(depth - 1)] if depth else {"name": name}

        async with LoaderScope() as scope:
            root = {
                "deep": lambda _info: nested(3),
                "one": {"name": lambda _info: scope.get(fetch).load(1)},
            }
            query = graphql.parse("{one {name} deep {name}}")
            result: Any = graphql.execute(SCHEMA, query, root, **{EXECUTOR: AnyioExecutor})
            assert (await result).errors is None
        return calls

    assert run_seeds(shuffled_backend, range(20), found) == [[1, 2]]


@pytest.mark.parametrize("rounds", range(8))
def test_rounds_of_a_resolvers_own_are_quiet(shuffled_backend: str, rounds: int) -> None:
    """After one it shares the batch, after five not; between these the scheduler decides."""

    async def found(*, waits: bool) -> int:
        calls: list[list[int]] = []

        @batch_loader(schedule=all_waiting() if waits else quiescent())
        async def fetch(keys: list[int]) -> list[str]:
            calls.append(keys)
            return [str(key) for key in keys]

        async with LoaderScope():
            await operation(
                lambda _info: name_of(fetch, rounds=rounds, key=1),
                lambda _info: fetch.load(2),
            )
        return len(calls)

    for waits in (False, True):
        numbers = {
            run_shuffled(shuffled_backend, seed, partial(found, waits=waits)) for seed in range(20)
        }
        if rounds < 2 or waits:
            assert numbers == {1}
        elif rounds >= 5:
            assert numbers == {2}
        else:
            assert numbers <= {1, 2}


# --- The schedule that waits for all resolvers ---

#: Resolvers between whose loads are quiet rounds, as the default schedule cannot know that more come.
GAPS: dict[str, tuple[str, Late]] = {
    "0 or 3 rounds late": ("late", lambda key: key % 2 * 3),
    "0 or 20 rounds late": ("late", lambda key: key % 2 * 20),
    "after I/O of their own": ("after I/O", lambda key: 0),
}


@pytest.mark.parametrize("name", [*SHAPES, *GAPS])
def test_each_level_is_one_batch_also_with_gaps(shuffled_backend: str, name: str) -> None:
    async def found(style: str, late: Late) -> Batches:
        return await batches(query, style, root, late=late, schedule=all_waiting())

    query, root, expected = SHAPES.get(name, SHAPES["uneven lists"])
    late: Late = lambda key: key % 3  # noqa: E731
    styles = ["handles", "coroutines", "late"]
    if name in GAPS:
        style, late = GAPS[name]
        styles = [style]
    for style in styles:
        assert run_seeds(shuffled_backend, range(30), found, style, late) == expected, style


def test_the_default_schedule_does_not_bridge_the_gaps(shuffled_backend: str) -> None:
    query, root, expected = SHAPES["uneven lists"]
    style, late = GAPS["0 or 20 rounds late"]

    async def found() -> Batches:
        return await batches(query, style, root, late=late)

    assert len(run_seeds(shuffled_backend, range(10), found)) > len(expected)


async def names_of(
    schedule: Schedule, resolver: Callable[[DataLoader[int, str], int], Any], ids: tuple[int, ...]
) -> tuple[list[list[int]], float]:
    """Give the batches of one list of names, and how long they took."""

    class User:
        def __init__(self, id: int) -> None:
            self.id = id

        def name(self, _info: object) -> Any:
            return resolver(loader, self.id)

    async def fetch(keys: list[int]) -> list[str]:
        calls.append(sorted(keys))
        return [str(key) for key in keys]

    calls: list[list[int]] = []
    start = anyio.current_time()
    async with DataLoader(fetch, schedule=schedule) as loader:
        result: Any = graphql.execute(
            SCHEMA,
            graphql.parse("{users {name}}"),
            {"users": [User(id) for id in ids]},
            **{EXECUTOR: AnyioExecutor},
        )
        result = await result
    assert result == ({"users": [{"name": str(id)} for id in ids]}, None)
    return calls, round(anyio.current_time() - start, 6)


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_a_batch_is_held_for_slow_resolvers_up_to_a_limit() -> None:
    async def slow(loader: DataLoader[int, str], id: int) -> str:
        await anyio.sleep(id / 100)
        return await loader.load(id)

    assert await names_of(all_waiting(), slow, (0, 1, 4)) == ([[0, 1, 4]], 0.04)
    calls, seconds = await names_of(all_waiting(), slow, (0, 1, 20))
    assert (calls, seconds) == ([[0, 1], [20]], 0.2)
    calls, seconds = await names_of(all_waiting(max_wait=1), slow, (0, 1, 20))
    assert (calls, seconds) == ([[0, 1, 20]], 0.2)
    assert (await names_of(all_waiting(max_wait=0), slow, (0, 1, 4)))[0] == [[0], [1], [4]]


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_resolvers_that_wait_for_each_other_wait_no_longer_than_the_limit() -> None:
    lock = anyio.Lock()

    async def locked(loader: DataLoader[int, str], id: int) -> str:
        async with lock:
            return await loader.load(id)

    calls, seconds = await names_of(all_waiting(max_wait=0.5), locked, (1, 2, 3))
    assert sorted(calls) == [[1], [2], [3]]
    assert seconds == 2 * 0.5


@pytest.mark.anyio
@pytest.mark.virtual_time
@pytest.mark.parametrize("delay", [0, 0.01])
async def test_resolvers_that_load_in_tasks_of_their_own_are_not_waited_for(delay: float) -> None:
    async def in_tasks(loader: DataLoader[int, str], id: int) -> str:
        async def load() -> None:
            found.append(await loader.load(id))

        found: list[str] = []
        await anyio.sleep(delay * (id - 1))
        async with anyio.create_task_group() as tg:
            tg.start_soon(load)
        return found[0]

    async def some_in_tasks(loader: DataLoader[int, str], id: int) -> str:
        return await (in_tasks(loader, id) if id % 2 == 0 else loader.load(id))

    if delay == 0:
        assert await names_of(all_waiting(), in_tasks, (1, 2, 3)) == ([[1, 2, 3]], 0)
        assert await names_of(all_waiting(), some_in_tasks, (1, 2, 3)) == ([[1, 2, 3]], 0)
    calls, seconds = await names_of(all_waiting(), some_in_tasks, (1, 2, 3))
    assert (calls, seconds) == ([[1, 2, 3]], delay)


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_load_many_and_loads_in_batch_functions_are_waited_for() -> None:
    async def fetch_letters(keys: list[int]) -> list[str]:
        letters.append(sorted(keys))
        return [str(key) for key in keys]

    async def fetch_names(keys: list[int]) -> list[str]:
        names.append(sorted(keys))
        return await loader.load_many(keys)

    async def resolve(_loader: object, id: int) -> str:
        if id == 2:
            await anyio.sleep(0.01)
        return (await names_loader.load_many([id, id + 10]))[0]

    letters: list[list[int]] = []
    names: list[list[int]] = []
    async with (
        DataLoader(fetch_letters, schedule=all_waiting()) as loader,
        DataLoader(fetch_names, schedule=all_waiting()) as names_loader,
    ):
        _, seconds = await names_of(all_waiting(), resolve, (1, 2, 3))
    assert names == letters == [[1, 2, 3, 11, 12, 13]]
    assert seconds == 0.01


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_what_functions_lead_to_that_end_apart_shares_a_batch_by_a_window() -> None:
    def ends_after(seconds: float) -> DataLoader[int, int]:
        async def fetch(keys: list[int]) -> list[int]:
            await anyio.sleep(seconds)
            return keys

        return DataLoader(fetch, schedule=all_waiting())

    async def resolve(loader: DataLoader[int, str], id: int) -> str:
        return await loader.load(await (posts if id == 1 else comments).load(id))

    async with ends_after(0.005) as posts, ends_after(0.009) as comments:
        assert await names_of(all_waiting(), resolve, (1, 2)) == ([[1], [2]], 0.009)
    async with ends_after(0.005) as posts, ends_after(0.009) as comments:
        assert await names_of(window(0.005), resolve, (1, 2)) == ([[1, 2]], 0.01)


@pytest.mark.anyio
async def test_outside_of_operations_it_is_the_default_schedule() -> None:
    calls: list[list[int]] = []

    async def fetch(keys: list[int]) -> list[int]:
        calls.append(sorted(keys))
        return keys

    async with DataLoader(fetch, schedule=all_waiting()) as loader, anyio.create_task_group() as tg:
        for key in range(5):
            tg.start_soon(loader.load, key)
    assert calls == [[0, 1, 2, 3, 4]]


def test_operations_that_share_a_loader_do_not_disturb_each_other(shuffled_backend: str) -> None:
    """What they share is left to chance: one that waits does not wait for the other to begin."""
    query, _, _ = SHAPES["uneven lists"]

    async def found() -> dict[str, list[int]]:
        async def operation(first: int) -> None:
            nodes = [Node(id, world) for id in (first, first + 1)]
            result: Any = graphql.execute(
                SCHEMA, graphql.parse(query), {"users": nodes}, **{EXECUTOR: AnyioExecutor}
            )
            assert (await result).errors is None

        world = World("late", lambda key: key % 2 * 5, all_waiting())
        async with world.users, world.posts, world.names, anyio.create_task_group() as tg:
            tg.start_soon(operation, 1)
            tg.start_soon(operation, 3)
        assert len(world.batches) <= 2 * len(NAMES)
        return keys_of(world.batches)

    expected = keys_of(levels(*NAMES, first=[1, 2, 3, 4]))
    assert run_seeds(shuffled_backend, range(20), found) == expected


def keys_of(batches: Batches) -> dict[str, list[int]]:
    keys: dict[str, list[int]] = {}
    for name, batch in batches:
        keys[name] = sorted([*keys.get(name, []), *batch])
    return keys


@pytest.mark.parametrize("max_wait", ["1", None, True])
def test_max_wait_has_to_be_a_number(max_wait: Any) -> None:
    with pytest.raises(TypeError, match="max_wait must be a number"):
        all_waiting(max_wait=max_wait)


@pytest.mark.parametrize("max_wait", [-1, float("inf"), float("nan")])
def test_max_wait_has_to_be_finite_and_not_negative(max_wait: float) -> None:
    with pytest.raises(ValueError, match="finite and not negative"):
        all_waiting(max_wait=max_wait)


def test_the_schedule_says_what_it_is() -> None:
    assert repr(all_waiting(max_wait=1)) == "all_waiting(max_wait=1)"


async def name_of(loader: Any, *, rounds: int, key: int) -> str:
    for _ in range(rounds):
        await checkpoint()
    name: str = await loader.load(key)
    return name


async def operation(*resolvers: Callable[[Any], Any]) -> None:
    users = [{"name": resolver} for resolver in resolvers]
    result: Any = graphql.execute(
        SCHEMA, graphql.parse("{users {name}}"), {"users": users}, **{EXECUTOR: AnyioExecutor}
    )
    result = await result
    assert result.errors is None


@pytest.fixture
def calls() -> list[list[int]]:
    return []


def recording(calls: list[list[int]], **options: Any) -> DataLoader[int, str]:
    async def fetch(keys: list[int]) -> list[str]:
        calls.append(sorted(keys))
        await checkpoint()
        return [str(key) for key in keys]

    # No test waits for so long, however busy the machine is.
    return DataLoader(fetch, schedule=all_waiting(**{"max_wait": 10, **options}))


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_a_load_that_nobody_awaits_is_not_held(calls: list[list[int]]) -> None:
    async with recording(calls) as loader:
        loader.load(1)
        await anyio.sleep(0.001)
        assert calls == [[1]]


@pytest.mark.anyio
async def test_an_operation_in_a_resolver_is_part_of_its_own(calls: list[list[int]]) -> None:
    async def inner(_info: object) -> str:
        await operation(
            lambda _info: name_of(loader, rounds=0, key=1),
            lambda _info: name_of(loader, rounds=0, key=2),
        )
        return ""

    async with recording(calls) as loader:
        await operation(inner, lambda _info: name_of(loader, rounds=30, key=3))
    assert calls == [[1, 2, 3]]


@pytest.mark.anyio
async def test_a_task_left_behind_has_operations_of_its_own(calls: list[list[int]]) -> None:
    async def later() -> None:
        await ended.wait()
        await operation(
            lambda _info: name_of(loader, rounds=0, key=1),
            lambda _info: name_of(loader, rounds=30, key=2),
        )

    async def leaves_a_task(_info: object) -> str:
        tg.start_soon(later)
        await checkpoint()
        return ""

    ended = anyio.Event()
    async with recording(calls) as loader, anyio.create_task_group() as tg:
        await operation(leaves_a_task, leaves_a_task)
        ended.set()
    assert sorted({key for call in calls for key in call}) == [1, 2]
    assert calls[0] == [1, 2]


@pytest.mark.anyio
@pytest.mark.skipif(EXECUTOR != "executor_class", reason="new in graphql-core 3.3")
async def test_who_has_gathered_is_waited_for_again(calls: list[list[int]]) -> None:
    async def gathers(info: Any) -> str:
        await info.async_helpers.gather([checkpoint(), checkpoint()])
        return await name_of(loader, rounds=30, key=1)

    async with recording(calls) as loader:
        await operation(gathers, lambda _info: name_of(loader, rounds=0, key=2))
    assert calls == [[1, 2]]
