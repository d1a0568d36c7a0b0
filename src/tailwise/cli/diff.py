"""`tailwise diff STEP STEP`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from tailwise.cli.compare_commands import check_text_target
from tailwise.cli.compared import TEXTS, Fdr, Metrics, Randomize, put_out
from tailwise.cli.arguments import Device, Json, Rows, Workers, comma_list
from tailwise.cli.store_options import Revisions, Run, Store, only_run, open_store
from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    from tailwise.audits.audit import Audit

_OUT = "Output"


def diff(
    before: Annotated[str, typer.Argument(metavar="STEP", help="A step, or the word first.")],
    after: Annotated[str, typer.Argument(metavar="STEP", help="A later step, or the word last.")],
    store: Store = None,
    run: Run = None,
    checkpoints: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="In place of a store: a folder or URL with checkpoints, or org/name.",
                     rich_help_panel="Where"),
    ] = None,
    revisions: Revisions = None,
    fdr: Fdr = 0.05,
    metrics: Metrics = None,
    randomize: Randomize = False,
    device: Device = "cpu",
    workers: Workers = None,
    output: Annotated[
        list[str] | None,
        typer.Option("-o", "--output", metavar="FILE", help="x.json, x.csv or x.md; may be repeated.",
                     rich_help_panel=_OUT),
    ] = None,
    as_json: Json = False,
    rows: Rows = 100,
) -> None:  # fmt: skip
    """Say what changed between two steps of a run: per layer, per role and for the model, as `tailwise compare` does.

    Of a store, audits are read from their files where those are still there; without them there are no spectra, and
    nothing about alpha is called significant. Of a folder, the two checkpoints are audited.
    """
    from tailwise.judging.compare.compare_audits import compare

    for path in output or ():
        check_text_target(path, TEXTS)
    if checkpoints is not None:
        settings = {"device": device, "workers": workers, "randomize": int(randomize)}
        sides = _of_folder(checkpoints, comma_list(revisions), (before, after), settings)
    elif randomize or device != "cpu" or workers is not None:
        what = "what the store has is not audited again: --randomize, --device and --workers are for checkpoints"
        raise UsageError(what, fix="leave them out, or give --checkpoints DIR")
    else:
        sides = _of_store(store, run, (before, after))
    (old, new), notes = sides
    found = compare(old, new, level=fdr, metrics=comma_list(metrics) or None)
    put_out([replace(found, notes=(*found.notes, *notes))], output or (), as_json=as_json, rows=rows)


Sides = tuple[list["Audit"], list[str]]


def _of_folder(where: str, revisions: tuple[str, ...], asked: tuple[str, str], settings: Mapping[str, object]) -> Sides:
    from tailwise.audits.run import audit
    from tailwise.cli.progress import progress_bar
    from tailwise.history.runs.found import find, nothing_found

    found = {one.step: one for one in find(where, revisions)}
    if not found:
        raise nothing_found(where)
    chosen = [found[_step(text, sorted(found), where)] for text in asked]
    with progress_bar() as show:
        return [audit(one.uri, progress=show, **settings) for one in chosen], []  # type: ignore[arg-type]


def _of_store(store: str | None, run: str | None, asked: tuple[str, str]) -> Sides:
    from tailwise.history.as_audit import audit_at

    with open_store(store) as history:
        name = only_run(history, run)
        known = sorted({item.step for item in history.audits(name)} | set(history.scalars(name)["step"].to_pylist()))
        pairs = [audit_at(history, name, _step(text, known, f"the run {name!r}")) for text in asked]
    return [audit for audit, _ in pairs], list(dict.fromkeys(lacks for _, lacks in pairs if lacks))


def _step(text: str, known: list[int], where: str) -> int:
    words = {"first": 0, "last": -1}
    if text in words and known:
        return known[words[text]]
    digits = text.removeprefix("step").strip("-_ ")
    if not digits.isdecimal():
        raise UsageError(f"{text!r} is no step", fix="give a number, or first or last")
    if int(digits) not in known:
        near = sorted(sorted(known, key=lambda step: abs(step - int(digits)))[:6])
        raise UsageError(f"has no step {digits}", where=where, fix=f"steps nearby: {', '.join(map(str, near))}")
    return int(digits)
