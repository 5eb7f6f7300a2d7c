"""
Who waits for whom: an await by which a batch function, or a schedule, would wait for itself is refused.

A function goes on when everything that it awaits can, and a batch that was not sent yet when one of
those ends who hold the tokens that it needs. So each batch *needs* some sets of batches, of each of
which one has to end; a function that is about to await must not be needed, by whatever ways, by what it
awaits. Nothing that waits already can be part of a cycle, as it was looked at when it began to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from ._errors import LoadDeadlockError, show
from ._results import excerpt

if TYPE_CHECKING:
    from ._batch import Batch

__all__ = ("begin_wait", "end_wait")


def begin_wait(origin: Batch, batches: Sequence[Batch]) -> None:
    """
    The function of ``origin``, or its schedule, is about to await loads of other batches.

    :raises LoadDeadlockError: if one of ``batches`` could not end before it does
    """
    if not origin.is_at_work and origin.schedule_scope is None:
        return  # a task that it left behind: nobody waits for that
    if origin in batches or (_may_be_needed(origin) and _may_meet(origin, batches)):
        _check(origin, batches)
    if origin.waits is None:
        origin.waits = {}
    for batch in batches:
        origin.waits[batch] = origin.waits.get(batch, 0) + 1
        if batch.awaited_by is None:
            batch.awaited_by = {}
        batch.awaited_by[origin] = None


def end_wait(origin: Batch, batches: Sequence[Batch]) -> None:
    waits = origin.waits or {}
    for batch in batches:
        left = waits.get(batch, 0) - 1
        if left >= 0:
            waits[batch] = left
            if not left:
                del waits[batch]
                (batch.awaited_by or {}).pop(origin, None)


def _may_be_needed(batch: Batch) -> bool:
    """Whether anything can wait for this one: most functions that load are awaited by no other one."""
    return bool(batch.awaited_by) or _has_a_last_token(batch)


def _has_a_last_token(batch: Batch) -> bool:
    return any(batch in gate.holders and gate.limiter.available_tokens <= 0 for gate in batch.gates)


def _needs(batch: Batch, waiter: Batch) -> Iterator[Iterable[Batch]]:
    """
    Give the sets of batches of each of which one has to end before this one does.

    :param waiter: whose function is about to await, and so does not end by itself
    """
    for one in batch.waits or ():
        if not one.is_done:
            yield (one,)
    # One without a task waits for ``dispatch()``, which anybody may call; but then for its tokens too.
    for gate in () if batch.is_at_work else batch.gates:
        needed = gate.blockers(batch)
        # One that awaits nothing ends by itself.
        if needed and all(b is waiter or b.waits or not b.is_at_work for b in needed):
            yield needed


def _may_meet(waiter: Batch, targets: Sequence[Batch]) -> bool:
    """
    Whether what the targets need, and who needs ``waiter``, may have something in common.

    Looked at from both ends in turn, edge by edge: it costs what the shorter way costs, and one of them
    is short in most graphs, however dense these are.
    """

    def needed_by(batch: Batch) -> Iterable[Batch]:
        # Who waits for a token stands in no list: it may be a target.
        return chain(targets[:1] if _has_a_last_token(batch) else (), batch.awaited_by or ())

    def needed(batch: Batch) -> Iterable[Batch]:
        return chain.from_iterable(_needs(batch, waiter))

    above, below = {waiter: None}, dict.fromkeys(targets)
    both = zip(_walk(above, needed_by), _walk(below, needed))
    return any(one in below or other in above for one, other in both)


def _walk(
    seen: dict[Batch, None], neighbours: Callable[[Batch], Iterable[Batch]]
) -> Iterator[Batch]:
    """Give the end of each edge that can be reached, and note it as seen."""
    todo = list(seen)
    while todo:
        for one in neighbours(todo.pop()):
            if one not in seen:
                seen[one] = None
                todo.append(one)
            yield one


def _check(waiter: Batch, targets: Sequence[Batch]) -> None:
    """:raises LoadDeadlockError: if one of the targets needs ``waiter`` to end"""
    needs: dict[Batch, list[Iterable[Batch]]] = {}
    todo = [batch for batch in targets if not batch.is_done]
    reached = False
    while todo:
        batch = todo.pop()
        if batch is waiter:
            reached = True
        elif batch not in needs:
            needs[batch] = list(_needs(batch, waiter))
            todo.extend(chain.from_iterable(needs[batch]))
    if reached:
        stuck = _stuck(needs)
        for target in targets:
            if target is waiter or target in stuck:
                raise _deadlock(waiter, target, needs, stuck)


def _stuck(needs: dict[Batch, list[Iterable[Batch]]]) -> set[Batch]:
    """Return those that never end, if what is not in ``needs`` (the one who asks) never does."""
    # For each set its batch; for each batch the sets that it is in. A set is done with when the first
    # of its members is known to end, and a batch when all its sets are: each is looked at once.
    left = {batch: len(sets) for batch, sets in needs.items()}
    sets_with: dict[Batch, list[list[Batch]]] = {}
    for batch, sets in needs.items():
        for members in sets:
            waiting = [batch]
            for member in members:
                sets_with.setdefault(member, []).append(waiting)
    ending = [batch for batch, n in left.items() if not n]
    while ending:
        batch = ending.pop()
        for waiting in sets_with.get(batch, ()):
            if waiting:
                freed = waiting.pop()
                left[freed] -= 1
                if not left[freed]:
                    ending.append(freed)
    return {batch for batch, n in left.items() if n}


def _deadlock(
    waiter: Batch, target: Batch, needs: dict[Batch, list[Iterable[Batch]]], stuck: set[Batch]
) -> LoadDeadlockError:
    path = [waiter, target]
    while path[-1] is not waiter and path.count(path[-1]) == 1:
        members = next(
            some for some in needs[path[-1]] if all(b is waiter or b in stuck for b in some)
        )
        path.append(waiter if waiter in members else next(iter(members)))
    cycle = " -> ".join(batch.name for batch in path)
    error = LoadDeadlockError(
        f"this await can never end, as it waits for the batch function or schedule it is in: {cycle}. "
        "Load what does not depend on this batch, or raise the limiter's tokens"
    )
    show(error, " -> ".join(f"{batch.name} {excerpt(list(batch.keys))}" for batch in path))
    return error
