"""`tailwise audit MODEL`."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailwise.cli.shared_options import (
    CONV,
    DEVICE,
    HOW,
    K_FRAC,
    PRECISION,
    RUN,
    SEED,
    WORKERS,
    Json,
    Option,
    Rows,
    comma_list,
    command,
    of,
    told,
)
from tailwise.cli.store_options import OutcomeLines, Revisions, Run, open_store
from tailwise.core.errors import UsageError
from tailwise.core.recipe import Recipe, RunOptions

if TYPE_CHECKING:
    from tailwise.audits.audit import Audit
    from tailwise.audits.prepare import Prepared, Selection
    from tailwise.checkpoints.checkpoint import Checkpoint

_WHAT, _OUT = "What to measure", "Output"


class ShowProgress(StrEnum):
    """How progress is told."""

    bar = "bar"
    json = "json"


class Adapter(StrEnum):
    """What an adapter with its base is read as."""

    delta = "delta"
    merged = "merged"


OF_AUDIT = (
    Option("model", Annotated[str, typer.Argument(
        help="Folder, file, URL, or Hugging Face id (org/name or org/name@revision).")]),
    Option("layers", str | None, None, "Only matrices whose name matches.", panel=_WHAT, metavar="REGEX"),
    Option("roles", str | None, None, "Only these roles, e.g. attn_q,mlp_up.", panel=_WHAT, metavar="A,B"),
    Option("metrics", str | None, None, "Only these metrics; see `tailwise metrics`.", panel=_WHAT, metavar="A,B"),
    Option("base", str | None, None, "For an adapter: the model it adapts.", panel=_WHAT, metavar="MODEL"),
    Option("adapter", Adapter, Adapter.delta, "Measure the adapter's change of W, or W with it.", panel=_WHAT),
    Option("part", str | None, None, "Of a file with several sets of weights: which (model_ema).", panel=_WHAT,
           metavar="NAME"),
    of(Recipe, "estimator", "Of alpha: ks, ks_clip, ks_truncated, peak, mid, top, top_outside, farms[:rule].",
       panel=HOW),
    K_FRAC,
    PRECISION,
    CONV,
    Option("randomize", bool, False, "Also permute each W's entries: traps, RD; --randomize N times.",
           ("--randomize",), HOW),
    Option("replicas", Annotated[int, typer.Option(min=1, hidden=True)], 1),
    of(Recipe, "rivals", "Also test lognormal, exponential and truncated tails.", flags=("--rivals",), panel=HOW),
    of(Recipe, "bootstrap", "Resamples for a 95 % interval of alpha.", panel=HOW, least=0),
    SEED,
    DEVICE,
    WORKERS,
    of(RunOptions, "executor", "local, dask[://scheduler:8786], ray[://head:10001].", kind=str, panel=RUN,
       metavar="ENGINE"),
    of(RunOptions, "num_gpus", "GPUs a matrix takes on Ray; 0.25: four at once on each.", panel=RUN, least=0),
    of(RunOptions, "blas", "Libraries that compute on a CPU; auto measures once.", panel=RUN),
    of(RunOptions, "cache_dir", "Where spectra are kept, a folder or s3://… ($TAILWISE_CACHE).", kind=str | None,
       panel=RUN, metavar="WHERE"),
    Option("no_cache", bool, False, "Keep and reuse nothing.", ("--no-cache",), RUN),
    Option("dry_run", bool, False, "Say what would be done, from the headers alone.", ("--dry-run",), RUN),
    Option("all_checkpoints", bool, False, "MODEL has checkpoints: folders, or revisions on the Hub. Audit each.",
           ("--all-checkpoints",), _WHAT),
    Option("revisions", Revisions, None),
    Option("store", str | None, None, "Of --all-checkpoints: a history, see `tailwise watch`.", panel=_OUT,
           metavar="WHERE"),
    Option("run_name", Run, None),
    Option("output", list[str] | None, None,
           "x.audit, x.json, x.csv, x.parquet or x.md; may be repeated. Without it, NAME.audit here: it replaces one "
           "of the same model and settings; any other is kept, and the new one is NAME-….audit.",
           ("-o", "--output"), _OUT, metavar="FILE"),
    Option("progress", ShowProgress, ShowProgress.bar, "A bar, or lines of JSON on stderr.", panel=_OUT),
    Option("as_json", Json, False),
    Option("rows", Rows, 100),
)  # fmt: skip


def _audit(**given: Any) -> None:
    from tailwise.audits.prepare import Selection, prepare
    from tailwise.audits.run import run
    from tailwise.checkpoints.open import open_checkpoint
    from tailwise.core.execution.executor import check_executor
    from tailwise.report.output_files import check_target

    asked = told(Recipe, given) | {"metrics": comma_list(given["metrics"])}
    recipe = Recipe(**asked | {"randomize": given["replicas"] if given["randomize"] else 0})
    options = RunOptions(**told(RunOptions, given), use_cache=not given["no_cache"])
    check_executor(options.executor)
    chosen, output, as_json = Selection(given["layers"], comma_list(given["roles"])), given["output"], given["as_json"]
    stored = (given["store"], given["run_name"], comma_list(given["revisions"]))
    if given["all_checkpoints"]:
        if as_json or len(output or ()) > 1 or (output and Path(output[0]).suffix):
            fix = "give -o FOLDER, or --store and see `tailwise history`"
            raise UsageError("--all-checkpoints writes audits", fix=fix)
        _all_checkpoints(given["model"], (recipe, options, chosen), stored, Path(output[0]) if output else None)
        return
    if any(stored):
        fix = "add --all-checkpoints; `tailwise store add` keeps a single audit"
        raise UsageError("--store, --run and --revisions belong to --all-checkpoints", fix=fix)
    for path in output or ([] if as_json or given["dry_run"] else ["./x.audit"]):
        check_target(path)
    adapter = given["adapter"].value
    with open_checkpoint(given["model"], base=given["base"], adapter_mode=adapter, part=given["part"]) as checkpoint:
        prepared = prepare(checkpoint, recipe, options, chosen)
        if given["dry_run"]:
            _say_plan(checkpoint, prepared, as_json)
            return
        made = _with_progress(lambda tell: run(checkpoint, prepared, tell), given["progress"])
    _deliver(made, list(output or ()), as_json, given["rows"])
    if any(row.status in ("UNREADABLE", "FAILED") for row in made.rows):
        raise typer.Exit(3)


audit = command(
    _audit,
    OF_AUDIT,
    "audit",
    """Measure every weight matrix of a model, from one streaming read.

    Leaves an audit (NAME.audit here, unless -o or --json says otherwise) that the other commands read.
    """,
)


def _with_progress(work: Any, kind: ShowProgress) -> Audit:
    from contextlib import nullcontext

    from tailwise.cli.progress_bar import Tell, progress_bar

    with nullcontext(Tell()) if kind == ShowProgress.json else progress_bar() as show:
        try:
            result: Audit = work(show)
        except KeyboardInterrupt:
            done = show.step
            progress_made = "" if done is None else f" after {done.done} of {done.total} matrices"
            typer.echo(
                f"tailwise: interrupted{progress_made}; what was computed is kept, the same command goes on", err=True
            )
            raise typer.Exit(130) from None
    return result


def _deliver(audit: Audit, outputs: list[str], as_json: bool, rows: int) -> None:
    from tailwise.judging.diagnosis.diagnose import diagnose
    from tailwise.report import health, terminal
    from tailwise.report import output_files as files

    # Files first: a reader that closes the pipe must not cost the audit.
    written = [files.write(audit, path) for path in outputs]
    if not outputs and not as_json:
        written = [_save_under_own_name(audit)]
    console, path = terminal.console(stderr=as_json), next((str(one) for one in written if _is_audit(one)), "AUDIT")
    diagnosis = diagnose(audit)
    if as_json:
        sys.stdout.write(files.to_json(audit) + "\n")
    else:
        assert diagnosis.health is not None  # noqa: S101 - every diagnosis of an audit has one
        console.print(health.terminal(diagnosis.health, path), "", sep="\n")
        console.print(terminal.layers(audit, rows, diagnosis), "", terminal.by_role(audit), "", sep="\n")
    console.print(terminal.closing(audit))
    if not as_json and len(audit) > _SCREEN and diagnosis.health is not None:
        console.print(health.line(diagnosis.health))
    for place in written:
        console.print(f"written to {place}", soft_wrap=True, markup=False)


#: Rows from which on the first line has left the screen.
_SCREEN = 20


def _is_audit(path: Path | str) -> bool:
    return str(path).endswith((".audit", "/")) or Path(path).is_dir()


def _save_under_own_name(audit: Audit) -> Path | str:
    """Save as `NAME.audit`, or beside it where that name is taken by the answer to another question."""
    from tailwise.core.recipe import digest_of

    first = Path(f"{_stem(audit.model)}.audit")
    question = _question(audit)
    if not first.exists() or _question_of(first) == question:
        try:
            return audit.save(first, exclusive=not first.exists())
        except FileExistsError:  # another audit was faster
            if _question_of(first) == question:
                return audit.save(first)
    return audit.save(f"{_stem(audit.model)}-{digest_of(question)[:8]}.audit")


#: What files of weights are called in every folder, so that the folder's name says which model it is.
_ALL_ALIKE = ("model", "pytorch_model", "adapter_model", "diffusion_pytorch_model", "consolidated", "weights")


def _stem(model: str) -> str:
    from tailwise.checkpoints.sniff import SUFFIXES

    path = Path(model)
    name = path.resolve().name if path.is_dir() else model.rstrip("/").rsplit("/", 1)[-1]
    stem = name.split("@", 1)[0]
    bare = next((stem.removesuffix(suffix) for suffix in SUFFIXES if stem.endswith(suffix)), stem) or "model"
    folder = path.absolute().parent.name
    return f"{folder}-{bare}" if bare in _ALL_ALIKE and path.is_file() and folder else bare


def _question(audit: Audit) -> list[Any]:
    provenance = audit.provenance
    return [provenance.model, dict(provenance.recipe), dict(provenance.selection)]


def _question_of(path: Path) -> list[Any] | None:
    from tailwise.audits.audit import Audit
    from tailwise.core.errors import UnreadableError

    try:
        return _question(Audit.load(path))
    except UnreadableError:
        return None


def _say_plan(checkpoint: Checkpoint, prepared: Prepared, as_json: bool) -> None:
    import json

    from tailwise.audits.cost import forecast

    cost = forecast(checkpoint, prepared)
    if as_json:
        typer.echo(json.dumps(cost, indent=1))
        return
    from rich.filesize import decimal

    typer.echo(f"{checkpoint.uri} ({checkpoint.format}, {decimal(checkpoint.nbytes)} on disk)")
    typer.echo(f"matrices   {cost['matrices']} to measure, {cost['unmeasured']} tensors that are not")
    typer.echo(f"read       {decimal(int(cost['bytes']))}")
    typer.echo(
        f"memory     about {decimal(int(cost['memory']))} above the interpreter's own, {cost['workers']} workers"
    )
    typer.echo(f"time       about {cost['seconds']:.0f} s, {cost['cached']} matrices known already")


def _all_checkpoints(
    where: str,
    how: tuple[Recipe, RunOptions, Selection],
    whereto: tuple[str | None, str | None, tuple[str, ...]],
    folder: Path | None,
) -> None:
    """Audit every checkpoint at `where` in order of step; `whereto` is the store, the run, and revisions."""
    from tailwise.cli.progress_bar import progress_bar
    from tailwise.history.runs.found import find, nothing_found
    from tailwise.history.runs.sink import Sink, audit_all, run_name
    from tailwise.report.terminal import console

    store, run, revisions = whereto
    store = store or os.environ.get("TAILWISE_STORE")
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UsageError("is a file, and audits of several checkpoints take a folder", where=folder)
    checkpoints = find(where, revisions)
    if not checkpoints:
        raise nothing_found(where)
    name = run or run_name(where)
    if store is None and folder is None:
        folder = Path(f"{name.rsplit('/', 1)[-1]}-audits")
    screen, good = console(), True
    lines = OutcomeLines(screen)
    with ExitStack() as stack:
        history = stack.enter_context(open_store(store, create=True)) if store is not None else None
        show = stack.enter_context(progress_bar())
        try:
            for outcome in audit_all(checkpoints, Sink(name, history, folder, _settings(how), show)):
                good = lines.say(outcome) and good
        except KeyboardInterrupt:
            typer.echo("tailwise: interrupted; what was audited is kept, the same command goes on", err=True)
            raise typer.Exit(130) from None
    lines.conclude()
    if folder is not None:
        screen.print(f"audits in {folder}", soft_wrap=True, markup=False)
    if not good:
        raise typer.Exit(3)


def _settings(how: tuple[Recipe, RunOptions, Selection]) -> Any:
    recipe, options, selection = how
    parts = {item.name: getattr(part, item.name) for part in (recipe, options) for item in fields(part)}
    del parts["extra"]
    return parts | {"layers": selection.layers, "roles": selection.roles}
