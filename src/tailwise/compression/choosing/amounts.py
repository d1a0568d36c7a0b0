"""Amounts of sparsity: what an allocator is, and the registry of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from tailwise.compression.choosing.chooser import Chooser, loader, registered
from tailwise.compression.operators.registered import OPERATORS
from tailwise.compression.plans.budget import Budget, Vector
from tailwise.compression.plans.candidates import Candidate
from tailwise.core.errors import UsageError
from tailwise.core.registry import Registry
from tailwise.core.validation import check, check_fields

Mapping3 = Literal["block", "matrix", "mixed"]
MAPPINGS = ("block", "matrix", "mixed")


@dataclass(frozen=True)
class AllocatorSettings:
    """What allocators can be told. Each reads only the fields that it names."""

    operator: str = "magnitude"
    mapping: Mapping3 = "block"
    tau: float = 0.3  # shares lie in [1 − τ, 1 + τ]
    reverse: bool = False  # of alpha, alpha-role and entropy: the other way round
    weights: Mapping[str, float] | None = None  # of `blend`: indicator → weight
    beta: float | None = None  # step of `depth` from block to block; None: half of what the budget allows
    statistics: Mapping[int, float] | None = None  # block → outlier ratio (owl) or score (dlp)
    losses: Mapping[tuple[str, float], float] | None = None  # (tensor, sparsity) → change of loss, of `sensitivity`
    width: float | None = None  # half the range of `owl` (λ, 0.08) and `dlp` (0.15)

    def __post_init__(self) -> None:
        # What was measured says itself, by tensor or block, which number is none.
        check_fields(self, but=("statistics", "losses", *(("mapping",) if isinstance(self.mapping, str) else ())))
        for name in ("statistics", "losses"):
            check(name, getattr(self, name), Mapping | None)
        if self.mapping not in MAPPINGS:
            raise UsageError(f"there is no mapping {self.mapping!r}", fix=f"choose {', '.join(MAPPINGS)}")
        if not 0.0 <= self.tau <= 1.0:
            raise UsageError(f"tau is {self.tau:g}", fix="give a number from 0 (uniform) to 1; published: 0.3")
        if self.width is not None and not 0.0 <= self.width <= 0.5:
            raise UsageError(f"width is {self.width:g}", fix="give a number from 0 to 0.5")

    @property
    def direction(self) -> int:
        """+1 where the operator takes more at high α, −1 where at low α; turned round by `reverse`."""
        found = OPERATORS[self.operator].direction
        return -found if self.reverse else found


@dataclass(frozen=True)
class Allocation:
    """An amount and a reason for each candidate, in their order."""

    amounts: Vector  # (n,)
    reasons: tuple[str, ...]
    used: tuple[str, ...] = ()  # metrics that the amounts come from
    settings: Mapping[str, object] = field(default_factory=dict)  # with what was derived filled in
    notes: tuple[str, ...] = ()
    sign: str = ""  # what it reads, which way, and who says otherwise; "" where it reads no spectrum


Allocate = Callable[[Sequence[Candidate], Budget, AllocatorSettings], Allocation]


class Allocator(Chooser[Allocate]):
    """A named way to spread a budget of sparsity."""

    def __call__(self, candidates: Sequence[Candidate], budget: Budget, settings: AllocatorSettings) -> Allocation:
        """Allocate; the order of the candidates does not matter."""
        if not candidates:
            raise UsageError("there is nothing to spread a budget over", fix="give at least one candidate")
        return self.choose(candidates, budget, settings)


_MODULES = ("uniform", "by_depth", "by_alpha", "alpha_role", "by_entropy", "calibrated", "measured", "blend")
ALLOCATORS: Registry[Allocator] = Registry("allocator", "tailwise.allocators", loader(_MODULES, lambda: ALLOCATORS))


def allocator(
    name: str, *, source: str, takes: tuple[str, ...] = (), needs_alpha: bool = False
) -> Callable[[Allocate], Allocate]:
    """Register the decorated function; the first line of its docstring is the summary.

    It must hold the budget to 1e-6 whatever the order of its candidates, and give a neutral share where a metric is
    None; `tests/contracts/test_allocators.py` says the rest.
    """
    needs = ("alpha",) if needs_alpha else ()
    return registered(ALLOCATORS, Allocator, name, source=source, takes=takes, needs=needs)


def with_tau() -> tuple[str, ...]:
    """Those of which a τ is all that there is to choose."""
    return tuple(name for name, item in ALLOCATORS.items() if "tau" in item.takes and "weights" not in item.takes)


def sizes_of(candidates: Sequence[Candidate]) -> Vector:
    """Parameter counts, (n,)."""
    return np.array([item.n_params for item in candidates], dtype=np.float64)


def blocks_of(candidates: Sequence[Candidate]) -> list[int]:
    """The block numbers, ascending."""
    return sorted({item.block for item in candidates if item.block is not None})


def values_of(candidates: Sequence[Candidate], metric: str) -> Vector:
    """A metric, (n,), NaN where it is not defined. `UsageError` where no candidate has it."""
    if not any(metric in item.metrics for item in candidates):
        raise UsageError(f"the audit has no {metric}", fix="audit the model again, without --metrics")
    found = [item.value(metric) for item in candidates]
    return np.array([np.nan if value is None else value for value in found], dtype=np.float64)


def means_by_block(candidates: Sequence[Candidate], values: Vector) -> dict[int, float]:
    """Block → plain mean of the finite values in it, for blocks that have one."""
    found: dict[int, float] = {}
    for block in blocks_of(candidates):
        inside = [v for item, v in zip(candidates, values, strict=True) if item.block == block and np.isfinite(v)]
        if inside:
            found[block] = float(np.mean(np.sort(inside)))  # sorted: the sum does not depend on the order of rows
    return found


def ordinal(position: int) -> str:
    """1 → "highest", 2 → "2nd highest"."""
    if position == 1:
        return "highest"
    tail = "th" if 10 <= position % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(position % 10, "th")
    return f"{position}{tail} highest"


def verdict(amount: float, mean: float) -> str:
    """What an amount means beside the budget."""
    if abs(amount - mean) < 5e-4:
        return "as the budget"
    return "prune more" if amount > mean else "prune less"
