"""The same for all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tailwise.compression.allocate.allocator import Allocation, Settings, allocator
from tailwise.compression.plans.budget import Budget
from tailwise.compression.plans.candidates import Candidate


@allocator("uniform", source="the baseline of every paper")
def uniform(candidates: Sequence[Candidate], budget: Budget, _settings: Settings) -> Allocation:
    """The same fraction of every tensor."""
    return Allocation(np.full(len(candidates), budget.sparsity), ("the same everywhere",) * len(candidates))
