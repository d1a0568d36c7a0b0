"""`tailwise diagnose AUDIT…`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailwise.cli.options import Json, comma_list

if TYPE_CHECKING:
    from tailwise.diagnosis.finding import Diagnosis

_RULES, _OUT = "Rules", "Output"


class FailOn(StrEnum):
    """Severity from which the command ends with 1."""

    warning = "warning"
    error = "error"


def diagnose(
    audits: Annotated[list[str], typer.Argument(help="Audit files or folders.")],
    thresholds: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="Other thresholds, as `name = value` lines.", rich_help_panel=_RULES),
    ] = None,
    mute: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CODES",
            help="TW101, TW2xx, or TW101:REGEX for some layers; commas, or repeat.",
            rich_help_panel=_RULES,
        ),
    ] = None,
    history: Annotated[
        bool,
        typer.Option("--history", help="The audits are one run, oldest first: judge the last.", rich_help_panel=_RULES),
    ] = False,
    base: Annotated[
        Path | None,
        typer.Option(metavar="AUDIT", help="Of the base or the first checkpoint: was a matrix moved at all?",
                     rich_help_panel=_RULES),
    ] = None,
    atlas: Annotated[
        Path | None,
        typer.Option(metavar="FILE.atlas", help="Healthy models to compare with; see `tailwise atlas`.",
                     rich_help_panel=_RULES),
    ] = None,
    fail_on: Annotated[
        FailOn | None, typer.Option(help="End with 1 where something this bad is found.", rich_help_panel=_OUT)
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option("-o", "--output", metavar="FILE", help="x.json or x.md; may be repeated.", rich_help_panel=_OUT),
    ] = None,
    as_json: Json = False,
    rows: Annotated[
        int, typer.Option(min=0, help="Lines of evidence a finding (2 of a note); 0 for all.", rich_help_panel=_OUT)
    ] = 8,
) -> None:  # fmt: skip
    """Say what is wrong with a model, why, and what to do, with the numbers.

    The rules, their thresholds and how well founded each is are in the documentation under Rules.
    """
    from tailwise.diagnosis.finding import SEVERITIES
    from tailwise.report import findings, health, terminal

    for path in output or ():
        findings.check_target(path)
    # What follows a colon is a regular expression, which may have commas of its own.
    muted = [code for item in mute or () for code in ([item] if ":" in item else comma_list(item))]
    found = _diagnosed(audits, {"thresholds": thresholds, "mute": muted, "atlas": atlas}, base, history=history)
    console = terminal.console(stderr=as_json)
    if as_json:
        sys.stdout.write(findings.to_json(found) + "\n")
    else:
        for one, path in zip(found, audits[-len(found) :], strict=True):
            console.print(findings.terminal(one, rows))
            if one.health is not None:
                console.print("", health.terminal(one.health, path), sep="\n")
    for path in output or ():
        console.print(f"written to {findings.write(found, path)}", soft_wrap=True, markup=False)
    worst = [SEVERITIES.index(one.worst) for one in found if one.worst]
    if fail_on and worst and max(worst) >= SEVERITIES.index(fail_on.value):
        raise typer.Exit(1)


def _diagnosed(paths: list[str], how: dict[str, Any], base: Path | None, *, history: bool) -> list[Diagnosis]:
    from tailwise.audits.audit import Audit
    from tailwise.diagnosis.run import diagnose as verb

    audits = [Audit.load(path) for path in paths]
    before = None if base is None else Audit.load(base)
    if history:
        return [verb(audits[-1], history=audits[:-1], base=before, **how)]
    return [verb(audit, base=before, **how) for audit in audits]
