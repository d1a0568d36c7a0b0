"""Help lists what is registered, and what others registered with it."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from tailwise.cli.filled_help import _LISTS, filled
from tailwise.cli.main import app
from tailwise.compression.choosing.amounts import ALLOCATORS
from tailwise.compression.choosing.bit_formats import ASSIGNERS
from tailwise.compression.export.exporter import EXPORTERS
from tailwise.compression.operators.registered import operators_that
from tailwise.number_formats.formats import FORMATS
from tailwise.spectrum.power_law import estimator_names


def help_of(command: str, option: str) -> str:
    """What `--help` says of an option, on one line."""
    done = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "250", "NO_COLOR": "1"})
    assert done.exit_code == 0, done.output
    row = re.split(r"\n│ (?:\*  *)?--", done.output.split(f"--{option} ")[1])[0]  # a row begins at the frame
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", row).split())


@pytest.mark.parametrize(
    ("command", "option", "names"),
    [
        ("plan prune", "allocator", lambda: ["auto", *ALLOCATORS]),
        ("plan quantize", "allocator", lambda: ["auto", *ASSIGNERS]),
        ("plan prune", "operator", lambda: operators_that("prune")),
        ("plan quantize", "operator", lambda: operators_that("quantize")),
        ("plan quantize", "formats", lambda: FORMATS),
        ("plan export", "to", lambda: EXPORTERS),
        ("predict", "operator", lambda: operators_that("quantize")),
        ("audit", "estimator", estimator_names),
    ],
)
def test_an_option_names_all_that_it_takes(command, option, names):
    shown = help_of(command, option)
    assert not [name for name in names() if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", shown)]


def test_what_others_register_is_listed(monkeypatch):
    items = dict(ALLOCATORS.items())
    monkeypatch.setattr(ALLOCATORS, "_items", items | {"mine": items["alpha-role"]})
    assert "blend, mine." in help_of("plan prune", "allocator")
    assert "mine" in help_of("plan tau", "allocator")


@pytest.mark.parametrize("name", list(_LISTS))
def test_every_list_has_names(name):
    assert re.search(r"\w", filled(f"{{{name}}}"))


def test_only_what_an_option_of_the_command_gives_can_be_varied():
    assert filled("{allocators_with_tau}") == "alpha, alpha-role, entropy"
    assert filled("{export_suffixes}").endswith("x.json otherwise")
