"""What is known of the inputs of a layer, and how much of it is asked for. Without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch


Need = Literal["none", "norms", "hessian"]


@dataclass(frozen=True)
class Activations:
    """What is known of the inputs of one layer; X is (tokens × in), n the number of windows.

    Both are per window, as in the published code. A constant factor changes nothing but what a dead input counts in
    the damping of SparseGPT.
    """

    norms: torch.Tensor | None = None  # (in,) float32: sqrt(Σ X_j² / n)
    hessian: torch.Tensor | None = None  # (in × in) float32: 2/n · XᵀX
    tokens: torch.Tensor | None = None  # () int64: rows of X that were not zero throughout, where they were counted


def weighted_magnitudes(W: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """|W_ij|·‖X_j‖₂, (out × in) float32: what Wanda ranks the entries of a matrix by."""
    return W.float().abs() * norms.to(W.device).float()
