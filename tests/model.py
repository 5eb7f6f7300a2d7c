"""What a loader promises, as plain synchronous Python: no tasks, no clock, no thought of speed.

``test_model.py`` drives this and a real loader side by side. The model says what each event means;
when a batch leaves, and which waiting batch gets a limiter's token, it is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from anyloader import LoadCancelledError, LoaderClosedError


class Outcome(NamedTuple):
    """A value, or an error: the object itself, or its class where a new one is made."""

    value: Any = None
    error: Any = None


CANCELLED = Outcome(error=LoadCancelledError)


@dataclass(eq=False)
class Load:
    """A ``load`` or, with ``parts``, a ``load_many``."""

    key: Any = None
    #: Those that a ``load_many`` stands for; they are not loads of their own unless awaited.
    parts: list[Load] | None = None
    return_exceptions: bool = False
    batch: Batch | None = None
    settled: Outcome | None = None
    waiters: int = 0
    #: Every await of it was cancelled; or nobody asked for this key by itself.
    given_up: bool = False

    @property
    def outcome(self) -> Outcome | None:
        if self.parts is None:
            return self.settled
        values = []
        for part in self.parts:
            if part.settled is None:
                return None
            if part.settled.error is not None and not self.return_exceptions:
                return part.settled
            values.append(part.settled)
        return Outcome(values)


@dataclass(eq=False)
class Entry:
    """One key of a batch, and all loads that settle with it; the cache holds the first."""

    key: Any
    cache_key: Any
    loads: list[Load]
    #: The load_manys that ask for it too.
    manys: list[Load] = field(default_factory=list)

    @property
    def is_wanted(self) -> bool:
        return not all(load.given_up for load in self.loads + self.manys)

    def settle(self, outcome: Outcome) -> None:
        for load in self.loads:
            load.settled, load.batch = outcome, None


@dataclass(eq=False)
class Batch:
    #: "open", "sealed", "running" or "done".
    state: str = "open"
    #: Open, but past its schedule: it goes on taking keys until there is a token for it.
    is_due: bool = False
    entries: list[Entry] = field(default_factory=list)
    #: Hits that wait for this batch; they are not loads of it.
    deferred: dict[Entry, Outcome] = field(default_factory=dict)
    #: Cache keys that the value cache was asked for, and those that were cleared while it ran: not to
    #: be stored there.
    asked: set[Any] = field(default_factory=set)
    cleared: set[Any] = field(default_factory=set)

    @property
    def is_wanted(self) -> bool:
        """False once every load is given up that a stream has not settled; settled ones are not."""
        left = [entry for entry in self.entries if not entry.loads[0].settled]
        return any(entry.is_wanted for entry in left) or bool(self.entries and not left)

    @property
    def is_awaited(self) -> bool:
        entries = [e for e in [*self.entries, *self.deferred] if not e.loads[0].settled]
        return any(load.waiters for entry in entries for load in entry.loads + entry.manys)


@dataclass
class Model:
    cache: MutableMapping[Any, Load] | None
    get_cache_key: Callable[[Any], Any]
    max_batch_size: int | None = None
    defer_hits: bool = False
    deduplicate: bool = False
    #: Whether entries leave the cache when they settle; and whether the cache is a map of the user's.
    forgets: bool = False
    keeps_map: bool = False
    keeps: Callable[[Any], bool] = lambda error: True
    missing: Callable[[Any], Outcome] = lambda key: Outcome()
    #: Whether batches are fed by an async generator.
    streams: bool = False
    #: What the value cache has, where there is one; what is to be deleted there, and again at the end.
    values: dict[Any, Any] | None = None
    to_delete: set[Any] = field(default_factory=set)
    cleared: set[Any] = field(default_factory=set)

    #: "open", "leaving" or "closed"; then a foreign group answers hits, and no more.
    state: str = "open"
    foreign: bool = False
    batches: list[Batch] = field(default_factory=list)
    #: The batch that the next key joins; and the next deferred hit, if not that one.
    open_batch: Batch | None = None
    open_for_hits: Batch | None = None
    hits: int = 0
    shared: int = 0
    sent: list[int] = field(default_factory=list)

    # Loading

    def load(self, key: Any) -> Load:
        self._admit([key])
        return self._load(key, None)

    def load_many(self, keys: Sequence[Any], return_exceptions: bool) -> Load:
        self._admit(keys)
        many = Load(parts=[], return_exceptions=return_exceptions)
        many.parts = [self._load(key, many) for key in keys]
        return many

    def _admit(self, keys: Sequence[Any]) -> None:
        if self.state == "open" or (self.foreign and self.state == "leaving"):
            return
        if not self.foreign or not all(map(self.cached, keys)) or (self.defer_hits and keys):
            raise LoaderClosedError

    def _open(self) -> Batch:
        self.batches.append(batch := Batch())
        if self.open_batch is None:
            self.open_batch = batch
        else:
            self.open_for_hits = batch
        return batch

    def cached(self, key: Any) -> Load | None:
        return None if self.cache is None else self.cache.get(self.get_cache_key(key))

    def _load(self, key: Any, many: Load | None) -> Load:
        cache_key, batch, cached = self.get_cache_key(key), self.open_batch, self.cached(key)
        if not cached and batch and (self.deduplicate or (self.streams and self.cache is None)):
            same = [entry for entry in batch.entries if entry.cache_key == cache_key]
            cached = same[0].loads[0] if same else None
            if cached and self.cache is not None:
                self.cache[cache_key] = cached
        if cached and cached.settled:
            self.hits += 1
            if not self.defer_hits:
                return cached
            if not batch or batch.is_due:  # no hit waits for a token
                batch = self.open_for_hits or self._open()
            entry = Entry(key, cache_key, [Load(cached.key, batch=batch)])
            batch.deferred[entry] = cached.settled
        elif cached and cached.batch:
            self.shared += 1
            (entry,) = [entry for entry in cached.batch.entries if cached in entry.loads]
            if not many:
                entry.loads.append(Load(key, batch=cached.batch))
                return entry.loads[-1]
        else:
            batch = batch or self._open()
            entry = Entry(key, cache_key, [Load(key, batch=batch, given_up=many is not None)])
            batch.entries.append(entry)
            if self.cache is not None:
                self.cache[cache_key] = entry.loads[0]
        if many and many not in entry.manys:
            entry.manys.append(many)
        if batch and len(batch.entries) == self.max_batch_size:
            self.seal(batch)
        return entry.loads[0]

    # Awaiting

    def start_waiting(self, load: Load) -> None:
        load.waiters += 1
        if load.outcome is None:
            load.given_up = False

    def stop_waiting(self, load: Load, cancelled: bool) -> None:
        load.waiters -= 1
        if cancelled and not load.waiters:
            load.given_up = True
            for batch in list(self.batches):
                if batch.state in ("sealed", "running") and not batch.is_wanted:
                    self.finish(batch, CANCELLED)
        self.go_on_leaving()

    # The cache

    def clear(self, key: Any) -> None:
        if self.cache is not None:
            self.cache.pop(self.get_cache_key(key), None)
        self._forget_value(self.get_cache_key(key))

    def clear_all(self) -> None:
        on_their_way = [
            cache_key
            for batch in self.batches
            for cache_key in batch.asked | {entry.cache_key for entry in batch.entries}
        ]
        for cache_key in [*(self.cache or ()), *on_their_way]:
            self._forget_value(cache_key)
        if self.cache is not None:
            self.cache.clear()

    def _forget_value(self, cache_key: Any) -> None:
        self.to_delete.add(cache_key)
        self.cleared.add(cache_key)
        for batch in self.batches:
            if batch.state == "running":
                batch.cleared.add(cache_key)

    def delete_values(self) -> None:
        for cache_key in self.to_delete:
            (self.values or {}).pop(cache_key, None)
        self.to_delete.clear()

    def prime(self, key: Any, outcome: Outcome, force: bool) -> None:
        cache_key, old = self.get_cache_key(key), self.cached(key)
        if old and not force:
            return
        if force:
            self._forget_value(cache_key)
        batch = old.batch if old else None
        if old and batch and batch.state in ("open", "sealed"):
            (entry,) = [entry for entry in batch.entries if old in entry.loads]
            batch.entries.remove(entry)
            self._settle(entry, outcome, keep=True)
            if batch.state == "sealed" and not batch.is_wanted:
                self.finish(batch, CANCELLED)
        elif self.cache is not None and not self.forgets:
            self.cache[cache_key] = Load(key, settled=outcome)
        elif self.cache is not None:  # what runs may have read the value before this one
            self.cache.pop(cache_key, None)

    # Batches

    def be_due(self, batch: Batch) -> None:
        """Its schedule has returned: it waits for a token now, and for what else comes."""
        batch.is_due = True
        if not batch.is_wanted:
            self.seal(batch)

    def seal(self, batch: Batch) -> None:
        self._close(batch)
        batch.state = "sealed"
        self._sift(batch)
        if not batch.entries:
            self._done(batch)

    def _sift(self, batch: Batch) -> None:
        for entry in list(batch.entries):
            if not entry.is_wanted:
                batch.entries.remove(entry)
                self._settle(entry, CANCELLED, keep=False)

    def _close(self, batch: Batch) -> None:
        """It takes nothing more."""
        if batch is self.open_batch:
            self.open_batch = None
        if batch is self.open_for_hits:
            self.open_for_hits = None

    def wait_for_token(self, batch: Batch) -> None:
        """There is no token for it: what need not wait for one does not."""
        deferred, batch.deferred = batch.deferred, {}
        for hit, outcome in deferred.items():
            hit.settle(outcome)

    def start(self, batch: Batch) -> list[Any]:
        """Return the keys that the batch function is given; none if it is not called."""
        if batch.state == "open":
            self.seal(batch)
        self._sift(batch)
        batch.state = "running"
        if self.values is not None:
            self._ask(batch, self.values)
            if batch.state == "done":
                return []
        entries = {e.cache_key if self.streams else e: e for e in reversed(batch.entries)}
        keys = [entry.key for entry in batch.entries if entry in entries.values()]
        self.sent.append(len(keys))
        return keys

    def _ask(self, batch: Batch, values: dict[Any, Any]) -> None:
        self.delete_values()
        batch.asked = {entry.cache_key for entry in batch.entries}
        found = [e for e in batch.entries if e.cache_key in values.keys() - batch.cleared]
        for entry in found:
            self._settle(entry, Outcome(values[entry.cache_key]), keep=True)
            batch.entries.remove(entry)
        if not batch.entries:
            self._done(batch)
        elif found and not batch.is_wanted:
            self.finish(batch, CANCELLED)

    def settle_key(self, batch: Batch, cache_key: Any, outcome: Outcome) -> None:
        """A stream gave a pair."""
        for entry in batch.entries:
            if entry.cache_key == cache_key:
                self._settle(
                    entry, outcome, keep=outcome.error is None or self.keeps(outcome.error)
                )
        if not batch.is_wanted:
            self.finish(batch, CANCELLED)

    def finish(self, batch: Batch, result: Outcome | list[Outcome] | dict[Any, Outcome]) -> None:
        """The function returned values, or a mapping, or the batch ended by one error for all."""
        for index, entry in enumerate(batch.entries):
            if entry.loads[0].settled:
                continue
            if isinstance(result, Outcome):
                self._settle(entry, result, keep=False)
                continue
            if isinstance(result, list):
                outcome = result[index]
            else:
                outcome = result.get(entry.cache_key) or self.missing(entry.key)
            self._settle(entry, outcome, keep=outcome.error is None or self.keeps(outcome.error))
        if not isinstance(result, Outcome) and self.values is not None:
            for entry in batch.entries:
                settled = entry.loads[0].settled
                if settled and settled.error is None and entry.cache_key not in batch.cleared:
                    self.values[entry.cache_key] = settled.value
        self._done(batch)

    def _settle(self, entry: Entry, outcome: Outcome, *, keep: bool) -> None:
        entry.settle(outcome)
        cache = {} if self.cache is None or (keep and not self.forgets) else self.cache
        if cache.get(entry.cache_key) is entry.loads[0]:
            cache.pop(entry.cache_key)

    def _done(self, batch: Batch) -> None:
        self._close(batch)
        batch.state = "done"
        self.batches.remove(batch)
        for hit, outcome in batch.deferred.items():
            hit.settle(outcome)
        self.go_on_leaving()

    # Leaving

    def leave(self, *, cancelled: bool = False) -> None:
        """The body of the ``async with`` ended; with ``cancelled`` not in the ordinary way."""
        self.state = "closed" if cancelled else "leaving"
        for batch in list(self.batches):
            if cancelled and batch in self.batches:
                self.finish(batch, CANCELLED)
            elif batch.state == "open" and batch.is_awaited and not self.foreign:
                self.seal(batch)
        self.go_on_leaving()
        if cancelled:
            self._end()

    def go_on_leaving(self) -> None:
        """Cancel what nobody awaits."""
        while self.state == "leaving":
            unwanted = [b for b in self.batches if not b.is_awaited and not self.foreign]
            if unwanted:
                self.finish(unwanted[0], CANCELLED)
            elif not self.batches:
                self._end()
            else:
                return

    def _end(self) -> None:
        self.state = "closed"
        if not self.foreign:
            self.to_delete |= self.cleared
            self.delete_values()
            if self.cache is not None and not self.keeps_map:
                self.cache.clear()

    # What can be seen

    def statistics(self) -> dict[str, int]:
        queued = [b for b in self.batches if b.state in ("open", "sealed")]
        return {
            "hits": self.hits,
            "shared": self.shared,
            "keys": sum(self.sent),
            "batches": len(self.sent),
            "queued": sum(len(batch.entries) for batch in queued),
            "running": len(self.batches) - len(queued),
            "cached": 0 if self.cache is None else len(self.cache),
        }

    def waiting(self) -> Iterator[Batch]:
        """The batches that wait for a token."""
        return (b for b in self.batches if b.state == "sealed" or (b.state == "open" and b.is_due))
