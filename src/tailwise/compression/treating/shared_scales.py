"""One scale of the tensor for layers that servers hold as one: from the largest entry of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import isfinite

import torch

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.fusing import in_one_matrix, merged_by_servers
from tailwise.compression.treating.treated import as_matrices
from tailwise.number_formats.number_format import Reach

Reaches = tuple[Reach, ...]  # of each matrix of a tensor


def shared_reaches(items: Iterable[Decision], matrices: Callable[[str], torch.Tensor]) -> dict[str, Reaches]:
    """Tensor → of each of its matrices, the reach of all that servers hold as one with it in the same format.

    Tensors whose format has no scale that servers merge, and those that are alone, have none. `matrices` gives a
    tensor as (count, out, in).
    """
    by_format: dict[str, list[Decision]] = {}
    for item in items:
        if item.treatment.cast is not None and merged_by_servers(item.number_format):
            by_format.setdefault(item.number_format.name, []).append(item)
    found: dict[str, Reaches] = {}
    for members in by_format.values():
        for group in in_one_matrix(members):
            joined = joined_reaches([matrices(item.tensor) for item in group])
            found |= {item.tensor: joined for item in group if joined}
    return found


def joined_reaches(tensors: Iterable[torch.Tensor]) -> Reaches:
    """Of each matrix (out, in) of tensors (count, out, in), the reach of all that have its number.

    Empty where the counts differ, and where an entry is none that can be rounded: whoever rounds it says so by name.
    """
    each: list[Reaches] = []
    for tensor in tensors:
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            return ()
        each.append(tuple(Reach.of([matrix]) for matrix in tensor))
    joined = tuple(map(_joined, zip(*each, strict=False)))
    whole = len({len(reaches) for reaches in each}) == 1 and all(isfinite(reach.amax) for reach in joined)
    return joined if whole else ()


def _joined(reaches: Sequence[Reach]) -> Reach:
    lows, highs = [reach.low for reach in reaches], [reach.high for reach in reaches]
    if not all(map(isfinite, (*lows, *highs))):
        return Reach(-float("inf"), float("inf"))
    return Reach(min(lows), max(highs))


def matrices_in(checkpoint: Checkpoint) -> Callable[[str], torch.Tensor]:
    """Gives the tensors of a checkpoint as (count, out, in)."""
    return lambda name: as_matrices(checkpoint.read(name), name, checkpoint.config)
