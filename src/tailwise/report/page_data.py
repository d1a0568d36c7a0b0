"""The data of an HTML report: each number once, in columns, and compressed where it is much."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tailwise.audits.audit import Audit
from tailwise.core.harmless import visible
from tailwise.judging.diagnosis.finding import Diagnosis
from tailwise.report.charts.data import layer_record
from tailwise.report.charts.layer import layer_data
from tailwise.report.charts.view import ChartView

#: Parts longer than this are compressed; shorter ones stay readable in the source.
_COMPRESS = 300_000
#: Layers with pictures of their own, at most: the rest is in the table and in `tailwise plot --chart layer`.
MOST_PAGES = 400

Columns = dict[str, list[Any]]


def script(name: str, value: Any) -> str:
    """A value as an inert script element, which JavaScript reads back by `name`."""
    text = visible(json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False))
    if len(text) > _COMPRESS:
        packed = base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()
        return f'<script type="application/gzip" id="{name}">{packed}</script>'
    # "<" ends or opens elements inside a script; in JSON it only stands in strings.
    safe = text.replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{safe}</script>'


def in_columns(records: Sequence[Mapping[str, Any]]) -> Columns:
    """Records as column names and rows: the names are written once."""
    names = list(dict.fromkeys(name for record in records for name in record))
    return {"columns": names, "rows": [[record.get(name) for name in names] for record in records]}


def all_layers(view: ChartView) -> list[dict[str, Any]]:
    """Every row of every audit: the measured ones as charts see them, then those that were not measured."""
    measured = [{**record, "measured": True, "reason": None} for record in view.records]
    rest = [
        {"model": name, **layer_record(row, 0), "measured": False, "reason": row.reason}
        for name, audit in zip(view.names, view.audits, strict=True)
        for row in audit.unmeasured
    ]
    return measured + rest


def layer_pages(audits: Sequence[Audit], diagnoses: Sequence[Diagnosis]) -> dict[int, dict[str, Columns]]:
    """Index of the layer → its datasets; of many layers, those that findings name first and the highest α."""
    layers = [(number, layer) for number, audit in enumerate(audits) for layer in audit]
    indices = list(range(len(layers)))
    if len(layers) > MOST_PAGES:
        blame = [_places_in_findings(diagnosis) for diagnosis in diagnoses]

        def urgency(index: int) -> tuple[int, float]:
            number, layer = layers[index]
            return blame[number].get(layer.row.name, len(layers)), -(layer.row.metrics.get("alpha") or 0.0)

        indices = sorted(sorted(indices, key=urgency)[:MOST_PAGES])
    return {index: {name: in_columns(rows) for name, rows in layer_data(layers[index][1]).items()} for index in indices}


def _places_in_findings(diagnosis: Diagnosis) -> dict[str, int]:
    """Layer → its best place in the list of a finding, which has the worst layer first."""
    places: dict[str, int] = {}
    for finding in diagnosis.findings:
        for place, name in enumerate(finding.layers):
            places[name] = min(place, places.get(name, place))
    return places
