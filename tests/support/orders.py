"""Schedulers that run the tasks of a round in any order: one from a seed, or all there are.

What is permuted, and why that is fair
--------------------------------------
Both backends work in rounds: all that is ready runs once, and what becomes ready meanwhile waits
for the next round. In which order the tasks of a round run is nobody's promise, and code that
claims to work under any schedule has to work under each of them.

trio promises nothing. By itself it only reverses some rounds, but it has a switch, made for tests,
to shuffle each round with a random source that can be replaced. That reaches every order.

asyncio promises that callbacks run in the order in which ``call_soon`` was called, and much code
relies on it, in asyncio and anyio too: done callbacks of a future run in the order in which they
were added; ``call_soon`` followed by ``sleep(0)`` returns after the callback ran. Steps of tasks
are put into that queue as well, but in which order tasks proceed is promised nowhere, and it is
another one with eager tasks. So, within a round,

* callbacks never change places with each other;
* steps of tasks do, freely. No task has two steps in a round, so those of one task never do;
* a step and a callback change places if two different tasks put them into the queue, and the
  callback was not put there by the task that steps. Had these two tasks run in the other order in
  the round before, the step and the callback would have come in the other order. All that no task
  put there (timers, sockets, threads and other callbacks did) keeps its order, to be careful.

Without the last rule each callback would be a fence, and a task group leaves one for each task that
ends. A round could then hardly differ from the round before: of the same seeds, one in ten still
found that a dispatcher depends on the schedule (``batch_count`` in ``test_support_orders.py``).

The same seed has to give the same run again, but both libraries keep tasks in sets (what a cancel
scope cancels, for one), whose order changes from run to run. On both backends steps are therefore
sorted by the age of their tasks before they are permuted.

All runs are in virtual time, where a hang shows at once: with nothing else to do, the clock jumps
to the deadline below. Threads have no place in such runs: nobody controls when they come back.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import Context
from typing import Any, TypeVar
from unittest.mock import patch
from weakref import WeakKeyDictionary

import anyio

from .backends import backend_options, eager
from .virtual_time import VirtualTimeLoop

if sys.version_info >= (3, 11):
    from typing import TypeVarTuple, Unpack
else:
    from typing_extensions import TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# Virtual seconds after which a run counts as hanging: far beyond any timeout that a test would set.
HANG = 1_000_000


class Order:
    """Decides what runs next, throughout one run.

    It is passive before the function under test starts and after it has ended: the tasks by which
    the backends start and stop themselves would only multiply the orders to be tried.
    """

    active = False

    def pick(self, options: int) -> int:
        """Say which of several that may run next does, by its index."""
        return self.choose(options) if self.active and options > 1 else 0

    def choose(self, options: int) -> int:
        raise NotImplementedError

    def shuffle(self, tasks: list[Any]) -> None:
        """Permute a round of trio's, which looks for this method in its random source."""
        rest = tasks.copy()
        tasks[:] = [rest.pop(self.pick(len(rest))) for _ in tasks]


class SeededOrder(Order):
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def choose(self, options: int) -> int:
        return self._random.randrange(options)


class ChosenOrder(Order):
    """Makes the given choices, and after these always the first, number 0."""

    def __init__(self, choices: Sequence[int]) -> None:
        self.choices = list(choices)
        self.options: list[int] = []  # how many there were at each choice

    def choose(self, options: int) -> int:
        position = len(self.options)
        if position == len(self.choices):
            self.choices.append(0)
        self.options.append(options)
        # A number that is too high means that the function is not deterministic; all_orders finds
        # out afterwards, as an exception in here would wreck the scheduler.
        return self.choices[position] % options

    def following(self) -> list[int] | None:
        """Give the choices of the next run, depth first, or ``None`` after the last."""
        for position in reversed(range(len(self.options))):
            if self.choices[position] + 1 < self.options[position]:
                return [*self.choices[:position], self.choices[position] + 1]
        return None


