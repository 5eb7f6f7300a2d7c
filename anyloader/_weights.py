"""Bounds that need a look at each key: the weight of a batch, and how many keys may wait."""

from __future__ import annotations

import sys
from numbers import Real
from typing import TYPE_CHECKING, Any

from ._errors import LoaderBusyError
from ._results import article, counted

if TYPE_CHECKING:
    from ._loader import Loader

__all__ = ("check_queue", "make_room", "weight_of")

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
        make_room(loader, weight)  # anew, as a hook that heard of the seal may have loaded
    else:
        batch.weight += weight


def check_queue(loader: Loader, more: int) -> None:
    """:raises LoaderBusyError: if so many more keys would be too many"""
    most = loader.options.max_queue_size
    queued = loader.counts.sealed + (0 if loader.open is None else loader.open.size)
    if most is not None and queued + more > most:
        raise LoaderBusyError(
            f"{loader.name} is busy: {counted(queued, 'key')} wait to be sent and {more} more cannot, as "
            f"max_queue_size is {most}; try again later"
        )
