"""The least error of linear reconstruction, by which LSA tells how redundant a block is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tailwise.models.activations import Activations, Need
from tailwise.models.walking.block_inputs import Block, Home
from tailwise.models.walking.calibrate import ByBlock, Inputs, mean_of_parts, walked

#: Published: inputs are taken from a row in groups of so many, half of each group.
GROUP, SHARE = 128, 0.5
#: Rows at once: their costs stay near the core.
_ROWS = 1024


def reconstruction_errors(
    model: nn.Module | Home | str | os.PathLike[str], inputs: Inputs, **options: Any
) -> dict[int, float]:
    """Block → mean over its matrices of the least error of losing half of their inputs, for LSA.

    As `block_scores`; one pass over the dense model, and of every row a greedy choice. Source: Yang et al. 2026, LSA,
    ICLR; H is 2/n · XᵀX over n windows, as published.
    """
    visitor = _Errors({}, {})
    walked(model, inputs, visitor, options)
    return {block: mean_of_parts(parts) for block, parts in sorted(visitor.by_block.items())}


def least_error(W: torch.Tensor, H: torch.Tensor, group: int = GROUP, share: float = SHARE) -> float:
    """‖(W − M∘W)Xᵀ‖² where each row of W (out × in) loses `share` of its inputs in each group, chosen greedily.

    `H` (in × in) is XᵀX up to a factor. What an input adds, given those that went before it, is
    H_jj·w_j² + 2·w_j·Σ w_i·H_ij over these (Yang et al. 2026, Algorithm 1).
    """
    H = H.to(W.device, torch.float32)
    W = W.detach()
    return sum(_of_rows(W[at : at + _ROWS].float(), H, group, share) for at in range(0, len(W), _ROWS))


def _of_rows(W: torch.Tensor, H: torch.Tensor, group: int, share: float) -> float:
    costs = W.square() * H.diagonal()
    total = torch.zeros((), dtype=torch.float64, device=W.device)
    for start in range(0, W.shape[1], group):
        stop = min(start + group, W.shape[1])
        w, cost, h = W[:, start:stop], costs[:, start:stop], H[start:stop, start:stop]
        gone = torch.zeros_like(w)
        for _ in range(int((stop - start) * share)):
            index = cost.argmin(1, keepdim=True)
            total += cost.gather(1, index).sum(dtype=torch.float64)
            taken = w.gather(1, index)
            cost.addcmul_(w, h[index[:, 0]].mul_(taken), value=2.0).scatter_(1, index, torch.inf)
            gone.scatter_(1, index, taken)
        costs[:, stop:].addcmul_(W[:, stop:], gone @ H[start:stop, stop:], value=2.0)
    return float(total)


@dataclass
class _Errors(ByBlock):
    by_block: dict[int, list[tuple[int, float]]] = field(default_factory=dict)

    def needs(self, block: Block) -> Mapping[str, Need]:
        return dict.fromkeys(block.layers(), "hessian")

    def visit(self, block: Block, activations: Mapping[str, Activations]) -> None:
        for number, W, inputs in self.matrices(block, activations):
            assert inputs.hessian is not None  # noqa: S101 - asked for in `needs`
            self.by_block.setdefault(number, []).append((1, least_error(W, inputs.hessian)))
