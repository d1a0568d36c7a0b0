"""`tailwise plan import`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from tailwise.cli.arguments import Json, Rows
from tailwise.cli.plan_shared import DryRun, PlanFile, audit_of, deliver, target_of


class Source(StrEnum):
    """Tools whose files are read."""

    alphaquant = "alphaquant"


def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="AlphaQuant's config or expanded plan, x.json.")],
    audit: Annotated[str, typer.Option(metavar="AUDIT", help="Of the model, or the model, which is audited first.")],
    source: Annotated[Source, typer.Option("--from", help="Whose file it is.")] = Source.alphaquant,
    dry_run: DryRun = False,
    output: PlanFile = None,
    as_json: Json = False,
    rows: Rows = 100,
) -> None:
    """Make a plan of another tool's file, for the model of an audit.

    AlphaQuant's patterns are globs, and the last that matches a layer wins. A pattern that matches none is an error.
    """
    from tailwise.compression.making.import_alphaquant import alphaquant_plan

    del source  # there is one
    target = None if dry_run else target_of(output, as_json)
    plan = alphaquant_plan(file, audit_of(audit, "cpu", None))
    deliver(plan, target, as_json, rows)
