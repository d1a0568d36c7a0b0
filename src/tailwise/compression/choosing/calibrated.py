"""From one pass over calibration text: OWL, DLP and LSA. The pass is elsewhere; here are the mappings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tailwise.compression.choosing.amounts import (
    Allocation,
    AllocatorSettings,
    allocator,
    blocks_of,
    ordinal,
    sizes_of,
    verdict,
)
from tailwise.compression.plans.budget import Budget
from tailwise.compression.plans.candidates import Candidate
from tailwise.core.errors import UsageError

OWL_WIDTH = 0.08
DLP_WIDTH = 0.15
#: Of LSA, as published for sparsities of 10 to 80 %.
LSA_WIDTHS = (0.06, 0.02, 0.04, 0.02, 0.04, 0.10, 0.15, 0.12)


@allocator(
    "owl", source="Yin et al. 2023, Outlier Weighed Layerwise Sparsity, arXiv:2310.05175", takes=("statistics", "width")
)
def owl(candidates: Sequence[Candidate], budget: Budget, settings: AllocatorSettings) -> Allocation:
    """OWL: blocks with more outliers keep more.

    The statistic of a block is the percentage of entries of |W|·‖X‖ above M = 5 times their mean. Scaled to
    [0, 2λ] with λ = 0.08 and centred, it is what the block keeps more than the mean block, as in the published
    code: the range of amounts is 2λ wide around S, not always symmetric.
    """
    return _linear(candidates, budget, settings, ("outlier ratio", -1, OWL_WIDTH))


@allocator(
    "dlp", source="Chen et al. 2025, DLP: Dynamic Layerwise Pruning, arXiv:2505.23807", takes=("statistics", "width")
)
def dlp(candidates: Sequence[Candidate], budget: Budget, settings: AllocatorSettings) -> Allocation:
    """DLP: blocks with a high central score lose more.

    The statistic of a block is the median of |W|·‖X‖ over its entries (the published code takes the mean in its
    unstructured path). Its share of the sum over blocks is the block's unimportance; one minus that, scaled to
    [0, 2a] with a = 0.15 and centred, is what the block keeps more than the mean block.
    """
    return _linear(candidates, budget, settings, ("score", +1, DLP_WIDTH))


@allocator("lsa", source="Yang et al. 2026, LSA: Layer-wise Sparsity Allocation, ICLR", takes=("statistics", "width"))
def lsa(candidates: Sequence[Candidate], budget: Budget, settings: AllocatorSettings) -> Allocation:
    """LSA: blocks whose inputs can hardly be reconstructed without lose more.

    The statistic of a block is the least error of linear reconstruction, ‖(W − M∘W)Xᵀ‖², where every row loses half of
    its inputs, chosen greedily in groups of 128; the mean over the block's matrices. One minus its share of the sum
    over blocks, scaled to [0, 2β] and centred, is what the block keeps more than the mean block. β is that of the
    published code for the nearest sparsity: 0.02 to 0.15.
    """
    width = settings.width
    if width is None:
        nearest = round(10 * budget.sparsity)
        width = LSA_WIDTHS[min(max(nearest, 1), len(LSA_WIDTHS)) - 1]
    return _linear(candidates, budget, settings, ("reconstruction error", +1, width))


def _linear(
    candidates: Sequence[Candidate], budget: Budget, settings: AllocatorSettings, how: tuple[str, int, float]
) -> Allocation:
    """s_b = S ± 2·width·(x_b − mean x), x the statistic on [0, 1]; shifted so that Σ s·d holds.

    Where all blocks are of one size the shift is nothing, and the amounts are the published ones.
    """
    name, sign, default = how
    width = default if settings.width is None else settings.width
    blocks = blocks_of(candidates)
    known = _checked(settings.statistics, blocks, name)
    values = np.array([known[block] for block in blocks])
    extent = float(values.max() - values.min()) if blocks else 0.0
    place = (values - values.min()) / extent if extent > 0 else np.zeros(len(blocks))
    centred = place - place.mean() if blocks else place
    level = dict(zip(blocks, budget.sparsity + sign * 2.0 * width * centred, strict=True))
    levels = [budget.sparsity if item.block is None else float(level[item.block]) for item in candidates]
    amounts = budget.shifted(np.array(levels), sizes_of(candidates))
    falling = sorted(values, reverse=True)
    reasons = tuple(
        f"{_where(item, known, falling, name)}: {verdict(float(amount), budget.sparsity)}"
        for item, amount in zip(candidates, amounts, strict=True)
    )
    return Allocation(amounts, reasons, settings={"width": width, "statistics": {str(b): known[b] for b in blocks}})


def _checked(statistics: Mapping[int, float] | None, blocks: Sequence[int], name: str) -> dict[int, float]:
    if statistics is None:
        raise UsageError(
            f"there is no {name} per block: it takes a pass over calibration text",
            fix="give the model and calibration text, or an allocator that needs the audit alone: depth, alpha",
        )
    missing = [block for block in blocks if block not in statistics]
    wrong = [block for block in blocks if block in statistics and not np.isfinite(statistics[block])]
    if missing or wrong:
        raise UsageError(
            f"no finite {name} for block {(missing or wrong)[0]}", fix="measure all blocks of the plan on the same text"
        )
    return {block: float(statistics[block]) for block in blocks}


def _where(item: Candidate, known: Mapping[int, float], falling: Sequence[float], name: str) -> str:
    if item.block is None:
        return "outside the blocks"
    value = known[item.block]
    return f"{name} {value:.3g}, the {ordinal(falling.index(value) + 1)} of {len(falling)} blocks"
