"""A penalty on the largest singular values that costs two products a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tailwise.checkpoints.wrapped import whole
from tailwise.core.errors import UsageError
from tailwise.training.remedies.live_matrices import as_matrix, weight_matrices

_COLD = 12  # iterations the first time, when the directions are random


class SpectralPenalty:
    """½·Σ σᵢ² over the `k` largest singular values of each matrix, differentiable. Made by `spectral_penalty`."""

    def __init__(self, weights: Mapping[str, torch.Tensor], k: int, iterations: int) -> None:
        if k < 1 or iterations < 1:
            raise UsageError(f"k is {k}, iterations {iterations}", fix="give 1 or more")
        if not weights:
            raise UsageError("the model has no matrix to penalise", fix="name some with `layers`")
        self.k, self.iterations = k, iterations
        self._weights = dict(weights)
        self._right: dict[str, torch.Tensor] = {}  # (cols, k): orthonormal, near the leading right singular vectors

    def __call__(self) -> torch.Tensor:
        """The penalty, a scalar to add to the loss, times a weight."""
        parts = [self._part(name, weight) for name, weight in self._weights.items()]
        return torch.stack([part.to(parts[0].device) for part in parts]).sum() / 2

    def norms(self) -> dict[str, float]:
        """The largest singular value of each matrix, as far as the last calls have found it."""
        with torch.no_grad():
            return {
                name: float(torch.linalg.matrix_norm(as_matrix(whole(self._weights[name])).float() @ right, 2))
                for name, right in self._right.items()
            }

    def state_dict(self) -> dict[str, Any]:
        """The directions found so far; without them a resumed run finds them anew."""
        return {name: right.clone() for name, right in self._right.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._right = {name: state[name].clone() for name in self._weights if name in state}

    def _part(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Σ σᵢ² = ‖W·V‖² for V the leading right singular vectors, which are held fixed: its gradient is 2·W·V·Vᵀ."""
        # Not under autocast: bf16 products would leave the directions unconverged.
        with torch.autocast(weight.device.type, enabled=False):
            gathered = as_matrix(whole(weight)).float()
            right = self._directions(name, gathered.detach())
            return (gathered @ right).square().sum()

    @torch.no_grad()
    def _directions(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        right, rounds = self._right.get(name), self.iterations
        if right is None or right.device != weight.device:
            seed = torch.Generator().manual_seed(0)
            start = torch.randn(weight.shape[1], min(self.k, *weight.shape), generator=seed)
            right, rounds = torch.linalg.qr(start.to(weight.device))[0], max(_COLD, self.iterations)
        for _ in range(rounds):
            product = weight.T @ (weight @ right)
            if not bool(torch.isfinite(product).all()) or not bool(product.any()):
                break  # zeros or NaN: there are no directions to find, and none to forget
            right = torch.linalg.qr(product)[0]
        self._right[name] = right
        return right


def spectral_penalty(
    model: nn.Module, *, k: int = 1, iterations: int = 1, layers: Mapping[str, torch.Tensor] | None = None
) -> SpectralPenalty:
    """A penalty on the `k` largest singular values of the model's matrices (or of `layers`, by name).

    >>> import torch, tailwise as tw
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 32))
    >>> penalty = tw.remedies.spectral_penalty(model)
    >>> loss = model(torch.ones(1, 64)).square().mean()
    >>> (loss + 1e-3 * penalty()).backward()

    ½·Σ σᵢ², whose gradient is Σ σᵢuᵢvᵢᵀ. The vectors come from power iteration (block iteration for k > 1) that goes on
    from the last call's, since weights change little in a step. Matrices that fully_shard has sharded are gathered
    one by one, so all ranks must call it.

    Source: Yoshida & Miyato 2017, Spectral Norm Regularization for Improving the Generalizability of Deep Learning,
    arXiv:1705.10941, eq. 3 and algorithm 1.
    """
    return SpectralPenalty(layers if layers is not None else weight_matrices(model), k, iterations)
