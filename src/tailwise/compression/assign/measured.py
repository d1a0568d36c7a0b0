"""From measurements: what each tensor loses in each format, and the cheapest choice within the budget."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tailwise.compression.allocate.knapsack import Matrix
from tailwise.compression.assign.alphaq import solved_words
from tailwise.compression.assign.assigner import Assignment, Choices, FormatSettings, assigner, reasons_of
from tailwise.errors import UsageError

Table = Mapping[tuple[str, str], float]


@assigner(
    "distortion", source="this project; an exact multiple-choice knapsack over measured errors", takes=("errors",)
)
def distortion(choices: Choices, settings: FormatSettings) -> Assignment:
    """The least summed error of the weights, as a precision study measured it in each format.

    Errors are squared, ‖Ŵ − W‖²_F, or relative to ‖W‖²_F. All weights count alike: inputs are not looked at.
    """
    return _cheapest(choices, settings.errors, ("error", "a precision study: give --study, from `tailwise precision`"))


@assigner(
    "sensitivity", source="this project; an exact multiple-choice knapsack over measured losses", takes=("losses",)
)
def sensitivity(choices: Choices, settings: FormatSettings) -> Assignment:
    """The least summed loss of the model, each group's measured in each format with all others as in `uniform`.

    That losses add up is an assumption.
    """
    return _cheapest(choices, settings.losses, ("loss", "measured losses of each tensor in each format"))


@assigner("outputs", source="this project; an exact multiple-choice knapsack over measured errors", takes=("losses",))
def outputs(choices: Choices, settings: FormatSettings) -> Assignment:
    """The least summed error of the layers' outputs, ‖(Ŵ − W)·X‖²_F, from one pass over calibration text.

    All outputs count alike, wherever they go.
    """
    return _cheapest(choices, settings.losses, ("error of outputs", "calibration text: give --calibration TEXT"))


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
    found = np.full(choices.bits.shape, np.inf)
    for row, group in enumerate(choices.groups):
        for column, name in enumerate(choices.formats):
            values = [table.get((item.tensor, name), np.inf) for item in group.members]
            if np.isnan(values).any() or -np.inf in values:
                raise UsageError(f"its {what} in {name} is no number", where=group.name, fix="measure it again")
            found[row, column] = sum(values)
        if not np.isfinite(found[row][np.isfinite(choices.bits[row])]).any():
            names = ", ".join(choices.formats)
            raise UsageError(f"its {what} was measured in none of {names}", where=group.name, fix="measure it too")
    return found
