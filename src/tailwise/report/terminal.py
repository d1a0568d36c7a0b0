"""An audit in the terminal: the table, a summary by role, and what was left out."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, ConsoleRenderable, Group, RenderableType, RenderHook, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.table import Table as RichTable
from rich.text import Text

from tailwise.audits.audit import Audit
from tailwise.audits.rows import Layer, LayerRow
from tailwise.audits.trusted import left_out_words, usable, usable_values
from tailwise.core.harmless import visible
from tailwise.judging.diagnosis.finding import Diagnosis, Finding
from tailwise.report.columns import BRIEF, cell
from tailwise.spectrum.metrics.metric import METRICS

_GAP = 2
_LEAST_NAME = 20


@dataclass(frozen=True)
class FitColumn:
    """A column, and when it is given up: the highest number first, 0 never."""

    title: str
    numeric: bool = False
    give_up: int = 0
    name: bool = False  # may be shortened in the middle


class Fitted:
    """Rows as a table of as many columns as there is room for."""

    def __init__(self, columns: Sequence[FitColumn], rows: Sequence[Sequence[str | Text]]) -> None:
        self._columns, self._rows = list(columns), [[_text(cell) for cell in row] for row in rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = self._kept(options.max_width)
        widths = [self._width(index) for index in columns]
        over = sum(widths) + _GAP * (len(columns) - 1) - options.max_width
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
        room = {}
        for index, width in zip(columns, widths, strict=True):
            column = self._columns[index]
            room[index] = max(_LEAST_NAME, width - over) if column.name and over > 0 else width
            table.add_column(column.title, justify="right" if column.numeric else "left", no_wrap=True,
                             min_width=room[index])  # fmt: skip
        for row in self._rows:
            table.add_row(*(_shortened(row[index], room[index], name=self._columns[index].name) for index in columns))
        yield table

    def _kept(self, width: int) -> list[int]:
        columns = list(range(len(self._columns)))
        while self._least(columns) > width and any(self._columns[index].give_up for index in columns):
            columns.remove(max(columns, key=lambda index: self._columns[index].give_up))
        return columns

    def _least(self, columns: Sequence[int]) -> int:
        widths = [min(self._width(index), _LEAST_NAME) if self._columns[index].name else self._width(index)
                  for index in columns]  # fmt: skip
        return sum(widths) + _GAP * (len(columns) - 1)

    def _width(self, index: int) -> int:
        return max([cell_len(self._columns[index].title), *(row[index].cell_len for row in self._rows)])


def _text(cell: str | Text) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)


def _shortened(text: Text, width: int, *, name: bool) -> Text:
    return Text(shortened(text.plain, width), style=text.style) if name and text.cell_len > width else text


def shortened(name: str, width: int) -> str:
    """A name of at most `width` characters: its middle left out, since both ends tell names apart.

    >>> shortened("model.layers.17.self_attn.q_proj", 20)
    'model.laye…tn.q_proj'
    """
    if cell_len(name) <= width or width < 5:
        return name
    head = width // 2
    return f"{name[:head]}…{name[-(width - head - 1) :]}"


#: Tables longer than this are cut, and say so.
DEFAULT_ROWS = 100


def layers(audit: Audit, limit: int = DEFAULT_ROWS, diagnosis: Diagnosis | None = None) -> RenderableType:
    """One line per measured matrix, with as many columns as there is room for; at most `limit` lines, 0 for all.

    With a diagnosis, the last column names the findings that a layer needs a look for.
    """
    rows = audit.table().to_dicts()
    present = {key for row in rows[:1] for key in row}
    shown = [column for column in BRIEF if column.combined or column.key in present]
    if not any(cell(BRIEF[-1], row) for row in rows):
        shown = [column for column in shown if column.key != "note"]
    cut = rows if limit == 0 else rows[:limit]
    columns = [FitColumn(one.title, one.numeric, one.give_up, one.key == "name") for one in shown]
    cells: list[list[str | Text]] = [[cell(column, row) for column in shown] for row in cut]
    named = _codes(diagnosis)
    if named:
        columns.append(FitColumn("finding"))
        for line, row in zip(cells, cut, strict=True):
            code, style = named.get(row["name"], ("", ""))
            line.append(Text(code, style=style))
    left = len(rows) - len(cut)
    table = Fitted(columns, cells)
    return Group(table, Text(f"… and {left} more; --rows 0 shows all", style="dim")) if left else table


def _codes(diagnosis: Diagnosis | None) -> dict[str, tuple[str, str]]:
    """Layer → the codes of warnings and errors that name it, and their style."""
    named: dict[str, list[Finding]] = {}
    for item in diagnosis.findings if diagnosis else ():
        for name in () if item.noted else item.layers:
            named.setdefault(name, []).append(item)
    return {
        name: (" ".join(dict.fromkeys(item.code for item in items)),
               "red" if any(item.severity == "error" for item in items) else "yellow")
        for name, items in named.items()
    }  # fmt: skip


def by_role(audit: Audit) -> RenderableType:
    """Median (and range) of the leading metrics for each role; α is never pooled across roles."""
    columns = [FitColumn("role"), FitColumn("matrices", numeric=True, give_up=1),
               FitColumn("α trusted", numeric=True, give_up=2), FitColumn("α median (range)", numeric=True),
               FitColumn("α Hill median (range)", numeric=True), FitColumn("stable rank", numeric=True, give_up=4),
               FitColumn("entropy", numeric=True, give_up=5)]  # fmt: skip
    lines: list[list[str | Text]] = []
    measured = [layer.row for layer in audit]
    along = sorted({row.block for row in measured if row.block is not None})
    fits = any("alpha" in row.metrics for row in measured)
    banded = audit.provenance.recipe.get("estimator") == "ks"
    if len(along) > 1:
        columns.append(FitColumn(f"α, block {min(along)} → {max(along)}", give_up=3))
    for role in dict.fromkeys(row.role for row in measured):
        rows = [row for row in measured if row.role == role]
        lines.append([
            role,
            str(len(rows)),
            str(len(usable_values(audit, "alpha", rows))) if fits else "–",
            _spread(usable_values(audit, "alpha", rows)),
            _spread(usable_values(audit, "alpha_hill", rows)),
            _middle(usable_values(audit, "stable_rank", rows), 1),
            _middle(usable_values(audit, "singular_entropy", rows), 3),
            *([strip(rows, sorted(along), banded=banded)] if len(along) > 1 else []),
        ])  # fmt: skip
    return Fitted(columns, lines)


#: α from which a column of the strip is one step higher; 2, 4 and 6 are the HT-SR bands.
_STEPS = (2.0, 2.6, 3.2, 4.0, 5.0, 6.0, 8.0)
_STRIP = 40  # columns at most


def strip(rows: Sequence[LayerRow], blocks: Sequence[int], *, banded: bool) -> Text:
    """α along depth, a character per block (or per few): higher is larger; coloured by band for the `ks` estimator."""
    width = min(len(blocks), _STRIP)
    groups: list[list[float]] = [[] for _ in range(width)]
    place = {block: index * width // len(blocks) for index, block in enumerate(blocks)}
    for row in rows:
        value = usable(row, "alpha")
        if row.block is not None and value is not None:
            groups[place[row.block]].append(value)
    text = Text()
    for values in groups:
        level = sum(median(values) >= step for step in _STEPS) if values else -1
        colors = ("magenta", "green", "green", "green", "yellow", "yellow", "red", "red")
        text.append(" ▁▂▃▄▅▆▇█"[level + 1], style=colors[level] if banded and values else "")
    return text


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    return f"{median(values):.2f} ({min(values):.2f}–{max(values):.2f})" if len(values) > 1 else f"{values[0]:.2f}"


def _middle(values: Sequence[float], digits: int) -> str:
    return f"{median(values):.{digits}f}" if values else "–"


def closing(audit: Audit) -> RenderableType:
    """What was measured, reused and left out, in a few lines."""
    provenance = audit.provenance
    lines = [Text(f"{len(audit)} matrices measured in {provenance.seconds:.1f} s ({provenance.reused} spectra reused)")]
    counts = Counter(row.status for row in audit.unmeasured)
    if counts:
        parts = ", ".join(f"{count} {status.lower().replace('_', ' ')}" for status, count in counts.items())
        lines.append(Text(f"not measured: {parts}", style="dim"))
    bad = [row for row in audit.unmeasured if row.status in ("NOT_FINITE", "UNREADABLE", "FAILED", "UNSUPPORTED")]
    lines += [Text(f"  {row.name}: {row.status}: {row.reason}", style="red") for row in bad[:10]]
    if len(bad) > 10:
        lines.append(Text(f"  … and {len(bad) - 10} more", style="red"))
    lines += [Text(note, style="yellow") for note in provenance.notes]
    lines += [Text(words, style="dim")] if (words := left_out_words(audit)) else []
    return Group(*lines)


def one_layer(layer: Layer) -> RenderableType:
    """Every number of one matrix, with what it means."""
    row = layer.row
    table = RichTable(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for key in ("role", "block", "kind", "dtype", "status", "reason", "solver"):
        if getattr(row, key) not in ("", None):
            table.add_row(key, str(getattr(row, key)), "")
    table.add_row("shape", f"{row.rows}×{row.cols}", f"{row.slices} slices" if row.slices > 1 else "")
    table.add_row("error bound", f"{row.error_bound:.1e}", "on every λ")
    for name, value in row.metrics.items():
        text = "–" if value is None else f"{value:.6g}"
        table.add_row(name, text, METRICS[name].summary if name in METRICS else "")
    return Group(Text(row.name, style="bold underline"), table)


def metrics_table(chosen: Sequence[str]) -> RenderableType:
    """The named metrics with formula and source."""
    table = RichTable(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 1, 0))
    for title in ("metric", "what it is", "formula", "source"):
        table.add_column(title, no_wrap=title == "metric", overflow="fold")
    for name in chosen:
        metric = METRICS[name]
        unit = f" [{metric.unit}]" if metric.unit else ""
        table.add_row(metric.name, metric.summary, Text(metric.formula + unit), Text(metric.source))
    return table


def console(**options: Any) -> Console:
    """A console that keeps tables whole when the output is not a terminal."""
    made = _Console(highlight=False, **options)
    if not made.is_terminal:
        made = _Console(highlight=False, width=max(made.width, 160), **options)
    made.push_render_hook(_Harmless())
    return made


class _Harmless(RenderHook):
    """Names come from files, and none of them may move the cursor."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Shown(each) for each in renderables]


@dataclass(frozen=True)
class _Shown:
    inner: ConsoleRenderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.inner, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # A reader (head, less) that has seen enough is no failure.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0)
