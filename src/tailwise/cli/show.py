"""`tailwise show AUDIT`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tailwise.cli.options import Json, Output, Rows


def show(
    audit: Annotated[str, typer.Argument(help="An audit file or folder.")],
    layer: Annotated[str | None, typer.Option(metavar="NAME", help="Every number of one matrix.")] = None,
    unmeasured: Annotated[bool, typer.Option("--unmeasured", help="List what was not measured, and why.")] = False,
    output: Output = None,
    as_json: Json = False,
    rows: Rows = 100,
) -> None:
    """Print a saved audit, or convert it."""
    from tailwise.audits.audit import Audit
    from tailwise.diagnosis.run import diagnose
    from tailwise.report import files, health, terminal

    for path in output or ():
        files.check_target(path)
    found = Audit.load(audit)
    console = terminal.console(stderr=as_json)
    for path in output or ():
        console.print(f"written to {files.write(found, path)}", soft_wrap=True, markup=False)
    if as_json:
        sys.stdout.write(files.to_json(found) + "\n")
    elif layer is not None:
        console.print(terminal.one_layer(found[layer]))
    elif unmeasured:
        for row in found.unmeasured:
            console.print(f"{row.name}: {row.status}: {row.reason}", soft_wrap=True, markup=False)
    elif not output:
        diagnosis = diagnose(found)
        if diagnosis.health is not None:
            console.print(health.terminal(diagnosis.health, audit), "", sep="\n")
        parts = (terminal.layers(found, rows, diagnosis), terminal.by_role(found), terminal.closing(found))
        console.print(*(part for one in parts for part in (one, "")), sep="\n")
