"""The same for all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tailwise.compression.choosing.amounts import Allocation, AllocatorSettings, allocator
from tailwise.compression.choosing.bit_formats import Assignment, Choices, FormatSettings, assigner, reasons_of
from tailwise.compression.choosing.ordered import ordered
from tailwise.compression.plans.budget import Budget
from tailwise.compression.plans.candidates import Candidate

_GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0  # its multiples, modulo 1, lie evenly however many are taken


@allocator("uniform", source="the baseline of every paper")
def uniform(candidates: Sequence[Candidate], budget: Budget, _settings: AllocatorSettings) -> Allocation:
    """The same fraction of every tensor."""
    return Allocation(np.full(len(candidates), budget.sparsity), ("the same everywhere",) * len(candidates))


@assigner("uniform", source="the baseline of every paper")
def uniform_formats(choices: Choices, _settings: FormatSettings) -> Assignment:
    """One format for all, or the two next to the budget, spread evenly over depth within each role.

    Evenly, so that the control is neither a slope along depth nor a choice among roles.
    """
    seen: dict[str, int] = {}
    turns = np.empty(len(choices.groups))
    for index, group in enumerate(choices.groups):
        role = group.members[0].role
        seen[role] = seen.get(role, 0) + 1
        turns[index] = seen[role] * _GOLDEN % 1.0
    levels, notes = ordered(choices, turns)
    why = ["the same everywhere, or every so many blocks of a role"] * len(levels)
    return Assignment(levels, reasons_of(choices, levels, why), notes=notes)
