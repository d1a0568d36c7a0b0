"""A plan: for every tensor that is to be compressed, how much and why. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tailwise.errors import unknown_name

if TYPE_CHECKING:
    from tailwise.compression.plans.diff import PlanDiff

Kind = Literal["prune", "quantize", "prune+quantize"]

BOTH: Kind = "prune+quantize"
PARTS: tuple[Literal["prune", "quantize"], ...] = ("prune", "quantize")
UNSTRUCTURED = "unstructured"
BLOCK = "block"  # pattern of an entry whose whole block goes; its sparsity is 1


@dataclass(frozen=True)
class Decision:
    """What is done to one stored tensor.

    One tensor can hold several matrices (fused query, key and value; stacked experts). They share one decision.
    """

    tensor: str  # full name of the stored tensor
    matrix: str  # name of the matrix in the audit, without the part behind `#`
    role: str
    block: int | None
    n_params: int
    sparsity: float | None = None  # fraction of the parameters that goes, in [0, 0.99]; 1 with its whole block
    pattern: str = UNSTRUCTURED  # or N:M, N kept of each M along the input axis; or block
    rank: int | None = None  # of each matrix, for the operator low_rank
    format: str | None = None  # number format of a quantization plan
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    reason: str = ""
    #: (rows, cols) where the tensor holds one matrix; empty where it holds several. Of a plan to quantize, (out, in)
    #: of the matrix that it is quantized as, or (count, out, in).
    shape: tuple[int, ...] = ()

    @property
    def removed(self) -> float:
        """Parameters that go: n_params · sparsity."""
        return self.n_params * (self.sparsity or 0.0)


@dataclass(frozen=True)
class Plan:
    """How a model is compressed, tensor by tensor. Made by an allocator, edited by people, applied by an operator."""

    kind: Kind
    operator: str  # magnitude, wanda, sparsegpt, low_rank, structured; rtn, gptq; or two joined by +
    allocator: str
    model: str  # as the audit names it
    fingerprint: str  # of the audit: content of every measured matrix
    budget: Mapping[str, Any]  # asked, reached, and what they are fractions of
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
    def n_params(self) -> int:
        """Parameters of all tensors in the plan."""
        return sum(decision.n_params for decision in self.decisions)

    @property
    def sparsity(self) -> float:
        """Σ s·d / Σ d over the entries as they are now, edited or not."""
        total = self.n_params
        return sum(decision.removed for decision in self.decisions) / total if total else 0.0

    @property
    def amount_words(self) -> str:
        """What the entries come to."""
        if self.kind == "quantize":
            from tailwise.compression.plans.bits import mean_bits

            return f"{mean_bits(self):.6f} bits per weight"
        if self.kind == BOTH:
            return " and ".join(self.part(kind).amount_words for kind in ("prune", "quantize"))
        return f"sparsity {self.sparsity:.6f}"

    def replace(self, **changes: Any) -> Plan:
        """The same plan with some fields changed."""
        return replace(self, **changes)

    def part(self, kind: Literal["prune", "quantize"]) -> Plan:
        """Of a plan that does both: what it says of one of the two."""
        from tailwise.compression.plans.combined import part_of

        return part_of(self, kind)

    def save(self, path: str | Path) -> Path | str:
        """Write JSON or YAML, by the suffix (.json, .yaml, .yml). Whole or not at all."""
        from tailwise.compression.plans.files import save

        return save(self, path)

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read and check a plan. `UsageError` for a bad edit, `UnreadableError` where there is no such file."""
        from tailwise.compression.plans.files import load

        return load(path)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, as in the file: entries keyed by the tensor's name."""
        from tailwise.compression.plans.files import to_document

        return to_document(self)

    def validate(self) -> tuple[str, ...]:
        """Check every entry. `UsageError` where the plan cannot be applied; warnings otherwise."""
        from tailwise.compression.plans.checks import validate

        return validate(self)

    def misfits(self, sizes: Mapping[str, int], fingerprint: str | None = None) -> tuple[str, ...]:
        """Why the plan does not fit a model: `sizes` are the parameters of its stored tensors by name.

        `fingerprint`, where it is known, is compared too. Empty where all fits.
        """
        from tailwise.compression.plans.checks import misfits

        return misfits(self, sizes, fingerprint)

    def diff(self, other: Plan) -> PlanDiff:
        """What `other` does differently."""
        from tailwise.compression.plans.diff import diff

        return diff(self, other)
