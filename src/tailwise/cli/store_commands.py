"""`tailwise store add|import|prune|delete|export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailwise.cli.store_options import Run, Store, open_store
from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    pass


app = typer.Typer(
    name="store",
    help="Add to a history, take things out of it, and keep it small; `tailwise history` looks into it.",
    no_args_is_help=True,
)
_KEEP = "What to keep"
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")]


@app.command()
def add(
    audits: Annotated[list[str], typer.Argument(metavar="AUDIT...", help="Audit files, in order.")],
    store: Store = None,
    run: Run = None,
    step: Annotated[
        int | None, typer.Option(min=0, help="Of a single audit whose name and model do not tell it.")
    ] = None,
) -> None:
    """Add audits that were made before. Steps are told from the names of the files, or of the models."""
    from tailwise.audits.audit import Audit

    if step is not None and len(audits) > 1:
        raise UsageError("several audits do not have one step", fix="add them one by one, or name them step-100.audit")
    pairs = [(Path(path), Audit.load(path)) for path in audits]
    steps = [_step_of(path, audit.model) if step is None else step for path, audit in pairs]
    with open_store(store, create=True) as history:
        for (path, audit), at in zip(pairs, steps, strict=True):
            name = run or path.resolve().parent.name or "run"
            history.add_audit(audit, name, at, path=path)
            typer.echo(f"{path}: step {at} of {name}")


def _step_of(path: Path, model: str) -> int:
    from tailwise.history.runs.found import step_of

    # Of a path the last two names at most: a folder further up may have a number of its own.
    names = [path.stem, *reversed(model.rstrip("/").split("/")[-2:])]
    steps = [step for name in names if (step := step_of(name)) is not None]
    if not steps:
        raise UsageError("neither the file's name nor its model's has a step", where=path, fix="give --step")
    return steps[0]


@app.command("import")
def import_(
    files: Annotated[list[str], typer.Argument(metavar="FILE.jsonl...", help="Lines that a monitor wrote.")],
    store: Store = None,
) -> None:
    """Add the points and alarms of JSONL files. What the store has already is not added again."""
    from tailwise.history.jsonl import one_line, read_jsonl
    from tailwise.history.point import Alarm, Point

    items = [item for path in files for item in one_line(read_jsonl(path))]
    points = [item for item in items if isinstance(item, Point)]
    alarms = [item for item in items if isinstance(item, Alarm)]
    with open_store(store, create=True) as history:
        became = history.add_all(points)
        new = sum(history.add_alarm(alarm) for alarm in alarms)
    same = len(became) - became.count("new")
    typer.echo(f"{became.count('new')} points and {new} alarms added; {same + len(alarms) - new} were known")


@app.command()
def prune(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run; all by default.")] = None,
    store: Store = None,
    keep_every: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Steps that N divides.", rich_help_panel=_KEEP)
    ] = None,
    keep_last: Annotated[
        int | None,
        typer.Option(min=0, metavar="K", help="The newest K points, and the newest K audits.", rich_help_panel=_KEEP),
    ] = None,
    older_than: Annotated[
        float | None, typer.Option(min=0, metavar="DAYS", help="Remove only what is older.", rich_help_panel=_KEEP)
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Remove points and audits that no option keeps. The first step, and steps with an alarm, always stay.

    Files of audits stay where they are.
    """
    from tailwise.history.prune import Retention

    if keep_every is None and keep_last is None and older_than is None:
        raise UsageError("nothing says what to keep", fix="give --keep-every, --keep-last or --older-than")
    retention = Retention(keep_every, keep_last, older_than)
    with open_store(store) as history:
        count = history.prune(retention, run, dry=dry_run)
    typer.echo(f"{count} points and audits {'would go' if dry_run else 'removed'}")


@app.command()
def delete(
    run: Annotated[str, typer.Argument(help="The run.")],
    store: Store = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove a run with its points, audits and alarms. Files of audits stay where they are."""
    with open_store(store) as history:
        history.metrics(run)  # which knows whether there is such a run
        if not yes:
            typer.confirm(f"Remove {run!r} from {history.where}?", abort=True)
        typer.echo(f"{history.delete_run(run)} points and audits removed")


@app.command()
def export(
    folder: Annotated[str, typer.Argument(help="Made where it is not there; a folder for each run.")],
    store: Store = None,
    run: Run = None,
) -> None:
    """Write a store, or one run, as Parquet files: series of all metrics, points, alarms and audits."""
    with open_store(store) as history:
        for path in history.export_parquet(folder, run):
            typer.echo(f"written to {path}")
