"""The fixtures that pytest finds by the entry point of this package."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

__all__ = ("max_batches",)


@pytest.fixture
def max_batches() -> Callable[..., AbstractContextManager[None]]:
    """``anyloader.testing.max_batches``: a guard against the N+1 problem."""
    # Imported by the test that asks for it: pytest loads this file in every run.
    from .testing import max_batches

    return max_batches
