"""Two audits held against each other."""

from __future__ import annotations

from tailwise.app.assistant.answer import Fact
from tailwise.app.assistant.functions.audits import AUDIT
from tailwise.app.assistant.functions.function import Place, function
from tailwise.app.workspace import links
from tailwise.core.errors import UsageError
from tailwise.judging.compare.compare_audits import TESTED
from tailwise.judging.compare.comparison import Comparison, Delta
from tailwise.judging.compare.conclusion import conclusion

_MOST = 10


@function(before="identity of the audit that counts as the base; the base on screen where it is left out", after=AUDIT)
def compare(place: Place, before: str = "", after: str = "") -> Fact:
    """What changed from one audit (the base) to another: numbers, layers with significance, roles, structure, findings.

    A difference of spectra is not a difference of quality; that takes an evaluation.
    """
    name = place.audit(after)
    base = base_of(place, name, before)
    comparison = place.workspace.comparison(base, name)
    ours, theirs = place.workspace.diagnosis(name), place.workspace.diagnosis(base)
    old, new = (
        {(item.code, item.pattern or item.title) for item in one.findings if not item.noted} for one in (theirs, ours)
    )
    moved = sorted((item for item in comparison.roles if item.significant), key=lambda item: item.p or 0.0)
    return {
        "before": base,
        "after": name,
        "before_title": place.workspace.entry(base, "audit").title,
        "after_title": place.workspace.entry(name, "audit").title,
        "identical": comparison.identical,
        "conclusion": conclusion(comparison),
        "layers_in_both": len(comparison.layers),
        "layers_identical": sum(layer.identical for layer in comparison.layers),
        "false_discovery_rate": comparison.level,
        "significant_layers": {metric: _changes(place, name, comparison, metric) for metric in TESTED},
        "significant_layers_in_all": {metric: len(comparison.significant(metric)) for metric in TESTED},
        "significant_roles": [{"role": item.role, "metric": item.metric, "layers": item.layers,
                               "median_change": item.median_change, "p": item.p} for item in moved[:_MOST]],
        "significant_roles_in_all": len(moved),
        "numbers": {key: delta_fact(delta) for key, delta in comparison.summary.items()},
        "structure": {"added": len(comparison.added), "missing": len(comparison.missing),
                      "renamed": len(comparison.renamed), "reshaped": len(comparison.reshaped)},
        "findings_new": [{"code": code, "title": title} for code, title in sorted(new - old)],
        "findings_gone": [{"code": code, "title": title} for code, title in sorted(old - new)],
        "notes": list(comparison.notes),
        "links": [place.link("side by side", links.against_base(name, base)), place.to_audit(base),
                  place.to_audit(name)],
    }  # fmt: skip


def base_of(place: Place, audit: str, named: str = "") -> str:
    """What an audit is held against: what is named, what is on screen, or the only other audit there is."""
    if named:
        return place.audit(named)
    beside = [one for one in place.screen.audits if one != audit]
    if place.screen.base and place.screen.base != audit:
        return place.audit(place.screen.base)
    if len(beside) == 1:
        return place.audit(beside[0])
    others = [entry.id for entry in place.workspace.entries("audit") if entry.id != audit]
    if len(others) == 1:
        return others[0]
    shown = ", ".join(others[:12])
    raise UsageError("which audit is the base?", fix=f"name one of {shown}" if shown else "audit the base model too")


def _changes(place: Place, audit: str, comparison: Comparison, metric: str) -> list[Fact]:
    names = set(comparison.significant(metric))
    layers = [layer for layer in comparison.layers if layer.name in names]
    layers.sort(key=lambda layer: -abs(layer.deltas[metric].z or 0.0))
    return [
        {
            "layer": layer.name,
            **delta_fact(layer.deltas[metric]),
            "links": [place.link(layer.name, links.layer(audit, layer.name))],
        }
        for layer in layers[:_MOST]
    ]


def delta_fact(delta: Delta) -> Fact:
    """Before, after and change of one number."""
    return {key: value for key, value in vars(delta).items() if value is not None}
