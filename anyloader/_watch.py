"""A hook for a block of code, whatever loaders are used in it and wherever these were opened."""

from __future__ import annotations

from contextvars import Token
from typing import Any

from ._dispatcher import ambient
from ._loader import Loader
from .hooks import Event, Hook, Hooks, watches

__all__ = ("Watch",)


class Watch:
    """
    Calls a hook with what all loaders do that are used in the block, while the block runs.

    That is: the loaders of the scopes around the block at once, every other one from its opening, or
    from the first batch that the block makes it open; and those that their batch functions use.
    """

    def __init__(self, hook: Hook) -> None:
        self._hook = hook
        self._loaders: list[Loader] | None = None
        self._token: Token[Any]

    def __enter__(self) -> None:
        self._loaders = []
        self._token = watches.set((*watches.get(), self))
        dispatcher = ambient.get()
        while dispatcher is not None:
            for loader in dispatcher.loaders():
                self.add(loader)
            dispatcher = dispatcher.outer

    def __exit__(self, *exc: object) -> None:
        loaders, self._loaders = self._loaders, None
        for loader in loaders or ():
            hooks: Any = loader.hooks
            hooks.watches = tuple(watch for watch in hooks.watches if watch is not self)
            if not hooks.hooks and not hooks.watches:
                loader.listen(None)
        try:
            watches.reset(self._token)
        except ValueError:
            pass  # left in another context than entered, as fixtures are; there it ends by itself

    def add(self, loader: Any) -> None:
        """Watch this loader too; those that are watched already, or if the block has ended, stay."""
        if self._loaders is None:
            return
        if loader.hooks is None:
            loader.listen(Hooks(()))
        if self not in loader.hooks.watches:  # pyright: ignore[reportOptionalMemberAccess]
            loader.hooks.watches = (*loader.hooks.watches, self)  # pyright: ignore[reportOptionalMemberAccess]
            self._loaders.append(loader)

    def __call__(self, event: Event) -> None:
        self._hook(event)
