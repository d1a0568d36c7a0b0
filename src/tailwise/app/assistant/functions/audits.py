"""An audit at a glance, and one of its layers."""

from __future__ import annotations

import re
from collections import Counter
from statistics import fmean, median

from tailwise.app.assistant.answer import Fact
from tailwise.app.assistant.charts import chart_of
from tailwise.app.assistant.functions.function import Place, function
from tailwise.app.assistant.layer_names import meant_in
from tailwise.app.workspace import links
from tailwise.audits.audit import Audit
from tailwise.audits.rows import LayerRow
from tailwise.audits.trusted import estimator_of, usable
from tailwise.core.errors import UsageError, unknown_name
from tailwise.judging.compare.summary import model_numbers

#: What is said of a role or of a layer first; the rest is in `query`.
TOLD = ("alpha", "alpha_hill", "ks_distance", "stable_rank", "log_spectral_norm", "singular_entropy", "num_traps")
AUDIT = "identity of an audit, from `list`; the one on screen where it is left out"
_MOST_PEERS = 8


@function(audit=AUDIT)
def audit(place: Place, audit: str = "") -> Fact:
    """One audit at a glance: what was measured, how, model-level numbers, and every role with its spread."""
    name = place.audit(audit)
    measured, diagnosis = place.workspace.audit(name), place.workspace.diagnosis(name)
    why = Counter(row.status for row in measured.unmeasured)
    counts = Counter(finding.severity for finding in diagnosis.findings)
    blocks = [row.block for row in measured.rows if row.block is not None]
    return {
        "audit": name,
        "title": place.workspace.entry(name, "audit").title,
        "model": measured.model,
        "format": measured.provenance.format,
        "matrices": len(measured),
        "parameters": sum(layer.row.n_params for layer in measured),
        "blocks": max(blocks) - min(blocks) + 1 if blocks else 0,
        "not_measured": dict(why),
        "recipe": {key: measured.provenance.recipe.get(key) for key in ("estimator", "hill_estimator", "randomize")},
        "findings": {key: counts.get(key, 0) for key in ("error", "warning", "info")},
        "rules_not_evaluated": len(diagnosis.not_looked),
        "numbers": {key: value for key, value in model_numbers(measured).items() if value is not None},
        "roles": [_role(measured, role) for role in dict.fromkeys(layer.row.role for layer in measured)],
        "notes": list(measured.provenance.notes[:5]),
        "links": [
            place.to_audit(name),
            place.link("its layers", links.layers(name)),
            *(chart_of(name, metric).to_json() for metric in TOLD[:4]),
        ],
    }


@function(metric="name of a metric", role="only matrices of this role; all where it is left out", audit=AUDIT)
def aggregate(place: Place, metric: str, role: str = "", audit: str = "") -> Fact:
    """Mean, median, range and count of a metric over an audit, in all and by role; exponents of trusted fits alone."""
    name = place.audit(audit)
    measured = place.workspace.audit(name)
    rows = [layer.row for layer in measured if not role or layer.row.role == role]
    if not rows:
        raise unknown_name("role", role, dict.fromkeys(layer.row.role for layer in measured))
    if all(metric not in row.metrics for row in rows):
        raise unknown_name("metric of this audit", metric, dict.fromkeys(key for row in rows for key in row.metrics))
    by_role = {one: [row for row in rows if row.role == one] for one in dict.fromkeys(row.role for row in rows)}
    kind = estimator_of(measured)
    return {
        "audit": name,
        "metric": metric,
        **_spread_of(rows, metric, kind),
        "by_role": [{"role": one, **_spread_of(group, metric, kind)} for one, group in by_role.items()],
        "links": [place.link("its layers", links.layers(name)), chart_of(name, metric).to_json()],
    }


