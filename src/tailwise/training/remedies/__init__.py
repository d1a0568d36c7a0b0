"""Remedies as code: what the findings and alarms of tailwise advise, for a training loop in PyTorch.

>>> import torch, tailwise as tw
>>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 32))
>>> optimizer = torch.optim.AdamW(model.parameters())
>>> balance = tw.remedies.layerwise_learning_rates(model, optimizer)   # from here on, training goes on as before

A name is loaded when it is used: the names alone need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tailwise.training.remedies.clipping import AdaptiveClip
    from tailwise.training.remedies.curriculum import CurriculumSampler
    from tailwise.training.remedies.difficulty import loss_difficulty, token_rarity
    from tailwise.training.remedies.layer_rates import (
        Balance,
        BalanceOptions,
        fixed_learning_rates,
        layerwise_learning_rates,
        layerwise_weight_decay,
        linear_factors,
        llr,
    )
    from tailwise.training.remedies.live_matrices import linear_matrices, weight_matrices
    from tailwise.training.remedies.placement import check_pre_norm, scale_residual_branches
    from tailwise.training.remedies.reinitialize import reinitialize_dead_layers
    from tailwise.training.remedies.spectral import SpectralPenalty, spectral_penalty

_HOMES = {
    "AdaptiveClip": "clipping",
    "Balance": "layer_rates",
    "BalanceOptions": "layer_rates",
    "CurriculumSampler": "curriculum",
    "SpectralPenalty": "spectral",
    "check_pre_norm": "placement",
    "fixed_learning_rates": "layer_rates",
    "layerwise_learning_rates": "layer_rates",
    "layerwise_weight_decay": "layer_rates",
    "linear_factors": "layer_rates",
    "llr": "layer_rates",
    "loss_difficulty": "difficulty",
    "linear_matrices": "live_matrices",
    "reinitialize_dead_layers": "reinitialize",
    "scale_residual_branches": "placement",
    "spectral_penalty": "spectral",
    "token_rarity": "difficulty",
    "weight_matrices": "live_matrices",
}

__all__ = [
    "AdaptiveClip", "Balance", "BalanceOptions", "CurriculumSampler", "SpectralPenalty", "check_pre_norm",
    "fixed_learning_rates", "layerwise_learning_rates", "layerwise_weight_decay", "linear_factors", "linear_matrices",
    "llr", "loss_difficulty", "reinitialize_dead_layers", "scale_residual_branches", "spectral_penalty",
    "token_rarity", "weight_matrices",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tailwise.training.remedies' has no attribute {name!r}")
    value = getattr(import_module(f"tailwise.training.remedies.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
