"""Fails the tests whose loads do not batch, as ``hooks.warn_unbatched`` would warn of them."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from .hooks import Event, FindUnbatched, Hooks, everywhere

__all__ = ("Unbatched",)


class Unbatched:
    """
    A plugin of pytest, and a watch of all loaders of the process.

    No context variable: a test may run in a task or a thread that was started before it. What is found
    is told after the test, as an exception in a hook reaches nobody.

    :param threshold: so many batches of one key in a row are an error, where no marker says otherwise
    """

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        #: That of the running test, each of which counts for itself.
        self.hook: FindUnbatched | None = None
        self._found: list[str] = []
        everywhere.append(self)

    def close(self) -> None:
        everywhere.remove(self)

    def add(self, loader: Any, /) -> None:
        hooks: Hooks | None = loader.hooks
        if hooks is None:
            loader.listen(hooks := Hooks(()))
        if not any(isinstance(watch, _OfLoader) for watch in hooks.watches):
            hooks.watches = (*hooks.watches, _OfLoader(self))

    def __call__(self, event: Event, /) -> None:
        """Hears of nothing itself."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        marker = item.get_closest_marker("anyloader_unbatched")
        threshold = self._threshold if marker is None else _threshold_of(*marker.args)
        self.hook = FindUnbatched(threshold, self._note) if threshold else None
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None, object, object]:
        result = yield
        self._tell()
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self) -> Generator[None, object, object]:
        self._found.clear()  # of a test that failed by itself
        try:
            result = yield
        finally:
            self.hook = None
        self._tell()
        return result

    def _note(self, message: str, path: str, line: int) -> None:
        self._found.append(message)

    def _tell(self) -> None:
        found, self._found = self._found, []
        if found:
            pytest.fail("\n".join(found), pytrace=False)


class _OfLoader:
    """What hears of one loader, which may live through several tests."""

    def __init__(self, plugin: Unbatched) -> None:
        self._plugin = plugin
        self._of: FindUnbatched | None = None
        self._hook: FindUnbatched | None = None

    def add(self, loader: Any, /) -> None:
        """A loader that a batch function uses has one of its own."""
        self._plugin.add(loader)

    def __call__(self, event: Event, /) -> None:
        of = self._plugin.hook
        if of is not self._of:
            self._of, self._hook = of, None if of is None else of.anew()
        if self._hook is not None:
            self._hook(event)


def _threshold_of(n: object = None, *more: object) -> int:
    if more or isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise TypeError("the marker anyloader_unbatched takes an int >= 0")
    return n
