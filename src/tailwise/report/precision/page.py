"""The report of a precision study: one HTML file, no network, light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tailwise.audits.precision.prediction import PREDICTED
from tailwise.audits.precision.study import PrecisionStudy
from tailwise.audits.precision.study_files import summary as statistics_of
from tailwise.audits.precision.verdict import Bound, sensitivities
from tailwise.core.atomic import write_whole
from tailwise.report import page_parts as parts
from tailwise.report.charts.chart import require_altair
from tailwise.report.charts.data import rounded
from tailwise.report.columns import printable
from tailwise.report.grid import Grid
from tailwise.report.html import check_page
from tailwise.report.page_data import in_columns, script
from tailwise.report.precision import precision_words as words
from tailwise.report.precision.figures import FIGURES
from tailwise.report.precision.precision_summary import percent, shown
from tailwise.report.precision.precision_view import StudyView
from tailwise.report.render import spec_of
from tailwise.report.shell import Section, layer_table, whole_page
from tailwise.report.theme import THEMES, TOKENS, config

#: Charts by the part of the page that they stand in.
_DISTORTION = ("bits_and_error", "distortion_by_depth", "overlap_by_format", "stable_rank_by_format",
               "spectral_distance_by_format")  # fmt: skip
_WIDE = frozenset({"bits_and_error", "verdict_heat", "alpha_and_error"})
#: Key, title and whether it is text.
_COLUMNS = (
    ("name", "layer", True), ("role", "role", True), ("block", "block", False), ("shape", "shape", True),
    ("format", "lowest format", True), ("bits", "bits", False), ("sensitivity", "sensitivity", False),
    ("sensitive", "rank in role", True), ("alpha", "α", False), ("alpha_sigma", "± σ", False),
    ("stable_rank", "stable rank", False), ("status", "status", True), ("reason", "why", True),
)  # fmt: skip
_DASH = "–"


def write_report(study: PrecisionStudy, path: str | Path, *, bounds: Sequence[Bound] = ()) -> Path | str:
    """Write the report; `UsageError` where the file is not a page or nothing was measured."""
    check_page(str(path))
    return write_whole(path, report(study, bounds=bounds).encode())


def report(study: PrecisionStudy, *, bounds: Sequence[Bound] = ()) -> str:
    """The report as HTML text: what the study says in words, verdicts, charts, whether α predicts, all layers."""
    require_altair()
    page = _StudyPage(StudyView(study=study, bounds=bounds, palette=TOKENS))
    sections = [page.said(), page.formats(), page.verdicts(), page.tails(), page.distortion(), page.prediction(),
                page.table(), page.left_out(), page.definitions()]  # fmt: skip
    title = f"What number formats do to {page.view.names[0]}"
    return whole_page(title, page.header(title), sections, data=page.data(), version=study.versions.get("tailwise", ""))


def in_words(study: PrecisionStudy) -> list[Section]:
    """The sections that need no script: what the study says, formats, verdicts by role, what is missing."""
    page = _StudyPage(StudyView(study=study, bounds=(), palette=TOKENS))
    return [page.said(), page.formats(), ("verdicts", "Verdicts", page.by_role()), page.left_out()]


class _StudyPage:
    """Sections of one report, and the data that they refer to."""

    def __init__(self, view: StudyView) -> None:
        self.view, self._study = view, view.study
        self._specs: dict[str, Any] = {}

    def header(self, title: str) -> str:
        """Model, counts, formats and settings."""
        study, view = self._study, self.view
        about = {
            "model": study.model,
            "matrices studied": str(len(study)),
            "not studied": str(len(study.layers) - len(study)),
            "formats": str(len(study.formats)),
            "loaded as": str(study.settings.get("load_dtype", _DASH)),
            "tail of α": f"largest {100 * float(study.settings.get('k_frac', 0.1)):g} %",
            "bound": words.bound_of(view.bounds),
            "took": f"{study.seconds:.1f} s",
        }
        cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in about.items())
        notes = "".join(f'<p class="quiet">{escape(note)}</p>' for note in study.notes)
        origin = {"settings": _listed(study.settings), "versions": _listed(study.versions)}
        lines = (f"{escape(name)}: <code>{escape(text)}</code>" for name, text in origin.items() if text)
        lead = '<p class="lead">A study of number formats by the spectra of the weight matrices, by tailwise.</p>'
        return (
            f'<header class="top" id="top"><h1>{escape(title)}</h1>{lead}<dl class="facts">{cells}</dl>{notes}'
            f"{parts.fold('Provenance', parts.listed(lines))}</header>"
        )

    def said(self) -> Section:
        """The study in words."""
        view = self.view
        sensitivity = words.on_sensitivity(view)
        cards = (
            (
                "Lowest format that each layer tolerates",
                [*words.on_verdicts(view), *words.on_variation(view), *([sensitivity] if sensitivity else [])],
            ),
            ("Which tails move", words.on_tails(view)),
            ("Does α predict it?", words.on_prediction_in_short(view)),
            ("Reach of the formats", words.on_reach(view)),
        )
        texts = (
            f'<div class="finding"><h3>{escape(title)}</h3>{_paragraphs(lines)}</div>'
            for title, lines in cards
            if lines
        )
        return "words", "In words", "".join(texts)

    def formats(self) -> Section:
        """Every format: bits, medians, counts and whose codec it is."""
        heads = ("format", "bits", "rel. error", "SQNR dB", "Δα", "± of Δα", "± of α", "moved", "W1 of ln λ",
                 "Δ stable rank", "overlap", "overflow", "underflow")  # fmt: skip
        rows = [
            (item.format, shown(item.bits), shown(item.relative_error), shown(item.sqnr_db),
             shown(item.shift, 2, sign=True), shown(item.shift_se, 2), shown(item.noise, 2),
             f"{item.moved} of {item.layers}", shown(item.spectral_distance, 2), percent(item.stable_rank_change),
             shown(item.overlap, 4), f"{item.overflow:,}", f"{item.underflow:,}")
            for item in self.view.summaries
        ]  # fmt: skip
        note = ('<p class="quiet">Medians over the layers; counts over all their entries. Moved: layers whose α '
                "changed by more than twice its standard error.</p>")  # fmt: skip
        codecs: dict[str, list[str]] = {}
        for item in self.view.summaries:
            codecs.setdefault(item.source or "source unknown", []).append(item.format)
        lines = (f"{escape(', '.join(names))}: {escape(source)}" for source, names in codecs.items())
        return "formats", "Formats", f"{Grid(heads, rows).to_html()}{note}<h3>Codecs</h3>{parts.listed(lines)}"

    def verdicts(self) -> Section:
        """By role and block."""
        return "verdicts", "Verdicts", self._figures(["verdict_heat"]) + self.by_role()

    def by_role(self) -> str:
        """Roles and how many of their layers bear which format, as HTML."""
        view = self.view
        used = [name for name in reversed(view.formats) if any(item.format == name for item in view.verdicts)]
        columns: list[str | None] = [*used, *([None] if any(item.format is None for item in view.verdicts) else [])]
        rows = []
        for role in view.roles:
            of_role = [item.format for item in view.verdicts if item.category == role]
            rows.append((role, str(len(of_role)), *(str(of_role.count(name) or _DASH) for name in columns)))
        heads = ("role", "layers", *(name or "none of them" for name in columns))
        text = f'<p class="quiet">Lowest format that keeps {escape(words.bound_of(view.bounds))}: layers by role.</p>'
        return text + Grid(heads, rows).to_html()

    def tails(self) -> Section:
        """α by format: charts and the summary statistics."""
        rows = [[str(row["precision"]), str(row["count"]), *(shown(row[key], 4) for key in list(row)[2:])]
                for row in statistics_of(self._study)]  # fmt: skip
        heads = ("format", "layers", "mean", "std", "min", "median", "max", "q25", "q75")
        caption = '<h3>Summary statistics of α</h3><p class="quiet">Over all layers, all roles together.</p>'
        figures = self._figures(["alpha_shift_by_format", "alpha_distribution_by_precision"])
        return "tails", "Tails", figures + caption + Grid(heads, rows).to_html()

    def distortion(self) -> Section:
        """What the formats do beside α."""
        return "distortion", "Distortion", self._figures([name for name in _DISTORTION if self._drawable(name)])

    def _drawable(self, name: str) -> bool:
        return bool(self.view.lossy) or name not in ("bits_and_error", "distortion_by_depth", "alpha_and_error")

    def prediction(self) -> Section:
        """The rank correlations of α and of depth with each distortion."""
        view = self.view
        predictions = view.predictions
        if not predictions:
            return (
                "prediction",
                "Does α predict it?",
                "<p>No format studied changes the weights: nothing to predict.</p>",
            )
        kinds = [(predictor, scope) for scope in ("within roles", "pooled") for predictor in ("alpha", "depth")]
        heads = ("format", "α, within roles", "depth, within roles", "α, pooled", "depth, pooled", "layers")
        tables = []
        for measure in PREDICTED:
            rows = []
            for name in view.formats:
                line = [words.of(predictions, predictor, measure, name, scope) for predictor, scope in kinds]
                if line[2] is not None:
                    rows.append((name, *map(_correlation, line), str(line[2].n)))
            if rows:
                title, table = words.title_of(measure), Grid(heads, rows).to_html(raw=(1, 2, 3, 4))
                first = measure == PREDICTED[0]
                tables.append(f"<h3>With the {title}</h3>{table}" if first else parts.fold(f"With the {title}", table))
        note = (
            "<p>Rank correlation ρ of a predictor with how much a layer suffers, and its 95 % interval; in bold where "
            "it excludes 0. A positive ρ: layers with a higher α (or further from the data) suffer more. Depth is the "
            "control: a predictor that does no better than it is not needed. Read “within roles”: pooled, roles that "
            "differ in everything are mixed.</p>"
        )
        scatter = self._figures(["alpha_and_error"]) if self._drawable("alpha_and_error") else ""
        return (
            "prediction",
            "Does α predict it?",
            _paragraphs(words.on_prediction(view)) + note + scatter + "".join(tables),
        )

    def _figures(self, names: Iterable[str]) -> str:
        texts = []
        for name in names:
            chart = FIGURES[name]
            spec = spec_of(chart, self.view, titled=False)
            spec.pop("config", None)
            self._specs[name] = spec
            texts.append(parts.figure(chart, name, title=chart.title, wide="facet" in spec or name in _WIDE))
        return f'<div class="charts">{"".join(texts)}</div>'

    def table(self) -> Section:
        """Every layer with its verdict; filled, sorted and filtered by the script."""
        return "table", "All layers", layer_table(_COLUMNS)

    def left_out(self) -> Section:
        """What was not studied, and why."""
        rest = [layer for layer in self._study.layers if not layer.measured]
        if not rest:
            return "unmeasured", "Not studied", '<p class="quiet">Every matrix was studied.</p>'
        lines = (f'<span class="name">{escape(layer.name)}</span> ({escape(layer.status)}): {escape(layer.reason)}'
                 for layer in rest)  # fmt: skip
        return "unmeasured", "Not studied", parts.listed(lines)

    def definitions(self) -> Section:
        """Of every measure."""
        body = "".join(
            f"<tr><td><code>{escape(name)}</code></td><td>{escape(text)}</td></tr>"
            for name, text in words.definitions()
        )
        head = "<thead><tr><th>measure</th><th>what it is</th></tr></thead>"
        table = f'<div class="scroll" tabindex="0"><table class="words">{head}<tbody>{body}</tbody></table></div>'
        return "definitions", "Definitions", table

    def data(self) -> str:
        """Everything the script reads."""
        extra = self.view.themes
        themes = {name: {**palette, **extra[name]} for name, palette in THEMES.items()}
        return (
            script("layers", in_columns(self._layers())) + script("specs", self._specs)
            + script("themes", {**themes, "config": config(TOKENS)}) + script("pages", {})
        )  # fmt: skip

    def _layers(self) -> list[dict[str, Any]]:
        rank = {item.layer: item for item in sensitivities(self._study)}
        layers = []
        for record, layer, item in zip(self.view.records, self._study, self.view.verdicts, strict=True):
            place = rank.get(layer.name)
            layers.append(
                {
                    **{key: record[key] for key in ("name", "role", "block", "shape", "alpha", "alpha_sigma",
                                                    "stable_rank", "status")},
                    "format": item.format or "none of them",
                    "bits": rounded(item.bits),
                    "sensitivity": rounded(place.value) if place else None,
                    "sensitive": f"{place.rank} of {place.of}" if place else None,
                    "reason": printable(item.reason),
                    "measured": True,
                }
            )  # fmt: skip
        for layer in self._study.layers:
            if not layer.measured:
                layers.append({"name": printable(layer.name), "role": layer.category, "block": layer.block,
                               "shape": f"{layer.out_features}×{layer.in_features}", "status": layer.status,
                               "reason": printable(layer.reason), "measured": False})  # fmt: skip
        return layers


def _correlation(item: Any) -> str:
    text = escape(words.interval(item))
    return f"<b>{text}</b>" if item is not None and item.seen else text


def _paragraphs(lines: Iterable[str]) -> str:
    return "".join(f"<p>{escape(printable(line))}</p>" for line in lines)


def _listed(about: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in about.items() if value not in (None, [], ""))
