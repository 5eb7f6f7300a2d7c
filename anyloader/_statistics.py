"""What a loader has done so far, in numbers."""

# No annotations from __future__: of strings a NamedTuple would compile each, at import.
from typing import NamedTuple

__all__ = ("Counts", "LoaderStatistics")


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
    :param errors: keys that failed, each key of a batch that failed as a whole included
    :param value_cache_hits: keys that the value cache answered
    :param value_cache_misses: keys that it was asked for and did not have
    """

    loads: int = 0
    hits: int = 0
    shared: int = 0
    keys: int = 0
    batches: int = 0
    queued: int = 0
    running: int = 0
    cached: int = 0
    errors: int = 0
    value_cache_hits: int = 0
    value_cache_misses: int = 0


class Counts:
    """
    What a loader counts while it works.

    Apart from the loader, so that its scope can go on counting what it did once it is gone.
    """

    __slots__ = (
        "added",
        "batches",
        "errors",
        "hits",
        "keys",
        "running",
        "sealed",
        "shared",
        "value_cache_hits",
        "value_cache_misses",
    )

    def __init__(self) -> None:
        #: Keys of batches that take no more keys; those that left unsent too.
        self.added = 0
        #: Of these, the keys that still wait to be sent.
        self.sealed = 0
        self.running = 0
        self.hits = self.shared = self.keys = self.batches = self.errors = 0
        self.value_cache_hits = self.value_cache_misses = 0

    def snapshot(self, added: int = 0, queued: int = 0, cached: int = 0) -> LoaderStatistics:
        """
        :param added: keys that the open batch was given
        :param queued: of these, the keys that still wait in it
        :param cached: entries in the cache
        """
        return LoaderStatistics(
            loads=self.hits + self.shared + self.added + added,
            hits=self.hits,
            shared=self.shared,
            keys=self.keys,
            batches=self.batches,
            queued=self.sealed + queued,
            running=self.running,
            cached=cached,
            errors=self.errors,
            value_cache_hits=self.value_cache_hits,
            value_cache_misses=self.value_cache_misses,
        )
