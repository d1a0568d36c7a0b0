"""Tables that fit the width of a terminal: fewer columns, names shortened in the middle, and no number cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

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