# The names of what steps a task: in C (where a step that no future woke has no name) and in Python.
# Other methods of a task, such as `cancel`, are callbacks like any other.
_STEP_NAMES = {None, "task_wakeup", "__step", "__wakeup"}


def _stepping_task(handle: asyncio.Handle) -> asyncio.Task[Any] | None:
    """Say which task a handle steps, if any; asyncio's log recognises them in the same way."""
    callback = getattr(handle, "_callback", None)
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task) and getattr(callback, "__name__", None) in _STEP_NAMES:
        return owner
    return None


class ShuffledLoop(VirtualTimeLoop):
    """A virtual-time asyncio loop that permutes its ready queue as far as is fair, see above."""

    _ready: deque[asyncio.Handle]

    def __init__(self, order: Order) -> None:
        super().__init__()
        self._order = order
        self._queued_by: dict[asyncio.Handle, asyncio.Task[Any] | None] = {}
        self._age: WeakKeyDictionary[asyncio.Task[Any], int] = WeakKeyDictionary()
        self._births = 0

    def call_soon(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: Unpack[Ts],
        context: Context | None = None,
    ) -> asyncio.Handle:
        # Tasks and futures call this too, also those written in C. Threads do not.
        handle = super().call_soon(callback, *args, context=context)
        self._queued_by[handle] = asyncio.current_task(self)
        return handle

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task = super().create_task(coro, **options)
        self._age_of(task)
        return task

    def _run_once(self) -> None:
        # All steps of this round are there: it adds only callbacks, of timers and sockets.
        # Threads append to the queue at any time, so it is not replaced, and its end not touched.
        if self._order.active and len(self._ready) > 1:
            handles = [self._ready.popleft() for _ in range(len(self._ready))]
            self._ready.extendleft(reversed(self._permuted(handles)))
        self._queued_by.clear()
        super()._run_once()  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]

    def _permuted(self, handles: list[asyncio.Handle]) -> list[asyncio.Handle]:
        # As callbacks keep their order, what a step has to wait for is a number of callbacks, and a
        # callback waits for a number of steps: those that the same task queued before it.
        callbacks: deque[tuple[asyncio.Handle, object, int]] = deque()
        steps_after: defaultdict[int, list[tuple[int, asyncio.Handle, object]]] = defaultdict(list)
        callbacks_until: Counter[object] = Counter()
        steps_by: Counter[object] = Counter()
        queued_by: object
        for handle in handles:
            queued_by = self._queued_by.get(handle)
            task = _stepping_task(handle)
            if task is None:
                callbacks.append((handle, queued_by, steps_by[queued_by]))
                callbacks_until[queued_by] = len(callbacks)
            else:
                after = max(callbacks_until[queued_by], callbacks_until[task])
                steps_after[after].append((self._age_of(task), handle, queued_by))
                steps_by[queued_by] += 1

        permuted: list[asyncio.Handle] = []
        called = 0
        stepped_by: Counter[object] = Counter()
        ready = sorted(steps_after[0])
        while ready or callbacks:
            callback, caller, steps_before = callbacks[0] if callbacks else (None, None, 0)
            may_call = callback is not None and stepped_by[caller] == steps_before
            index = self._order.pick(len(ready) + may_call)
            if index < len(ready):
                _, step, queued_by = ready.pop(index)
                stepped_by[queued_by] += 1
                permuted.append(step)
            else:
                permuted.append(callbacks.popleft()[0])
                called += 1
                ready += sorted(steps_after[called])
        return permuted

    def _age_of(self, task: asyncio.Task[Any]) -> int:
        if task not in self._age:
            self._age[task] = self._births
            self._births += 1
        return self._age[task]


