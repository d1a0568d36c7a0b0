"""Remedies as code: what the findings and alarms of tailwise advise, for a training loop in PyTorch.

>>> import tailwise as tw
>>> balance = tw.remedies.layerwise_learning_rates(model, optimizer)   # from here on, training goes on as before

A name is loaded when it is used: the names alone need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tailwise.remedies.balance import (
        Balance,
        BalanceOptions,
        fixed_learning_rates,
        layerwise_learning_rates,
        layerwise_weight_decay,
        linear_factors,
        llr,
    )
    from tailwise.remedies.clipping import AdaptiveClip
    from tailwise.remedies.curriculum import CurriculumSampler
    from tailwise.remedies.difficulty import loss_difficulty, token_rarity
    from tailwise.remedies.matrices import linear_matrices, weight_matrices
    from tailwise.remedies.placement import check_pre_norm, scale_residual_branches
    from tailwise.remedies.reinitialize import reinitialize_dead_layers
    from tailwise.remedies.spectral import SpectralPenalty, spectral_penalty

_HOMES = {
    "AdaptiveClip": "clipping",
    "Balance": "balance",
    "BalanceOptions": "balance",
    "CurriculumSampler": "curriculum",
    "SpectralPenalty": "spectral",
    "check_pre_norm": "placement",
    "fixed_learning_rates": "balance",
    "layerwise_learning_rates": "balance",
    "layerwise_weight_decay": "balance",
    "linear_factors": "balance",
    "llr": "balance",
    "loss_difficulty": "difficulty",
    "linear_matrices": "matrices",
    "reinitialize_dead_layers": "reinitialize",
    "scale_residual_branches": "placement",
    "spectral_penalty": "spectral",
    "token_rarity": "difficulty",
    "weight_matrices": "matrices",
}

__all__ = [
    "AdaptiveClip", "Balance", "BalanceOptions", "CurriculumSampler", "SpectralPenalty", "check_pre_norm",
    "fixed_learning_rates", "layerwise_learning_rates", "layerwise_weight_decay", "linear_factors", "linear_matrices",
    "llr", "loss_difficulty", "reinitialize_dead_layers", "scale_residual_branches", "spectral_penalty",
    "token_rarity", "weight_matrices",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tailwise.remedies' has no attribute {name!r}")
    value = getattr(import_module(f"tailwise.remedies.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
