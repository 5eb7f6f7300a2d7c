"""Sessions of batch functions: of each batch, of the request, and those that are none."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

pytest.importorskip("sqlalchemy")
pytest.importorskip("greenlet")

from sqlalchemy import func, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    mapped_column,
    scoped_session,
    sessionmaker,
)
from sqlalchemy.types import UserDefinedType

from anyloader import LoaderScope
from anyloader.integrations.sqlalchemy import related, rows_by, rows_grouped_by
from support import wait_all_tasks_blocked
from support.databases import (
    INSTALLED,
    Author,
    Book,
    Database,
    Node,
    Thing,
    as_async,
    connected,
    first,
    ids,
    request_session,
)

pytestmark = pytest.mark.anyio

pytest_plugins = ["support.databases"]


def checked_out(database: Database) -> int:
    pool: Any = database.engine.pool
    count: int = pool.checkedout()
    return count


async def call(session: Any, work: Callable[[Session], Any]) -> Any:
    """Use a session of either kind by hand."""
    return await session.run_sync(work) if isinstance(session, AsyncSession) else work(session)


# Checkers refuse most of these, too: see typing/with_sqlalchemy.py.
any_rows_by: Any = rows_by
any_rows_grouped_by: Any = rows_grouped_by
any_related: Any = related


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: any_rows_by(session=Session),
            TypeError,
            r"rows_by\(\) needs the column of its keys",
        ),
        (lambda: any_rows_grouped_by(session=Session), TypeError, "needs the column of its keys"),
        (lambda: any_rows_by("id", session=Session), TypeError, "not an object of type str"),
        (lambda: any_rows_by(Author, session=Session), TypeError, "such as User.id, not Author"),
        (lambda: any_rows_by(Author.__table__.c.id, session=Session), TypeError, "of type Column"),
        (lambda: any_rows_by(Author.books, session=Session), TypeError, "there is related"),
        (lambda: any_rows_by(Thing.document, session=Session), TypeError, "not hashable"),
        (lambda: any_rows_by(Author.id, Book.id, session=Session), ValueError, "to one class"),
        (
            lambda: any_rows_by(Book.id, aliased(Book).id, session=Session),
            ValueError,
            r"all columns of rows_by\(Book.id, .*\) must belong to one class",
        ),
        (
            lambda: any_rows_grouped_by(Book.author_id, limit=3, session=Session),
            ValueError,
            "with limit= needs order_by=",
        ),
        (
            lambda: any_rows_grouped_by(Book.id, order_by=Book.id, limit=-1, session=Session),
            ValueError,
            "limit must be an int >= 0 or None, not -1",
        ),
        (
            lambda: any_rows_grouped_by(Book.id, order_by=Book.id, limit="3", session=Session),
            TypeError,
            "limit must be an int >= 0 or None, not an object of type str",
        ),
        (lambda: any_related(Author, session=Session), TypeError, "relationship, .* not Author"),
        (lambda: any_related(Author.id, session=Session), TypeError, "not Author.id"),
        (
            lambda: any_related(Author.books.and_(Book.year > 1), session=Session),
            TypeError,
            "where= is for criteria",
        ),
        (
            lambda: any_related(Node.children, limit=1, session=Session),
            ValueError,
            "with limit= needs order_by=",
        ),
        (
            lambda: any_related(Book.author, order_by=Author.id, session=Session),
            ValueError,
            "leads to one row",
        ),
        (
            lambda: any_rows_by(Author.id, session=Session()),
            TypeError,
            "not an object of type Session",
        ),
        (lambda: any_rows_by(Author.id, session=None), TypeError, "of type NoneType"),
        (
            lambda: any_rows_by(Author.id, session=scoped_session(sessionmaker())),
            TypeError,
            "give its session_factory, or a ContextVar",
        ),
        (
            lambda: any_rows_by(
                Author.id,
                session=async_scoped_session(async_sessionmaker(), scopefunc=lambda: 1),
            ),
            TypeError,
            "give its session_factory, or a ContextVar",
        ),
        (lambda: any_rows_by(Author.id, session=first), TypeError, "not an async function or"),
        (lambda: any_rows_by(Author.id, session=as_async), TypeError, "not an async function or"),
    ],
)
def test_mistakes_show_when_a_function_is_made(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


def test_types_that_do_not_tell() -> None:
    class Point(UserDefinedType[Any]):
        cache_ok = True

    class Odd(DeclarativeBase):
        pass

    class Row(Odd):
        __tablename__ = "row"
        id: Mapped[Any] = mapped_column(Point, primary_key=True)

    assert repr(rows_by(Row.id, session=Session)) == "<rows_by(Row.id)>"


async def test_what_is_no_session() -> None:
    fetch = any_rows_by(Author.id, session=lambda: 3)
    with pytest.raises(TypeError, match="an object of type int instead of a Session"):
        await fetch([1])
    variable: ContextVar[Any] = ContextVar("request_session")
    fetch = rows_by(Author.id, session=variable)
    with pytest.raises(LookupError, match="'request_session' holds no session where"):
        await fetch([1])
    variable.set(3)
    with pytest.raises(TypeError, match="an object of type int instead of a Session"):
        await fetch([1])


@pytest.mark.only_on("trio")
async def test_an_async_session_on_trio() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    with pytest.raises(RuntimeError, match="an AsyncSession needs asyncio: on trio give"):
        await rows_by(Author.id, session=async_sessionmaker(engine))([1])


def test_blocking_sessions_need_no_greenlet(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["greenlet"] = None
import anyio
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from anyloader.integrations.sqlalchemy import rows_by
class Base(DeclarativeBase): pass
class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
engine = create_engine("sqlite:///data.db")
Base.metadata.create_all(engine)
print(anyio.run(rows_by(User.id, session=sessionmaker(engine)), [1]))
engine.dispose()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout == "{}\n", done.stderr


# --- a session for each batch ---


async def test_a_session_for_each_batch_is_closed(every_database: Database) -> None:
    database = every_database
    made = []

    def sessions() -> Any:
        made.append(database.sessions())
        return made[-1]

    fetch = rows_by(Book.id, session=sessions)
    async with anyio.create_task_group() as group:
        for key in (1, 2):
            group.start_soon(fetch, [key])
    assert [session.in_transaction() for session in made] == [False, False]
    assert [len(session.identity_map) for session in made] == [0, 0]
    broken = rows_by(Book.id, where=func.no_such_function() == 1, session=sessions)
    with pytest.raises(DBAPIError):
        await broken([1])
    assert not made[2].in_transaction()
    assert checked_out(database) == 0


async def test_threads_that_wait_for_loads_leave_sessions_theirs(every_database: Database) -> None:
    """As all endpoints of a server may do that are no coroutines."""
    limiter = anyio.to_thread.current_default_thread_limiter()
    limiter.total_tokens = 1
    fetch = rows_by(Author.id, session=every_database.sessions)
    async with LoaderScope() as scope:
        load = scope.get(fetch).load
        author = await anyio.to_thread.run_sync(lambda: anyio.from_thread.run(load, 1))
    assert author is not None
    assert author.id == 1


# --- the session of a request ---


class Watch:
    """Counts who uses sessions at once; they wait for every other task, or until it is opened."""

    def __init__(self, *, closed: bool = False) -> None:
        self.using = 0
        self.most = 0
        self._gate = (anyio.Event(), threading.Event()) if closed else None

    def open(self) -> None:
        assert self._gate is not None
        for gate in self._gate:
            gate.set()

    async def used_by(self, number: int) -> None:
        while self.using < number:  # a thread tells nobody when it has begun
            await checkpoint()

    @contextmanager
    def _used(self) -> Iterator[None]:
        self.using += 1
        self.most = max(self.most, self.using)
        try:
            yield
        finally:
            self.using -= 1

    def watched(self, session: Any) -> Any:
        run_sync, execute = getattr(session, "run_sync", None), session.execute

        async def watched_run_sync(*args: Any) -> Any:
            assert run_sync is not None
            with self._used():
                await (self._gate[0].wait() if self._gate else wait_all_tasks_blocked())
                return await run_sync(*args)

        def watched_execute(*args: Any) -> Any:
            with self._used():
                if self._gate:
                    self._gate[1].wait()
                else:
                    anyio.from_thread.run(wait_all_tasks_blocked)
                return execute(*args)

        if run_sync is not None:
            session.run_sync = watched_run_sync
        else:
            session.execute = watched_execute
        return session


async def test_batches_use_the_session_of_the_request_one_at_a_time(
    every_database: Database,
) -> None:
    database = every_database
    functions: list[Any] = [
        rows_by(Author.id, session=request_session),
        rows_grouped_by(Book.author_id, session=request_session),
        related(Node.children, session=request_session),
    ]
    watch = Watch()
    async with database.session() as session:
        request_session.set(watch.watched(session))
        async with LoaderScope() as scope:
            loads = [scope.get(function).load(1) for function in functions]
            author, books, nodes = [await load for load in loads]
        assert (author.id, len(books), len(nodes)) == (1, 3, 3)
        assert all(row in session for row in (author, *books))
        assert session.in_transaction()
    assert watch.most == 1
    assert len(database.statements) == 3


async def test_two_sessions_are_used_at_once(every_database: Database) -> None:
    database = every_database
    fetch = rows_by(Book.id, session=request_session)
    watch = Watch(closed=True)

    async def request() -> None:
        async with database.session() as session:
            request_session.set(watch.watched(session))
            assert ids(await fetch([1])) == {1: 1}

    async with anyio.create_task_group() as group:
        group.start_soon(request)
        group.start_soon(request)
        await watch.used_by(2)
        watch.open()


async def test_it_sees_what_the_request_has_written(every_database: Database) -> None:
    database = every_database
    fetch = rows_by(Author.id, session=request_session)
    async with database.session() as session:
        request_session.set(session)
        async with LoaderScope() as scope:
            authors = scope.get(fetch)
            author = await authors.load_required(1)
            assert await authors.load(4) is None
            author.name = "renamed"
            session.add(Author(id=4, name="new"))
            assert (await authors.clear(4).load_required(4)).name == "new"
            assert (await authors.clear(1).load_required(1)).name == "renamed"
        await call(session, lambda session: session.rollback())


async def test_a_load_given_up_does_not_end_the_transaction(every_database: Database) -> None:
    database = every_database
    fetch = rows_by(Book.id, session=request_session)
    watch = Watch(closed=True)
    async with database.session() as session:
        await call(session, lambda session: session.add(Author(id=5, name="kept")))
        await call(session, lambda session: session.flush())
        request_session.set(watch.watched(session))
        with anyio.CancelScope() as impatient:
            async with anyio.create_task_group() as group:
                for key in (1, 2):
                    group.start_soon(fetch, [key])
                await watch.used_by(1)
                await wait_all_tasks_blocked()
                group.cancel_scope.cancel()
                watch.open()
        assert not impatient.cancelled_caught
        assert watch.using == 0
        assert len(database.statements) == 2  # the second one never had its turn
        del session.__dict__["run_sync" if isinstance(session, AsyncSession) else "execute"]
        assert ids(await fetch([1, 2])) == {1: 1, 2: 2}
        find = partial(Session.get, entity=Author, ident=5)
        assert (await call(session, find)).name == "kept"
        await call(session, lambda session: session.rollback())


@pytest.mark.only_on("asyncio")
@pytest.mark.parametrize("owned", [True, False])
async def test_asyncio_cancels_twice(request: pytest.FixtureRequest, owned: bool) -> None:
    async with connected("sqlite+aiosqlite", request) as database:
        watch = Watch(closed=True)
        session = watch.watched(database.sessions())
        closed: list[Any] = []
        close = session.close

        async def slow_close() -> None:
            await wait_all_tasks_blocked()
            closed.append(await close())

        session.close = slow_close
        request_session.set(session)
        fetch = rows_by(Book.id, session=(lambda: session) if owned else request_session)
        task = asyncio.create_task(fetch([1]))
        await wait_all_tasks_blocked()
        for _ in range(3):
            task.cancel()
            await checkpoint()
        assert not task.done()
        watch.open()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert watch.using == 0
        assert closed == ([None] if owned else [])
        await close()


# --- cancelling on PostgreSQL ---


# A connection that is dropped is closed by the driver when it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.only_on("asyncio")
@pytest.mark.parametrize("driver", ["psycopg async", "asyncpg"])
async def test_cancelling_stops_the_statements(request: pytest.FixtureRequest, driver: str) -> None:
    if driver.split()[0] not in INSTALLED:
        pytest.skip(f"{driver} is not installed")
    if "uvloop" in request.node.name:
        pytest.skip("uvloop may hang in close() where SQLAlchemy 2.0 has dropped a connection")
    count = text(
        "select count(*) from pg_stat_activity "
        "where application_name = 'slow' and state = 'active' and pid <> pg_backend_pid()"
    )
    name = f"postgresql+{driver}"
    setting = "application_name" if "psycopg" in driver else "server_settings"
    value: Any = "slow" if "psycopg" in driver else {"application_name": "slow"}
    async with connected(name, request, connect_args={setting: value}, pool_size=2) as database:
        slow = rows_by(Book.id, where=func.pg_sleep(30).is_not(None), session=database.sessions)
        async with database.session() as watch:
            async with anyio.create_task_group() as group:
                for key in (1, 2, 3, 4):
                    group.start_soon(slow, [key])
                while await watch.scalar(count) < 4:
                    await watch.rollback()
                group.cancel_scope.cancel()
            with anyio.fail_after(10):  # they would take 30, and the server some time to stop them
                while await watch.scalar(count):
                    await watch.rollback()
        assert checked_out(database) == 0
