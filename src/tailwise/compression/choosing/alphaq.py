"""AlphaQ: the expected error of rounding, weighed by the tail exponent."""

from __future__ import annotations

import numpy as np

from tailwise.compression.choosing.bit_formats import Assignment, Choices, FormatSettings, assigner, reasons_of
from tailwise.compression.choosing.knapsack import Chosen
from tailwise.compression.plans.budget import Vector


@assigner(
    "alphaq",
    source="Yang et al. 2026, AlphaQ, arXiv:2606.04980: its published objective",
    takes=("gamma",),
    needs=("alpha", "variance"),
)
def alphaq(choices: Choices, settings: FormatSettings) -> Assignment:
    """AlphaQ: min Σ (median α/α_l)^γ · Var(W_l) · 2^(−2·b_l), bits weighted by parameters.

    b is a format's bits of an entry; the budget counts scales too. Var(W_l) = Σλ/(rows·cols): the mean of the
    entries, nearly zero in practice, is not subtracted. γ = 0 leaves the variance alone, the control. l are stored
    tensors; the terms of those that share a format are added. Without α a tensor has the median.
    """
    weights = sensitivities(choices, settings.gamma)
    losses = weights[:, None] * np.exp2(-2.0 * choices.element_bits)[None, :]
    chosen = choices.cheapest(losses)
    why = [
        f"α {group.mean('alpha'):.3g}, variance {group.mean('variance'):.3g}, weight {weight:.3g}"
        for group, weight in zip(choices.groups, weights, strict=True)
    ]
    reasons = reasons_of(choices, chosen.levels, why)
    return Assignment(chosen.levels, reasons, ("alpha", "variance"), {"gamma": settings.gamma}, (solved_words(chosen),))


def sensitivities(choices: Choices, gamma: float) -> Vector:
    """Σ over the tensors of a group of (median α/α_l)^γ · Var(W_l), (groups,)."""
    known = [value for group in choices.groups for item in group.members if (value := item.value("alpha")) is not None]
    median = float(np.median(known)) if known else 1.0
    return np.array(
        [
            sum((median / (item.value("alpha") or median)) ** gamma * (item.value("variance") or 0.0)
                for item in group.members)
            for group in choices.groups
        ]
    )  # fmt: skip


def solved_words(chosen: Chosen) -> str:
    """How good the solution is."""
    how = "optimal" if chosen.exact else "the best found in time"
    return f"summed objective {chosen.loss:.6g}, bound {chosen.bound:.6g}: {how}"
