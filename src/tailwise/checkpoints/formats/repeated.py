"""Tensors that stand for far more bytes than a file holds, because they are laid over the same ones.

Strides of zero, views of one storage and ranges that overlap cost a file nothing: a kilobyte could ask for days. So do
factors of a product, where it is made of them: two vectors name a matrix of any shape.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from math import prod
from typing import NamedTuple

from tailwise.core.errors import UnreadableError

#: How often the bytes of a storage may be read under names of their own: flat weights and views of them are two.
_TIMES = 8
#: Bytes that the tensors of a checkpoint may have beyond that, all together.
_BEYOND = 1 << 24

REPEATED = (
    "its entries are few that are repeated, or those of many other tensors (expand, views); "
    "save what they stand for: tensor.contiguous()"
)


#: Entries that a product of factors may have when it is made, whatever the rank (1 on 8192 × 28672, the largest layer
#: of a model of 70 B, has 2.2e8), and how many times those that are held beside.
_MADE, _OFTEN = 1 << 28, 64


class Laid(NamedTuple):
    """A tensor over bytes that others may have too."""

    name: str
    over: Hashable  # which storage, array or file
    held: int  # bytes that this has
    claimed: int  # bytes of the tensor


def check_product(shape: Sequence[int], held: int, where: str) -> None:
    """`UnreadableError` where a product of this shape is about to be made of factors that have `held` entries.

    Spectra are taken from factors of any shape. Only where nothing else holds the shape, as a base model does, is there
    a bound.
    """
    if prod(shape) <= max(_MADE, _OFTEN * held):
        return
    raise UnreadableError(
        f"its {' × '.join(map(str, shape))} entries are far more than the {held} of its factors, and would all be made",
        where=where,
        fix="give the base model as well, or merge the change into it: it holds such a matrix; the spectrum alone "
        "needs no entry (leave out permutations, windows and number formats)",
    )


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
