"""One chart as a figure: an Altair chart for a notebook, a Vega-Lite spec, or a file. No browser takes part."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from tailwise.audits.audit import Audit, AuditLike
from tailwise.core.atomic import write_whole
from tailwise.core.errors import UsageError
from tailwise.core.synonyms import known_name
from tailwise.core.validation import checked
from tailwise.report.charts.chart import CHARTS, Chart, require_altair
from tailwise.report.charts.view import ChartView
from tailwise.report.theme import TOKENS, config, palette_of

Spec = dict[str, Any]


@checked
def plot(
    chart: str,
    audits: AuditLike | Sequence[AuditLike],
    *,
    base: AuditLike | None = None,
    layer: str | None = None,
    metric: str | None = None,
    theme: str = "light",
) -> Any:
    """The named chart of one audit or several, or of those at paths, as an Altair chart with its data and theme inside.

    Raises `UsageError` for an unknown chart, layer, metric or theme, for a metric that the audit does not have, and
    where Altair is not installed.
    """
    require_altair()
    import altair

    given = [audits] if isinstance(audits, Audit | str | os.PathLike) or not isinstance(audits, Iterable) else audits
    audits, base = tuple(Audit.of(one) for one in given), None if base is None else Audit.of(base)
    if metric is not None:
        metric = known_name(metric, {name for one in audits for layer in one for name in layer.row.metrics})
    view = ChartView(audits, palette=palette_of(theme), base=base, layer_name=layer, metric_name=metric)
    spec = spec_of(CHARTS[chart], view)
    datasets = spec.pop("datasets")
    figure = altair.Chart.from_dict(spec)
    # After the validation, which would look at every number.
    figure["datasets"] = datasets
    return figure


def spec_of(chart: Chart, view: ChartView, *, titled: bool = True, shared: Set[str] = frozenset()) -> Spec:
    """The Vega-Lite spec of a chart, with the fields of its data that it uses, less the datasets of a page."""
    spec: Spec = chart.draw(view, titled=titled).to_dict()
    text = json.dumps(spec)
    spec["datasets"] = {name: _used(rows, text) for name, rows in view.datasets.items() if name not in shared}
    if view.palette is not TOKENS:
        spec["config"] = config(view.palette)
    return spec


def _used(rows: Sequence[Mapping[str, Any]], text: str) -> list[Mapping[str, Any]]:
    every = dict.fromkeys(name for row in rows for name in row)
    fields = [name for name in every if re.search(rf"\b{re.escape(name)}\b", text)]
    return [{name: row[name] for name in fields if name in row} for row in rows]


def _vl(function: str, **options: Any) -> Callable[[Spec], bytes]:
    def render(spec: Spec) -> bytes:
        import vl_convert

        found = getattr(vl_convert, function)(spec, **options)
        return found.encode() if isinstance(found, str) else bytes(found)

    return render


_WRITERS: Mapping[str, Callable[[Spec], bytes]] = {
    ".png": _vl("vegalite_to_png", scale=2),
    ".svg": _vl("vegalite_to_svg"),
    ".pdf": _vl("vegalite_to_pdf"),
    ".html": _vl("vegalite_to_html", bundle=True),
    ".json": lambda spec: json.dumps(spec, ensure_ascii=False, allow_nan=False).encode(),
}


def check_figure(path: str) -> None:
    """`UsageError` where the suffix is not one that figures are written to."""
    if Path(path).suffix.lower() not in _WRITERS:
        raise UsageError(f"the suffix {Path(path).suffix!r} is not one of a figure", where=path,
                         fix=f"choose one of {', '.join(_WRITERS)}")  # fmt: skip


def write_figure(figure: Any, path: str | Path) -> Path | str:
    """Write a chart as what the suffix says: .png, .svg, .pdf, .html (one file, offline) or .json (Vega-Lite)."""
    check_figure(str(path))
    return write_whole(path, _WRITERS[Path(path).suffix.lower()](figure.to_dict(validate=False)))
