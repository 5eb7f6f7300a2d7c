"""What a loader has done so far, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ("LoaderStatistics",)


@dataclass(frozen=True)
class LoaderStatistics:
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

    loads: int
    hits: int
    shared: int
    keys: int
    batches: int
    queued: int
    running: int
    cached: int