def _spread_of(rows: list[LayerRow], metric: str, kind: str) -> Fact:
    values = [value for row in rows if (value := usable(row, metric, kind)) is not None]
    spread: Fact = {"matrices": len(rows), "counted": len(values), "left_out": len(rows) - len(values)}
    if values:
        spread |= {"mean": fmean(values), "median": median(values), "min": min(values), "max": max(values)}
    return spread


@function(audit=AUDIT)
def health(place: Place, audit: str = "") -> Fact:
    """The verdict on an audit (healthy, needs a look, unhealthy, no verdict), why, its worst layers, what is next."""
    name = place.audit(audit)
    health_line = place.workspace.diagnosis(name).health
    assert health_line is not None  # noqa: S101 - every diagnosis of an audit has one
    file = place.workspace.entry(name, "audit").path.name
    return {
        "audit": name,
        **health_line.to_json(),
        "next": health_line.next_for(file if re.fullmatch(r"[\w.+-]+", file) else "AUDIT"),
        "links": [
            place.to_audit(name),
            *(place.link(one.layer, links.layer(name, one.layer)) for one in health_line.worst),
        ],
    }


def _role(audit: Audit, role: str) -> Fact:
    rows = [layer.row for layer in audit if layer.row.role == role]
    return {
        "role": role,
        "matrices": len(rows),
        **{name: spread(rows, name) for name in TOLD if _values(rows, name)},
    }


def spread(rows: list[LayerRow], metric: str) -> Fact:
    """Median and range of a metric over rows that have it."""
    values = _values(rows, metric)
    return {"median": median(values), "min": min(values), "max": max(values), "n": len(values)} if values else {}


def _values(rows: list[LayerRow], metric: str) -> list[float]:
    values = [usable(row, metric) for row in rows]
    return [value for value in values if value is not None]


@function(layer='full name, or words such as "block 3 mlp up"', audit=AUDIT)
def layer(place: Place, layer: str = "", audit: str = "") -> Fact:
    """Every number of one matrix, beside the median of its peers (same role, same shape), and the findings on it."""
    name = place.audit(audit)
    measured = place.workspace.audit(name)
    row = row_of(measured, layer or place.screen.layer or "")
    peers = [
        one.row for one in measured if (one.row.role, one.row.rows, one.row.cols) == (row.role, row.rows, row.cols)
    ]
    named = place.workspace.diagnosis(name).of(row.name)
    return {
        "audit": name,
        "layer": row.name,
        "role": row.role,
        "block": row.block,
        "rows": row.rows,
        "cols": row.cols,
        "parameters": row.n_params,
        "status": row.status,
        "reason": row.reason,
        "metrics": {key: value for key, value in row.metrics.items() if value is not None},
        "peers": {metric: spread(peers, metric) for metric in TOLD if spread(peers, metric)} if len(peers) > 1 else {},
        "findings": [{"code": item.code, "title": item.title, "severity": item.severity} for item in named],
        "links": [place.link(row.name, links.layer(name, row.name)), chart_of(name, "alpha").to_json()],
    }


def row_of(audit: Audit, words: str) -> LayerRow:
    """The one row that words mean. `UsageError` where there is none, or several."""
    rows = rows_of(audit, words)
    if len(rows) > 1:
        shown = ", ".join(row.name for row in rows[:_MOST_PEERS])
        raise UsageError(f"{len(rows)} matrices are meant by {words!r}", fix=f"choose one: {shown}")
    return rows[0]


def rows_of(audit: Audit, words: str) -> list[LayerRow]:
    """The rows that words mean, those that were measured where there are such. `UsageError` where there are none."""
    if not words:
        raise UsageError("which layer?", fix='give a name, or words such as "block 3 mlp up"')
    exact = [row for row in audit.rows if row.name in (words, words.removesuffix(".weight"))]
    meant = meant_in(words, audit)
    rows = exact or [row for row in meant.rows if row.measured] or list(meant.rows)
    if not rows:
        raise UsageError(meant.trouble or f"no matrix is meant by {words!r}", fix="`query` lists the layers")
    return rows
