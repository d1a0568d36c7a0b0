"""`tailwise sweep LIST`."""

from __future__ import annotations

from typing import Annotated

import typer


def sweep(
    models: Annotated[str, typer.Argument(help="A file with a model on each line, or hub:author=…,sort=…,limit=….")],
    output: Annotated[str, typer.Option("-o", "--output", metavar="FOLDER")] = "sweep",
) -> None:
    """Audit many models."""
    from tailwise.sweep.models import default_name, read_models
    from tailwise.sweep.run import Sweep
    from tailwise.sweep.run import sweep as run

    typer.echo(run(read_models(models), Sweep.at(default_name(models), output)))
