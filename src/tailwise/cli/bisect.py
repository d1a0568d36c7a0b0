"""`tailwise bisect DIR --rule TW…`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailwise.cli.options import Device, Json, Rows, Workers, comma_list
from tailwise.cli.stores import Revisions
from tailwise.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from tailwise.runs.bisect import Bisection, Onset
    from tailwise.runs.found import Found

_WHAT = "What to look for"


def bisect(
    where: Annotated[
        str, typer.Argument(metavar="DIR", help="Folder or URL with checkpoints, or org/name on the Hub.")
    ],
    rule: Annotated[
        str, typer.Option(metavar="CODE", help="Of a rule of diagnosis, such as TW203.", rich_help_panel=_WHAT)
    ],
    layers: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Only what the rule says of these layers.", rich_help_panel=_WHAT),
    ] = None,
    thresholds: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="Other thresholds, as `name = value` lines.", rich_help_panel=_WHAT),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Do not look whether what went wrong stayed wrong.", rich_help_panel=_WHAT),
    ] = False,
    revisions: Revisions = None,
    device: Device = "cpu",
    workers: Workers = None,
    as_json: Json = False,
    rows: Rows = 100,
) -> None:
    """Find the step at which a layer went wrong, by auditing only a few of a run's checkpoints.

    Halves the run, so that 1,000 checkpoints take about ten audits; then looks on both sides whether what went wrong
    stayed wrong, which takes twice as many again at most, and says so where it did not.
    """
    from tailwise.report.terminal import console
    from tailwise.runs.bisect import bisect as search
    from tailwise.runs.found import find, nothing_found
    from tailwise.runs.judge import Judge, rule_of

    chosen = rule_of(rule)
    found = find(where, comma_list(revisions))
    if not found:
        raise nothing_found(where)
    if len(found) == 1:
        raise UsageError("holds one checkpoint, and a search takes two or more", where=where)
    screen = console(stderr=True)

    def told(one: Found, named: frozenset[str]) -> None:
        said = f"{chosen.code} of {len(named)} layers" if named - {""} else f"{chosen.code}" if named else "silent"
        said += ", could not look" if one.step in judge.blind else ""
        screen.print(f"step {one.step}  {said}", markup=False, highlight=False)

    judge = Judge(
        found,
        chosen.code,
        layers=layers,
        thresholds=thresholds,
        settings={"device": device, "workers": workers},
        told=told,
    )
    result = search([one.step for one in found], judge, verify=not quick)
    if as_json:
        document = {"rule": chosen.code, "title": chosen.title, **result.to_json(), "could_not_look": judge.blind}
        sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    else:
        _say(console(), result, f"{chosen.code} ({chosen.title})", rows)
        for step, why in judge.blind.items():
            screen.print(f"step {step} counts as silent: {why}", style="yellow", markup=False, highlight=False)


def _say(screen: Console, result: Bisection, what: str, rows: int) -> None:
    def line(text: str, style: str = "") -> None:
        screen.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    line(_verdict(result, what), "bold")
    if result.turns and result.onset.bad is not None:
        listed = ", ".join(map(str, result.turns))
        line(f"Not monotone: the rule is silent again at step {listed}. This is one beginning of several.", "yellow")
    shown = [layer for layer in result.layers if layer][: rows or None]
    for layer in shown:
        line(f"  {layer}  {_between(result, result.of_layer(layer))}")
    left = len([layer for layer in result.layers if layer]) - len(shown)
    if left:
        line(f"  … and {left} more; --rows 0 shows all")
    line(f"{len(result.probed)} of {len(result.steps)} checkpoints audited")


def _verdict(result: Bisection, what: str) -> str:
    if result.onset.bad is None and result.spoke:
        listed = ", ".join(map(str, result.spoke))
        return f"{what} spoke at step {listed}, and is silent again at the last step, {result.steps[-1]}"
    if result.onset.bad is None:
        return f"{what} is silent at the last step, {result.steps[-1]}, and wherever else it was asked"
    return f"{what} {_between(result, result.onset)}"


def _between(result: Bisection, onset: Onset) -> str:
    bad = None if onset.bad is None else result.steps[onset.bad]
    if onset.good is None:
        return f"is there from the first step, {bad}"
    good = onset.good
    count = 0 if onset.bad is None else onset.bad - good - 1
    between = f", {count} checkpoints between" if count else ""
    return f"began after step {result.steps[good]} and by step {bad}{between}"
