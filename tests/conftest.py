"""Every async test runs on every backend, and no test may leave anything behind.

A test file says ``pytestmark = pytest.mark.anyio``. On a test or on a whole file,

* ``@pytest.mark.virtual_time`` runs it in virtual time, where sleeping takes none,
* ``@pytest.mark.only_on("asyncio")`` or ``("trio")`` runs it on the backends of that library only.

A synchronous test gets ``shuffled_backend`` and passes it to ``run_shuffled`` and its like. With eager
tasks these run by ``--eager-orders``, as they do beside the coverage, or by ``--all-backends``.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from support import BACKENDS, SHUFFLED_BACKENDS, VIRTUAL_TIME_BACKENDS, backend_options
from support.leftovers import watch_leftovers

# They have fixtures, and are imported before pytest loads them as what has fixtures.
pytest.register_assert_rewrite(
    *(f"support.{name}" for name in ("databases", "graphql_calls", "redis_caches", "telemetry"))
)

#: Files whose tests say nothing of how an event loop schedules. On uvloop and with eager tasks they would
#: repeat what asyncio has shown; ``--all-backends`` runs them there too.
REPEATING = {
    *("batch_function", "batch_results", "constructor", "keys", "messages", "required", "rows"),
    *("split_on_error", "subclass_names", "arguments", "batch_loader", "weights", "prime"),
    *("telemetry", "prometheus", "trace", "testing", "hooks", "strange_errors", "value_caches"),
    *("redis", "redis_keys", "redis_failures", "sqlalchemy_sessions", "growth", "cache", "errors"),
    *("load_many", "nothing_kept", "pending_cache", "queue_bound", "value_cache"),
    *(
        "sqlalchemy",
        "scopes",
        "scope_binding",
        "scope_values",
        "tracebacks",
        "value_cache_failures",
    ),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-backends", action="store_true", help="every test on every backend")
    parser.addoption(
        "--eager-orders",
        action="store_true",
        help="orders of tasks on asyncio with eager tasks only, where they are left out otherwise",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "virtual_time: run in virtual time; not on uvloop.")
    config.addinivalue_line("markers", "only_on(library): run only on asyncio, or only on trio.")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "anyio_backend" in metafunc.fixturenames:
        names = list(BACKENDS)
        if metafunc.definition.get_closest_marker("virtual_time"):
            names = list(VIRTUAL_TIME_BACKENDS)
        if only_on := metafunc.definition.get_closest_marker("only_on"):
            names = [name for name in names if name.split("+")[0] in only_on.args]
        file = metafunc.definition.path.stem.removeprefix("test_")
        if file in REPEATING and not metafunc.config.getoption("all_backends"):
            names = [name for name in names if "+" not in name]
        metafunc.parametrize("anyio_backend", names, indirect=True)
    if "shuffled_backend" in metafunc.fixturenames:
        names = list(SHUFFLED_BACKENDS)
        if not metafunc.config.getoption("all_backends"):
            eager = metafunc.config.getoption("eager_orders")
            names = [name for name in names if ("+" in name) is eager]
        metafunc.parametrize("shuffled_backend", names)


# anyio's own fixture of this name has module scope. With function scope each test gets a loop of
# its own, so nothing passes from one to the next; async fixtures cannot have a wider scope either.
# Examples of one hypothesis test get a loop each too, but on trio share the virtual clock.
@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    virtual_time = request.node.get_closest_marker("virtual_time") is not None
    return backend_options(request.param, virtual_time=virtual_time)


@pytest.fixture(scope="session", autouse=True)
def _collected_in_the_end() -> Iterator[None]:
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def _cheap_collections(_collected_in_the_end: None) -> None:
    """Hide what is older than the first test of a file from the collector, which runs after each test.

    ``gc.get_referrers`` and ``gc.get_objects`` do not see it either.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def leftovers() -> Iterator[list[str]]:
    """Fail a test that leaves asyncio tasks behind, or of which a loop's exception handler heard.

    A test that means to do so takes this fixture, looks at the lines and clears them. It has to be
    synchronous and run a loop itself: the loop of an async test is closed only after the test.
    """
    with watch_leftovers() as found:
        yield found
        # "Never retrieved" and "never awaited" are said when the object goes: now, in this test. What
        # it has made is in the young generations; all of them would take longer than most tests.
        gc.collect(1)
    assert not found
