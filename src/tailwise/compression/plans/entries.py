"""The entries of a plan and what stands above them: the noun alone. `plan.py` adds what is done with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from tailwise.compression.plans.decision import Decision
from tailwise.core.errors import unknown_name
from tailwise.core.shown import Brief

Part = Literal["prune", "quantize"]
Kind = Literal["prune", "quantize", "prune+quantize"]

BOTH: Kind = "prune+quantize"
PARTS: tuple[Part, ...] = ("prune", "quantize")


@dataclass(frozen=True, repr=False)
class Entries(Brief):
    """How a model is compressed, tensor by tensor. Made by an allocator, edited by people, applied by an operator."""

    kind: Kind
    operator: str  # a row of `operators.table`; or two joined by +
    allocator: str
    model: str  # as the audit names it
    fingerprint: str  # of the audit: content of every measured matrix
    budget: Mapping[str, Any]  # requested, achieved, and what they are fractions of
    decisions: tuple[Decision, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)  # tau, mapping, beta, …
    tried: tuple[Mapping[str, Any], ...] = ()  # what a search scored, the winner among it
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Decision]:
        return iter(self.decisions)

    def __len__(self) -> int:
        return len(self.decisions)

    def __getitem__(self, tensor: str) -> Decision:
        """The decision on a tensor. `UsageError` with near names where there is none."""
        for decision in self.decisions:
            if decision.tensor == tensor:
                return decision
        raise unknown_name("tensor in the plan", tensor, [decision.tensor for decision in self.decisions])

    def __contains__(self, tensor: object) -> bool:
        return any(decision.tensor == tensor for decision in self.decisions)

    @property
    def quantizes(self) -> bool:
        """Whether its entries are number formats alone."""
        return self.kind == "quantize"

    @property
    def is_both(self) -> bool:
        """Whether it prunes, and then quantizes what is left."""
        return self.kind == BOTH

    @property
    def n_params(self) -> int:
        """Parameters of all tensors in the plan."""
        return sum(decision.n_params for decision in self.decisions)

    @property
    def sparsity(self) -> float:
        """Σ s·d / Σ d over the entries as they are now, edited or not."""
        total = self.n_params
        return sum(decision.removed for decision in self.decisions) / total if total else 0.0

    @property
    def taken(self) -> float:
        """What really goes of its tensors' parameters, with whole ranks."""
        return sum(item.treatment.taken(item.site) * item.n_params for item in self.decisions) / self.n_params

    def replace(self, **changes: Any) -> Self:
        """The same plan with some fields changed."""
        return replace(self, **changes)

    def _ipython_key_completions_(self) -> list[str]:
        return [decision.tensor for decision in self.decisions]
