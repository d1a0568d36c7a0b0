"""What each tensor costs, measured: the change of loss when it alone is pruned more or less."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import monotonic

import torch

from tailwise.compression.budget import MOST
from tailwise.compression.plan import Plan
from tailwise.planning.trial import Trial

#: Steps from the budget at which each tensor is tried.
STEPS = (-0.3, -0.15, 0.0, 0.1, 0.2)

Losses = Mapping[tuple[str, float], float]


def levels_of(sparsity: float, steps: Sequence[float] = STEPS) -> tuple[float, ...]:
    """The sparsities to try around a budget, within what a plan may ask for."""
    return tuple(sorted({round(min(max(sparsity + step, 0.0), MOST), 6) for step in steps}))


def measured_losses(
    trial: Trial,
    around: Plan,
    windows: torch.Tensor,
    *,
    levels: Sequence[float] | None = None,
    deadline: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Losses:
    """(tensor, sparsity) → change of the mean loss, with every other tensor as in `around`.

    Measured around a plan that meets the budget, not around the dense model: at 70 % the loss of one tensor depends
    on what the others have lost. Where `deadline` (of `time.monotonic`) comes first, what is known is returned.
    """
    sparsity = around.sparsity
    chosen = tuple(levels or levels_of(sparsity))
    base = float(trial.losses(around, windows).mean())
    found: dict[tuple[str, float], float] = {}
    total = len(around) * len(chosen)
    for level in sorted(chosen, key=lambda level: abs(level - sparsity)):
        for index, decision in enumerate(around):
            if level == round(decision.sparsity or 0.0, 6):
                found[decision.tensor, level] = 0.0
                continue
            if deadline is not None and monotonic() > deadline:
                return found
            changed = list(around.decisions)
            changed[index] = replace(decision, sparsity=level)
            loss = float(trial.losses(around.replace(decisions=tuple(changed)), windows).mean())
            found[decision.tensor, level] = loss - base
            if progress is not None:
                progress(len(found), total)
    return found