def _run(
    backend: str,
    order: Order,
    async_fn: Callable[[Unpack[Ts]], Awaitable[T]],
    args: tuple[Unpack[Ts]],
) -> T:
    async def main() -> T:
        with anyio.move_on_after(HANG):
            order.active = True
            try:
                return await async_fn(*args)
            finally:
                order.active = False
        raise AssertionError(f"hangs: after {HANG} s of virtual time it had not ended")

    library, options = backend_options(backend, virtual_time=True)
    scheduler: AbstractContextManager[object]
    if library == "trio":
        # `patch` fails if trio has no such names any more: no run only pretends to be shuffled.
        scheduler = patch.multiple(
            "trio._core._run", _ALLOW_DETERMINISTIC_SCHEDULING=True, _r=order
        )
    else:
        scheduler = nullcontext()
        new_loop = lambda: ShuffledLoop(order)  # noqa: E731
        options = {"loop_factory": eager(new_loop) if backend == "asyncio+eager" else new_loop}

    with scheduler:
        return anyio.run(main, backend=library, backend_options=options)


@contextmanager
def _noting(text: Callable[..., str], *args: object) -> Iterator[None]:
    """Add a note to all that is raised; pytest shows it on Python 3.10 too, without add_note."""
    try:
        yield
    except BaseException as exc:
        vars(exc).setdefault("__notes__", []).append(text(*args))
        raise


def run_shuffled(
    backend: str,
    seed: int,
    async_fn: Callable[[Unpack[Ts]], Awaitable[T]],
    *args: Unpack[Ts],
) -> T:
    """Run ``async_fn(*args)`` in virtual time, each round permuted from ``seed``; give its result.

    :param backend: one of ``SHUFFLED_BACKENDS``
    :raises AssertionError: if it hangs. This, and all that ``async_fn`` raises, carries a note with
        the seed.

    """
    with _noting("under run_shuffled({!r}, seed={})".format, backend, seed):
        return _run(backend, SeededOrder(seed), async_fn, args)


def run_seeds(
    backend: str,
    seeds: Iterable[int],
    async_fn: Callable[[Unpack[Ts]], Awaitable[T]],
    *args: Unpack[Ts],
) -> T:
    """Run ``async_fn(*args)`` once per seed, and give the result, which has to be the same always.

    :raises AssertionError: if two seeds give different results
    :raises ValueError: if there is no seed

    """
    outcomes = [(seed, run_shuffled(backend, seed, async_fn, *args)) for seed in seeds]
    if not outcomes:
        raise ValueError("expected at least one seed, got none")

    first_seed, first = outcomes[0]
    for seed, result in outcomes:
        if result != first:
            raise AssertionError(
                f"{backend}: seed {first_seed} gave {first!r}, but seed {seed} gave {result!r}"
            )
    return first


def run_choices(
    backend: str,
    choices: Sequence[int],
    async_fn: Callable[[Unpack[Ts]], Awaitable[T]],
    *args: Unpack[Ts],
) -> T:
    """Run ``async_fn(*args)`` once more under the choices that ``all_orders`` noted."""
    return _run(backend, ChosenOrder(choices), async_fn, args)


def all_orders(
    backend: str,
    async_fn: Callable[[Unpack[Ts]], Awaitable[T]],
    *args: Unpack[Ts],
    limit: int = 10_000,
) -> Iterator[T]:
    """Run ``async_fn(*args)`` under every order of every round, and yield the result of each run.

    A round of n tasks has n! orders, and those of successive rounds multiply: 4 tasks that run in
    two rounds make 576 runs.

    :param limit: the most runs there may be; to stop in silence would make "all orders" untrue
    :raises AssertionError: if there are more; if ``async_fn`` is not deterministic, so that the
        same choices lead to other rounds; if it hangs. This, and all that ``async_fn`` raises,
        carries a note with the choices.

    """
    choices: list[int] | None = []
    options: list[int] = []
    runs = 0
    while choices is not None:
        runs += 1
        assert runs <= limit, f"{backend}: there are more than {limit} orders"
        order = ChosenOrder(choices)
        with _noting("under run_choices({!r}, {})".format, backend, order.choices):
            result = _run(backend, order, async_fn, args)
            # Up to the choice that changed, this run has to repeat the one before.
            assert order.options[: len(choices)] == options[: len(choices)], "not deterministic"
        yield result
        options = order.options
        choices = order.following()
