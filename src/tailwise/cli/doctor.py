"""`tailwise doctor`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tailwise.cli.arguments import Json


def doctor(
    as_json: Json = False,
    clear_cache: Annotated[bool, typer.Option("--clear-cache", help="Remove all kept spectra.")] = False,
) -> None:
    """Check the installation: versions, extras, device, cache, and the solver against a known answer."""
    from tailwise.audits.installation import check, clear

    if clear_cache:
        typer.echo(f"removed {clear()} files")
        return
    found = check()
    if as_json:
        typer.echo(json.dumps([vars(item) for item in found], indent=1))
    else:
        for item in found:
            mark = "ok" if item.ok else "--" if item.optional else "!!"
            typer.echo(f"{mark}  {item.name:<16} {item.detail}")
    if not all(item.ok or item.optional for item in found):
        raise typer.Exit(1)
