"""Treatments that take parameters away: entries, ranks, units, blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from typing_extensions import override

from tailwise.compression.operators.operator import Amount, Operator, OperatorResult
from tailwise.compression.plans.budget import MOST
from tailwise.compression.plans.patterns import BLOCK, EXPERTS, UNSTRUCTURED, parse_pattern
from tailwise.compression.plans.site import Site
from tailwise.compression.plans.treatment import (
    REPORT,
    Matrices,
    Treatment,
    TreatmentSettings,
    Unit,
    is_number,
    is_whole,
    operator_for,
)
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.models.activations import Activations

if TYPE_CHECKING:
    import torch

#: Of the norm of a matrix: what rounding to the stored dtype leaves beside its r directions.
_ROUNDING = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 1e-5, "float64": 1e-5}


@dataclass(frozen=True, slots=True)
class _Taking(Treatment):
    """What takes parameters away."""

    share: float | None  # fraction that goes; None in a file that lacks it, which `check` says
    unit: ClassVar[Unit] = "parameters"

    @property
    @override
    def sparsity(self) -> float | None:
        return self.share

    def price(self, site: Site) -> float:
        """Parameters that stay."""
        return site.n_params * (1.0 - self.taken(site))

    @override
    def check(self, site: Site, operator: Operator) -> Iterator[str]:
        amount = self.share
        if not is_number(amount) or amount is None:
            yield f"sparsity is {amount!r}; it is a fraction from 0 to {MOST}"
            return
        if not 0.0 <= amount <= MOST:
            hint = f" (write {amount / 100:g} for {amount:g} %)" if 2.0 <= amount <= 100.0 * MOST else ""
            yield f"sparsity is {amount:g}; it is a fraction from 0 to {MOST}{hint}"
        yield from self._check_pattern(operator)
        yield from self._check_rank(site, operator)

    def _check_pattern(self, operator: Operator) -> Iterator[str]:
        try:
            pattern = parse_pattern(self.pattern, mixed=False) if isinstance(self.pattern, str) else None
        except UsageError as error:
            yield f"{error.what}; {error.fix}"
            return
        if pattern is None:
            yield f"pattern is {self.pattern!r}; write it in quotes, like '2:4'"
        elif pattern.fixed is not None and not operator.patterns:
            yield f"{operator.name} has no pattern; write {UNSTRUCTURED}"
        elif pattern.fixed is not None and abs(pattern.fixed - (self.share or 0.0)) > 1e-6:
            yield f"{self.pattern} is a sparsity of {pattern.fixed:g}, not {self.share:g}"

    def _check_rank(self, site: Site, operator: Operator) -> Iterator[str]:
        rank = self.rank
        if not operator.ranks:
            if rank is not None:
                yield f"has a rank, which {operator.name} does not use"
            return
        most = min(site.shape[-2:]) if len(site.shape) in (2, 3) else None
        if not is_whole(rank) or (rank or 0) < 1 or (most is not None and (rank or 0) > most):
            yield f"rank is {rank!r}; it is a whole number from 1" + (f" to {most}" if most else "")

    def reached(self, site: Site, matrices: Matrices) -> float:
        """The fraction that is zero. Rows may keep up to one entry more, since they are whole entries."""
        after, asked = matrices.after, self.sparsity or 0.0
        zeros = after.numel() - int(after.count_nonzero())
        share = zeros / max(after.numel(), 1)
        if share < asked - 1.0 / after.shape[2] - 1.0 / after.numel() or not self._has_pattern(after):
            raise UnreadableError(
                f"holds {share:.2%} zeros where {asked:.2%} ({self.pattern}) were asked for",
                where=site.tensor,
                fix=REPORT,
            )
        return share

    def _has_pattern(self, after: torch.Tensor) -> bool:
        pattern = parse_pattern(self.pattern)
        if pattern.group is None or pattern.kept is None or self.idle:
            return True
        return int((after.reshape(-1, pattern.group) != 0).sum(dim=1).max()) <= pattern.kept


@dataclass(frozen=True, slots=True)
class Sparsify(_Taking):
    """Entries are set to zero: anywhere, or all but N of each M along the inputs."""

    nm: str = UNSTRUCTURED  # or N:M

    @property
    @override
    def pattern(self) -> str:
        return self.nm

    @property
    @override
    def idle(self) -> bool:
        return not self.share and parse_pattern(self.nm).group is None

    @property
    @override
    def masks(self) -> bool:
        return not self.idle

    @override
    def unfit(self, inputs: int, n_params: int) -> Iterator[str]:
        group = parse_pattern(self.nm).group
        if group is not None and inputs % group:
            yield f"{inputs} inputs, which {self.nm} does not divide"

    def asks(self) -> Amount:
        """Of one matrix."""
        pattern = parse_pattern(self.nm, mixed=False)
        fixed = None if pattern.kept is None or pattern.group is None else (pattern.kept, pattern.group)
        return Amount(self.share or 0.0, fixed)

    @override
    def do(self, W: torch.Tensor, how: TreatmentSettings, seen: Activations | None = None) -> OperatorResult:
        return operator_for(how, seen)(W, self.asks(), seen)

    @override
    def words(self) -> str:
        return self.nm


@dataclass(frozen=True, slots=True)
class LowRank(_Taking):
    """W ≈ A·B of a rank; stored as the product, or in two factors. Of stacked experts each matrix by itself."""

    of: int | None = None

    @property
    @override
    def rank(self) -> int | None:
        return self.of

    def taken(self, site: Site) -> float:
        """By the rank: 1 − r(rows + cols)/(rows·cols); negative for a matrix too small to gain."""
        if self.of is None or len(site.shape) not in (2, 3):
            return self.share or 0.0
        return saved_by_rank(self.of, *site.shape[-2:])

    @override
    def unfit(self, inputs: int, n_params: int) -> Iterator[str]:
        most = min(inputs, n_params // max(inputs, 1))
        if (self.of or 0) > most:
            yield f"a rank of {most} at most, not {self.of}"

    @override
    def do(self, W: torch.Tensor, how: TreatmentSettings, seen: Activations | None = None) -> OperatorResult:
        return operator_for(how, seen)(W, Amount(self.share or 0.0, rank=self.of), seen)

    def reached(self, site: Site, matrices: Matrices) -> float:
        """What the factors save. `UnreadableError` where the matrix has more directions than its rank."""
        rank, dtype = self.of or 0, str(matrices.after.dtype).removeprefix("torch.")
        beyond = 0.0
        for W in matrices.after:
            sigma = np.linalg.svd(W.float().numpy(), compute_uv=False)
            beyond = max(beyond, float(np.linalg.norm(sigma[rank:])) / max(float(np.linalg.norm(sigma)), 1e-30))
        if beyond > _ROUNDING.get(dtype, 1e-2):
            raise UnreadableError(f"has {beyond:.1%} of its norm beyond rank {rank}", where=site.tensor, fix=REPORT)
        return saved_by_rank(rank, *matrices.after.shape[1:])

    @override
    def words(self) -> str:
        return f"rank {self.of}"


@dataclass(frozen=True, slots=True)
class Structured(_Taking):
    """Heads or neurons go, through all the tensors of the block that hold them."""

    @property
    @override
    def idle(self) -> bool:
        return not self.share

    def do(self, W: torch.Tensor, how: TreatmentSettings, seen: Activations | None = None) -> OperatorResult:
        """No matrix can be worked on alone: `shrinking` does it."""
        return how.operator(W, Amount(self.share or 0.0), seen)

    @override
    def words(self) -> str:
        return UNSTRUCTURED


@dataclass(frozen=True, slots=True)
class Drop(_Taking):
    """The whole block of the site goes."""

    share: float | None = 1.0

    @property
    @override
    def pattern(self) -> str:
        return BLOCK

    @property
    @override
    def whole(self) -> bool:
        return True

    @override
    def check(self, site: Site, operator: Operator) -> Iterator[str]:
        if not is_number(self.share) or self.share is None:
            yield f"sparsity is {self.share!r}; it is a fraction from 0 to {MOST}"
            return
        if operator.work is not None:
            yield f"{operator.name} does not take whole blocks; operator: structured does"
        if site.block is None:
            yield "is in no block that could go as a whole"
        if self.share != 1.0:
            yield f"sparsity is {self.share:g}; with the pattern {BLOCK} it is 1"

    def do(self, W: torch.Tensor, how: TreatmentSettings, seen: Activations | None = None) -> OperatorResult:
        """No matrix can be worked on alone: `shrinking` does it."""
        return how.operator(W, Amount(), seen)

    @override
    def words(self) -> str:
        return BLOCK


@dataclass(frozen=True, slots=True)
class DropExperts(_Taking):
    """Whole experts of a mixture go: the one that the site is a part of, or `of` those that it stacks."""

    share: float | None = 1.0
    of: tuple[int, ...] = ()  # numbers, along the first axis of a stack; a tensor of one expert needs none

    @property
    @override
    def pattern(self) -> str:
        return EXPERTS

    @property
    @override
    def experts(self) -> tuple[int, ...]:
        return self.of

    @property
    @override
    def whole(self) -> bool:
        return True

    @override
    def check(self, site: Site, operator: Operator) -> Iterator[str]:
        if not is_number(self.share) or self.share is None:
            yield f"sparsity is {self.share!r}; it is the fraction of its experts that goes"
            return
        if operator.work is not None:
            yield f"{operator.name} does not take whole experts; operator: structured does"
        if not site.role.startswith("expert_"):
            yield "is no part of an expert that could go as a whole"
        if not all(is_whole(number) and number >= 0 for number in self.of) or len({*self.of}) != len(self.of):
            yield f"experts is {list(self.of)!r}; it is a list of their numbers, each once"
        elif not self.of and self.share != 1.0:
            yield f"sparsity is {self.share:g}; of one expert it is 1, and of a stack the list `experts` is needed"
        elif self.of and not 0.0 < self.share < 1.0:
            yield f"sparsity is {self.share:g}; of a stack it is the share of its experts that goes"

    def do(self, W: torch.Tensor, how: TreatmentSettings, seen: Activations | None = None) -> OperatorResult:
        """No matrix can be worked on alone: `shrinking` does it."""
        return how.operator(W, Amount(), seen)

    @override
    def words(self) -> str:
        return f"{EXPERTS} {', '.join(map(str, self.of))}" if self.of else EXPERTS


def saved_by_rank(rank: int, rows: int, cols: int) -> float:
    """What a rank takes away: 1 − r(rows + cols)/(rows·cols); negative for a matrix too small to gain."""
    return 1.0 - rank * (rows + cols) / (rows * cols)
