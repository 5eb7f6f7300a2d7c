"""Type-checked, not run: each ignored error is code that has to be refused.

A checker that no longer refuses it complains about the comment.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from anyloader import (
    DataLoader,
    LoaderScope,
    LoadHandle,
    batch_loader,
    in_thread,
    schedules,
)

X = 0
