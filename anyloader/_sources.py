"""What a scope makes loaders of: functions and classes, with the arguments that were bound to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar, cast, get_origin

from ._dataloader import DataLoader
from ._options import default_name
from ._results import article

__all__ = (
    "check_arguments",
    "make_loader",
    "refuse_positional",
    "say_arguments",
    "source_key",
)

S = TypeVar("S", bound=DataLoader[Any, Any])

SOURCES = "a DataLoader class, a batch function or a @batch_loader function"


def source_key(source: Any, arguments: Mapping[str, Any]) -> Any:
    """
    Return what is equal for equal sources with equal arguments.

    :raises TypeError: if something in it cannot be hashed
    """
    given: tuple[Any, ...] = ()
    if isinstance(source, partial):
        given, arguments = source.args, {**source.keywords, **arguments}
        source = source.func
    source = _class_of(source)
    try:
        hash(source)
    except TypeError:
        raise TypeError(f"scope.get() takes {SOURCES}, not {article(source)}") from None
    _check_hashable(
        source, {**{f"argument {i}": value for i, value in enumerate(given)}, **arguments}
    )
    return (source, given, frozenset(arguments.items())) if given or arguments else source


def _class_of(source: Any) -> Any:
    """Return the class, of a generic one that was given its arguments."""
    return get_origin(source) or source


def _check_hashable(source: Any, arguments: Mapping[str, Any]) -> None:
    for name, value in arguments.items():
        try:
            hash(value)
        except TypeError as exc:
            raise TypeError(
                f"{name} of {getattr(source, '__qualname__', source)} cannot tell its loader from "
                f"others: {exc}; give it a hashable value, such as a tuple"
            ) from None


def refuse_positional(who: str, args: tuple[Any, ...]) -> None:
    """:raises TypeError: if there are any; a signature that knows the types of others cannot say so"""
    if args:
        raise TypeError(f"{who} takes arguments by name, such as first=3, and not by position")


def check_arguments(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    value_cache: object = None,
    who: str = "scope.get()",
) -> None:
    """
    Check arguments against the signature of a batch function.

    :param value_cache: that of its loaders, which knows keys and no arguments
    :raises TypeError: if it does not take these, or one of them cannot be hashed, or its value cache
        would take the values under one set of them for those under another
    :param who: is called with the arguments
    """
    import inspect  # takes long to import

    try:
        signature = inspect.signature(function)
    except ValueError:  # a builtin that does not tell
        signature = inspect.signature(lambda *keys, **rest: None)
    name = default_name(function)
    try:
        signature.bind(None, **arguments)
    except TypeError as exc:
        raise TypeError(f"{who} of {name}: {exc}; its signature is {name}{signature}") from None
    if arguments and value_cache is not None:
        raise TypeError(
            f"{who} of {name}: it has a value_cache, which would mix up the values of other arguments; "
            "make what the values depend on part of the keys"
        )
    _check_hashable(function, arguments)


def make_loader(
    source: Any, arguments: Mapping[str, Any], given: tuple[Any, ...] = ()
) -> DataLoader[Any, Any]:
    """
    :param given: what a partial gives to a class by position
    :raises TypeError: if it cannot be made
    """
    source = _class_of(source)
    if isinstance(source, partial) and isinstance(_class_of(source.func), type):
        return make_loader(source.func, {**source.keywords, **arguments}, source.args)
    if isinstance(source, type):
        if not issubclass(source, DataLoader):
            raise TypeError(f"scope.get() takes {SOURCES}, not {source!r}")
        return _make_of_class(source, given, arguments)
    if not callable(source):
        raise TypeError(f"scope.get() takes {SOURCES}, not {source!r}")
    make = cast("Callable[..., DataLoader[Any, Any]]", DataLoader)
    keywords = source.keywords if isinstance(source, partial) else {}
    if arguments:
        check_arguments(source, arguments)
        source = partial(source, **arguments)
    return say_arguments(make(source), {**keywords, **arguments})


def say_arguments(loader: S, arguments: Mapping[str, Any]) -> S:
    """
    Let the name of a loader say which arguments it has, and its ``repr`` what they are.

    No values in the name: it stands in errors, which reach clients, and in metrics, which would have
    a series for each.
    """
    if arguments:
        inside = loader.__anyloader__
        inside.name = f"{inside.name}({', '.join(sorted(arguments))})"
        inside.arguments = arguments
        vars(loader)["name"] = inside.name
    return loader


def _make_of_class(
    source: Any, given: tuple[Any, ...], arguments: Mapping[str, Any]
) -> DataLoader[Any, Any]:
    """Give the arguments to a constructor of its own, and otherwise to its batch function."""
    if arguments and not given and source.__init__ is DataLoader.__init__:
        check_arguments(partial(source.batch_load_fn, None), arguments, source.value_cache)
        loader: DataLoader[Any, Any] = source()
        loader.__anyloader__.bind_arguments(arguments)
        return say_arguments(loader, arguments)
    try:
        made: DataLoader[Any, Any] = source(*given, **arguments)
    except TypeError as exc:
        import inspect

        try:
            inspect.signature(source.__init__).bind(None, *given, **arguments)
        except TypeError:
            raise TypeError(
                f"scope.get() cannot make a {source.__qualname__}: {exc}; give what its __init__ takes "
                f"as keywords, scope.get({source.__qualname__}, name=value)"
            ) from exc
        raise
    return say_arguments(made, arguments)
