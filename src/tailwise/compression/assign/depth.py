"""By depth alone: the control that every plan is measured against."""

from __future__ import annotations

import numpy as np

from tailwise.compression.assign.assigner import Assignment, Choices, FormatSettings, assigner, reasons_of
from tailwise.compression.assign.ordered import by_share, decided, ordered


@assigner(
    "depth",
    source="this project, after ATP: Huang et al. 2025, arXiv:2502.14770, which prunes later blocks more",
    takes=("tau",),
)
def depth(choices: Choices, settings: FormatSettings) -> Assignment:
    """The two formats next to the budget: the better one in the early blocks.

    With τ a group is to have r times the mean bits, r falling from 1 + τ in the first block to 1 − τ in the last. What
    is outside the blocks counts as the middle one.
    """
    blocks = sorted({group.block for group in choices.groups if group.block is not None})
    place = {block: index / max(len(blocks) - 1, 1) for index, block in enumerate(blocks)}
    turns = np.array([0.5 if group.block is None else place[group.block] for group in choices.groups])
    levels, notes = ordered(choices, turns) if settings.tau is None else by_share(choices, turns, settings.tau)
    number = {block: index + 1 for index, block in enumerate(blocks)}
    why = [
        "outside the blocks" if group.block is None else f"block {number[group.block]} of {len(blocks)}"
        for group in choices.groups
    ]
    used: dict[str, object] = {} if settings.tau is None else {"tau": settings.tau}
    return Assignment(levels, reasons_of(choices, levels, why), settings=used, notes=decided(notes))
