"""One table, drawn four ways."""

import csv
import io

import pytest
from rich.console import Console
from rich.text import Text

from tailwise.report.grid import Grid, cut_words, to_csv

NAMES = ("plain", "a|b", "[bold]x[/bold]", "<b>&", "two\nlines", "re\rturned", 'quo"ted, too')
GRID = Grid(("name", "value"), [(name, f"{index}.5") for index, name in enumerate(NAMES[:4])], below="that is all")


def printed(grid: Grid, width: int = 60) -> str:
    sink = io.StringIO()
    Console(file=sink, width=width, highlight=False).print(grid)
    return sink.getvalue()


def test_the_terminal_shows_names_as_they_are_and_numbers_to_the_right():
    lines = printed(GRID).splitlines()
    assert lines[0].split() == ["name", "value"]
    assert [line.split() for line in lines[1:-1]] == [[name, f"{i}.5"] for i, name in enumerate(NAMES[:4])]
    assert len({line.rstrip().__len__() for line in lines[:-1]}) == 1
    assert lines[-1] == "that is all"


def test_styles_of_cells_stay():
    sink = io.StringIO()
    console = Console(file=sink, width=40, force_terminal=True, color_system="standard")
    console.print(Grid(("a", "b"), [("x", Text("y", style="bold"))]))
    assert "\x1b[1my" in sink.getvalue()


@pytest.mark.parametrize(("overflow", "whole"), [("fold", True), ("ellipsis", False)])
def test_long_names_are_broken_or_cut(overflow, whole):
    grid = Grid(("name", "value"), [("x" * 50, "1.25")], wrapping=(0,), overflow=overflow)
    shown = printed(grid, 30)
    assert (shown.count("x") == 50) is whole
    assert "1.25" in shown


def test_markdown_keeps_its_columns():
    head, rule, *lines = GRID.to_markdown().splitlines()
    assert (head, rule) == ("| name | value |", "|---|---:|")
    assert lines[1] == "| a\\|b | 1.5 |"
    assert len(lines) == 4


def test_html_escapes_what_is_not_html():
    page = GRID.to_html()
    assert '<th scope="col" class="text">name</th><th scope="col">value</th>' in page
    assert "&lt;b&gt;&amp;" in page
    raw = Grid(("a", "b"), [("<i>", "<b>1</b>")]).to_html(raw=(1,))
    assert "&lt;i&gt;" in raw
    assert "<td><b>1</b></td>" in raw


def test_values_come_back_from_csv_whatever_the_names():
    text = to_csv(("name", "value"), [(name, 0.1) for name in NAMES])
    assert text.startswith("name,value\n")
    back = list(csv.reader(io.StringIO(text, newline="")))
    assert [line[0] for line in back[1:]] == list(NAMES)
    assert to_csv(("a",), [(None,), ("x",)]) == 'a\n""\nx\n'


def test_only_some_columns_keep_what_they_are():
    grid = Grid(("a", "b", "c"), [("1", "2", "3")], words=(0, 2), wrapping=(2,), below="gone").only((0, 2))
    assert (grid.heads, list(map(list, grid.lines)), list(grid.words)) == (("a", "c"), [["1", "3"]], [0, 1])
    assert (list(grid.wrapping), grid.below) == ([1], "")


def test_what_is_cut_is_said():
    assert cut_words(0) == ""
    assert cut_words(3, "before") == "… and 3 before; --rows 0 shows all"
