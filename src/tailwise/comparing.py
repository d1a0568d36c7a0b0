"""Comparison: two audits layer by layer, two checkpoints, and many audits in order."""

from tailwise.judging.compare.compare_audits import compare
from tailwise.judging.compare.comparison import Comparison, Delta, LayerDelta, RoleChange
from tailwise.judging.compare.correlation import Correlation
from tailwise.judging.compare.difference import Difference, DifferenceOptions, difference
from tailwise.judging.compare.ranking import RankedModel, Ranking, rank
from tailwise.judging.compare.stability import Stability
from tailwise.judging.compare.summary import SUMMARIES

__all__ = [
    "SUMMARIES",
    "Comparison",
    "Correlation",
    "Delta",
    "Difference",
    "DifferenceOptions",
    "LayerDelta",
    "RankedModel",
    "Ranking",
    "RoleChange",
    "Stability",
    "compare",
    "difference",
    "rank",
]  # fmt: skip
