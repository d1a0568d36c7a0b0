"""The difference of two audits, layer by layer and metric by metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Delta:
    """One metric of one layer in both audits."""

    before: float | None
    after: float | None
    change: float | None  # after − before
    z: float | None = None  # the change as a normal deviate, where the metric has a standard error
    significant: bool | None = None  # None: nothing is claimed (no standard error, or not comparable)


@dataclass(frozen=True)
class LayerDelta:
    """One layer that both audits measured."""

    name: str
    name_before: str  # differs where the layer was renamed
    role: str
    block: int | None
    identical: bool  # the same content, to the byte
    deltas: Mapping[str, Delta]
    weights: Mapping[str, float] = field(default_factory=dict)  # of W − W₀, where the checkpoints were at hand
    trusted: bool = True  # whether both fits of alpha are, be it of noise: `audits.trusted.doubt_of_fit`


@dataclass(frozen=True)
class RoleChange:
    """One metric over all layers of one role that changed: did they move together?"""

    role: str
    metric: str
    layers: int  # pairs whose value changed
    median_change: float
    p: float | None  # Wilcoxon's signed-rank test; None below six pairs, where it cannot reach 5 %
    significant: bool | None  # after Benjamini-Hochberg over all tested roles and metrics


@dataclass(frozen=True)
class Comparison:
    """Everything that changed from `before` (the base) to `after`."""

    before: str
    after: str
    layers: tuple[LayerDelta, ...]
    added: tuple[str, ...]
    missing: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...]  # (before, after)
    reshaped: tuple[tuple[str, str, str], ...]  # (name, shape before, shape after)
    summary: Mapping[str, Delta]  # model-level numbers: mean alpha, share in 2–4, …
    notes: tuple[str, ...] = ()  # e.g. that the recipes differ, so alphas are not comparable
    roles: tuple[RoleChange, ...] = ()
    level: float = 0.05  # false discovery rate of everything called significant
    unmeasured: tuple[str, ...] = ()  # what could not be measured in one audit or both, so that nothing is known of it

    @property
    def identical(self) -> bool:
        """Whether every matrix is the same, to the byte, and none was added, lost, renamed, reshaped or not measured.

        Where nothing was measured, nothing is known to be the same.
        """
        moved = self.added or self.missing or self.renamed or self.reshaped or self.unmeasured
        return not moved and bool(self.layers) and all(layer.identical for layer in self.layers)

    def significant(self, metric: str) -> tuple[str, ...]:
        """Names of the layers where the change of `metric` is significant."""
        deltas = [(layer.name, layer.deltas.get(metric)) for layer in self.layers]
        return tuple(name for name, delta in deltas if delta is not None and delta.significant)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        from tailwise.judging.compare.conclusion import conclusion

        document = asdict(self)
        head = {key: document.pop(key) for key in ("before", "after")}
        return {**head, "conclusion": conclusion(self), **document}
