"""One kind of table, drawn in the terminal, as Markdown, as HTML and as comma-separated values."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from html import escape
from typing import Any

from rich.console import Group, OverflowMethod, RenderableType
from rich.table import Table
from rich.text import Text

from tailwise.core.harmless import in_markdown

Cell = str | Text


@dataclass(frozen=True)
class Grid:
    """Heads and lines of cells, which are text already. Columns of `words` stand to the left, numbers to the right.

    `rich` prints one as it is.
    """

    heads: tuple[str, ...]
    lines: Sequence[Sequence[Cell]]
    title: str = ""  # in Markdown
    below: str = ""  # a line under the table
    words: Collection[int] = (0,)
    wrapping: Collection[int] = ()  # columns whose cells are broken into lines where there is no room
    overflow: OverflowMethod = "ellipsis"  # of what is longer than that

    def __rich__(self) -> RenderableType:
        """A table without rules."""
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for index, head in enumerate(self.heads):
            table.add_column(
                head, justify="left" if index in self.words else "right", no_wrap=index not in self.wrapping,
                overflow=self.overflow,
            )  # fmt: skip
        for line in self.lines:
            # Names come from files: nothing in them is markup.
            table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in line))
        return Group(table, Text(self.below, style="dim")) if self.below else table

    def only(self, columns: Sequence[int]) -> Grid:
        """The same with these columns, and without the line below."""
        places = {old: new for new, old in enumerate(columns)}
        return replace(
            self, heads=tuple(self.heads[index] for index in columns), below="",
            lines=[[line[index] for index in columns] for line in self.lines],
            words=[places[index] for index in self.words if index in places],
            wrapping=[places[index] for index in self.wrapping if index in places],
        )  # fmt: skip

    def to_markdown(self) -> str:
        """The table alone."""
        every = (self.heads, *self.lines)
        head, *lines = ("| " + " | ".join(in_markdown(str(cell)) for cell in line) + " |" for line in every)
        rule = "|".join("---" if index in self.words else "---:" for index in range(len(self.heads)))
        return "\n".join([head, f"|{rule}|", *lines])

    def to_html(self, *, raw: Collection[int] = ()) -> str:
        """A table that scrolls on its own; cells of the columns `raw` are HTML already."""
        head = "".join(f'<th scope="col"{self._class(i)}>{escape(name)}</th>' for i, name in enumerate(self.heads))
        body = "".join(
            "<tr>" + "".join(f"<td{self._class(i)}>{cell if i in raw else escape(str(cell))}</td>"
                             for i, cell in enumerate(line)) + "</tr>"
            for line in self.lines
        )  # fmt: skip
        return (
            f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def _class(self, index: int) -> str:
        return ' class="text"' if index in self.words else ""


def cut_words(left: int, where: str = "more") -> str:
    """The line below a table of which so many lines are not shown."""
    return f"… and {left} {where}; --rows 0 shows all" if left else ""


def moment(time: float | None) -> str:
    """Seconds since the epoch → day and minute, UTC."""
    try:
        return "–" if time is None else datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):  # in no calendar
        return "–"


def to_csv(heads: Iterable[str], lines: Iterable[Iterable[Any]]) -> str:
    """Values as they are, in full precision, empty where there is none."""
    sink = _Lines()
    writer = csv.writer(sink, lineterminator="\r\n")
    writer.writerow(heads)
    writer.writerows(lines)
    return "".join(sink)


class _Lines(list[str]):
    """Lines that end in a line feed. The writer quotes only what ends its own, and names may hold either sign."""

    def write(self, line: str) -> None:
        """Take one."""
        self.append(line.removesuffix("\r\n") + "\n")
