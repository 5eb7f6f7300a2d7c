"""A task that holds a scope open for others, which open it in one task and close it in another."""

from __future__ import annotations

import sys
from contextlib import AbstractAsyncContextManager
from contextvars import copy_context
from typing import Any

import anyio
from anyio import CancelScope

from ._backend import TrioBackend, running_backend
from ._dispatcher import shielded

__all__ = ("Portal",)


class Portal:
    """:param scope: what its task enters, and leaves when told to"""

    def __init__(self, scope: AbstractAsyncContextManager[Any]) -> None:
        self._scope = scope
        self._opened = anyio.Event()
        self._leave = anyio.Event()
        self._left = anyio.Event()
        self._cancel = CancelScope()
        self._error: BaseException | None = None
        #: asyncio itself keeps no task alive.
        self._task: Any = None

    async def open(self) -> None:
        if isinstance(running_backend(), TrioBackend):
            sys.modules["trio.lowlevel"].spawn_system_task(self._hold, context=copy_context())
        else:
            self._task = sys.modules["asyncio"].create_task(self._hold())
        try:
            with CancelScope(shield=True):  # entering waits for nobody
                await self._opened.wait()
        except BaseException:  # asyncio's own cancellation, which heeds no shield
            self._cancel.cancel()  # or nobody could close it
            raise
        self._raise_error()

    async def close(self) -> None:
        self._leave.set()
        try:
            await self._left.wait()
        except anyio.get_cancelled_exc_class():
            self._cancel.cancel()
            await shielded(self._left.wait)
            raise
        self._raise_error()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # what is raised holds this frame

    async def _hold(self) -> None:
        try:
            with self._cancel:
                async with self._scope:
                    self._opened.set()
                    await self._leave.wait()
        except anyio.get_cancelled_exc_class():
            raise  # the event loop ends
        except BaseException as exc:
            self._error = exc  # of entering, or of a batch function: KeyboardInterrupt and the like
        finally:
            self._opened.set()
            self._left.set()
