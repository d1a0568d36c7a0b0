"""Two plans beside each other."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tailwise.compression.plans.bits import mean_bits
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.entries import Entries

_FIELDS = ("sparsity", "pattern", "experts", "rank", "format", "n_params")
_HEAD = ("kind", "operator", "allocator", "model", "fingerprint")


@dataclass(frozen=True)
class FieldChange:
    """One field of one tensor."""

    tensor: str
    field: str
    before: Any
    after: Any


@dataclass(frozen=True)
class PlanDiff:
    """What the second plan does differently."""

    head: tuple[FieldChange, ...]  # `tensor` is empty
    changed: tuple[FieldChange, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    before: float  # Σ s·d / Σ d; of plans to quantize, mean bits per weight
    after: float
    moved: float  # parameters that one plan takes and the other does not, at least; or that have another format
    unit: str = "sparsity"  # or bits per weight

    @property
    def same(self) -> bool:
        """Whether applying either gives the same."""
        return not (self.changed or self.added or self.removed or any(item.field == "operator" for item in self.head))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"same": self.same, **asdict(self)}


def diff(before: Entries, after: Entries) -> PlanDiff:
    """What `after` does differently; amounts within 1e-9 are equal."""
    old = {decision.tensor: decision for decision in before}
    new = {decision.tensor: decision for decision in after}
    both = [tensor for tensor in old if tensor in new]
    alone = [decision for decision in (*before, *after) if not (decision.tensor in old and decision.tensor in new)]
    bits = before.quantizes and after.quantizes
    if bits:
        moved = float(sum(new[tensor].n_params for tensor in both if old[tensor].format != new[tensor].format))
        moved += sum(decision.n_params for decision in alone)
    else:
        moved = sum(abs(old[tensor].removed - new[tensor].removed) for tensor in both)
        moved += sum(decision.removed for decision in alone)
    return PlanDiff(
        head=tuple(
            FieldChange("", name, getattr(before, name), getattr(after, name))
            for name in _HEAD
            if getattr(before, name) != getattr(after, name)
        ),
        changed=tuple(change for tensor in both for change in _changes(old[tensor], new[tensor])),
        added=tuple(tensor for tensor in new if tensor not in old),
        removed=tuple(tensor for tensor in old if tensor not in new),
        before=mean_bits(before) if bits else before.sparsity,
        after=mean_bits(after) if bits else after.sparsity,
        moved=moved,
        unit="bits per weight" if bits else "sparsity",
    )


def _changes(old: Decision, new: Decision) -> list[FieldChange]:
    changes = []
    for name in _FIELDS:
        first, second = getattr(old, name), getattr(new, name)
        near = isinstance(first, float) and isinstance(second, float) and abs(first - second) <= 1e-9
        if first != second and not near:
            changes.append(FieldChange(old.tensor, name, first, second))
    return changes
