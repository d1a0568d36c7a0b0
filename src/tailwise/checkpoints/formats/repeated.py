"""Tensors that stand for far more bytes than a file holds, because they are laid over the same ones.

Strides of zero, views of one storage and ranges that overlap cost a file nothing: a kilobyte could ask for days.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import NamedTuple

#: How often the bytes of a storage may be read under names of their own: flat weights and views of them are two.
_TIMES = 8
#: Bytes that the tensors of a checkpoint may have beyond that, all together.
_BEYOND = 1 << 24

REPEATED = (
    "its entries are few that are repeated, or those of many other tensors (expand, views); "
    "save what they stand for: tensor.contiguous()"
)


class Laid(NamedTuple):
    """A tensor over bytes that others may have too."""

    name: str
    over: Hashable  # which storage, array or file
    held: int  # bytes that this has
    claimed: int  # bytes of the tensor


def beyond_what_is_held(tensors: Iterable[Laid]) -> dict[str, str]:
    """Tensors that are not read, with why: in their order, those for which there is no room left.

    Of tensors that are the same (shared, tied) give one.
    """
    taken: dict[Hashable, int] = {}
    left, refused = _BEYOND, {}
    for tensor in tensors:
        before = taken.get(tensor.over, 0)
        free = max(0, _TIMES * tensor.held - before)
        if tensor.claimed - free > left:
            refused[tensor.name] = REPEATED
            continue
        left -= max(0, tensor.claimed - free)
        taken[tensor.over] = before + min(tensor.claimed, free)
    return refused
