"""`tailwise atlas build AUDIT… -o FILE` and `tailwise atlas show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Distributions over healthy models, which diagnoses compare with.", no_args_is_help=True)


@app.command()
def build(
    audits: Annotated[list[str], typer.Argument(help="Audits of healthy models, or folders with them (a sweep's).")],
    output: Annotated[str, typer.Option("-o", "--output", metavar="FILE.atlas", help="The atlas.")],
) -> None:
    """Make an atlas from audits: every metric by role, relative width, size and depth. Models count, not matrices."""
    from tailwise.audits.audit import Audit
    from tailwise.core.errors import UsageError
    from tailwise.judging.diagnosis.atlas_build import build as make
    from tailwise.judging.diagnosis.atlas_build import save

    if Path(output).suffix != ".atlas":
        raise UsageError(
            f"the suffix {Path(output).suffix!r} is not one of an atlas", where=output, fix="choose x.atlas"
        )
    paths = [path for given in audits for path in _audits_in(given)]
    made = make(Audit.load(path) for path in paths)
    written = save(made, output)
    typer.echo(f"{len(made)} models of {len(paths)} audits; written to {written}")
    if len(made) < _LEAST:
        typer.echo(f"an atlas says nothing of a role that fewer than {_LEAST} models have", err=True)


_LEAST = 5


def _audits_in(given: str) -> list[str | Path]:
    from tailwise.core.errors import UsageError

    folder = Path(given)
    if not folder.is_dir() or (folder / "provenance.json").exists():
        return [given]
    audits = sorted(folder.rglob("*.audit"))
    if not audits:
        raise UsageError("holds no audits", where=given, fix="audit models into it, or sweep with -o")
    return list(audits)


@app.command()
def show(
    atlas: Annotated[str, typer.Argument(metavar="[FILE.atlas]", help="An atlas; the one in use by default.")] = "",
) -> None:
    """List the models of an atlas, and of how many models it has each role."""
    from collections import Counter

    from tailwise.judging.diagnosis.atlas import default, load

    shown = load(atlas) if atlas else default()
    roles: Counter[str] = Counter(cell[1] for one in shown.members for cell in one.cells
                                  if cell[0] == "role" and len(cell) == 2)  # fmt: skip
    typer.echo(f"{len(shown)} models")
    for one in shown.members:
        typer.echo(f"  {one.name}")
    typer.echo("models by role: " + ", ".join(f"{role} {count}" for role, count in roles.most_common()))
