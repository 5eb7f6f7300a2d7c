"""
GraphQL operations on asyncio and on trio, with graphql-core 3.3 or 3.2.

What an operation does at the same time (fields, items of a list, ``is_type_of``) graphql-core gathers
with asyncio. :class:`AnyioExecutor` overrides the methods that gather: with graphql-core's own code,
but for a ``gather`` of ours, and it has the awaitables of resolvers awaited by ``resolved``. How these
two work with almost no tasks stands in :mod:`._graphql_units`. So nothing of graphql-core is changed, and
nothing is repeated here that would have to be kept in step with it. That rests on knowing which of
its functions use asyncio, and an import fails where they are others.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterable, Awaitable, Callable
from functools import update_wrapper
from types import CodeType, CoroutineType, FunctionType
from typing import TYPE_CHECKING, Any

from ._extras import missing

try:
    import graphql
    from graphql import GraphQLError
except ModuleNotFoundError as _exc:
    raise missing("graphql", _exc) from _exc

from .._batch import LoadHandle, batch_of, outcome_in
from .._results import Failure
from .._scope import LoaderScope
from ._graphql_units import (
    all_waiting,
    apart,
    awaited,
    discard,
    gather,
    gather_resolved,
    is_deep,
    is_under_trio,
    operate,
    resolved,
)
from ._scopes import make

if TYPE_CHECKING:
    from graphql.execution import Executor as _Core
    from graphql.execution.incremental import IncrementalExecutor as _Stock
else:
    try:
        from graphql.execution import Executor as _Core
        from graphql.execution.incremental import IncrementalExecutor as _Stock
    except ImportError:  # pragma: no cover - 3.2 has a run of its own
        # object is refused below, as any other class would be that is not known
        _Core = _Stock = getattr(graphql.execution, "ExecutionContext", object)

__all__ = ("AnyioExecutor", "all_waiting")

# What we rely on in graphql-core

#: By the name of what gathers in each line: the methods to copy; others that use asyncio, which are
#: overridden or do not get that far under trio; and more that are overridden or called.
_KNOWN = {
    "gather_with_cancel": (
        {
            "complete_async_iterator_value",
            "complete_iterable_value",
            "execute_fields",
        },
        {
            "cancel_incremental_work",
            "gather_async_work",
            "run_async_work_finished_hook",
            "settle_in_background",
            "with_abort_signal",
            "with_aborted_execution_error",
        },
        {
            "build_response",
            "cancellable_iterable",
            "complete_awaitable_value",
            "complete_value",
            "execute_operation",
            "get_new_delivery_group_map",
            "handle_field_error",
            "handle_stream",
        },
    ),
    "gather": (
        {"complete_list_value", "execute_fields"},
        set[str](),
        {"complete_abstract_value", "complete_object_value", "execute_operation"},
    ),
}

_core: dict[str, Any] = vars(sys.modules[_Core.__module__])
_IS_3_3 = "gather_with_cancel" in _core
_GATHER = "gather_with_cancel" if _IS_3_3 else "gather"


def _names(code: CodeType) -> set[str]:
    """Return the global names that a function uses, its inner functions too."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)


def _check() -> None:
    """:raises ImportError: if other methods than those known here use asyncio"""
    asynchronous = {
        name
        for name, value in _core.items()
        if str(getattr(value, "__module__", "")).partition(".")[0] in ("asyncio", "_asyncio")
    }
    asynchronous.add(_GATHER)
    found = {
        name: _names(value.__code__) & asynchronous
        for name, value in vars(_Core).items()
        if isinstance(value, FunctionType)
    }
    gathering, others, more = _KNOWN[_GATHER]
    resolver = _core.get("default_type_resolver")
    if (
        {name for name, used in found.items() if used} != gathering | others
        or any(found[name] != {_GATHER} for name in gathering)
        or not isinstance(resolver, FunctionType)
        or "gather" not in _names(resolver.__code__)
        or not all(hasattr(_Stock, name) for name in more)
    ):
        raise ImportError(
            f"graphql-core {graphql.version} is not supported by anyloader.integrations.graphql: "
            "its executor is not made as those of graphql-core 3.2 and 3.3 that are known",
            name=__name__,
        )


