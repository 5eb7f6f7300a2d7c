"""What to install for an integration, said where its third party is missing."""

from __future__ import annotations


def missing(extra: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    """Name the extra that installs what ``error`` did not find."""
    return ModuleNotFoundError(
        f"{error.name} is not installed: pip install 'anyloader[{extra}]'", name=error.name
    )
