"""What keys are called in Redis: equal keys alike, others never."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from fractions import Fraction
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from support.redis_caches import Color, Point, Size, Status, Text

pytestmark = pytest.mark.anyio


# --- names of keys in Redis ---


@pytest.fixture
def name_of() -> Callable[[object], str]:
    module = importlib.import_module("anyloader.integrations._redis")
    name_of: Callable[[object], str] = module.name_of
    return name_of


class Access(Flag):
    READ = 1
    WRITE = 2


class DriverUUID(UUID):
    """As the one of asyncpg: a subclass with methods of its own for the same."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UUID) and self.int == other.int

    def __hash__(self) -> int:
        return hash(self.int)


UTC, EAST = timezone.utc, timezone(timedelta(hours=2))

#: Keys of one line are equal, keys of two lines are not.
KEYS: list[tuple[Any, ...]] = [
    (1, 1.0, True, Decimal(1), Decimal("1.00"), Size.SMALL),
    (0, False, -0.0, Decimal("-0"), Decimal("0e9999"), Decimal("-0e-9999")),
    ("1", Text("1")),
    (b"1",),
    (0.5, Decimal("0.5")),
    (0.1,),
    (Decimal("0.1"),),
    (10**20, 1e20),
    ("active", Status.ACTIVE),
    (Color.RED, Color.ROSE),
    ("RED",),
    (Access.READ,),
    (Access.READ | Access.WRITE,),
    (UUID(int=1), DriverUUID(int=1)),
    (str(UUID(int=1)),),
    (date(2026, 1, 1),),
    (datetime(2026, 1, 1), datetime(2026, 1, 1, fold=1)),
    (datetime(2026, 1, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 3, tzinfo=EAST)),
    ("2026-01-01",),
    ((1, 2), Point(1, 2), (1.0, 2)),
    ((12,),),
    (((1,), 2),),
    ((1, (2,)),),
    ((),),
    ("(1,2)",),
    (("1,2",),),
    (('1","2',),),
    (("1", "2"),),
    ((None,),),
    (("null",),),
]


def test_equal_keys_have_one_name_and_others_have_others(name_of: Any) -> None:
    assert len({key for keys in KEYS for key in keys}) == len(KEYS)  # Python agrees
    names = [{name_of(key) for key in keys} for keys in KEYS]
    assert [len(each) for each in names] == [1] * len(KEYS)
    assert len(set().union(*names)) == len(KEYS)


def test_names_are_what_they_were(name_of: Any) -> None:
    """Else what older versions have stored would not be found, nor deleted."""
    uuid = UUID("12345678123456781234567812345678")
    assert [name_of(key) for key in (42, "ada", (1, "b", None), 0.5, b"\x00a", uuid)] == [
        "42",
        '"ada"',
        '(1,"b",null)',
        "1/2",
        "bytes(0061)",
        "uuid(12345678-1234-5678-1234-567812345678)",
    ]
    noon = datetime(2026, 1, 2, 12, tzinfo=EAST)
    assert name_of(noon) == "datetime(2026-01-02T10:00:00+00:00)"
    assert name_of(noon.date()) == "date(2026-01-02)"
    assert name_of(Color.RED) == f'enum("{Color.__module__}.Color","RED")'


class OwnText(str):
    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self.lower() == other.lower()

    def __hash__(self) -> int:
        return hash(self.lower())


class OwnEnum(Enum):
    ONE = 1

    def __eq__(self, other: object) -> bool:
        return other == "one"

    __hash__ = Enum.__hash__


def nested(depth: int) -> Any:
    key: Any = ()
    for _ in range(depth):
        key = (key,)
    return key


UNNAMED = [
    object(),
    frozenset({1}),
    Fraction(1, 2),
    1j,
    memoryview(b"1"),
    float("nan"),
    float("inf"),
    Decimal("Infinity"),
    Decimal("1e999999999"),
    Decimal("1e-999999999"),
    1 << 5000,
    OwnText("Ab"),
    OwnEnum.ONE,
    (1, object()),
    nested(100_000),
    datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")),  # comes twice
    datetime.min.replace(tzinfo=EAST),  # not in UTC
]


def test_keys_without_a_name_are_refused_at_once(name_of: Any) -> None:
    for key in UNNAMED:
        with pytest.raises((TypeError, ValueError, ArithmeticError, RecursionError)):
            name_of(key)
