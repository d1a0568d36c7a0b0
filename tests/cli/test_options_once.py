"""An option that a command and the dataclass of its options both have is declared once, or at least alike."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields
from enum import Enum

import pytest

from tailwise.audits.precision.studying import StudyOptions
from tailwise.cli.apply_commands import OF_APPLY
from tailwise.cli.audit_commands import OF_AUDIT
from tailwise.cli.evaluate_command import evaluate
from tailwise.cli.plan_made import OF_PRUNE, OF_QUANTIZE
from tailwise.cli.precision import OF_PRECISION
from tailwise.cli.sweep_command import OF_SWEEP
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.making.request import QuantizeRequest, Request
from tailwise.compression.trying.stage import StageOptions
from tailwise.core.recipe import Recipe, RunOptions
from tailwise.history.sweep.sweeping import Sweep
from tailwise.models.evaluation.evaluate import EvaluateOptions

_OF_EVALUATE = {name: one.default for name, one in inspect.signature(evaluate).parameters.items()}


def of_rows(rows):
    return {row.name: row.default for row in rows}


def plain(value):
    """What a command takes as a list or an enumeration, as its options have it."""
    if isinstance(value, tuple):
        return ",".join(value)
    return value.value if isinstance(value, Enum) else "" if value is None else value


@pytest.mark.parametrize(("command", "options"), [
    (of_rows(OF_AUDIT), Recipe), (of_rows(OF_AUDIT), RunOptions), (of_rows(OF_SWEEP), Recipe),
    (of_rows(OF_SWEEP), RunOptions), (of_rows(OF_SWEEP), Sweep), (of_rows(OF_PRECISION), Recipe),
    (of_rows(OF_PRECISION), RunOptions), (of_rows(OF_PRECISION), StudyOptions), (of_rows(OF_APPLY), ApplyOptions),
    (_OF_EVALUATE, EvaluateOptions), (of_rows(OF_PRUNE), Request), (of_rows(OF_QUANTIZE), QuantizeRequest),
    (of_rows(OF_PRUNE), StageOptions), (of_rows(OF_QUANTIZE), StageOptions),
])  # fmt: skip
def test_a_command_and_its_options_have_one_default(command, options):
    shared = [item for item in fields(options) if item.name in command and item.default is not MISSING]
    if command.get("allocator") == "auto":  # which tries several requests, each with an allocator of its own
        shared = [item for item in shared if item.name != "allocator"]
    assert shared
    for item in shared:
        assert plain(command[item.name]) == plain(item.default), item.name
