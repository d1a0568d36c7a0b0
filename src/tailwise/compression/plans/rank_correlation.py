"""How far a plan follows depth: the check that every plan carries."""

from __future__ import annotations

from dataclasses import dataclass

from tailwise.compression.plans.entries import Entries


@dataclass(frozen=True)
class DepthCorrelation:
    """Spearman's rank correlation of the blocks' amounts with the block number; None where nothing varies."""

    rho: float | None
    blocks: int

    @property
    def words(self) -> str:
        """For the notes of a plan."""
        if self.rho is None:
            return f"against depth: nothing to correlate ({self.blocks} blocks, one amount)"
        kind = "later blocks are compressed more" if self.rho > 0 else "earlier blocks are compressed more"
        return f"against depth: Spearman ρ = {self.rho:+.2f} over {self.blocks} blocks; {kind}"


def block_means(plan: Entries) -> dict[int, float]:
    """Block → Σ s·d / Σ d of its entries, ascending."""
    sums: dict[int, tuple[float, int]] = {}
    for decision in plan:
        if decision.block is not None:
            removed, total = sums.get(decision.block, (0.0, 0))
            sums[decision.block] = (removed + decision.removed, total + decision.n_params)
    return {block: sums[block][0] / sums[block][1] for block in sorted(sums)}


def depth_correlation(plan: Entries) -> DepthCorrelation:
    """Of the blocks' amounts with the block number."""
    means = {block: round(mean, 6) for block, mean in block_means(plan).items()}  # rounding must not rank equals
    if len(set(means.values())) < 2:
        return DepthCorrelation(None, len(means))
    from scipy.stats import spearmanr

    return DepthCorrelation(float(spearmanr(list(means), list(means.values())).statistic), len(means))
