"""From measured losses: what each tensor costs at a few levels, and the cheapest choice that holds the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tailwise.compression.allocate.allocator import Allocation, Settings, allocator, sizes_of, verdict
from tailwise.compression.allocate.knapsack import Chosen, Knapsack, Matrix, solve
from tailwise.compression.plans.budget import Budget, held
from tailwise.compression.plans.candidates import Candidate
from tailwise.errors import UsageError

_SLACKS = (1e-3, 1e-2, 1e-1, 1.0)  # few tensors and coarse levels cannot come near to every budget
_GAP = 1e-3  # measured losses are not better than this
_SECONDS = 2.0  # few tensors of nearly one size and coarse levels are hard to prove, and soon solved


@allocator(
    "sensitivity", source="this project; an exact multiple-choice knapsack over measured losses", takes=("losses",)
)
def sensitivity(candidates: Sequence[Candidate], budget: Budget, settings: Settings) -> Allocation:
    """The levels of least summed loss, each tensor's loss measured with all others left whole.

    What the levels leave of the budget, mostly below a thousandth, is made good by one shift of all amounts. That
    losses add up is an assumption.
    """
    table = _table(candidates, settings.losses)
    levels = sorted({level for costs in table for level in costs})
    losses = np.array([[costs.get(level, np.inf) for level in levels] for costs in table])
    sizes, taken = sizes_of(candidates), np.array(levels)
    chosen = _solved(losses, sizes[:, None] * (1.0 - taken), float(sizes.sum()) * (1.0 - budget.sparsity))
    amounts = taken[chosen.levels]
    note = f"levels alone reach {held(amounts, sizes):.6f}; summed loss {chosen.loss:.6g}, bound {chosen.bound:.6g}"
    reasons = tuple(
        f"loss {losses[index, level]:+.4g} at {taken[level]:g}: {verdict(float(taken[level]), budget.sparsity)}"
        for index, level in enumerate(chosen.levels)
    )
    return Allocation(budget.shifted(amounts, sizes), reasons, settings={"levels": levels}, notes=(note,))


def _solved(losses: Matrix, weights: Matrix, kept: float) -> Chosen:
    for slack in _SLACKS[:-1]:
        try:
            return solve(Knapsack(losses, weights, kept, slack, _SECONDS, _GAP))
        except UsageError:
            continue
    return solve(Knapsack(losses, weights, kept, _SLACKS[-1], _SECONDS, _GAP))


def _table(
    candidates: Sequence[Candidate], losses: Mapping[tuple[str, float], float] | None
) -> list[dict[float, float]]:
    if losses is None:
        raise UsageError(
            "there are no measured losses: they take passes over calibration text",
            fix="give the model and calibration text, or an allocator that needs the audit alone: depth, alpha",
        )
    found: dict[str, dict[float, float]] = {item.tensor: {} for item in candidates}
    for (tensor, level), loss in losses.items():
        if not (np.isfinite(loss) and 0.0 <= level < 1.0):
            raise UsageError(f"the loss of {tensor} at {level:g} is {loss:g}", fix="measure it again, or leave it out")
        if tensor in found:
            found[tensor][level] = loss
    for tensor, costs in found.items():
        if not costs:
            raise UsageError("its loss was not measured", where=tensor, fix="measure every tensor of the plan")
    return list(found.values())
