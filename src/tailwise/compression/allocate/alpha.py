"""AlphaPruning: by the tail exponent."""

from __future__ import annotations

from collections.abc import Sequence

from tailwise.compression.allocate.allocator import Allocation, Settings, allocator, values_of
from tailwise.compression.allocate.shares import Measured, spread
from tailwise.compression.allocate.signs import reversed_of, sign_of_alpha
from tailwise.compression.plans.budget import Budget
from tailwise.compression.plans.candidates import Candidate


@allocator(
    "alpha",
    source="Lu et al. 2024, AlphaPruning, arXiv:2410.10912",
    takes=("mapping", "tau", "reverse"),
    needs_alpha=True,
)
def alpha(candidates: Sequence[Candidate], budget: Budget, settings: Settings) -> Allocation:
    """AlphaPruning: shares linear in α within [1 − τ, 1 + τ], by block mean, by matrix, or mixed.

    s = η·r with r = (α − α_min)/(α_max − α_min)·2τ + (1 − τ) and η = S·Σd / Σ(d·r). The published code clamps
    nothing and asks for 1.063 at S = 0.8, τ = 0.3; here amounts stay at 0.99 or below and the others take over
    what is cut, unless the budget says not to clamp. For low rank, r is mirrored, and by `reverse` once more.
    """
    measured = Measured("α", values_of(candidates, "alpha"), settings.direction)
    amounts, reasons = spread(candidates, measured, budget, settings)
    notes: tuple[str, ...] = ()
    if settings.mapping != "block":
        notes = (
            f"mapping {settings.mapping} ranks α across roles; in published data that reverses its sign "
            "(q and k have the lowest α and spare the most); alpha-role ranks within a role",
        )
    used = {"mapping": settings.mapping, "tau": settings.tau, **reversed_of(settings)}
    return Allocation(amounts, reasons, ("alpha",), used, notes, sign_of_alpha(settings))
