"""
One batch: a synchronous state machine. Nothing in here awaits, and nothing else changes a batch.

Theory of operation
===================

A batch collects *entries*: one handle for each key that the batch function will be given. All
other loads of an entry (a second ``load`` of a pending key, a key deduplicated with the cache off)
are its *followers*, handles of their own that settle with it. A ``load_many`` is one load in every
batch that it touches, whatever the number of its keys. So::

    loads on a batch  =  entries made by load  +  followers  +  load_manys
    ``live``          =  how many of these are still wanted (see the table in _handle)

When ``live`` drops to zero nobody wants the batch: sealed or running, it is cancelled at once; an
open one finds out when it is sealed, because until then an await may revive a load. That one
number is kept up to date by whoever changes sides, so cancelling n waiters costs O(n). Which keys
are unwanted is worked out only once, at the seal, and only if ``live`` ever went down.

The states and all moves between them stand in ``TRANSITIONS``. A move that is not in the table
raises and changes nothing.

==========  ====================================================================================
OPEN        takes keys; a task runs the schedule (under ``manual()`` there is none)
SEALED      takes no more keys; waits for a token of the limiter, where there is one
RUNNING     the batch function runs
DONE        all loads are settled; a cancelled function may still be cleaning up
==========  ====================================================================================
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Iterator, Sequence
from itertools import chain, compress, count
from typing import TYPE_CHECKING, Any, Final, Protocol

from ._backend import Waiters, wake_all
from ._cache import ValueCache
from ._errors import LoadCancelledError, LoadDeadlockError
from ._handle import Failure, LoadHandle, LoadManyHandle, bare_handle, outcome_of, running_batch
from ._results import ResultRules, aligned, excerpt, on_missing_value, wrong_result
from .hooks import BatchCancelled, BatchFailed, BatchFinished, BatchSealed, Hooks

if TYPE_CHECKING:
    from anyio import CancelScope, CapacityLimiter

    from ._dispatcher import Dispatcher
    from .schedules import Schedule

__all__ = ("TRANSITIONS", "Batch", "BatchRules", "new_handle")

_numbers = count(1)

OPEN: Final = "open"
SEALED: Final = "sealed"
RUNNING: Final = "running"
DONE: Final = "done"

#: state -> event -> next state. The diagram in the documentation is generated from this table.
TRANSITIONS: Final = {
    OPEN: {"seal": SEALED, "fail": DONE, "cancel": DONE},
    SEALED: {"start": RUNNING, "drop": DONE, "fail": DONE, "cancel": DONE},
    RUNNING: {"settle": DONE, "fail": DONE, "cancel": DONE},
    DONE: {},
}


class _Moves(dict[str, str]):
    """What one event makes of each state in which it may come."""

    def __init__(self, event: str) -> None:
        super().__init__((s, moves[event]) for s, moves in TRANSITIONS.items() if event in moves)
        self._event = event

    def __missing__(self, state: str) -> str:
        raise RuntimeError(f"a batch cannot {self._event} while {state}")


_SEAL, _START, _DROP = _Moves("seal"), _Moves("start"), _Moves("drop")
_SETTLE, _FAIL, _CANCEL = _Moves("settle"), _Moves("fail"), _Moves("cancel")


class BatchRules(ResultRules, Protocol):
    """What a batch asks of its loader."""

    limiter: CapacityLimiter | None
    value_cache: ValueCache[Any, Any] | None
    _hooks: Hooks | None
    #: Whether the function is known to be an async generator.
    _streams: bool
    #: How often it was called, and with how many keys.
    _batches: int
    _keys: int

    def batch_load_fn(self, keys: list[Any], /) -> Any: ...

    def _keeps_error(self, error: Any) -> bool: ...

    def _evict(self, pairs: Iterable[tuple[Any, LoadHandle[Any]]]) -> None: ...

    def _take_deletions(self) -> list[Any]: ...

    def _delete_values(self, cache_keys: list[Any]) -> None: ...

    def _batch_left(self, batch: Batch) -> None: ...


def new_handle(key: Any, batch: Batch | None, waiters: Any = None) -> LoadHandle[Any]:
    handle: LoadHandle[Any] = bare_handle()
    handle._key = key
    handle._batch = batch
    handle._content = waiters
    return handle


def _as_cache_keys(key: Any, rules: ResultRules) -> Iterator[Any]:
    """A stream may give cache keys, as a mapping does, or the keys as it was given them."""
    yield key
    yield rules._cache_key(key)


class Batch:
    """See the theory of operation on top of this module."""

    __slots__ = (
        "__weakref__",
        "_deferred",
        "_followers",
        "_index",
        "_number",
        "_sift_needed",
        "_taken_out",
        "backend",
        "cache_keys",
        "cleared",
        "dispatcher",
        "entries",
        "keys_",
        "live",
        "load_manys",
        "origins",
        "rules",
        "schedule",
        "schedule_scope",
        "state",
        "waits",
        "watchers",
        "worker_scope",
    )

    def __init__(
        self, rules: BatchRules, dispatcher: Dispatcher, schedule: Schedule, own_cache_keys: bool
    ) -> None:
        self.rules = rules
        self.dispatcher = dispatcher
        self.backend = dispatcher.backend
        self.schedule = schedule
        #: One of the four states. Changed only by looking up the next one.
        self.state = OPEN
        #: Keys, cache keys and entries run in parallel. Appended to by the loader while OPEN,
        #: filtered by ``_sift`` only. Without ``get_cache_key`` the first two are one list.
        self.keys_: list[Any] = []
        self.cache_keys: list[Any] = [] if own_cache_keys else self.keys_
        self.entries: list[LoadHandle[Any]] = []
        #: How many loads are still wanted. Changed by the loader when it adds a load, by ``share``,
        #: ``join``, ``give_up``, ``revive`` and ``_sift``.
        self.live = 0
        self.load_manys: dict[LoadManyHandle[Any], None] = {}
        #: load_manys that wait for some entry to settle.
        self.watchers: Waiters = {}
        #: What to cancel to make the schedule, or the function, let go. Set by the dispatcher.
        self.schedule_scope: CancelScope | None = None
        self.worker_scope: CancelScope | None = None
        self._followers: dict[LoadHandle[Any], list[LoadHandle[Any]]] | None = None
        #: Hits that wait for this batch (``defer_hits``), with their outcomes. No loads of it.
        self._deferred: dict[LoadHandle[Any], Any] | None = None
        #: Cache key -> entry, where the batch deduplicates or is fed by a stream.
        self._index: dict[Any, LoadHandle[Any]] | None = None
        #: The batches whose functions loaded from this one.
        self.origins: set[Batch] | None = None
        #: The batches that this one's function awaits now, and how many of its tasks do.
        self.waits: dict[Batch, int] | None = None
        #: Cache keys that were cleared since: their values are not to be stored anywhere.
        self.cleared: frozenset[Any] = frozenset()
        #: Whether ``live`` ever went down, or an entry was taken out.
        self._sift_needed = False
        #: How many of the entries were taken out, and wait for the seal to leave the lists.
        self._taken_out = 0
        self._number = 0

    @property
    def number(self) -> int:
        """For hooks: unique in the process, and not given before one asks for it."""
        if not self._number:
            self._number = next(_numbers)
        return self._number

    # What schedules see (BatchView)

    @property
    def name(self) -> str:
        return self.rules.name

    @property
    def keys(self) -> tuple[Any, ...]:
        return tuple(k for k, entry in zip(self.keys_, self.entries) if entry._batch is self)

    @property
    def size(self) -> int:
        return len(self.entries) - self._taken_out

    @property
    def added(self) -> int:
        return len(self.keys_)  # nothing leaves the list while the batch is open

    @property
    def is_open(self) -> bool:
        return self.state is OPEN

    def checkpoint(self) -> Awaitable[None]:
        passing: Awaitable[None] = self.backend.checkpoint()
        return passing

    @property
    def is_queued(self) -> bool:
        return self.state is OPEN or self.state is SEALED

    @property
    def is_done(self) -> bool:
        return self.state is DONE

    # Loads come in

    def share(self, entry: LoadHandle[Any], key: Any) -> LoadHandle[Any]:
        """Return a new load of a pending entry."""
        follower = new_handle(key, self)
        self._follow(entry, follower)
        self.live += 1
        self.note_origin()
        return follower

    def _follow(self, entry: LoadHandle[Any], follower: LoadHandle[Any]) -> None:
        if self._followers is None:
            self._followers = {}
        self._followers.setdefault(entry, []).append(follower)

    def defer(self, hit: LoadHandle[Any], waiters: Any) -> LoadHandle[Any]:
        """Return a handle that settles as ``hit`` did, but not before this batch does."""
        if self._deferred is None:
            self._deferred = {}
        handle = new_handle(hit._key, self, waiters)
        self._deferred[handle] = hit._content
        return handle

    def join(self, many: LoadManyHandle[Any]) -> None:
        """Count ``many`` as one load of this batch."""
        if many not in self.load_manys:
            self.load_manys[many] = None
            self.live += 1
            many._batches.setdefault(self, [])
            self.note_origin()

    def note_origin(self) -> None:
        """Remember it if the load comes from a batch function."""
        origin = running_batch.get()
        if origin is not None:
            if self.origins is None:
                self.origins = set()
            self.origins.add(origin)

    def find(self, cache_key: Any) -> LoadHandle[Any] | None:
        """Return the entry to share, in a batch that deduplicates by itself."""
        return None if self._index is None else self._index.get(cache_key)

    def remember(self, cache_key: Any, entry: LoadHandle[Any]) -> None:
        if self._index is None:
            self._index = {}
        self._index[cache_key] = entry

    # Loads change their minds

    def give_up(self, load: LoadHandle[Any] | LoadManyHandle[Any]) -> None:
        """A load that was wanted is not any more: every await of it was cancelled."""
        if self._is_load(load):
            self.live -= 1
            self._sift_needed = True
            if not self.live and self.state is not OPEN:
                self.cancel("all its loads were given up", None)
        self.dispatcher.reconsider()

    def revive(self, load: LoadHandle[Any] | LoadManyHandle[Any]) -> None:
        """A load that was given up is awaited again."""
        if self._is_load(load):
            self.live += 1

    def _is_load(self, load: LoadHandle[Any] | LoadManyHandle[Any]) -> bool:
        if isinstance(load, LoadManyHandle):
            return load in self.load_manys
        return self._deferred is None or load not in self._deferred

    @property
    def is_awaited(self) -> bool:
        """Whether some task awaits a load, or a deferred hit, of this batch right now."""
        return any(many._is_awaited for many in self.load_manys) or any(
            handle._waiters for handle in self._all_handles()
        )

    def _all_handles(self) -> Iterable[LoadHandle[Any]]:
        return chain(self.entries, *(self._followers or {}).values(), self._deferred or ())

    # From state to state

    def seal(self, reason: str) -> None:
        """
        Take no more keys, and let go of those that nobody wants any more.

        :param reason: "schedule", "full", "dispatch" or "close"
        """
        self.state = _SEAL[self.state]
        self.rules._batch_left(self)
        if self._sift_needed:
            self._sift(abandoned_too=True)
        if self.schedule_scope is not None:
            self.schedule_scope.cancel()
        if self.rules._hooks is not None:
            size = len(self.entries)
            self.rules._hooks(BatchSealed(self.name, self.number, reason, size))
        if not self.entries and self.state is SEALED:  # a hook may have ended it
            self.state = _DROP[self.state]
            self._after_settling()

    def start(self) -> None:
        """From now on the batch runs: who gives up all of it cancels its task."""
        self.state = _START[self.state]

    def keys_to_send(self, *, distinct: bool) -> list[Any]:
        """
        Return the keys for the batch function.

        :param distinct: give each distinct key once; the other entries of a key follow the first
        """
        keys = self.distinct_keys() if distinct else list(self.keys_)
        self.rules._batches += 1
        self.rules._keys += len(keys)
        return keys

    def distinct_keys(self) -> list[Any]:
        first: dict[Any, LoadHandle[Any]] = {}
        self._index = first
        keys = []
        for key, entry in zip(self.keys_, self.entries):
            cache_key = self.rules._cache_key(key)
            if cache_key in first:
                self._follow(first[cache_key], entry)
            else:
                first[cache_key] = entry
                keys.append(key)
        return keys

    def _sift(self, *, abandoned_too: bool) -> None:
        """Drop the entries that were primed away and, at the seal, those that nobody wants."""
        wanted: set[LoadHandle[Any]] = set()
        live = 0
        for many in self.load_manys:
            handles = self._loads_of(many)
            if handles and many._is_wanted:
                live += 1
                wanted.update(handles)
        followers = self._followers or {}
        keys, cache_keys, entries, unwanted = [], [], [], []
        for key, cache_key, entry in zip(self.keys_, self.cache_keys, self.entries):
            if entry._batch is not self:
                continue
            loads = sum(load._is_wanted for load in (entry, *followers.get(entry, ())))
            if abandoned_too and not loads and entry not in wanted:
                unwanted.append((cache_key, entry))
                continue
            live += loads
            keys.append(key)
            cache_keys.append(cache_key)
            entries.append(entry)
        self.cache_keys = keys if self.cache_keys is self.keys_ else cache_keys
        self.keys_, self.entries, self.live = keys, entries, live
        self._taken_out = 0
        if unwanted:
            error = LoadCancelledError(
                f"a load of {self.rules.name} was given up before its batch was sent"
            )
            self.rules._evict(unwanted)
            for _, entry in unwanted:
                self._settle_entry(entry, Failure(error, None))
        # What asks for nothing in here any more is no load of this batch.
        self.load_manys = {many: None for many in self.load_manys if self._loads_of(many)}

    def _loads_of(self, many: LoadManyHandle[Any]) -> list[LoadHandle[Any]]:
        """Return what ``many`` waits for in here, but for deferred hits."""
        return [handle for handle in many._pending_in(self) if self._is_load(handle)]

    # Outcomes

    def settle(self, result: object) -> None:
        """
        Give every load the value for its key.

        :raises BatchResultError: if ``result`` does not have one value for each key
        """
        values: Any = result
        if type(result) is not list or len(result) != len(self.keys_):
            values = aligned(self.rules, self.keys_, result)
        errors = 0
        for kind in set(map(type, values)):
            if issubclass(kind, Exception):
                values = list(map(outcome_of, values))
                errors = sum(type(value) is Failure for value in values)
                break
        self.state = _SETTLE[self.state]
        followers = self._followers
        waiting: list[Any] = []
        for entry, value in zip(self.entries, values):
            waiters = entry._content
            entry._content = value
            entry._batch = None
            if waiters:
                if type(waiters) is dict:
                    waiting.extend(waiters)
                else:
                    waiting.append(waiters)
            if followers is not None and entry in followers:
                for follower in followers[entry]:
                    self._settle_handle(follower, value)
        if waiting:
            self.backend.wake(waiting)
        self._finish(zip(self.cache_keys, self.entries) if errors else (), errors)

    def settle_some(self, found: Iterable[tuple[Any, LoadHandle[Any]]]) -> None:
        """Settle some entries by values from elsewhere; the others remain for the function."""
        for value, entry in found:
            self._settle_entry(entry, value)
        wake_all(self.backend, self.watchers)
        self.dispatcher.reconsider()
        self._sift(abandoned_too=False)
        if not self.entries:
            self.state = _SETTLE[self.state]
            self._finish((), 0)
        elif not self.live:
            self.cancel("all its loads were given up or answered otherwise", None)

    def settle_pair(self, pair: object) -> None:
        """
        Settle all loads of one key of a stream.

        :raises BatchResultError: if ``pair`` is no pair, or its key is unknown or was given before
        """
        rules, index = self.rules, self._index or {}
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise wrong_result(rules, self.keys_, f"yielded {excerpt(pair)}, no pair")
        key, value = pair
        entry = cache_key = None
        for cache_key in _as_cache_keys(key, rules):
            try:
                entry = index.get(cache_key)
            except TypeError:  # not hashable, so the key, not its cache key
                continue
            if entry is not None:
                break
        if entry is None:
            raise wrong_result(
                rules, self.keys_, f"yielded {excerpt(key)}, which was not asked for"
            )
        if entry._batch is None:
            raise wrong_result(rules, self.keys_, f"yielded {excerpt(key)} twice")
        self._settle_entry(entry, outcome_of(value))
        self._consider_outcome(cache_key, entry)
        wake_all(self.backend, self.watchers)
        self.dispatcher.reconsider()

    def settle_rest(self) -> None:
        """The stream has ended: what it did not give is missing."""
        index = self._index or {}
        # All that runs code of the user comes before anything changes.
        rest = [
            (cache_key, entry, outcome_of(on_missing_value(self.rules, entry._key)))
            for cache_key, entry in index.items()
            if entry._batch is not None
        ]
        self.state = _SETTLE[self.state]
        for _, entry, outcome in rest:
            self._settle_entry(entry, outcome)
        errors = sum(type(entry._content) is Failure for entry in index.values())
        self._finish([(cache_key, entry) for cache_key, entry, _ in rest], errors)

    def _finish(self, settled: Iterable[tuple[Any, LoadHandle[Any]]], errors: int) -> None:
        """End a batch that gave its result; its errors among ``settled`` may not be cached."""
        try:
            for cache_key, entry in settled:
                self._consider_outcome(cache_key, entry)
        finally:  # a predicate may raise a KeyboardInterrupt, or the like
            self._after_settling()
        if self.rules._hooks is not None:
            self.rules._hooks(BatchFinished(self.name, self.number, errors))

    def fail(self, error: BaseException) -> None:
        """Give every unsettled load this error, and forget these keys."""
        self.state = _FAIL[self.state]
        self._fail(Failure(error, error.__traceback__))
        if self.rules._hooks is not None:
            self.rules._hooks(BatchFailed(self.name, self.number, error))

    def cancel(self, why: str, cause: BaseException | None) -> None:
        """Settle every load as cancelled, forget the keys, and cancel the function."""
        error = LoadCancelledError(f"a batch of {self.rules.name} was cancelled: {why}")
        error.__cause__ = cause
        self.state = _CANCEL[self.state]
        self._fail(Failure(error, None))
        for scope in (self.schedule_scope, self.worker_scope):
            if scope is not None:
                scope.cancel()
        if self.rules._hooks is not None:
            self.rules._hooks(BatchCancelled(self.name, self.number, why))

    def take_out(self, entry: LoadHandle[Any], outcome: Any) -> bool:
        """Settle an entry that is still queued by a value from elsewhere; say if that was so."""
        if self.state is RUNNING:
            return False
        self._settle_entry(entry, outcome)
        self._sift_needed = True
        self._taken_out += 1
        wake_all(self.backend, self.watchers)
        self.dispatcher.reconsider()
        if self.state is SEALED:
            self._sift(abandoned_too=False)
            if not self.live:
                self.cancel("all its loads were given up or answered otherwise", None)
        return True

    def _fail(self, failure: Failure) -> None:
        # No list of pairs: this may be thousands of keys, at a time when nothing can be freed.
        pending = [entry._batch is not None for entry in self.entries]
        for entry in compress(self.entries, pending):
            self._settle_entry(entry, failure)
        self.rules._evict(compress(zip(self.cache_keys, self.entries), pending))
        self.rules._batch_left(self)
        self._after_settling()

    def _consider_outcome(self, cache_key: Any, entry: LoadHandle[Any]) -> None:
        outcome: Any = entry._content
        if type(outcome) is Failure and not self.rules._keeps_error(outcome.exception):
            # Among the followers may be an entry of its own: cleared and loaded again while queued.
            same = (entry, *(self._followers or {}).get(entry, ()))
            self.rules._evict((cache_key, handle) for handle in same)

    def _settle_entry(self, entry: LoadHandle[Any], outcome: Any) -> None:
        self._settle_handle(entry, outcome)
        if self._followers is not None:
            for follower in self._followers.get(entry, ()):
                # In a stream, a follower may be an entry that has followers: see distinct_keys.
                self._settle_entry(follower, outcome)

    def _settle_handle(self, handle: LoadHandle[Any], outcome: Any) -> None:
        if handle._batch is None:
            return  # in a stream, an entry that is a follower too comes twice if the batch fails
        waiters = handle._content
        handle._content = outcome
        handle._batch = None
        if waiters:
            self.backend.wake(waiters if type(waiters) is dict else (waiters,))

    def _after_settling(self) -> None:
        if self._deferred is not None:
            for handle, outcome in self._deferred.items():
                self._settle_handle(handle, outcome)
        if self.watchers:
            wake_all(self.backend, self.watchers)
        self.dispatcher.batch_done(self)
        # A load_many, and the traceback of an error, may refer to its batch for long.
        self.entries, self.cache_keys, self.load_manys = [], [], {}
        self._followers = self._deferred = self._index = self.origins = None

    # Deadlocks

    def begin_wait(self, batches: Sequence[Batch]) -> None:
        """
        This batch's function is about to await loads of other batches.

        :raises LoadDeadlockError: if one of ``batches`` could not end before this one does
        """
        for batch in batches:
            _check_deadlock(self, batch)
        if self.waits is None:
            self.waits = {}
        for batch in batches:
            self.waits[batch] = self.waits.get(batch, 0) + 1

    def end_wait(self, batches: Sequence[Batch]) -> None:
        waits = self.waits or {}
        for batch in batches:
            waits[batch] -= 1
            if not waits[batch]:
                del waits[batch]

    def __repr__(self) -> str:
        return f"<Batch {self.state} of {self.rules.name}, {len(self.keys_)} keys>"


def _releasers(batch: Batch) -> list[Batch] | None:
    """
    Return the batches of which any one, by ending its function, lets ``batch`` go on.

    ``None`` means that nothing holds it up, or nothing known: a token that somebody else holds may
    be returned whenever he likes.
    """
    if batch.state is DONE:
        return None
    if batch.state is RUNNING:
        return [batch]
    limiter = batch.rules.limiter
    if limiter is None or limiter.available_tokens > 0:
        return None
    borrowers = limiter.statistics().borrowers
    holders = [holder for holder in borrowers if isinstance(holder, Batch)]
    return None if batch in holders or len(holders) < len(borrowers) else holders


def _check_deadlock(waiter: Batch, target: Batch) -> None:
    """
    Refuse an await by which the function of ``waiter`` would wait for itself.

    A function goes on when everything that it awaits can, so each of its awaits is one clause of
    batches of which one has to end. All functions behind ``target`` are taken as stuck until each
    of their clauses has a way out; ``waiter`` has none, as it is about to wait for ``target``.

    :raises LoadDeadlockError: if what ``target`` needs remains stuck
    """
    needed = _releasers(target)
    if needed is None:
        return
    stuck = {waiter}
    clauses: dict[Batch, list[list[Batch]]] = {}
    unseen = list(needed)
    while unseen:
        batch = unseen.pop()
        if batch not in stuck:
            stuck.add(batch)
            clauses[batch] = [c for c in map(_releasers, batch.waits or ()) if c is not None]
            unseen.extend(chain(*clauses[batch]))
    found = True
    while found:
        found = False
        for batch in clauses.keys() & stuck:
            if all(any(b not in stuck for b in clause) for clause in clauses[batch]):
                stuck.remove(batch)
                found = True
    if any(batch not in stuck for batch in needed):
        return
    path = [waiter] if target in needed else [waiter, target]
    while path.count(path[-1]) == 1:
        path.append(needed[0])
        held = [c for c in clauses.get(path[-1], ()) if all(b in stuck for b in c)]
        needed = held[0] if held else [waiter]
    cycle = " -> ".join(f"{batch.rules.name} {excerpt(batch.keys_)}" for batch in path)
    raise LoadDeadlockError(
        f"this await can never end, as it waits for the batch function it is in: {cycle}. "
        "Load what does not depend on this batch, or raise the limiter's tokens"
    )
