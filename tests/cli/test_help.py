"""Help as it is shown: names from the registries, and lines that the terminal breaks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import pairwise

import pytest
from typer.testing import CliRunner

from tailwise.cli.filled_help import _LISTS, filled, unwrapped
from tailwise.cli.main import app
from tailwise.compression.choosing.amounts import ALLOCATORS
from tailwise.compression.choosing.bit_formats import ASSIGNERS
from tailwise.compression.operators.registered import operators_that

COMMANDS = ("plan prune", "plan quantize", "plan drop", "plan tau", "apply", "audit", "evaluate", "recover", "sweep")


def shown(command, columns=80):
    environment = {**os.environ, "COLUMNS": str(columns), "NO_COLOR": "1", "TERMINAL_WIDTH": str(columns)}
    found = CliRunner(env=environment).invoke(app, [*command.split(), "--help"])
    assert found.exit_code == 0
    return found.output


def words(text):
    """Without the frames, in one line."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


@pytest.mark.parametrize("command", COMMANDS)
def test_no_line_of_a_paragraph_ends_early(command):
    head = shown(command).partition("╭")[0].split("\n")
    lines = [line.strip() for line in head]
    for one, other in pairwise(lines):
        if one and other and not other.startswith("- "):  # the next word had no room
            assert len(one) + 1 + len(other.split()[0]) > 78, (one, other)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_name_is_put_in(command):
    text = shown(command)
    assert not [name for name in _LISTS if f"{{{name}}}" in text]


def test_help_lists_what_the_registries_hold():
    prune, quantize = words(shown("plan prune")), words(shown("plan quantize"))
    for name in (*operators_that("prune"), *ALLOCATORS):
        assert name in prune
    for name in (*operators_that("quantize"), *ASSIGNERS):
        assert name in quantize


def test_an_operator_of_a_third_party_is_in_the_help():
    code = (
        "from tailwise.compression.operators.registered import pruner\n"
        "@pruner('mine', needs='norms', source='me')\n"
        "def mine(W, amount, inputs):\n    '''Nothing.'''\n"
        "import sys; sys.argv = ['tailwise', *sys.argv[1:], '--help']\n"
        "from tailwise.cli.main import run\nrun()\n"
    )
    for command in (["plan", "prune"], ["apply"]):
        done = subprocess.run([sys.executable, "-P", "-c", code, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert re.search(r"\bmine\b", words(done.stdout))


def test_lists_and_examples_stay_as_they_are():
    assert unwrapped("one\ntwo\n\n- a\n- b\n\n    code\n    more") == "one two\n\n- a\n- b\n\n    code\n    more"


def test_other_braces_are_left_alone():
    assert filled("a {strange} one, {looking_quantizers}") == "a {strange} one, gptq, imatrix"