_check()


def _gathering(function: Any, by: Any = gather) -> Any:
    """Return a copy of one of graphql-core's functions that gathers by another function."""
    names = {**function.__globals__, _GATHER: by}
    copy = FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return update_wrapper(copy, function)


# The executor


class AnyioExecutor(_Stock):
    """
    Executes operations under asyncio and under trio.

    With graphql-core 3.3 pass it as ``executor_class``, with 3.2 as ``execution_context_class``;
    Ariadne calls it ``execution_context_class`` with both. On 3.3 it is also all that the incremental
    executor is, graphql-core's default.

    What graphql-core awaits by itself, and loads that resolvers return, have no tasks. What a resolver
    wrote itself is awaited in a task (of asyncio's own, or of a trio nursery), so it may use cancel
    scopes, task groups and whatever else runs on the backend. Errors are reported as graphql-core
    reports them. On asyncio a resolver does not see the deadlines of cancel scopes around its
    operation in ``anyio.current_effective_deadline()``.

    **A scope for each operation**, and for each event of a subscription, is made where a subclass says by
    what::

        class Executor(AnyioExecutor):
            make_scope = LoaderScope

    It is entered before the first resolver is called, and left when the operation has been executed, by
    the rules of :class:`LoaderScope`. What comes later (``@defer``, ``@stream``) finds it closed. All
    operations are awaitable then, and ``execute_sync`` raises a ``RuntimeError``. With 3.2 no executor
    takes part in subscriptions.

    **Cancellation.** Where a field that must not be null fails, its siblings are cancelled and have
    ended before the error goes on; loads they awaited go on for everybody else. (Where it fails before
    anything was awaited, its siblings were not started. With 3.3 they are under asyncio, as ever, and
    run on in the background; otherwise they never are.) If the operation is
    cancelled, its resolvers are, and have ended. A resolver that is cancelled for no such reason, as
    by awaiting what somebody else cancelled, fails with a ``RuntimeError``, as any other error of a
    field. On asyncio a resolver is cancelled once, as ``asyncio.gather`` does, not at each of its awaits.

    **Not under trio:** ``@defer``, ``@stream`` and ``abort_signal`` are refused by an error in the
    response, and with 3.2 ``graphql.subscribe`` raises a ``GraphQLError``; with 3.3 subscriptions run.
    Under asyncio all of them do what they do without this class.

    **Checkpoints.** Awaiting the operation is a checkpoint if it has to wait: for a load that has not
    settled, or a resolver that waits. With 3.3 it need not be awaited if resolvers return values and
    settled loads only.

    **Errors.** Under an event loop that is neither asyncio nor trio, what a resolver wrote itself fails
    with a ``GraphQLError`` in the response. Nested loads are completed at any depth.
    """

    #: Makes the :class:`LoaderScope` of an operation, if it is to have one.
    make_scope: Any = None

    # There is no method that gathers and could be overridden, so these are copies.
    execute_fields: Any = _gathering(_Core.execute_fields)

    if TYPE_CHECKING or _IS_3_3:
        complete_iterable_value: Any = _gathering(_Core.complete_iterable_value)
    else:  # pragma: no cover - 3.2

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if self.type_resolver is _core["default_type_resolver"]:
                self.type_resolver = _default_type_resolver
            self.middleware_manager = _Resolvers(self.middleware_manager, self.is_awaitable)

        def execute_field(self, *args: Any) -> Any:
            completed = super().execute_field(*args)
            return apart(completed) if type(completed) is CoroutineType and is_deep() else completed

        def complete_list_value(self, *args: Any) -> Any:
            *rest, items = args
            if isinstance(items, AsyncIterable):
                return resolved(_await_twice(_complete_list_value(self, *args)))
            if (
                any(map(self.is_awaitable, items))
                if isinstance(items, (list, tuple))
                else graphql.pyutils.is_iterable(items)
            ):
                items = (resolved(item) if self.is_awaitable(item) else item for item in items)
            return _complete_list_value(self, *rest, items)

        def complete_abstract_value(self, *args: Any) -> Any:
            return _type_resolved(super().complete_abstract_value(*args))

        def complete_object_value(self, *args: Any) -> Any:
            return _type_resolved(super().complete_object_value(*args))

    def execute_operation(self, *args: Any, **kwargs: Any) -> Any:
        """As graphql-core's; what it returns is awaited by the task that is to run the operation."""
        make_scope = type(self).make_scope
        if make_scope is None:
            return self._execute(*args, **kwargs)
        execution = self._execute_in(make_scope, *args, **kwargs)
        if not self.is_awaitable(execution):  # as execute_sync() says of all there is
            execution.close()
            raise RuntimeError("AnyioExecutor.make_scope is not for execute_sync(): use execute()")
        return execution

    async def _execute_in(
        self, make_scope: Callable[[], LoaderScope], *args: Any, **kwargs: Any
    ) -> Any:
        async with make(make_scope, "operation"):
            result = self._execute(*args, **kwargs)
            return await result if self.is_awaitable(result) else result

    def _execute(self, *args: Any, **kwargs: Any) -> Any:
        aborts = getattr(self, "abort_signal", None) is not None
        if aborts and is_under_trio():
            self.collected_errors.add(_unsupported("abort_signal"), None)
            return self.build_response(None)
        result = super().execute_operation(*args, **kwargs)
        if not aborts and self.is_awaitable(result):
            return operate(result)
        return result

    if TYPE_CHECKING or _IS_3_3:  # pragma: no branch
        #: How many hits are being completed one inside of the other.
        _nested = 0
        #: Whether some unit has ever been deep: most operations need not ask each time.
        _is_deep = False

        def build_per_event_executor(self, payload: Any) -> Any:
            """As graphql-core's, whose copies share what they collect: it grows with each event."""
            executor: Any = super().build_per_event_executor(payload)
            executor._relevant_sub_fields = {}
            return executor

        def build_response(self, data: Any) -> Any:
            if is_under_trio():
                # In an order that is the same every time; 3.2 does so on every backend.
                self.collected_errors.errors.sort(key=_position)
            return super().build_response(data)

        def complete_awaitable_value(
            self,
            return_type: Any,
            field_details_list: Any,
            info: Any,
            path: Any,
            result: Any,
            position_context: Any,
        ) -> Any:
            if (
                type(result) is not LoadHandle
                or batch_of(result) is not None
                or type(outcome_in(result)) is Failure
                or self.abort_signal is not None
                or self._nested >= _MOST_NESTED
                or not isinstance(path.key, str)  # an item of @stream, which is awaited
            ):
                completing = super().complete_awaitable_value(
                    return_type, field_details_list, info, path, result, position_context
                )
                deep = self._nested or (self._is_deep and is_deep())
                return apart(completing) if deep else completing
            # A hit of a field. There is nothing to wait for, so no unit is needed that would wait.
            self._nested += 1
            try:
                completed = self.complete_value(
                    return_type,
                    field_details_list,
                    info,
                    path,
                    outcome_in(result),
                    position_context,
                )
            except Exception as exc:
                self.handle_field_error(exc, return_type, field_details_list, path)
                return None
            finally:
                self._nested -= 1
            if self.is_awaitable(completed):
                return self._await_completed(completed, return_type, field_details_list, path)
            return completed

        async def _await_completed(
            self, completed: Any, return_type: Any, field_details_list: Any, path: Any
        ) -> Any:
            try:
                return await completed
            except Exception as exc:
                self.handle_field_error(exc, return_type, field_details_list, path)
                return None

        def complete_async_iterator_value(self, *args: Any, **kwargs: Any) -> Any:
            self._is_deep = True
            return resolved(_complete_async_iterator_value(self, *args, **kwargs))

        def gather_async_work(self, values: Any) -> Any:
            return gather_resolved(*values)

        def with_abort_signal(self, awaitable: Awaitable[Any]) -> Any:
            if self.abort_signal is None:
                return awaited(awaitable, self)
            if is_under_trio():  # while subscribing; queries are refused as a whole
                discard(awaitable)
                raise _unsupported("abort_signal")
            return awaited(super().with_abort_signal(awaitable), self)

        def with_aborted_execution_error(self, awaitable: Awaitable[Any]) -> Any:
            return super().with_aborted_execution_error(operate(awaitable))

        def cancel_incremental_work(self, reason: BaseException | None = None) -> Any:
            return resolved(super().cancel_incremental_work(reason))

        def cancellable_iterable(self, iterable: AsyncIterable[Any]) -> AsyncIterable[Any]:
            if self.abort_signal is not None and is_under_trio():
                raise _unsupported("abort_signal")
            return super().cancellable_iterable(iterable)

        def settle_in_background(self, awaitables: list[Awaitable[Any]]) -> None:
            if is_under_trio():
                # There is no background that a task could be left to.
                for awaitable in awaitables:
                    discard(awaitable)
            else:
                super().settle_in_background(awaitables)

        def get_new_delivery_group_map(self, *args: Any, **kwargs: Any) -> Any:
            if is_under_trio():
                raise _unsupported("@defer")
            return super().get_new_delivery_group_map(*args, **kwargs)

        def handle_stream(self, *args: Any, **kwargs: Any) -> Any:
            if is_under_trio():
                raise _unsupported("@stream")
            return super().handle_stream(*args, **kwargs)


