"""The report of evaluations: one HTML file, no network, light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tailwise.core.atomic import write_whole
from tailwise.core.errors import UsageError
from tailwise.models.evaluation.candidates import NOWHERE, Evaluation, SameText, side_by_side
from tailwise.models.evaluation.scores import Scores
from tailwise.report import page_parts as parts
from tailwise.report.charts.chart import Chart, require_altair
from tailwise.report.columns import printable
from tailwise.report.evaluations.evaluation_tables import divergence_grid, models_grid, said_of
from tailwise.report.evaluations.evaluation_view import EvaluationView, names_in
from tailwise.report.evaluations.quality_by_size import GUIDANCE, figure_of
from tailwise.report.html import check_page
from tailwise.report.page_data import in_columns, script
from tailwise.report.render import spec_of
from tailwise.report.shell import Section, whole_page
from tailwise.report.theme import THEMES, TOKENS, config

#: Of one text: measures that are drawn, and models whose divergence is shown in full.
_MEASURES, _SHOWN = 8, 60


def write_report(evaluations: Mapping[str, Evaluation], path: str | Path) -> Path | str:
    """Write the report of evaluations, by the names of their files. `UsageError` where the file is not a page."""
    check_page(str(path))
    return write_whole(path, report(evaluations).encode())


def report(evaluations: Mapping[str, Evaluation]) -> str:
    """The report as HTML text: of every text quality against size, a table with intervals, and each divergence."""
    require_altair()
    groups = side_by_side(evaluations)
    page = _EvaluationPage(groups)
    title = "Quality and size" if sum(len(one.candidates) for one in groups) > 1 else "Quality"
    names = list(dict.fromkeys(name for group in groups for name in names_in(group)))
    title += f" of {names[0]}" if len(names) == 1 else f" of {len(names)} models"
    sections = [section for index in range(len(groups)) for section in page.sections(index)]
    versions = {one.scores.versions.get("tailwise", "") for group in groups for one in group.candidates}
    return whole_page(title, _header(title), sections, data=page.data(), version=max(versions, default=""))


def _header(title: str) -> str:
    lead = '<p class="lead">How well models predict text, and how large they are, by tailwise.</p>'
    return f'<header class="top" id="top"><h1>{escape(title)}</h1>{lead}</header>'


def views_of(group: SameText) -> list[EvaluationView]:
    """A view for each measure and each size that tells the models apart."""
    every = [(measure, size) for size in group.sizes for measure in group.measures[:_MEASURES]]
    views = [EvaluationView(group=group, measure=measure, size=size, palette=TOKENS) for measure, size in every]
    return [view for view in views if view.records]


def told_html(group: SameText) -> tuple[str, str]:
    """A text in words, and its table."""
    measures, size = group.measures, group.sizes[0]
    standings = group.standings(measures[0], size) if measures else (NOWHERE,) * len(group.candidates)
    words = "".join(f"<p>{escape(line)}</p>" for line in said_of(group, standings, size))
    return words, models_grid(group, standings, size).to_html()


def in_full(group: SameText) -> str:
    """The divergence of each model from the base, folded, and what evaluations noted."""
    texts: list[str] = []
    for name, one in zip(names_in(group), group.candidates, strict=True):
        if one.divergence is not None and len(texts) < _SHOWN:
            texts.append(parts.fold(f"{name} against the base", divergence_grid(one.divergence, one.change).to_html()))
    notes = dict.fromkeys(printable(note) for one in group.candidates for note in one.scores.notes)
    body = parts.listed(escape(note) for note in notes) if notes else ""
    return (
        "".join(texts) + (parts.fold("Notes", body) if body else "") + parts.fold("How it was measured", _origin(group))
    )


def _origin(group: SameText) -> str:
    lines = []
    for name, one in zip(names_in(group), group.candidates, strict=True):
        facts = {**one.scores.settings, **{f"version of {key}": value for key, value in one.scores.versions.items()}}
        said = ", ".join(f"{key} {value}" for key, value in facts.items() if value not in (None, ""))
        lines.append(
            f"<b>{escape(name)}</b> <code>{escape(printable(one.scores.model))}</code>: {escape(printable(said))}"
        )
    return parts.listed(lines)


def _figure(chart: Chart, key: str) -> str:
    """A chart's place; how to read it is said once for all."""
    label = escape(f"{chart.title}. {chart.guidance.text}", quote=True)
    place = f'<div class="chart" data-chart="{escape(key)}" role="img" aria-label="{label}"></div>'
    return f'<article id="{escape(key)}"><h3>{escape(chart.title)}</h3>{place}</article>'


class _EvaluationPage:
    """Sections of one report, and the specs that they refer to."""

    def __init__(self, groups: Sequence[SameText]) -> None:
        if not groups or not any(group.candidates for group in groups):
            raise UsageError("there is no evaluation", fix="write some with `tailwise evaluate MODEL -o x.json`")
        self._groups = groups
        self._specs: dict[str, Any] = {}

    def sections(self, index: int) -> list[Section]:
        """Of one text: the charts and the table, then what is told in full."""
        group = self._groups[index]
        several = len(self._groups) > 1
        title = f"{printable(group.text)}" if several else "Quality and size"
        keys = (f"text-{index}", f"full-{index}")
        rest = f"In full: {printable(group.text)}" if several else "In full"
        words, table = told_html(group)
        return [
            (keys[0], title, words + self._figures(index) + f"<h3>All models</h3>{table}"),
            (keys[1], rest, in_full(group)),
        ]

    def _figures(self, index: int) -> str:
        texts = []
        for view in views_of(self._groups[index]):
            chart, key = figure_of(view), f"{view.measure.key}-{view.size.key}-{index}".replace(" ", "-")
            spec = spec_of(chart, view, titled=False)
            spec.pop("config", None)
            self._specs[key] = spec
            texts.append(_figure(chart, key))
        if texts:
            return f'<p class="quiet">{escape(GUIDANCE.text)}</p><div class="charts">{"".join(texts)}</div>'
        return '<p class="quiet">No chart: no model has both a size and a number.</p>'

    def data(self) -> str:
        """Everything the script reads."""
        themes = {**THEMES, "config": config(TOKENS)}
        return (
            script("layers", in_columns([]))
            + script("specs", self._specs)
            + script("themes", themes)
            + script("pages", {})
        )


def in_a_line(found: Evaluation) -> str:
    """An evaluation in a sentence, for a list of files."""
    scores = found if isinstance(found, Scores) else found.model
    name, said = printable(scores.model), []
    if scores.losses:
        value = "not finite" if scores.perplexity is None else f"{scores.perplexity:.4g}"
        said.append(f"perplexity {value} on {len(scores.losses)} windows")
    said += [f"{task.task} {task.metric} {task.value:.4f}" for task in scores.tasks[:4]]
    if isinstance(found, Scores):
        return f"{name}: {', '.join(said) or 'nothing scored'}."
    change = [one.verdict for one in (found.perplexity, *found.tasks) if one is not None]
    return f"{name} against {printable(found.base.model)}: {', '.join(said)}; {', '.join(dict.fromkeys(change))}."
