"""What the rules say."""

from __future__ import annotations

from collections.abc import Sequence

from tailwise.app.assistant.answer import Fact
from tailwise.app.assistant.charts import chart_for
from tailwise.app.assistant.functions.audits import AUDIT, rows_of
from tailwise.app.assistant.functions.function import Place, function
from tailwise.app.workspace import links
from tailwise.judging.diagnosis.finding import SEVERITIES, Diagnosis, Finding

_MOST_LAYERS = 12
_MOST_EVIDENCE = 6


@function(layer='only what names these: a full name, or words such as "block 3"; all where it is left out', audit=AUDIT)
def diagnose(place: Place, layer: str = "", audit: str = "") -> Fact:
    """What the rules found in an audit, worst first, with the numbers, causes, remedies and the strength of each rule.

    Also which rules were not evaluated, and what would let them.
    """
    name = place.audit(audit)
    diagnosis = place.workspace.diagnosis(name)
    wanted = [row.name for row in rows_of(place.workspace.audit(name), layer)] if layer else []
    findings = [item for item in diagnosis.findings if not layer or set(item.layers) & set(wanted)]
    return {
        "audit": name,
        **({"of_layers": wanted[:_MOST_LAYERS], "of_layers_in_all": len(wanted)} if layer else {}),
        "findings": [finding_fact(place, name, item, wanted) for item in findings],
        "findings_in_all": len(diagnosis.findings),
        "rules_that_looked": len(diagnosis.looked),
        "not_looked": _blind(diagnosis),
        "not_evaluated": [
            {"code": item.code, "reason": item.reason, "layers": list(item.layers[:_MOST_LAYERS])}
            for item in diagnosis.not_evaluated
        ],
        "links": [place.to_audit(name)],
    }


@function(audit=AUDIT, limit="layers, at most 50")
def worst_layers(place: Place, audit: str = "", limit: int = 8) -> Fact:
    """The layers that findings name, the worst severity first, then the number of findings."""
    name = place.audit(audit)
    diagnosis = place.workspace.diagnosis(name)
    named: dict[str, list[Finding]] = {}
    for item in diagnosis.findings:
        for one in item.layers:
            named.setdefault(one, []).append(item)
    ranked = sorted(named, key=lambda one: [-_count(named[one], severity) for severity in reversed(SEVERITIES)])
    most = max(1, min(limit, 50))
    return {
        "audit": name,
        "layers": [
            {"layer": one, "findings": [{"code": item.code, "title": item.title, "severity": item.severity}
                                        for item in named[one]],
             "says": _says(named[one], one), "links": [place.link(one, links.layer(name, one))]}
            for one in ranked[:most]
        ],
        "named_in_all": len(named),
        "measured": len(place.workspace.audit(name)),
        "worst": diagnosis.worst,
        "rules_not_evaluated": len(diagnosis.not_looked),
        "links": [place.link("its layers", links.layers(name))],
    }  # fmt: skip


def _count(findings: list[Finding], severity: str) -> int:
    return sum(item.severity == severity for item in findings)


def _says(findings: list[Finding], layer: str) -> str:
    worst = max(findings, key=lambda item: SEVERITIES.index(item.severity))
    return next((item.says for item in worst.evidence if item.layer == layer), "")


def finding_fact(place: Place, audit: str, finding: Finding, of: Sequence[str] = ()) -> Fact:
    """A finding; of some layers alone where that is asked."""
    evidence = [item for item in finding.evidence if not of or item.layer in ("", *of)]
    layers = [one for one in finding.layers if not of or one in of]
    chart = chart_for(audit, [item.metric for item in finding.evidence[:1]])
    return {
        "code": finding.code,
        "title": finding.title,
        "severity": finding.severity,
        "strength_of_rule": finding.strength,
        "message": finding.message,
        "layers": layers[:_MOST_LAYERS],
        "layers_in_all": len(layers),
        "layers_in_model": len(finding.layers),
        "evidence": [{"layer": item.layer, "metric": item.metric, "value": item.value, "bound": item.bound,
                      "says": item.says} for item in evidence[:_MOST_EVIDENCE]],
        "causes": list(finding.causes),
        "remedies": list(finding.remedies),
        "in_code": [f"tailwise.remedies.{one}" for one in finding.functions],
        **({"chart": chart.to_json()} if chart else {}),
        "links": [place.link(finding.code, links.explain(finding.code))]
        + ([chart.to_json()] if chart else [])
        + [place.link(one, links.layer(audit, one)) for one in layers[:_MOST_LAYERS]],
    }  # fmt: skip


def _blind(diagnosis: Diagnosis) -> list[Fact]:
    return [{"code": item.code, "title": item.title, "reason": item.reason} for item in diagnosis.not_looked]
