"""`tailwise audit --all-checkpoints DIR`."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tailwise.cli.store_options import open_store, say_outcome
from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    from tailwise.audits.prepare import Selection
    from tailwise.core.recipe import Recipe, RunOptions


def all_checkpoints(
    where: str,
    how: tuple[Recipe, RunOptions, Selection],
    whereto: tuple[str | None, str | None, tuple[str, ...]],
    folder: Path | None,
) -> None:
    """Audit every checkpoint at `where` in order of step; `whereto` is the store, the run, and revisions."""
    from tailwise.cli.progress import progress_bar
    from tailwise.report.terminal import console
    from tailwise.history.runs.found import find, nothing_found
    from tailwise.history.runs.sink import Sink, audit_all, run_name

    store, run, revisions = whereto
    store = store or os.environ.get("TAILWISE_STORE")
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UsageError("is a file, and audits of several checkpoints take a folder", where=folder)
    found = find(where, revisions)
    if not found:
        raise nothing_found(where)
    name = run or run_name(where)
    if store is None and folder is None:
        folder = Path(f"{name.rsplit('/', 1)[-1]}-audits")
    screen, good = console(), True
    with ExitStack() as stack:
        history = stack.enter_context(open_store(store, create=True)) if store is not None else None
        show = stack.enter_context(progress_bar())
        try:
            for outcome in audit_all(found, Sink(name, history, folder, _settings(how), show)):
                good = say_outcome(screen, outcome) and good
        except KeyboardInterrupt:
            typer.echo("tailwise: interrupted; what was audited is kept, the same command goes on", err=True)
            raise typer.Exit(130) from None
    if folder is not None:
        screen.print(f"audits in {folder}", soft_wrap=True, markup=False)
    if not good:
        raise typer.Exit(3)


def _settings(how: tuple[Recipe, RunOptions, Selection]) -> Any:
    recipe, options, selection = how
    parts = {item.name: getattr(part, item.name) for part in (recipe, options) for item in fields(part)}
    del parts["extra"]
    return parts | {"layers": selection.layers, "roles": selection.roles}
