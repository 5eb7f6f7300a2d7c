"""Value caches that record, fail or hang."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Store:
    """A value cache in a dict, which remembers how it was called."""

    def __init__(self, values: Mapping[Any, Any] | None = None) -> None:
        self.values = dict(values or {})
        self.calls: list[tuple[str, Any]] = []

    async def get_many(self, keys: Sequence[Any]) -> Mapping[Any, Any]:
        self.calls.append(("get", list(keys)))
        return {key: self.values[key] for key in keys if key in self.values}

    async def set_many(self, items: Mapping[Any, Any]) -> None:
        self.calls.append(("set", dict(items)))
        self.values.update(items)

    async def delete_many(self, keys: Sequence[Any]) -> None:
        self.calls.append(("delete", list(keys)))
        for key in keys:
            self.values.pop(key, None)


class Boom(Exception):
    pass
