"""
A drop-in for Strawberry's ``DataLoader``, for code that moves over step by step::

    from anyloader.compat_strawberry import DataLoader  # was: from strawberry.dataloader import DataLoader

It needs no Strawberry. A loader made of this class runs in the ambient
:class:`~anyloader.LoaderScope`, so give each operation one, for instance by
:class:`~anyloader.integrations.strawberry.LoaderScopeExtension`. What differs from Strawberry's stands
in the documentation, in "Moving from Strawberry's DataLoader".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from . import compat
from ._batch import LoadHandle
from ._options import default_name
from ._results import article

if TYPE_CHECKING:
    import sys

    if sys.version_info >= (3, 11):
        from typing import Self
    else:
        from typing_extensions import Self

    from ._options import IterableFn, MappingFn, StreamFn

__all__ = ("AbstractCache", "DataLoader")

K = TypeVar("K")
V = TypeVar("V")
K2 = TypeVar("K2")
V2 = TypeVar("V2")
K_contra = TypeVar("K_contra", contravariant=True)


class AbstractCache(Protocol[K_contra, V]):
    """
    Strawberry's protocol of a cache: what derives from its own class of this name fits.

    It keeps the futures that it is given, and gives the same ones back.
    """

    def get(self, key: K_contra, /) -> compat.LoadFuture[V] | None:
        """Return what was set, or ``None``."""
        ...

    def set(self, key: K_contra, value: compat.LoadFuture[V], /) -> None:
        """Keep it."""
        ...

    def delete(self, key: K_contra, /) -> None:
        """Forget a key that is there."""
        ...

    def clear(self) -> None:
        """Forget all."""
        ...


class DataLoader(compat.DataLoader[K, V]):
    """
    Takes the arguments of Strawberry's ``DataLoader``, and those of :class:`anyloader.DataLoader`.

    Behaves as the latter; ``load`` and ``load_many`` return a :class:`~anyloader.compat.LoadFuture`.

    :param load_fn: the batch function; all that is one for :class:`anyloader.DataLoader`
    :param max_batch_size: ``None`` or 0 for no limit
    :param cache: whether to remember
    :param loop: ignored, with a ``DeprecationWarning``: a loader runs where its scope was entered
    :param cache_map: an :class:`AbstractCache`, which is given the keys as they are; or a mutable
        mapping
    :param cache_key_fn: makes the keys of the cache, unless that is an :class:`AbstractCache`
    :param options: the other options of :class:`anyloader.DataLoader`, by name
    :raises TypeError: if an argument has the wrong type
    :raises ValueError: if ``max_batch_size`` is negative
    """

    @overload
    def __init__(
        self: DataLoader[K2, V2 | None],
        load_fn: MappingFn[K2, V2] | StreamFn[K2, V2],
        max_batch_size: int | None = ...,
        cache: bool = ...,
        loop: asyncio.AbstractEventLoop | None = ...,
        cache_map: AbstractCache[K2, Any] | MutableMapping[Any, LoadHandle[Any]] | None = ...,
        cache_key_fn: Callable[[K2], Any] | None = ...,
        **options: Any,
    ) -> None: ...
    @overload
    def __init__(
        self,
        load_fn: IterableFn[K, V],
        max_batch_size: int | None = ...,
        cache: bool = ...,
        loop: asyncio.AbstractEventLoop | None = ...,
        cache_map: AbstractCache[K, Any] | MutableMapping[Any, LoadHandle[Any]] | None = ...,
        cache_key_fn: Callable[[K], Any] | None = ...,
        **options: Any,
    ) -> None: ...
    def __init__(
        self,
        load_fn: Any,
        max_batch_size: int | None = None,
        cache: bool = True,
        loop: asyncio.AbstractEventLoop | None = None,
        cache_map: AbstractCache[Any, Any] | MutableMapping[Any, LoadHandle[Any]] | None = None,
        cache_key_fn: Callable[[Any], Any] | None = None,
        **options: Any,
    ) -> None:
        compat.ignore(loop)
        mapping: Any = cache_map
        if cache_map is not None and not isinstance(cache_map, MutableMapping):
            mapping, cache_key_fn = _AsMapping(cache_map), _hashable
        if type(self) is DataLoader:  # a subclass has a name of its own
            options.setdefault("name", default_name(load_fn))
        super().__init__(
            load_fn,
            max_batch_size=max_batch_size or None,
            cache=cache,
            get_cache_key=cache_key_fn,
            cache_map=mapping,
            **options,
        )

    def prime(self, key: K, value: V | Exception, force: bool = False) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        """See :meth:`anyloader.DataLoader.prime`."""
        return super().prime(key, value, force=force)

    def prime_many(self, data: Mapping[K, V | Exception], force: bool = False) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        """See :meth:`anyloader.DataLoader.prime_many`."""
        return super().prime_many(data, force=force)


class _Unhashable:
    """Stands for a key that only a cache of the user's own can tell from others."""

    __slots__ = ("key",)

    def __init__(self, key: object) -> None:
        self.key = key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Unhashable) and bool(self.key == other.key)

    def __hash__(self) -> int:
        return hash(type(self.key))


def _hashable(key: Any) -> Any:
    try:
        hash(key)
    except TypeError:
        return _Unhashable(key)
    return key


def _given(key: Any) -> Any:
    return key.key if isinstance(key, _Unhashable) else key


class _AsMapping(MutableMapping[Any, Any]):
    """A cache of Strawberry's protocol, as the mapping of handles that a loader knows."""

    def __init__(self, cache: Any) -> None:
        missing = [
            name
            for name in ("get", "set", "delete", "clear")
            if not callable(getattr(cache, name, None))
        ]
        if missing:
            raise TypeError(
                "cache_map must have get, set, delete and clear, as Strawberry's AbstractCache, or be a "
                f"MutableMapping; {article(cache)} has no {' and no '.join(missing)}"
            )
        self._cache = cache

    def get(self, key: Any, default: Any = None) -> Any:
        future = self._cache.get(_given(key))
        if future is None:
            return default
        if not isinstance(future, compat.LoadFuture):
            raise TypeError(
                "a cache_map has to give back the futures that were set, not "
                f"{article(future)}; what is kept elsewhere is for a value_cache"
            )
        return future._handle

    def __getitem__(self, key: Any) -> Any:
        handle = self.get(key)
        if handle is None:
            raise KeyError(key)
        return handle

    def __setitem__(self, key: Any, handle: Any) -> None:
        self._cache.set(_given(key), compat.LoadFuture(handle))

    def __delitem__(self, key: Any) -> None:
        self._cache.delete(_given(key))

    def clear(self) -> None:
        self._cache.clear()

    # The protocol knows of neither.
    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0
