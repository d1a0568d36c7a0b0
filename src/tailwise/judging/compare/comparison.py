"""The difference of two audits, layer by layer and metric by metric."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tailwise.core.errors import UsageError, unknown_name
from tailwise.core.shown import Brief, Shown, brief
from tailwise.core.synonyms import known_name
from tailwise.judging.compare.summary import WITH_ERROR

if TYPE_CHECKING:
    from tailwise.audits.table import Table


@dataclass(frozen=True, repr=False)
class Delta:
    """One metric of one layer in both audits."""

    before: float | None
    after: float | None
    change: float | None  # after − before
    z: float | None = None  # the change as a normal deviate, where the metric has a standard error
    significant: bool | None = None  # None: nothing is claimed (no standard error, or not comparable)

    def __repr__(self) -> str:
        said = "" if self.change is None else f", {self.change:+.4g}"
        said += "" if self.z is None else f", z {self.z:.1f}"
        said += {True: ", significant", False: ", not significant", None: ""}[self.significant]
        return f"Delta({_short(self.before)} → {_short(self.after)}{said})"


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


@dataclass(frozen=True, repr=False)
class LayerDelta(Brief):
    """One layer that both audits measured."""

    name: str
    name_before: str  # differs where the layer was renamed
    role: str
    block: int | None
    identical: bool  # the same content, to the byte
    deltas: Mapping[str, Delta]
    weights: Mapping[str, float] = field(default_factory=dict)  # of W − W₀, where the checkpoints were at hand
    trusted: bool = True  # whether both fits of alpha are, be it of noise: `audits.trusted.doubt_of_fit`
    of_bulk: bool = False  # whether one of both fits has more than half of the eigenvalues: alpha describes the bulk


@dataclass(frozen=True)
class RoleChange:
    """One metric over all layers of one role that changed: did they move together?"""

    role: str
    metric: str
    layers: int  # pairs whose value changed
    median_change: float
    p: float | None  # Wilcoxon's signed-rank test; None below six pairs, where it cannot reach 5 %
    significant: bool | None  # after Benjamini-Hochberg over all tested roles and metrics


@dataclass(frozen=True, repr=False)
class Comparison(Brief):
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

    def __getitem__(self, name: str) -> LayerDelta:
        """The layer of that name, in either audit, a trailing `.weight` allowed. `UsageError` with near names."""
        wanted = name.removesuffix(".weight") if isinstance(name, str) else name
        for layer in self.layers:
            if wanted in (layer.name, layer.name_before):
                return layer
        raise unknown_name("layer in both audits", name, [layer.name for layer in self.layers])

    def __iter__(self) -> Iterator[LayerDelta]:
        return iter(self.layers)

    def _ipython_key_completions_(self) -> list[str]:
        return [layer.name for layer in self.layers]

    def table(self, metric: str | None = None) -> Table:
        """A row for each layer and metric; of one metric, the largest change first, whichever way it goes."""
        from tailwise.audits.table import Table

        name = None if metric is None else self._known(metric)
        found: list[dict[str, Any]] = [
            {"name": layer.name, "role": layer.role, "block": layer.block, "metric": key, "before": delta.before,
             "after": delta.after, "change": delta.change, "z": delta.z, "significant": delta.significant,
             "identical": layer.identical, "trusted": layer.trusted, "of_bulk": layer.of_bulk}
            for layer in self.layers for key, delta in layer.deltas.items() if name in (None, key)
        ]  # fmt: skip
        if name is not None:
            found.sort(key=lambda row: -abs(row["change"] or 0.0))
        return Table.from_rows(found)

    def _known(self, metric: str) -> str:
        known = {name for layer in self.layers for name in layer.deltas}
        name = known_name(metric, known)
        if name not in known and known:
            raise unknown_name("metric in this comparison", metric, known)
        return name

    def significant(self, metric: str) -> tuple[str, ...]:
        """Names of the layers where the change of `metric` is significant; `UsageError` where it has no error."""
        if metric not in WITH_ERROR:
            name = self._known(metric)
            if name not in WITH_ERROR:
                fix = f"table({name!r}) has its changes, the largest first, and `roles` the tests of whole roles"
                raise UsageError(f"a layer's {name} has no error that a change could be held against", fix=fix)
            metric = name
        deltas = [(layer.name, layer.deltas.get(metric)) for layer in self.layers]
        return tuple(name for name, delta in deltas if delta is not None and delta.significant)

    @property
    def conclusion(self) -> str:
        """What it comes to, in a sentence, after `magnitude`: `11 of 58 matrices moved beyond their error: …`"""
        from tailwise.judging.compare.conclusion import conclusion

        return conclusion(self)

    @property
    def magnitude(self) -> str:
        """How large ‖W − W₀‖/‖W₀‖ is beside what is known of others; "" where no weights were read."""
        from tailwise.judging.compare.size_of_change import magnitude

        return magnitude(self)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        document = asdict(self)
        head = {key: document.pop(key) for key in ("before", "after")}
        return {**head, "conclusion": self.conclusion, "magnitude": self.magnitude, **document}

    def __repr__(self) -> str:
        return f"Comparison({brief(self.before)}, {brief(self.after)}: {self.conclusion})"

    def _shown(self) -> Shown:
        heads = ("name", "role", "alpha before", "alpha after", "change", "z", "significant")
        nothing, rows = Delta(None, None, None), []
        for layer in self.layers:
            delta = layer.deltas.get("alpha", nothing)
            verdict = "identical" if layer.identical else {True: "yes", False: "no", None: "–"}[delta.significant]
            rows.append((layer.name, layer.role, delta.before, delta.after, delta.change, delta.z, verdict))
        rows.sort(key=lambda row: -abs(row[5] or 0.0))
        return Shown(self.conclusion, heads, rows, "`table()`", self.notes)
