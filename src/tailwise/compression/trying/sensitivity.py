"""What each tensor costs, measured: the change of loss when it alone is compressed more or less."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from tailwise.compression.plans.budget import MOST
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.plan import Plan
from tailwise.compression.trying.clock import Clock
from tailwise.compression.trying.trial import Trial

#: Steps from the budget at which each tensor is tried.
STEPS = (-0.3, -0.15, 0.0, 0.1, 0.2)

Losses = Mapping[tuple[str, float], float]
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Variant:
    """A few entries of a plan, changed."""

    key: Hashable
    entries: Mapping[int, Decision]  # place in the plan → the entry instead


#: Plan, windows, variants, progress → as `variant_losses`.
Measure = Callable[[Plan, torch.Tensor, Sequence[Variant], Callable[[int, int], None] | None], dict[Hashable, float]]


def levels_of(sparsity: float, steps: Sequence[float] = STEPS) -> tuple[float, ...]:
    """The sparsities to try around a budget, within what a plan may ask for."""
    return tuple(sorted({round(min(max(sparsity + step, 0.0), MOST), 6) for step in steps}))


def measured_losses(
    trial: Trial,
    around: Plan,
    windows: torch.Tensor,
    *,
    levels: Sequence[float] | None = None,
    progress: Callable[[int, int], None] | None = None,
    measure: Measure | None = None,
) -> Losses:
    """(tensor, sparsity) → change of the mean loss, with every other tensor as in `around`.

    Measured around a plan that meets the budget, not around the dense model: at 70 % the loss of one tensor depends
    on what the others have lost. `measure` gives the losses of variants where `trial` is not to.
    """
    chosen = tuple(levels or levels_of(around.sparsity))
    losses: dict[tuple[str, float], float] = {}
    variants = []
    for index, decision in enumerate(around):
        for level in chosen:
            if level == round(decision.sparsity or 0.0, 6):
                losses[decision.tensor, level] = 0.0
            else:
                key = (decision.tensor, level)
                variants.append(Variant(key, {index: decision.but(sparsity=level)}))
    chosen_way = measure or partial(_by_trial, trial)
    measured = chosen_way(around, windows, variants, progress)
    return {**losses, **measured}  # type: ignore[dict-item]  # keys are those of the variants above


def _by_trial(
    trial: Trial,
    around: Plan,
    windows: torch.Tensor,
    variants: Sequence[Variant],
    progress: Callable[[int, int], None] | None,
) -> dict[Hashable, float]:
    return variant_losses(trial, around, windows, variants, progress=progress)


def variant_losses(
    trial: Trial,
    around: Plan,
    windows: torch.Tensor,
    variants: Sequence[Variant],
    *,
    clock: Clock | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[Hashable, float]:
    """Key of each variant → change of the mean loss against `around`; less than all where the clock runs out."""
    base = float(trial.settle(around, windows).mean())
    losses: dict[Hashable, float] = {}
    for variant in variants:
        if clock is not None and clock.left < 0:
            break
        changed = list(around.decisions)
        for index, decision in variant.entries.items():
            changed[index] = decision
        losses[variant.key] = float(trial.losses(around.replace(decisions=tuple(changed)), windows).mean()) - base
        if progress is not None:
            progress(len(losses), len(variants))
    return losses
