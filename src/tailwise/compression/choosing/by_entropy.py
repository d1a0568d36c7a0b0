"""By singular entropy."""

from __future__ import annotations

from collections.abc import Sequence

from tailwise.compression.choosing.amounts import Allocation, AllocatorSettings, allocator, values_of
from tailwise.compression.choosing.shares import MeasuredMetric, spread
from tailwise.compression.choosing.signs import reversed_of, sign_of_entropy
from tailwise.compression.plans.budget import Budget
from tailwise.compression.plans.candidates import Candidate


@allocator(
    "entropy",
    source="the singular-entropy manual for low rank; the mirrored reading for pruning is this project's",
    takes=("mapping", "tau", "reverse"),
)
def entropy(candidates: Sequence[Candidate], budget: Budget, settings: AllocatorSettings) -> Allocation:
    """Shares linear in the normalized singular entropy, mapped as `alpha` maps α.

    Singular entropy is 0 for a flat spectrum and high for one that collapses onto few directions. Low rank takes
    more where it is high: few directions hold the matrix. Entry-wise and structured pruning take more where it is
    low, as they take more where α is high: a flat spectrum is what noise has. The singular-entropy manual (§3.3)
    says to prune where it is high, which `reverse` does; `auto` tries both. Divided by ln(rank), since shapes are
    compared.
    """
    values = values_of(candidates, "singular_entropy_normalized")
    amounts, reasons = spread(candidates, MeasuredMetric("entropy", values, -settings.direction), budget, settings)
    used = ("singular_entropy_normalized",)
    recorded = {"mapping": settings.mapping, "tau": settings.tau, **reversed_of(settings)}
    return Allocation(amounts, reasons, used, recorded, sign=sign_of_entropy(settings))
