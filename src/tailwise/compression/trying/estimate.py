"""What a change of a plan would lose, by the gradient at the plan, without running the model for each."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch

from tailwise.compression.plans.plan import Plan
from tailwise.compression.trying.sensitivity import Variant
from tailwise.compression.trying.trial import Trial


def estimated_losses(
    trial: Trial,
    around: Plan,
    windows: torch.Tensor,
    variants: Sequence[Variant],
    *,
    ends: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[Hashable, float]:
    """Key of each variant → Σ G·(W_variant − W_around), G the gradient of the objective at `around`; nats a token.

    To first order, and taken where the model is compressed already, so that a tensor's price holds what the others have
    lost. It costs about four passes over the windows, whatever the number of variants, and making each variant's
    tensor once. On SmolLM2-135M at 70 % (Wanda), steps of 0.03 were foretold with a rank correlation of 0.98; adding
    half of the empirical Fisher's term (Σ F·ΔW²) lowered it, so it is left out. Fewer than all keys once it `ends`.
    """
    gradients = trial.gradients(around, windows)
    found: dict[Hashable, float] = {}
    now: dict[str, float] = {}
    for variant in variants:
        if ends():
            break
        change = 0.0
        for decision in variant.entries.values():
            tensor, slope = decision.tensor, gradients[decision.tensor]
            if tensor not in now:
                now[tensor] = _along(slope, trial.parameters[tensor].detach())  # as `around` has it, which is set
            change += _along(slope, trial.under(decision)) - now[tensor]
        found[variant.key] = change
        if progress is not None:
            progress(len(found), len(variants))
    return found


def _along(slope: torch.Tensor, values: torch.Tensor) -> float:
    return float((slope.float() * values.float()).sum(dtype=torch.float64))
