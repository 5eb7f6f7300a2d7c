"""Random queries give the same by the same batches, on every backend in any order of tasks."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

pytest.importorskip("graphql")

from random_queries import LATE, Field, Query, Run, outcomes, query, shrink
from support import BACKENDS, SHUFFLED_BACKENDS, backend_options, run_shuffled

QUERIES = 200


@pytest.mark.parametrize("part", range(4))
def test_queries_have_the_same_batches_in_any_order(part: int) -> None:
    for seed in range(part, QUERIES, 4):
        assert len(outcomes(query(seed), [seed], SHUFFLED_BACKENDS)) == 1, query(seed)


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_have_the_same_batches_as_users_run_them(backend: str) -> None:
    for seed in range(QUERIES, QUERIES + 20):
        one = query(seed)
        name, options = backend_options(backend)
        found = anyio.run(Run(one).main, backend=name, backend_options=options)
        assert found == run_shuffled("asyncio", 0, Run(one).main), one


def test_late_resolvers_change_batches_and_nothing_else() -> None:
    """Where resolvers or batch functions pass rounds by themselves, the scheduler decides."""
    for seed in range(40):
        found = outcomes(query(seed, even=False), [seed], SHUFFLED_BACKENDS)
        assert all(data == found[0][0] for data, _ in found)
        assert all(keys(batches) == keys(found[0][1]) for _, batches in found)


def keys(batches: list[tuple[int, list[Any]]]) -> list[tuple[int, Any]]:
    return sorted((number, key) for number, batch in batches for key in batch)


def test_what_can_be_left_out_of_a_query_is() -> None:
    def has_late(one: Query) -> bool:
        return any(field.style in LATE or has_late(Query(field.fields)) for field in one.fields)

    made = next(one for one in (query(seed, even=False) for seed in range(100)) if has_late(one))
    small = shrink(made, has_late)
    assert small == Query((Field(small.fields[0].style),))
