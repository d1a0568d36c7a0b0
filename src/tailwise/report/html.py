"""The HTML report: one file, no network, light and dark, on screen and on paper."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from tailwise.audits.audit import Audit
from tailwise.audits.rows import LayerRow
from tailwise.audits.trusted import bulk_words
from tailwise.core.atomic import write_whole
from tailwise.core.errors import UsageError
from tailwise.judging.compare.conclusion import conclusion
from tailwise.judging.diagnosis.diagnose import diagnose
from tailwise.judging.diagnosis.finding import Diagnosis
from tailwise.report import health
from tailwise.report import page_parts as parts
from tailwise.report.charts.chart import Chart, charts_of, remedy, require_altair
from tailwise.report.charts.view import ChartView, short_names
from tailwise.report.layer_map import layer_map
from tailwise.report.page_data import MOST_PAGES, all_layers, in_columns, layer_pages, script
from tailwise.report.render import spec_of
from tailwise.report.shell import Section, layer_table, whole_page
from tailwise.report.theme import THEMES, TOKENS, config

#: Headings of the chart families; a family of a third party has its own name.
_FAMILIES = {
    "alpha": "Tails",
    "randomized": "Against random",
    "balance": "Balance",
    "depth": "Scale and rank",
    "heat": "Role × block",
    "several": "Side by side",
    "base": "Against the base",
}
_HEAT = ("alpha_hill_z", "log_spectral_norm", "stable_rank", "singular_entropy_normalized")
_COLUMNS = ("model", "name", "role", "block", "shape", "alpha", "alpha_sigma", "ks_distance", "alpha_hill",
            "alpha_hill_z", "alpha_weighted", "log_spectral_norm", "stable_rank", "effective_rank",
            "singular_entropy", "num_spikes", "num_traps", "one_minus_rd", "detX_delta", "status")  # fmt: skip
_WORDS = frozenset({"model", "name", "role", "shape", "status"})
_SHARED = frozenset({"layers"})


def check_page(path: str) -> None:
    """`UsageError` where the file would not be an HTML page, or charts cannot be drawn at all."""
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"the suffix {Path(path).suffix!r} is not one of a page", where=path, fix="choose x.html")
    require_altair()


def write_report(audits: Sequence[Audit], path: str | Path, *, base: Audit | None = None) -> Path | str:
    """Write the report of one audit, of several side by side, or of each against a base."""
    check_page(str(path))
    return write_whole(path, report(audits, base=base).encode())


def report(audits: Sequence[Audit], *, base: Audit | None = None) -> str:
    """The report as HTML text: findings first, then charts by family, one layer, the table, what was left out."""
    require_altair()
    view = ChartView(tuple(audits), palette=TOKENS, base=base)
    page = _ReportPage(view, [diagnose(audit, base=base) for audit in audits])
    title = " · ".join(view.names) + (f" against {short_names([base])[0]}" if base else "")
    sections = [
        page.map(),
        page.findings(),
        *page.families(),
        page.one_layer(),
        page.table(),
        page.left_out(),
        page.definitions(),
    ]
    top, version = (
        parts.header(title, audits, view.names, page.health()),
        audits[0].provenance.versions.get("tailwise", ""),
    )
    return whole_page(title, top, sections, data=page.data(), version=version)


class _ReportPage:
    """Sections of one report, and the data that they refer to."""

    def __init__(self, view: ChartView, diagnoses: Sequence[Diagnosis]) -> None:
        self._view, self._diagnoses = view, diagnoses
        self._layers = all_layers(view)
        self._pages = layer_pages(view.audits, diagnoses)
        self._index = {(self._layers[i]["model"], self._layers[i]["name"]): i for i in self._pages}
        self._specs: dict[str, Any] = {}

    def health(self) -> str:
        """The verdict on every audit, with its worst layers."""
        several, texts = len(self._diagnoses) > 1, []
        for name, diagnosis in zip(self._view.names, self._diagnoses, strict=True):
            if diagnosis.health is not None:
                head = f"<h3>{escape(name)}</h3>" if several else ""
                texts.append(head + health.html(diagnosis.health, "AUDIT", lambda layer, m=name: self._link(m, layer)))  # type: ignore[misc]
        return "".join(texts)

    def map(self) -> Section:
        """The map of layers of one audit."""
        if len(self._view.audits) > 1:
            return "map", "Map of layers", ""
        name, audit = self._view.names[0], self._view.audits[0]

        def to(rows: Sequence[LayerRow]) -> str:
            index = next((i for row in rows if (i := self._index.get((name, row.name))) is not None), None)
            return 'href="#table"' if index is None else f'href="#layer" data-layer="{index}"'

        return "map", "Map of layers", layer_map(audit, self._diagnoses[0], to)

    def findings(self) -> Section:
        """Of every audit."""
        several = len(self._diagnoses) > 1
        texts = []
        for name, diagnosis in zip(self._view.names, self._diagnoses, strict=True):
            text = parts.findings(diagnosis, lambda layer, model=name: self._link(model, layer))  # type: ignore[misc]
            texts.append((f"<h3>{escape(name)}</h3>" if several else "") + text)
        return "findings", "Findings", "".join(texts)

    def _link(self, model: str, layer: str) -> str:
        shown = f'<span class="name">{escape(layer)}</span> '
        index = self._index.get((model, layer))
        return shown if index is None else f'<a href="#layer" data-layer="{index}">{shown.rstrip()}</a> '

    def families(self) -> list[Section]:
        """Charts of one audit, or of several, and those against the base, by family."""
        view = self._view
        charts = charts_of("audit" if len(view.audits) == 1 else "several")
        sections = []
        for family in dict.fromkeys(chart.family for chart in charts):
            figures = [(chart, view, chart.name) for chart in charts if chart.family == family]
            if family == "heat":
                figures = self._heat_maps(figures[0][0])
            sections.append((family, _FAMILIES.get(family, family), self._of_bulk(family) + self._figures(figures)))
        if view.base is not None:
            sections.append(("base", _FAMILIES["base"], self._against_base()))
        return sections

    def _of_bulk(self, family: str) -> str:
        """Above charts with bands: that α is of the bulk in most fits."""
        if family not in ("alpha", "heat", "several"):
            return ""
        said = {name: bulk_words(one) for name, one in zip(self._view.names, self._view.audits, strict=True)}
        lines = [(f"{name}: " if len(said) > 1 else "") + words for name, words in said.items() if words]
        return "".join(f'<p class="quiet">{escape(line)}</p>' for line in lines)

    def _heat_maps(self, chart: Chart) -> list[tuple[Chart, ChartView, str]]:
        view = self._view
        names = [None, *(name for name in _HEAT if view.has(name))]
        return [(chart, view.of_metric(name), "heatmap" if name is None else f"heatmap-{name}") for name in names]

    def _against_base(self) -> str:
        several, texts = len(self._view.audits) > 1, []
        for index, audit in enumerate(self._view.audits):
            view = ChartView((audit,), palette=self._view.palette, base=self._view.base)
            name = f"<h3>{escape(self._view.names[index])}</h3>" if several else ""
            if view.comparison.identical:
                texts.append(f'{name}<p class="quiet">Identical to the base, to the byte.</p>')
                continue
            figures = [(chart, view, f"{chart.name}-{index}") for chart in charts_of("base")]
            notes = "".join(f'<p class="quiet">{escape(note)}</p>' for note in view.comparison.notes)
            verdict = f'<p class="health info">{escape(conclusion(view.comparison))}</p>'
            texts.append(name + verdict + notes + self._figures(figures))
        return "".join(texts)

    def _figures(self, figures: Sequence[tuple[Chart, ChartView, str]]) -> str:
        texts, absent = [], {}
        for chart, view, key in figures:
            try:
                spec = spec_of(chart, view, titled=False, shared=_SHARED)
            except UsageError as error:
                missing = chart.missing(view)
                absent[chart.title] = (
                    f"needs {remedy(missing).split('MODEL ')[-1].rstrip('`')}" if missing else error.what
                )
                continue
            self._specs[key] = spec
            title = f"{chart.title}: {key.partition('-')[2] or 'alpha'}" if chart.family == "heat" else chart.title
            texts.append(parts.figure(chart, key, title=title, wide="facet" in spec))
        return f'<div class="charts">{"".join(texts)}</div>{parts.left_out(absent)}'

    def one_layer(self) -> Section:
        """A choice of layers, and four pictures of the chosen one."""
        charts = [chart for chart in charts_of("layer") if chart.name != "layer"]
        for chart in charts:
            spec = spec_of(chart, self._view, titled=False)
            spec["datasets"] = {}
            self._specs[chart.name] = spec
        first = self._first()
        options = "".join(
            f'<option value="{index}"{" selected" if index == first else ""}>{self._label(index)}</option>'
            for index in self._pages
        )
        few = len(self._pages) < len(self._view.records)
        note = (
            f'<p class="quiet">The {MOST_PAGES} layers that findings name or that have the highest α.</p>'
            if few
            else ""
        )
        figures = "".join(parts.figure(chart, chart.name, title=chart.title, wide=False, page=True) for chart in charts)
        text = (
            '<div class="controls"><label for="layer-choice">Layer</label>'
            f' <select id="layer-choice">{options}</select>'
            f'<span class="quiet" id="layer-facts"></span></div>{note}<div class="charts">{figures}</div>'
        )
        return "layer", "One layer", text

    def _label(self, index: int) -> str:
        layer = self._layers[index]
        model = f"{layer['model']}: " if len(self._view.audits) > 1 else ""
        return escape(f"{model}{layer['name']}")

    def _first(self) -> int:
        """The layer to open with: the first that a finding names, or the one with the highest alpha."""
        for name, diagnosis in zip(self._view.names, self._diagnoses, strict=True):
            for finding in diagnosis.findings:
                for layer in finding.layers:
                    if (name, layer) in self._index:
                        return self._index[name, layer]
        return max(self._pages, key=lambda index: self._layers[index].get("alpha") or 0.0)

    def table(self) -> Section:
        """Every layer; filled, sorted and filtered by the script."""
        view = self._view
        shown = [name for name in _COLUMNS if name in self._layers[0] and (name != "model" or len(view.audits) > 1)]
        text = layer_table([(name, name, name in _WORDS) for name in shown])
        return "table", "All layers", text

    def left_out(self) -> Section:
        """What was not measured, and why."""
        several = len(self._view.audits) > 1
        texts = [(f"<h3>{escape(name)}</h3>" if several else "") + parts.unmeasured(audit)
                 for name, audit in zip(self._view.names, self._view.audits, strict=True)]  # fmt: skip
        return "unmeasured", "Not measured", "".join(texts)

    def definitions(self) -> Section:
        """Of every metric in the data."""
        names = list(dict.fromkeys(name for layer in self._layers for name in layer))
        return "definitions", "Definitions", parts.definitions(names)

    def data(self) -> str:
        """Everything the script reads."""
        themes = {**THEMES, "config": config(TOKENS)}
        return (
            script("layers", in_columns(self._layers)) + script("specs", self._specs) + script("themes", themes)
            + script("pages", self._pages)
        )  # fmt: skip
