"""Scales of blocks, one for each entry."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def spread(values: torch.Tensor, block: int, count: int, axis: int) -> torch.Tensor:
    """The first `count` entries along `axis` where each value stands for `block` of them.

    Never larger than what is asked for and one block more, whatever size of a block a file claims: a block longer than
    `count` is one of `count`. Too few values are a `RuntimeError`.
    """
    block = min(block, max(count, 1))
    return values.narrow(axis, 0, -(-count // block)).repeat_interleave(block, axis).narrow(axis, 0, count)
