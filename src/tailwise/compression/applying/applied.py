"""What a plan came to: every tensor read back from the file that was written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.compression.applying.data_free import amount_of, as_matrices, does_nothing
from tailwise.compression.plans.plan import Decision, Plan
from tailwise.compression.plans.rounding import low_rank_sparsity
from tailwise.errors import UnreadableError

if TYPE_CHECKING:
    import torch

#: Of the norm of a matrix: what rounding to the stored dtype leaves beside its r directions.
_ROUNDING = {"BF16": 2.0**-7, "F16": 2.0**-10, "F32": 1e-5, "F64": 1e-5}


@dataclass(frozen=True)
class Reached:
    """One tensor of the plan, as it was read back."""

    tensor: str
    n_params: int
    asked: float  # fraction that was to go
    reached: float  # fraction that is zero; of low rank, what its factors save
    pattern: str
    rank: int | None = None

    @property
    def removed(self) -> float:
        """Parameters that went."""
        return self.n_params * self.reached

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        found = {"tensor": self.tensor, "parameters": self.n_params, "asked": self.asked, "reached": self.reached}
        return {**found, "pattern": self.pattern, **({} if self.rank is None else {"rank": self.rank})}


@dataclass(frozen=True)
class Applied:
    """A plan that was applied."""

    output: Path
    operator: str
    tensors: tuple[Reached, ...]
    seconds: float
    resumed: int = 0  # blocks that an earlier run had finished
    settings: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    smaller: bool = False  # parameters were taken out and not only set to zero

    @property
    def asked(self) -> float:
        """Σ s·d / Σ d of the plan."""
        return weighted_mean([(item.n_params, item.asked) for item in self.tensors])

    @property
    def reached(self) -> float:
        """The same, as it was read back."""
        return weighted_mean([(item.n_params, item.reached) for item in self.tensors])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "output": str(self.output),
            "operator": self.operator,
            "asked": self.asked,
            "reached": self.reached,
            "smaller": self.smaller,
            "seconds": round(self.seconds, 3),
            "resumed_blocks": self.resumed,
            "settings": dict(self.settings or {}),
            "tensors": [item.to_json() for item in self.tensors],
            "notes": list(self.notes),
        }


def weighted_mean(found: list[tuple[int, float]]) -> float:
    """Mean of (weight, value); 0 where there is none."""
    total = sum(size for size, _ in found)
    return sum(size * value for size, value in found) / total if total else 0.0


def read_back(plan: Plan, written: Checkpoint) -> tuple[Reached, ...]:
    """Every tensor of the plan in the written checkpoint. `UnreadableError` where one holds less than was asked."""
    return tuple(_reached(decision, written) for decision in plan)


def _reached(decision: Decision, written: Checkpoint) -> Reached:
    tensor = written.read(decision.tensor)
    matrices = as_matrices(tensor, decision.tensor, written.config)
    if decision.rank is not None:
        return _of_rank(decision, matrices, written.tensors[decision.tensor].dtype)
    zeros = tensor.numel() - int(tensor.count_nonzero())
    reached = zeros / max(tensor.numel(), 1)
    asked = decision.sparsity or 0.0
    # Whole entries of a row: a row of few inputs may keep up to one entry more.
    slack = 1.0 / matrices.shape[2] + 1.0 / tensor.numel()
    if reached < asked - slack or not _fits(decision, matrices):
        raise UnreadableError(
            f"holds {reached:.2%} zeros where {asked:.2%} ({decision.pattern}) were asked for",
            where=decision.tensor,
            fix="this is an error of tailwise: report it with the plan",
        )
    return Reached(decision.tensor, decision.n_params, asked, reached, decision.pattern)


def _fits(decision: Decision, matrices: torch.Tensor) -> bool:
    amount = amount_of(decision)
    if amount.pattern is None or does_nothing(decision):
        return True
    kept, group = amount.pattern
    return int((matrices.reshape(-1, group) != 0).sum(dim=1).max()) <= kept


def _of_rank(decision: Decision, matrices: torch.Tensor, dtype: str) -> Reached:
    import torch

    (W,) = matrices.float()
    rank = decision.rank or 0
    sigma = torch.linalg.svdvals(W)
    beyond = float(sigma[rank:].square().sum().sqrt()) / max(float(sigma.square().sum().sqrt()), 1e-30)
    if beyond > _ROUNDING.get(dtype, 1e-2):
        raise UnreadableError(
            f"has {beyond:.1%} of its norm beyond rank {rank}",
            where=decision.tensor,
            fix="this is an error of tailwise: report it with the plan",
        )
    saved = low_rank_sparsity(rank, *W.shape)
    return Reached(decision.tensor, decision.n_params, decision.sparsity or 0.0, saved, decision.pattern, rank)


def masks_of(plan: Plan) -> Iterator[str]:
    """The tensors that have a mask: those that hold zeros."""
    for decision in plan:
        if decision.rank is None and not does_nothing(decision):
            yield decision.tensor
