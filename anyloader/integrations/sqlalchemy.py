"""Batch functions for classes that SQLAlchemy maps: rows by key, rows of a parent, relationships."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from contextvars import ContextVar
from datetime import date, datetime, time
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast, overload
from uuid import UUID

from anyio import CancelScope, Lock, to_thread

from .._limits import limit
from ._extras import missing

try:
    from sqlalchemy import (
        BigInteger,
        DateTime,
        Enum,
        SmallInteger,
        Time,
        TypeDecorator,
        Uuid,
        and_,
        bindparam,
        func,
        select,
        tuple_,
    )
    from sqlalchemy import inspect as inspect_mapped
    from sqlalchemy.exc import MultipleResultsFound
    from sqlalchemy.orm import (
        ColumnProperty,
        QueryableAttribute,
        RelationshipProperty,
        Session,
        aliased,
        scoped_session,
    )
except ModuleNotFoundError as _exc:
    raise missing("sqlalchemy", _exc) from _exc

if TYPE_CHECKING:
    import sys

    from sqlalchemy import ColumnExpressionArgument, Dialect
    from sqlalchemy.ext.asyncio import AsyncSession

    if sys.version_info >= (3, 12):
        from typing import Required, TypedDict, Unpack
    else:
        from typing_extensions import Required, TypedDict, Unpack

    class _Variable(Protocol):
        """A ``ContextVar`` of any kind of session."""

        def get(self) -> AsyncSession | Session: ...

    class _Options(TypedDict, total=False):
        session: Required[_Variable | Callable[[], AsyncSession] | Callable[[], Session]]
        where: ColumnExpressionArgument[bool] | Sequence[ColumnExpressionArgument[bool]] | None

    class _ListOptions(_Options, total=False):
        order_by: ColumnExpressionArgument[Any] | Sequence[ColumnExpressionArgument[Any]] | None
        limit: int | None


__all__ = ("RowsBy", "RowsGroupedBy", "related", "rows_by", "rows_grouped_by")

A = TypeVar("A")
B = TypeVar("B")
E = TypeVar("E")
K = TypeVar("K")
R = TypeVar("R")


# --- sessions ---

#: Where a session keeps the lock of those who share it, for as long as it lives.
_LOCK = "anyloader.lock"

#: Blocking sessions run in as many. Not in anyio's, which endpoints that are no coroutines hold while
#: they wait for loads, nor in those of in_thread, whose functions may do so.
_THREADS = limit(40)


def _check_sessions(sessions: object) -> None:
    if isinstance(sessions, ContextVar):
        return
    # async_scoped_session is known by this, too: importing it needs greenlet.
    if isinstance(sessions, scoped_session) or hasattr(sessions, "session_factory"):
        raise TypeError(
            "session= takes no scoped session, as a batch belongs to no thread or task of yours: "
            "give its session_factory, or a ContextVar that holds the session"
        )
    wrong = (inspect.isgeneratorfunction, inspect.isasyncgenfunction, inspect.iscoroutinefunction)
    if not callable(sessions) or any(is_(inspect.unwrap(sessions)) for is_ in wrong):
        kind = "an async function or a generator" if callable(sessions) else _a(sessions)
        raise TypeError(
            f"session= takes a sessionmaker, or another function that returns a new session, or a "
            f"ContextVar that holds one, not {kind}"
        )


async def _in_session(sessions: Any, work: Callable[[Session], R]) -> R:
    if not isinstance(sessions, ContextVar):
        return await _run(sessions(), work, owned=True)
    session = sessions.get(None)
    if session is None:
        raise LookupError(
            f"the ContextVar {sessions.name!r} holds no session where this batch function runs: "
            f"set it before the loader, or its LoaderScope, is opened, or by scope.set()"
        )
    _blocks(session)
    async with session.info.setdefault(_LOCK, Lock()):
        return await _run(session, work, owned=False)


def _blocks(session: object) -> bool:
    if isinstance(session, Session):
        return True
    from sqlalchemy.ext.asyncio import AsyncSession  # needs greenlet, which blocking ones do not

    if not isinstance(session, AsyncSession):
        raise TypeError(f"session= gave {_a(session)} instead of a Session or an AsyncSession")
    return False


async def _run(session: Any, work: Callable[[Session], R], *, owned: bool) -> R:
    """Run ``work`` in a session, and close that if it is ``owned``."""
    if _blocks(session):

        def call() -> R:
            with session if owned else nullcontext():
                return work(session)

        return await to_thread.run_sync(call, limiter=_THREADS())
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "an AsyncSession needs asyncio: on trio give a sessionmaker of blocking sessions, "
            "which run in a worker thread"
        ) from None
    try:
        # A statement that is interrupted takes its transaction along, which is not ours to end
        # where others have work in it.
        return await _settle(loop.create_task(session.run_sync(work)), interrupt=owned)
    finally:
        if owned:
            await _settle(loop.create_task(session.close()), interrupt=False)


async def _settle(task: asyncio.Task[R], *, interrupt: bool) -> R:
    """
    Wait for a task, also if this is cancelled; then the task is cancelled too if it may be, but once.

    anyio cancels again at each step of a clean-up, where a driver asks its server to stop: the
    connection would be dropped, and the statement go on.
    """
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        if interrupt:
            task.cancel()
        with CancelScope(shield=True):
            while not task.done():
                try:
                    await asyncio.wait([task])
                except asyncio.CancelledError:  # by asyncio itself, which knows no shields
                    pass
        if not task.cancelled():
            task.exception()  # nobody wants it any more
        raise
    return task.result()


# --- keys ---

#: The most keys of one statement. Oracle takes no more in one ``IN``, and on PostgreSQL and SQLite
#: more were no faster.
_MOST_KEYS = 1000


#: Whether ``timezone=True`` has a meaning in a database. Elsewhere one sees it by the rows.
_KEEP_ZONES = {"postgresql": True, "sqlite": False, "mysql": False, "mariadb": False}


def _has_zone(value: Any) -> bool:
    return value.tzinfo is not None


class _Column:
    """A mapped column as a key, or as a part of one."""

    def __init__(self, attribute: QueryableAttribute[Any]) -> None:
        self.name = str(attribute)
        self.type = attribute.property.columns[0].type
        self._python_type: type = object
        self._is_uuid_text = isinstance(self.type, Uuid) and not self.type.as_uuid
        if not self.type.hashable:
            raise TypeError(f"{self.name} cannot be a key: its values are not hashable")
        if not isinstance(self.type, TypeDecorator):  # which may take others than it says
            with suppress(NotImplementedError):
                self._python_type = UUID if self._is_uuid_text else self.type.python_type

    def cast(self, key: object) -> Any:
        expected = self._python_type
        if isinstance(key, expected) and not (expected is date and isinstance(key, datetime)):
            return str(key) if self._is_uuid_text else key
        if expected in (int, UUID) and isinstance(key, str):
            with suppress(ValueError):
                return self.cast(expected(key))
        if expected in (float, Decimal) and isinstance(key, int):
            return int(key)  # equal numbers are equal keys; drivers take no bool for one
        if expected is Decimal and isinstance(key, float):
            return Decimal(float.__repr__(key))
        if expected is float and isinstance(key, Decimal):
            return float(key)
        raise TypeError(
            f"{self.name} takes a key of type {expected.__name__}, not this {type(key).__name__}"
        )

    def check_zone(self, value: object, dialect: Dialect) -> None:
        """
        Refuse a time that is equal to none which the database gives: they have zones, or they have not.

        Some drivers take it and then the row they find has another key, others fail the whole statement.
        """
        if not isinstance(self.type, (DateTime, Time)) or dialect.name not in _KEEP_ZONES:
            return
        has_zone = self.type.timezone and _KEEP_ZONES[dialect.name]
        if has_zone != _has_zone(value):
            where = f" on {dialect.name}, which keeps none" if self.type.timezone else ""
            raise TypeError(
                f"{self.name} takes a {type(value).__name__} with a time zone, not one without"
                if has_zone
                else f"{self.name} takes a {type(value).__name__} without a time zone{where}"
            )

    def can_hold(self, value: object, dialect: Dialect) -> bool:
        """Tell whether a column can have a value; one that it cannot would fail a whole statement."""
        if isinstance(self.type, Enum):
            return self._python_type is not str or value in self.type.enums
        if self._python_type is str:
            text = cast(str, value)  # no driver takes lone surrogates
            no_nul = dialect.name != "postgresql" or "\0" not in text
            return no_nul and text.encode(errors="ignore").decode() == text
        if self._python_type is not int or dialect.name not in ("postgresql", "sqlite"):
            return True
        bits = 63
        if dialect.name == "postgresql":
            own = self.type.dialect_impl(dialect)
            bits = 15 if isinstance(own, SmallInteger) else 31
            bits = 63 if isinstance(own, BigInteger) else bits
        return -(1 << bits) <= cast(int, value) < 1 << bits


class _Rows(Generic[K, E]):
    """What all batch functions here have in common: statements, and what becomes of their rows."""

    def __init__(
        self,
        name: str,
        keys: Sequence[QueryableAttribute[Any]],
        entity: Any,
        from_parent: Callable[[Any], Any] | None = None,
        *,
        session: Any,
        where: Any = None,
        order_by: Any = None,
        limit: int | None = None,
    ) -> None:
        _check_sessions(session)
        _check_first("limit", limit)
        order = _as_tuple(order_by)
        if limit is not None and not order:
            raise ValueError(f"{name} with limit= needs order_by=, which says what comes first")
        self.__name__ = self.__qualname__ = name
        self._sessions = session
        self._limit = limit
        self._columns = [_Column(key) for key in keys]
        self._mapper = inspect_mapped(entity).mapper

        def chosen(*wanted: Any) -> Any:
            statement: Any = select(*wanted)
            if from_parent is not None:
                statement = from_parent(statement)
            key: Any = keys[0] if len(keys) == 1 else tuple_(*keys)
            asked = key.in_(bindparam("anyloader_keys", expanding=True))
            return statement.where(asked, *_as_tuple(where))

        self._all = chosen(entity, *keys).order_by(*order)
        self._first: Any = None
        if order:
            # Ranks primary keys, and then takes their rows: ranked themselves these would be sorted
            # with all they hold, and their class would have to be read from a subquery.
            own = {f"anyloader_own_{n}": column for n, column in enumerate(_primary_key(entity))}
            by = {f"anyloader_key_{n}": column for n, column in enumerate(keys)}
            rank = func.row_number().over(partition_by=keys, order_by=order)
            labels = [column.label(name) for name, column in {**own, **by}.items()]
            ranked = chosen(*labels, rank.label("anyloader_rank")).subquery("anyloader_ranked")
            same = and_(*(column == ranked.c[name] for name, column in own.items()))
            self._first = (
                select(entity, *(ranked.c[name] for name in by))
                .join_from(entity, ranked, same)
                .where(ranked.c.anyloader_rank <= bindparam("anyloader_first"))
                .order_by(ranked.c.anyloader_rank)
            )

    def __repr__(self) -> str:
        return f"<{self.__name__}>"

    def _parts(self, key: Any) -> tuple[Any, ...] | TypeError:
        """Give what the columns take for ``key``, or the error of this key."""
        columns = self._columns
        parts = (key,) if len(columns) == 1 else key
        try:
            if not isinstance(parts, tuple) or len(parts) != len(columns):
                raise TypeError(f"{self.__name__} takes keys that are tuples of {len(columns)}")
            return tuple(column.cast(part) for column, part in zip(columns, parts))
        except TypeError as exc:
            return exc

    async def _rows(self, keys: Iterable[K], first: int | None = None) -> list[list[E] | TypeError]:
        """Give for each key the list of its rows, or its error."""
        _check_first("first", first)
        first = self._limit if first is None else first
        statement = self._all if first is None else self._first
        if statement is None:
            raise ValueError(f"{self.__name__} was made without order_by=, which first= needs")
        wanted = [self._parts(key) for key in keys]
        found: dict[tuple[Any, ...], list[E] | TypeError] = {
            parts: [] for parts in wanted if not isinstance(parts, TypeError)
        }
        if found:
            work = partial(self._execute, statement, first, found)
            await _in_session(self._sessions, work)
        return [parts if isinstance(parts, TypeError) else found[parts] for parts in wanted]

    def _execute(
        self,
        statement: Any,
        first: int | None,
        found: dict[tuple[Any, ...], list[E] | TypeError],
        session: Session,
    ) -> None:
        columns = self._columns
        dialect = session.get_bind(mapper=self._mapper).dialect
        keys = []
        for parts in found:
            try:
                for column, part in zip(columns, parts):
                    column.check_zone(part, dialect)
            except TypeError as exc:
                found[parts] = exc
                continue
            if all(column.can_hold(part, dialect) for column, part in zip(columns, parts)):
                keys.append(parts if len(columns) > 1 else parts[0])
        # Half of the parameters that a statement may have: the other half is for where=.
        most = min(dialect.insertmanyvalues_max_parameters // 2, _MOST_KEYS) // len(columns)
        others = {} if first is None else {"anyloader_first": first}
        for start in range(0, len(keys), most):
            parameters = {"anyloader_keys": keys[start : start + most], **others}
            # Unique, as a mapping may say that collections are joined to their parents.
            for row, *given in session.execute(statement, parameters).unique():
                rows = found.get(tuple(given))
                if isinstance(rows, list):
                    rows.append(row)
                elif _types(given) not in map(_types, found):
                    raise TypeError(
                        f"{self.__name__} was given keys of another type than the database gives, "
                        f"which is {_types(given)}"
                    )


def _types(parts: Iterable[object]) -> str:
    """What makes keys equal to none of the others, for people."""
    return ", ".join(
        f"{type(part).__name__} {'with' if _has_zone(part) else 'without'} a time zone"
        if isinstance(part, (datetime, time))
        else type(part).__name__
        for part in parts
    )


def _as_tuple(given: Any) -> tuple[Any, ...]:
    if isinstance(given, (list, tuple)):
        return tuple(given)
    return () if given is None else (given,)


def _check_first(name: str, first: object) -> None:
    if first is not None and (isinstance(first, bool) or not isinstance(first, int)):
        raise TypeError(f"{name} must be an int >= 0 or None, not {_a(first)}")
    if first is not None and first < 0:
        raise ValueError(f"{name} must be an int >= 0 or None, not {first}")


def _primary_key(entity: Any) -> list[Any]:
    mapper = inspect_mapped(entity).mapper
    names = (mapper.get_property_by_column(column).key for column in mapper.primary_key)
    return [getattr(entity, name) for name in names]


# --- what users call ---


class RowsBy(_Rows[K, E]):
    """A batch function that gives one row per key; :func:`rows_by` and :func:`related` make it."""

    async def __call__(self, keys: list[K]) -> dict[K, E]:
        """
        Load the rows of ``keys``.

        A key of a wrong type has a ``TypeError`` in place of its row.

        :raises sqlalchemy.exc.MultipleResultsFound: if there are several rows for one key
        :raises LookupError: if the ``ContextVar`` of sessions holds none
        """
        result: dict[K, Any] = {}
        for key, rows in zip(keys, await self._rows(keys)):
            if isinstance(rows, TypeError):
                result[key] = rows
            elif len(rows) == 1:
                result[key] = rows[0]
            elif rows:
                raise MultipleResultsFound(
                    f"{self.__name__} found {len(rows)} rows for one key; for lists of rows use "
                    f"rows_grouped_by()"
                )
        return result


class RowsGroupedBy(_Rows[K, E]):
    """
    A batch function that gives a list of rows per key; :func:`rows_grouped_by` and :func:`related`
    make it.
    """

    async def __call__(self, keys: list[K], *, first: int | None = None) -> list[list[E]]:
        """
        Load the lists of rows of ``keys``, in the order of these.

        A key of a wrong type has a ``TypeError`` in place of its list.

        :param first: how many rows of each key, in place of ``limit``; needs ``order_by``
        :raises TypeError: if ``first`` is no int
        :raises ValueError: if ``first`` is less than 0, or there is no ``order_by``
        :raises LookupError: if the ``ContextVar`` of sessions holds none
        """
        return cast("list[list[E]]", await self._rows(keys, first))


@overload
def rows_by(
    column: QueryableAttribute[A | None], /, **options: Unpack[_Options]
) -> RowsBy[A, Any]: ...
@overload
def rows_by(
    column: QueryableAttribute[A | None],
    column_2: QueryableAttribute[B | None],
    /,
    **options: Unpack[_Options],
) -> RowsBy[tuple[A, B], Any]: ...
@overload
def rows_by(
    column: QueryableAttribute[Any],
    column_2: QueryableAttribute[Any],
    column_3: QueryableAttribute[Any],
    /,
    *more: QueryableAttribute[Any],
    **options: Unpack[_Options],
) -> RowsBy[tuple[Any, ...], Any]: ...
def rows_by(*columns: QueryableAttribute[Any], session: Any, where: Any = None) -> RowsBy[Any, Any]:
    """
    Make a batch function that gives for each key the row that has it::

        fetch_users: RowsBy[int, User] = rows_by(User.id, session=sessions)

    Checkers see the type of the keys; that of the rows they have to be told, as above, or by the
    annotation of the ``BatchLoader[int, User | None]`` that is made of it at once. What is said here
    holds for :func:`rows_grouped_by` and :func:`related` too.

    **Make it once**, where the models are defined, as any batch function: each is a source of its own.

    **Keys** are values of ``columns``, compared as Python compares them. The texts of ints and UUIDs
    are keys for columns of these; any other type than the column's fails the key alone. A key that
    no row has is absent, so its load gives ``None``, or what ``on_missing`` says. Several columns are
    one key, a tuple; not every database can do that (SQL Server cannot).

    **Statements.** One for each thousand keys, or fewer if the dialect needs that.

    **Sessions** that block run in a worker thread, async ones on asyncio alone. Nothing is committed.
    The rows of a session that was made for the batch are detached: what is not loaded with them, such
    as their relationships, cannot be read from them.

    **Cancelling** a batch waits for its session to be at rest. A statement of an async session that
    was made for the batch is told to stop; others run to their end, which is in a shared session for
    the sake of its transaction. Rows are dropped then.

    :param columns: attributes of one mapped class, or of an alias of one
    :param session: where sessions come from. A ``sessionmaker``, an ``async_sessionmaker`` or another
        function that returns a new session: each batch has its own, which is closed after it. Or a
        ``ContextVar`` that holds one session for all, as a request has: its batches use it one after
        the other
    :param where: a criterion, or several, for the rows
    :raises TypeError: if a column is none, or can be no key, or ``session`` is nothing of the kind
    :raises ValueError: if the columns belong to several classes
    """
    name, entity = _entity_of("rows_by", columns)
    return RowsBy(name, columns, entity, session=session, where=where)


@overload
def rows_grouped_by(
    column: QueryableAttribute[A | None], /, **options: Unpack[_ListOptions]
) -> RowsGroupedBy[A, Any]: ...
@overload
def rows_grouped_by(
    column: QueryableAttribute[A | None],
    column_2: QueryableAttribute[B | None],
    /,
    **options: Unpack[_ListOptions],
) -> RowsGroupedBy[tuple[A, B], Any]: ...
@overload
def rows_grouped_by(
    column: QueryableAttribute[Any],
    column_2: QueryableAttribute[Any],
    column_3: QueryableAttribute[Any],
    /,
    *more: QueryableAttribute[Any],
    **options: Unpack[_ListOptions],
) -> RowsGroupedBy[tuple[Any, ...], Any]: ...
def rows_grouped_by(
    *columns: QueryableAttribute[Any],
    session: Any,
    order_by: Any = None,
    limit: int | None = None,
    where: Any = None,
) -> RowsGroupedBy[Any, Any]:
    """
    Make a batch function that gives for each key the list of all rows that have it::

        fetch_books: RowsGroupedBy[int, Book] = rows_grouped_by(
            Book.author_id, order_by=Book.title, limit=3, session=sessions
        )

    A key that no row has gets ``[]``. The first rows of all keys come in one statement, numbered by
    ``row_number()``. All else is as with :func:`rows_by`.

    :param columns: attributes of one mapped class, or of an alias of one
    :param session: see :func:`rows_by`
    :param order_by: the order of a list: a column or expression, or several
    :param limit: how many rows of a list; the batch function's own keyword argument ``first`` stands
        in its place. The last column of ``order_by`` should be unique, so that it is always the same
    :param where: a criterion, or several, for the rows
    :raises TypeError: if an argument is nothing of the kind
    :raises ValueError: if the columns belong to several classes, there is a ``limit`` without
        ``order_by``, or it is less than 0
    """
    name, entity = _entity_of("rows_grouped_by", columns)
    return RowsGroupedBy(
        name, columns, entity, session=session, where=where, order_by=order_by, limit=limit
    )


# The last one is for whatever is no collection, which cannot be said.
@overload
def related(  # type: ignore[overload-overlap]
    relationship: QueryableAttribute[Mapping[Any, E]], /, **options: Unpack[_ListOptions]
) -> RowsGroupedBy[Any, E]: ...
@overload
def related(  # type: ignore[overload-overlap]
    relationship: QueryableAttribute[Collection[E]], /, **options: Unpack[_ListOptions]
) -> RowsGroupedBy[Any, E]: ...
@overload
def related(
    relationship: QueryableAttribute[E | None], /, **options: Unpack[_Options]
) -> RowsBy[Any, E]: ...
def related(
    relationship: QueryableAttribute[Any],
    /,
    *,
    session: Any,
    order_by: Any = None,
    limit: int | None = None,
    where: Any = None,
) -> RowsBy[Any, Any] | RowsGroupedBy[Any, Any]:
    """
    Make a batch function that gives what a relationship leads to::

        fetch_tags = related(Book.tags, session=sessions)

    Its keys are the primary keys of the parent, ``Book``; of several columns, tuples. It gives a list
    for each key, whatever collection the relationship has, in its order or that of ``order_by``. Of
    a relationship to one row it gives that, and nothing where there is none. All else is as with
    :func:`rows_by`.

    :param relationship: an attribute of a mapped class that is a ``relationship()``
    :param session: see :func:`rows_by`
    :param order_by: the order of a list, instead of the relationship's own
    :param limit: how many rows of a list, as with :func:`rows_grouped_by`
    :param where: a criterion, or several, for the rows that it leads to
    :raises TypeError: if an argument is nothing of the kind
    :raises ValueError: if there is a ``limit`` without an order, or either of them for one row
    """
    found = getattr(relationship, "property", None)
    if not isinstance(found, RelationshipProperty):
        raise TypeError(
            f"related() takes a relationship, such as Author.books, not {_a(relationship)}"
        )
    name = f"related({relationship})"
    parent, entity = relationship.parent.entity, found.entity.entity
    if relationship is not getattr(parent, relationship.key):  # and_() and of_type() make others
        raise TypeError(f"{name} takes the relationship as it is mapped; where= is for criteria")
    between: Any = found.secondary
    if not {*relationship.parent.mapper.tables}.isdisjoint(found.mapper.tables):
        parent, between = aliased(parent), None  # a statement of two of the same needs two names
    keys = _primary_key(parent)

    def from_parent(statement: Any) -> Any:
        statement = statement.select_from(parent)
        if between is None:
            return statement.join(getattr(parent, relationship.key))
        # Joining along the relationship gives the table between the two another name than in the
        # relationship's order.
        statement = statement.join(between, found.primaryjoin)
        return statement.join(entity, found.secondaryjoin)

    if found.uselist:
        if order_by is None:
            order_by = found.order_by or None
        return RowsGroupedBy(
            name,
            keys,
            entity,
            from_parent,
            session=session,
            where=where,
            order_by=order_by,
            limit=limit,
        )
    if order_by is not None or limit is not None:
        raise ValueError(f"{name} leads to one row: it takes no order_by= and no limit=")
    return RowsBy(name, keys, entity, from_parent, session=session, where=where)


def _entity_of(function: str, columns: Sequence[Any]) -> tuple[str, Any]:
    """Give a name, and the class or alias that all ``columns`` belong to."""
    if not columns:
        raise TypeError(f"{function}() needs the column of its keys, such as User.id")
    for column in columns:
        kind = getattr(column, "property", None)
        if isinstance(kind, RelationshipProperty):
            raise TypeError(f"{function}() takes columns; for relationships there is related()")
        if not isinstance(kind, ColumnProperty):
            raise TypeError(
                f"{function}() takes attributes that are mapped to a column, such as User.id, "
                f"not {_a(column)}"
            )
    name = f"{function}({', '.join(map(str, columns))})"
    if len({column.parent for column in columns}) > 1:
        raise ValueError(f"all columns of {name} must belong to one class")
    return name, columns[0].parent.entity


def _a(thing: object) -> str:
    """Say what something is, without its value."""
    if isinstance(thing, QueryableAttribute):
        return str(thing)
    return (
        thing.__qualname__
        if isinstance(thing, type)
        else f"an object of type {type(thing).__name__}"
    )
