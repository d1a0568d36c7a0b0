"""What others wrote into a list of models or a checkpoint stays text on the terminal."""

from __future__ import annotations

import io

from rich.console import Console

from tailwise.history.sweep.one_model import ModelOutcome
from tailwise.history.sweep.status import ModelUnderway, SweepStatus, Trouble
from tailwise.report.sweep import dashboard, outcome_line, troubles

EVIL = "org/\x1b]0;owned\x07\x1b[2J[red]a[/red]"


def test_names_and_reasons_move_no_cursor():
    status = SweepStatus(
        EVIL, "out", 1, 1, 0, 1, 3, 0, 0, 0.0, 0.0, None, None,
        (ModelUnderway(EVIL, "host:1:ab", 1, 9.0),), (Trouble(EVIL, "failed", EVIL, EVIL),),
    )  # fmt: skip
    console = Console(file=io.StringIO(), width=200)
    facts = {"values": {}, "matrices": 1, "seconds": 1.0, "reused": 0}
    console.print(dashboard(status, f"{EVIL}: 1/3"), troubles(status))
    console.print(outcome_line(ModelOutcome(EVIL, "failed", EVIL, EVIL)))
    console.print(outcome_line(ModelOutcome(EVIL, "done", EVIL, EVIL, facts)))
    shown = console.file.getvalue()
    assert "\x1b" not in shown
    assert shown.count("[red]a[/red]") == 11
