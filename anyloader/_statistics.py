"""What a loader has done so far, in numbers."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ("LoaderStatistics",)


class LoaderStatistics(NamedTuple):
    """
    A snapshot of one loader, or of all loaders of a scope together.

    :param loads: loads asked for; each key of a ``load_many`` counts as one
    :param hits: loads that an already settled cache entry answered
    :param shared: loads that joined an entry which was queued or in flight
    :param keys: keys that were given to a batch function
    :param batches: calls of a batch function
    :param queued: keys that wait in batches not yet sent
    :param running: batches whose function runs now
    :param cached: entries in the cache, pending ones included
    """

    loads: int = 0
    hits: int = 0
    shared: int = 0
    keys: int = 0
    batches: int = 0
    queued: int = 0
    running: int = 0
    cached: int = 0
