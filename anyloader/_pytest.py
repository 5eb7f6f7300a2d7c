"""What pytest finds by the entry point of this package: a fixture, and an option that is off."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

__all__ = ("max_batches",)

_MARKER = "anyloader_unbatched(n): in this test so many batches of one key in a row are an error; 0 allows them"
_HELP = "fail a test in which one line of code sends N batches of one key in a row (0: off)"


# What they need is imported by who asks for it: pytest loads this file in every run.


@pytest.fixture
def max_batches() -> Callable[..., AbstractContextManager[None]]:
    """``anyloader.testing.max_batches``: a guard against the N+1 problem."""
    from .testing import max_batches

    return max_batches


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("anyloader").addoption("--anyloader-unbatched", metavar="N", help=_HELP)
    parser.addini("anyloader_unbatched", _HELP, default="0")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _MARKER)
    given = config.getoption("--anyloader-unbatched")
    threshold = str(config.getini("anyloader_unbatched") if given is None else given)
    if not threshold.isdecimal():
        raise pytest.UsageError(f"anyloader_unbatched must be an int >= 0, not {threshold!r}")
    if int(threshold):
        from ._pytest_unbatched import Unbatched

        plugin = Unbatched(int(threshold))
        config.pluginmanager.register(plugin, "anyloader_unbatched")
        config.add_cleanup(plugin.close)
