"""A precision study in the terminal: formats, verdicts by role, whether α predicts, and what to know."""

from __future__ import annotations

from collections.abc import Sequence, Sized

from rich.console import Group, RenderableType
from rich.text import Text

from tailwise.audits.precision.study import PrecisionStudy
from tailwise.audits.precision.verdict import Bound
from tailwise.report.columns import printable
from tailwise.report.grid import Cell, Grid
from tailwise.report.precision import precision_words as words
from tailwise.report.precision.precision_summary import by_format, percent, shown
from tailwise.report.precision.precision_view import StudyView

#: Layers that were not studied, named at most.
_NAMED = 10


def terminal(study: PrecisionStudy, bounds: Sequence[Bound] = ()) -> RenderableType:
    """Everything, in the order of reading."""
    if not len(study):
        return closing(study)
    return Group(
        formats(study), Text(), by_role(study, bounds), Text(), prediction(study), Text(), notes(study), closing(study)
    )


def formats(study: PrecisionStudy) -> RenderableType:
    """A line a format: medians over the layers."""
    heads = ("format", "bits", "Δα", "± α's own", "moved", "rel. error", "SQNR dB", "W1 ln λ", "Δ stable rank",
             "overlap", "over", "under")  # fmt: skip
    lines = [
        (
            item.format, shown(item.bits), shown(item.shift, 2, sign=True), shown(item.noise, 2),
            f"{item.moved}/{item.layers}", shown(item.relative_error, 2), shown(item.sqnr_db),
            shown(item.spectral_distance, 2), percent(item.stable_rank_change), shown(item.overlap, 3),
            f"{item.overflow:,}", f"{item.underflow:,}",
        )
        for item in by_format(study)
    ]  # fmt: skip
    return Grid(heads, lines, below="Medians over the layers. moved: layers whose α left ± 2 of its standard errors.")


def by_role(study: PrecisionStudy, bounds: Sequence[Bound] = ()) -> RenderableType:
    """How many layers of each role tolerate which format, the fewest bits first."""
    view = StudyView(study=study, bounds=bounds)
    said = [Text(printable(line)) for line in (*words.on_verdicts(view), *words.on_variation(view))]
    formats = [item.format for item in view.verdicts]
    used: list[str | None] = [name for name in reversed(view.formats) if name in formats]
    used += [None] if None in formats else []
    lines = []
    for role in view.roles:
        of_role = [item.format for item in view.verdicts if item.category == role]
        lines.append((role, str(len(of_role)), *(str(of_role.count(name) or "–") for name in used)))
    table = Grid(("role", "layers", *(name or "none" for name in used)), lines)
    return Group(Text(f"Lowest format with {words.bound_of(bounds)}", style="bold"), table, *said)


def prediction(study: PrecisionStudy, measure: str = "relative_error") -> RenderableType:
    """ρ of α, and of the control, with one distortion; formats of many bits are left to the report."""
    view = StudyView(study=study)
    predictions = [item for item in view.predictions if item.measure == measure]
    head = Text(f"Does α predict it? Rank correlation with the {words.title_of(measure)}", style="bold")
    if not predictions:
        return Group(head, Text("No format studied changes the weights of layers inside blocks: nothing to predict."))
    heads = ("format", "α, within roles", "depth, within roles", "α, pooled", "depth, pooled", "layers")
    lines: list[Sequence[Cell]] = []
    kinds = [(predictor, scope) for scope in ("within roles", "pooled") for predictor in ("alpha", "depth")]
    for name in view.formats:
        line = [words.of(predictions, predictor, measure, name, scope) for predictor, scope in kinds]
        if line[2] is not None:
            cells = (Text(words.interval(item), style="bold" if item and item.seen else "") for item in line)
            lines.append((name, *cells, str(line[2].n)))
    said = [Text(line) for line in words.on_prediction_in_short(view)]
    note = "95 % intervals; bold: excludes 0. ρ > 0: layers with a higher α (or further from the data) suffer more."
    return Group(head, Grid(heads, lines, below=note), *said)


def notes(study: PrecisionStudy) -> RenderableType:
    """Which tails move, and the reach of the formats."""
    view = StudyView(study=study)
    return Group(*(Text(printable(line)) for line in (*words.on_tails(view), *words.on_reach(view))))


def closing(study: PrecisionStudy) -> RenderableType:
    """How much was studied, and what was not."""
    matrices, kinds = _counted(study, "matrix", "matrices"), _counted(study.formats, "format", "formats")
    lines = [Text(f"{matrices} in {kinds}, in {study.seconds:.1f} s", style="dim")]
    rest = [layer for layer in study.layers if not layer.measured]
    if study.failed:
        words = f"{len(study.failed)} of {len(study.layers)} layers failed, in some format or in all: medians and "
        lines.append(Text(f"{words}predictions are over the others", style="red"))
    lines += [Text(printable(f"{layer.name}: {layer.status}: {layer.reason}"), style="red") for layer in rest[:_NAMED]]
    partly = [(layer, one) for layer in study for one in layer.readings.values() if one.status == "FAILED"]
    lines += [
        Text(printable(f"{layer.name} in {one.format}: {one.reason}"), style="red") for layer, one in partly[:_NAMED]
    ]
    if len(rest) > _NAMED:
        lines.append(Text(f"… and {len(rest) - _NAMED} more were not studied", style="red"))
    return Group(*lines, *(Text(note, style="yellow") for note in study.notes))


def _counted(items: Sized, one: str, many: str) -> str:
    return f"{len(items)} {one if len(items) == 1 else many}"
