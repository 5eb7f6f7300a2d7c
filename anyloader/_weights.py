"""Batches that are full by the weight of their keys."""

from __future__ import annotations

import sys
from numbers import Real
from typing import TYPE_CHECKING, Any

from ._results import article

if TYPE_CHECKING:
    from ._loader import Loader

__all__ = ("make_room", "weight_of")

#: Those of numpy are ``Real``, and no ``int``; it comes last, as asking it is slow.
_NUMBERS: Any = (int, float, Real)


def weight_of(loader: Loader, key: Any) -> float:
    """
    Return what a key weighs.

    :raises TypeError: if ``weigh`` gives no number
    :raises ValueError: if it gives one that is no weight
    """
    weigh: Any = loader.options.weigh
    weight: float = weigh(key)
    if isinstance(weight, bool) or not isinstance(weight, _NUMBERS):
        raise TypeError(f"weigh of {loader.name} must give a number, not {article(weight)}")
    if not 0 <= weight <= sys.float_info.max:  # an int beyond it could not be added to a float
        raise ValueError(f"weigh of {loader.name} must give a finite number >= 0, not {weight!r}")
    return weight


def make_room(loader: Loader, weight: float) -> None:
    """See to it that the open batch can take so much; what is heavier than all goes alone."""
    batch = loader.open or loader.open_batch()
    most: Any = loader.options.max_batch_weight
    if batch.added and batch.weight + weight > most:
        loader.seal(batch, "full")
        batch = loader.open or loader.open_batch()
    batch.weight += weight
