"""From measurements: what each tensor loses at each level, and the cheapest choice within the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tailwise.compression.choosing.alphaq import solved_words
from tailwise.compression.choosing.amounts import Allocation, AllocatorSettings, allocator, sizes_of, verdict
from tailwise.compression.choosing.bit_formats import Assignment, Choices, FormatSettings, assigner, reasons_of
from tailwise.compression.choosing.knapsack import Knapsack, Matrix, solve_near
from tailwise.compression.plans.budget import Budget, held
from tailwise.compression.plans.candidates import Candidate
from tailwise.core.errors import UsageError

Table = Mapping[tuple[str, str], float]
_SLACKS = (1e-3, 1e-2, 1e-1, 1.0)  # few tensors and coarse levels cannot come near to every budget
_GAP = 1e-3  # measured losses are not better than this
_SECONDS = 2.0  # few tensors of nearly one size and coarse levels are hard to prove, and soon solved


@allocator(
    "sensitivity", source="this project; an exact multiple-choice knapsack over measured losses", takes=("losses",)
)
def sensitivity(candidates: Sequence[Candidate], budget: Budget, settings: AllocatorSettings) -> Allocation:
    """The levels of least summed loss, each tensor's loss measured with all others left whole.

    What the levels leave of the budget, mostly below a thousandth, is made good by one shift of all amounts. That
    losses add up is an assumption.
    """
    table = _levels_of(candidates, settings.losses)
    levels = sorted({level for costs in table for level in costs})
    losses = np.array([[costs.get(level, np.inf) for level in levels] for costs in table])
    sizes, taken = sizes_of(candidates), np.array(levels)
    remaining = float(sizes.sum()) * (1.0 - budget.sparsity)
    chosen = solve_near(
        Knapsack(losses, sizes[:, None] * (1.0 - taken), remaining, seconds=_SECONDS, gap=_GAP), _SLACKS
    )
    amounts = taken[chosen.levels]
    note = f"levels alone reach {held(amounts, sizes):.6f}; summed loss {chosen.loss:.6g}, bound {chosen.bound:.6g}"
    reasons = tuple(
        f"loss {losses[index, level]:+.4g} at {taken[level]:g}: {verdict(float(taken[level]), budget.sparsity)}"
        for index, level in enumerate(chosen.levels)
    )
    return Allocation(budget.shifted(amounts, sizes), reasons, settings={"levels": levels}, notes=(note,))


def _levels_of(
    candidates: Sequence[Candidate], losses: Mapping[tuple[str, float], float] | None
) -> list[dict[float, float]]:
    if losses is None:
        raise UsageError(
            "there are no measured losses: they take passes over calibration text",
            fix="give the model and calibration text, or an allocator that needs the audit alone: depth, alpha",
        )
    levels: dict[str, dict[float, float]] = {item.tensor: {} for item in candidates}
    for (tensor, level), loss in losses.items():
        if not (np.isfinite(loss) and 0.0 <= level < 1.0):
            raise UsageError(f"the loss of {tensor} at {level:g} is {loss:g}", fix="measure it again, or leave it out")
        if tensor in levels:
            levels[tensor][level] = loss
    for tensor, costs in levels.items():
        if not costs:
            raise UsageError("its loss was not measured", where=tensor, fix="measure every tensor of the plan")
    return list(levels.values())


@assigner(
    "distortion", source="this project; an exact multiple-choice knapsack over measured errors", takes=("errors",)
)
def distortion(choices: Choices, settings: FormatSettings) -> Assignment:
    """The least summed error of the weights, as a precision study measured it in each format.

    Errors are squared, ‖Ŵ − W‖²_F, or relative to ‖W‖²_F. All weights count alike: inputs are not looked at.
    """
    return _cheapest(choices, settings.errors, ("error", "a precision study: give --study, from `tailwise precision`"))


@assigner("outputs", source="this project; an exact multiple-choice knapsack over measured errors", takes=("losses",))
def outputs(choices: Choices, settings: FormatSettings) -> Assignment:
    """The least summed error of the layers' outputs, ‖(Ŵ − W)·X‖²_F, from one pass over calibration text.

    All outputs count alike, wherever they go.
    """
    return _cheapest(choices, settings.losses, ("error of outputs", "calibration text: give --calibration TEXT"))


@assigner(
    "sensitivity", source="this project; an exact multiple-choice knapsack over measured losses", takes=("losses",)
)
def sensitivity_of_formats(choices: Choices, settings: FormatSettings) -> Assignment:
    """The least summed loss of the model, each group's measured in each format with all others as in `uniform`.

    That losses add up is an assumption.
    """
    return _cheapest(choices, settings.losses, ("loss", "measured losses of each tensor in each format"))


def _cheapest(choices: Choices, table: Table | None, words: tuple[str, str]) -> Assignment:
    what, needed = words
    if table is None:
        raise UsageError(f"there is no {what} of the tensors", fix=f"it takes {needed}; or take uniform, alpha, alphaq")
    losses = _losses(choices, table, what)
    chosen = choices.cheapest(losses)
    own = losses[np.arange(len(losses)), chosen.levels]
    why = [f"{what} {value:.4g} in {choices.formats[level]}" for value, level in zip(own, chosen.levels, strict=True)]
    return Assignment(chosen.levels, reasons_of(choices, chosen.levels, why), notes=(solved_words(chosen),))


def _losses(choices: Choices, table: Table, what: str) -> Matrix:
    """(groups, formats): sums over the members; +inf where a member was not measured in a format."""
    losses = np.full(choices.bits.shape, np.inf)
    for row, group in enumerate(choices.groups):
        for column, name in enumerate(choices.formats):
            values = [table.get((item.tensor, name), np.inf) for item in group.members]
            if np.isnan(values).any() or -np.inf in values:
                raise UsageError(f"its {what} in {name} is no number", where=group.name, fix="measure it again")
            losses[row, column] = sum(values)
        if not np.isfinite(losses[row][np.isfinite(choices.bits[row])]).any():
            names = ", ".join(choices.formats)
            raise UsageError(f"its {what} was measured in none of {names}", where=group.name, fix="measure it too")
    return losses
