"""How much each head or neuron matters: by its weights, or by what it adds to the states on calibration text."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tailwise.compression.shrinking.structured_groups import ChannelGroup, Cut

Weights = Callable[[str], torch.Tensor]  # layer → its matrix (out × in)


def magnitudes(group: ChannelGroup, weights: Weights) -> torch.Tensor:
    """(units,) float32: the norm of all weights that a unit holds, √Σ W² over the layers that it goes through."""
    total = torch.zeros(group.units)
    for cut in group.cuts:
        total += _squares(cut, weights(cut.layer))
    return total.sqrt()


def contributions(group: ChannelGroup, weights: Weights, norms: torch.Tensor) -> torch.Tensor:
    """(units,) float32: √Σ_j ‖X_j‖²·‖W_:j‖² over the inputs j of the reading layer that are a unit's.

    `norms` (in,) are ‖X_j‖₂. This is Wanda's score (Sun et al. 2024) summed over what goes with a unit; of a neuron it
    is the exact norm of what it adds to the states.
    """
    W = weights(group.reader.layer).float()
    each = W.square().sum(dim=0) * norms.to(W.device, torch.float32).square()
    return each[group.reader.index.to(W.device)].sum(dim=1).sqrt().cpu()


def _squares(cut: Cut, W: torch.Tensor) -> torch.Tensor:
    each = W.float().square().sum(dim=1 if cut.output else 0).cpu()
    return each[cut.index].sum(dim=1)


def kept_units(scores: torch.Tensor, removed: int) -> torch.Tensor:
    """The units that stay, in their order: all but the `removed` of lowest score; of equals, the last go."""
    order = scores.sort(stable=True, descending=True).indices
    return order[: len(scores) - removed].sort().values
