"""By depth alone: the control that every plan is measured against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tailwise.compression.choosing.amounts import Allocation, AllocatorSettings, allocator, blocks_of, sizes_of, verdict
from tailwise.compression.choosing.bit_formats import Assignment, Choices, FormatSettings, assigner, reasons_of
from tailwise.compression.choosing.ordered import by_share, decided, ordered
from tailwise.compression.plans.budget import MOST, Budget
from tailwise.compression.plans.candidates import Candidate
from tailwise.core.errors import UsageError


@allocator(
    "depth",
    source="ATP: Huang et al. 2025, Determining Layer-wise Sparsity for LLMs, arXiv:2502.14770",
    takes=("beta",),
)
def depth(candidates: Sequence[Candidate], budget: Budget, settings: AllocatorSettings) -> Allocation:
    """More with every block: s_i = S − β(L−1)/2 + β(i−1) for block i of L.

    The paper searches β for each model. The default here is half of the largest β that keeps every amount in
    [0, 0.99]: β = min(S, 0.99 − S)/(L − 1); that choice is ours. Where blocks differ in size, all amounts are
    shifted together until Σ s·d holds, and what is outside blocks gets S before the shift. β < 0 takes more
    from the early blocks.
    """
    blocks = blocks_of(candidates)
    steps = len(blocks) - 1
    beta = settings.beta
    if beta is None:
        beta = min(budget.sparsity, MOST - budget.sparsity) / steps if steps > 0 else 0.0
    if not np.isfinite(beta) or abs(beta) > 1.0:
        raise UsageError(f"beta is {beta:g}", fix="give the step from block to block, e.g. 0.01")
    place = {block: index for index, block in enumerate(blocks)}
    levels = [
        budget.sparsity if item.block is None else budget.sparsity - beta * steps / 2 + beta * place[item.block]
        for item in candidates
    ]
    amounts = budget.shifted(np.array(levels), sizes_of(candidates))
    reasons = tuple(
        f"{_where(item, place)}: {verdict(float(amount), budget.sparsity)}"
        for item, amount in zip(candidates, amounts, strict=True)
    )
    return Allocation(amounts, reasons, settings={"beta": beta})


def _where(item: Candidate, place: dict[int, int]) -> str:
    return "outside the blocks" if item.block is None else f"block {place[item.block] + 1} of {len(place)}"


@assigner(
    "depth",
    source="this project, after ATP: Huang et al. 2025, arXiv:2502.14770, which prunes later blocks more",
    takes=("tau",),
)
def depth_of_formats(choices: Choices, settings: FormatSettings) -> Assignment:
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


@assigner(
    "ends",
    source="llama.cpp's mixes (`use_more_bits` of its quantizer) and AutoRound's schemes; the distance is ours",
    takes=("tau",),
)
def ends_of_formats(choices: Choices, settings: FormatSettings) -> Assignment:
    """The two formats next to the budget: the better one in the first and the last blocks.

    A control like `depth`: groups come in order of their distance from the nearer end. With τ a group is to have r
    times the mean bits, r falling from 1 + τ at the ends to 1 − τ in the middle. What is outside the blocks counts as
    an end.
    """
    blocks = sorted({group.block for group in choices.groups if group.block is not None})
    last = max(len(blocks) - 1, 1)
    place = {block: 2.0 * min(index, last - index) / last for index, block in enumerate(blocks)}
    turns = np.array([0.0 if group.block is None else place[group.block] for group in choices.groups])
    levels, notes = ordered(choices, turns) if settings.tau is None else by_share(choices, turns, settings.tau)
    why = [
        "outside the blocks" if group.block is None else f"{place[group.block]:.0%} of the way to the middle"
        for group in choices.groups
    ]
    used: dict[str, object] = {} if settings.tau is None else {"tau": settings.tau}
    return Assignment(levels, reasons_of(choices, levels, why), settings=used, notes=decided(notes))
