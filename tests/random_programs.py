"""Programs that are made up, and made smaller: plain data, which ``random_world.py`` runs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Source:
    """A loader of the program."""

    #: What it loads from: numbers of loaders.
    needs: tuple[int, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    #: Whether all that it loads is loaded before any of it is awaited, some time later.
    early: bool = False
    kind: str = "list"
    #: Of ten keys so many fail; of ten calls so many fail, in one of these ways.
    bad_keys: int = 0
    bad_calls: int = 0
    way: str = "raise"
    sleep: float = 0
    limiter: str | None = None
    value_cache: str | None = None
    keys: str = "int"
    cache_map: bool = False
    arguments: bool = False

    def option(self, name: str, default: Any = None) -> Any:
        return dict(self.options).get(name, default)


@dataclass(frozen=True)
class Op:
    name: str
    loader: int = 0
    keys: tuple[int, ...] = ()
    seconds: float = 0
    #: The task that it cancels.
    task: int = 0


@dataclass(frozen=True)
class Program:
    seed: int
    sources: tuple[Source, ...]
    tasks: tuple[tuple[Op, ...], ...]
    place: str = "scope"
    scope_limiter: bool = False
    #: When the block ends, and how.
    until: float = 20
    end: str = "left"


TIMES = (0, 0, 0, 0.5, 1, 1, 2)


def program(seed: int) -> Program:
    """Make a program up."""
    rng = random.Random(seed)
    number = rng.randint(1, 4)
    cyclic = rng.random() < 0.15

    def source(index: int) -> Source:
        others = range(number) if cyclic else range(index + 1, number)
        options: dict[str, Any] = {}
        if rng.random() < 0.3:
            options["max_batch_size"] = rng.randint(1, 3)
        elif rng.random() < 0.2:
            options["max_batch_weight"] = 4
        for name, values in {
            "cache": (True, True, True, True, False, "pending"),
            "defer_hits": (False, False, True),
            "deduplicate": (False, False, True),
            "cache_errors": (True, True, False),
            "schedule": ("quiescent", "quiescent", "quiescent", "rounds", "window", "manual"),
            "max_queue_size": (None, None, None, None, 3),
        }.items():
            if (value := rng.choice(values)) not in (None, "quiescent"):
                options[name] = value
        return Source(
            tuple(other for other in others if rng.random() < 0.6),
            tuple(options.items()),
            kind=rng.choice(("list", "list", "mapping", "stream", "generator")),
            bad_keys=rng.choice((0, 0, 0, 2)),
            bad_calls=rng.choice((0, 0, 0, 3)),
            way=rng.choice(("raise", "raise", "frozen", "short", "stray")),
            sleep=rng.choice((0, 0, 1, 2)),
            limiter=rng.choice((None, None, None, "own", "shared", "shared")),
            value_cache=rng.choice((None, None, None, "slow", "failing", "hanging")),
            keys=rng.choice(("int", "int", "int", "own", "broken")),
            cache_map=rng.random() < 0.1,
            arguments=rng.random() < 0.2,
            early=rng.random() < 0.3,
        )

    def op() -> Op:
        name = rng.choice(
            (
                *("load", "load", "load", "load", "load_many", "load_many", "load_many", "start"),
                *("timeout", "timeout", "cancel", "sleep", "sleep", "clear", "prime", "force"),
                *("clear_all", "dispatch", "hold", "again", "load_required"),
            )
        )
        keys = tuple(rng.randint(0, 4) for _ in range(rng.randint(1, 4)))
        task = rng.randrange(tasks)
        return Op(name, rng.randrange(number), keys, rng.choice(TIMES), task)

    tasks = rng.randint(1, 6)
    return Program(
        seed,
        tuple(source(index) for index in range(number)),
        tuple(tuple(op() for _ in range(rng.randint(1, 6))) for _ in range(tasks)),
        place=rng.choice(("scope", "scope", "group", "cancelled group")),
        scope_limiter=rng.random() < 0.15,
        until=rng.choice((0, 1, 2, 3, 20, 20, 20)),
        end=rng.choice(("left", "left", "raises", "cancelled")),
    )


def simpler(program: Program) -> Iterator[Program]:
    """Make programs of it that lack something."""
    for index in range(len(program.tasks)):
        yield replace(program, tasks=(*program.tasks[:index], *program.tasks[index + 1 :]))
    for index, task in enumerate(program.tasks):
        for at, op in enumerate(task):
            smaller = [(*task[:at], *task[at + 1 :])]
            if len(op.keys) > 1:
                smaller.append((*task[:at], replace(op, keys=op.keys[:-1]), *task[at + 1 :]))
            for one in smaller:
                yield replace(
                    program, tasks=(*program.tasks[:index], one, *program.tasks[index + 1 :])
                )
    plain = Source()
    for index, source in enumerate(program.sources):
        changes = [
            replace(source, **{name: getattr(plain, name)})
            for name in source.__dataclass_fields__
            if getattr(source, name) != getattr(plain, name)
        ]
        changes += [
            replace(source, options=tuple(o for o in source.options if o != option))
            for option in source.options
        ]
        for changed in changes:
            yield replace(
                program, sources=(*program.sources[:index], changed, *program.sources[index + 1 :])
            )
    default = Program(0, (), ())
    for name in ("place", "scope_limiter", "until", "end"):
        if getattr(program, name) != getattr(default, name):
            yield replace(program, **{name: getattr(default, name)})


def shrink(program: Program, fails: Callable[[Program], bool]) -> Program:
    """Leave out of it whatever can be left out while it still ``fails``."""
    while (one := next((one for one in simpler(program) if fails(one)), None)) is not None:
        program = one
    return program