# A hit that is nested in so many others is completed by a unit of its own, which begins anew: each
# takes some seven frames of the stack.
_MOST_NESTED = 10

if TYPE_CHECKING or _IS_3_3:
    _complete_async_iterator_value = _gathering(_Core.complete_async_iterator_value)
else:  # pragma: no cover - 3.2
    _complete_list_value = _gathering(_Core.complete_list_value)
    _default_type_resolver = _gathering(_core["default_type_resolver"], gather_resolved)

    #: What awaits a type resolver, or ``is_type_of``, in the midst of other things.
    _AWAIT_TYPES = {
        *_Core.complete_abstract_value.__code__.co_consts,
        *_Core.complete_object_value.__code__.co_consts,
    }

    def _type_resolved(completed):
        """Have a task await what resolvers of types have returned, with all below it."""
        return (
            resolved(_await_twice(completed))
            if getattr(completed, "cr_code", None) in _AWAIT_TYPES
            else completed
        )

    class _Resolvers:
        """
        Has what resolvers return awaited by :func:`resolved`.

        3.2 has no method that does nothing but await it. It does ask this object for resolvers.
        """

        def __init__(self, middleware, is_awaitable):
            self._middleware = middleware
            self._is_awaitable = is_awaitable
            self._made = {}

        def get_field_resolver(self, resolver):
            made = self._made.get(id(resolver))
            if made is None:
                function = resolver
                if self._middleware is not None:
                    function = self._middleware.get_field_resolver(resolver)
                made = self._made[id(resolver)] = (self._make(function), resolver)
            return made[0]

        def _make(self, function):
            is_awaitable = self._is_awaitable

            def resolve(source, info, **arguments):
                result = function(source, info, **arguments)
                return resolved(result) if is_awaitable(result) else result

            return resolve

    class _Events(graphql.MapAsyncIterator):
        """The events of a subscription. It needs asyncio, and says so only when it is iterated."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if is_under_trio():
                raise _unsupported("a subscription")
            super().__init__(*args, **kwargs)

    # No executor takes part in subscribing, so there is no method to override.
    sys.modules[graphql.subscribe.__module__].MapAsyncIterator = _Events


async def _await_twice(completed: Awaitable[Any]) -> Any:  # pragma: no cover - 3.2
    """3.2 forgets that what an async iterable, or ``is_type_of``, leads to may have to be awaited."""
    value = await completed
    return await value if isinstance(value, Awaitable) else value


def _position(error: GraphQLError) -> tuple[Any, ...]:
    return (error.locations or [], error.path or [], error.message)


def _unsupported(what: str) -> GraphQLError:
    return GraphQLError(
        f"{what} is not supported under trio: graphql-core {graphql.version} uses asyncio for it"
    )
