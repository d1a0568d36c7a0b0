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

from tailwise.cli.arguments import Json, Output, Rows, comma_list
from tailwise.cli.store_options import Revisions, Run, open_store, say_outcome
from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    from tailwise.audits.audit import Audit
    from tailwise.audits.prepare import Prepared, Selection
    from tailwise.checkpoints.checkpoint import Checkpoint
    from tailwise.core.recipe import Recipe, RunOptions

_WHAT, _HOW, _RUN, _OUT = "What to measure", "How to measure", "How to run", "Output"


class Dtype(StrEnum):
    """Precision of the solver."""

    float64 = "float64"
    float32 = "float32"


class Conv(StrEnum):
    """How a convolution becomes a matrix."""

    flatten = "flatten"
    slices = "slices"
    pooled = "pooled"


class ShowProgress(StrEnum):
    """How progress is told."""

    bar = "bar"
    json = "json"


class Adapter(StrEnum):
    """What an adapter with its base is read as."""

    delta = "delta"
    merged = "merged"


def audit(
    model: Annotated[
        str, typer.Argument(help="Folder, file, URL, or Hugging Face id (org/name or org/name@revision).")
    ],
    layers: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Only matrices whose name matches.", rich_help_panel=_WHAT),
    ] = None,
    roles: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Only these roles, e.g. attn_q,mlp_up.", rich_help_panel=_WHAT),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Only these metrics; see `tailwise metrics`.", rich_help_panel=_WHAT),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="For an adapter: the model it adapts.", rich_help_panel=_WHAT),
    ] = None,
    adapter: Annotated[
        Adapter, typer.Option(help="Measure the adapter's change of W, or W with it.", rich_help_panel=_WHAT)
    ] = Adapter.delta,
    part: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of a file with several sets of weights: which (model_ema).",
                     rich_help_panel=_WHAT),
    ] = None,
    estimator: Annotated[
        str,
        typer.Option(
            help="Of alpha: ks, ks_clip, ks_truncated, peak, mid, top, top_outside, farms[:rule].", rich_help_panel=_HOW
        ),
    ] = "ks",
    k_frac: Annotated[float, typer.Option(help="Tail fraction of alpha_hill.", rich_help_panel=_HOW)] = 0.1,
    dtype: Annotated[
        Dtype, typer.Option("--precision", help="float64 is exact; float32 is twice as fast.", rich_help_panel=_HOW)
    ] = Dtype.float64,
    conv: Annotated[Conv, typer.Option(help="Matrices of a convolution.", rich_help_panel=_HOW)] = Conv.flatten,
    randomize: Annotated[
        bool,
        typer.Option("--randomize", help="Also permute each W's entries: traps, RD; --randomize N times.",
                     rich_help_panel=_HOW),
    ] = False,
    replicas: Annotated[int, typer.Option(min=1, hidden=True)] = 1,
    rivals: Annotated[
        bool,
        typer.Option("--rivals", help="Also test lognormal, exponential and truncated tails.", rich_help_panel=_HOW),
    ] = False,
    bootstrap: Annotated[
        int, typer.Option(min=0, help="Resamples for a 95 % interval of alpha.", rich_help_panel=_HOW)
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.", rich_help_panel=_HOW)] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:0.", rich_help_panel=_RUN)] = "cpu",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Matrices at once; one per core by default.", rich_help_panel=_RUN),
    ] = None,
    executor: Annotated[
        str,
        typer.Option(metavar="ENGINE", help="local, dask[://scheduler:8786], ray[://head:10001].",
                     rich_help_panel=_RUN),
    ] = "local",
    num_gpus: Annotated[
        float | None,
        typer.Option(min=0, help="GPUs a matrix takes on Ray; 0.25: four at once on each.", rich_help_panel=_RUN),
    ] = None,
    cache_dir: Annotated[
        str | None,
        typer.Option(metavar="WHERE", help="Where spectra are kept, a folder or s3://… ($TAILWISE_CACHE).",
                     rich_help_panel=_RUN),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep and reuse nothing.", rich_help_panel=_RUN)] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be done, from the headers alone.", rich_help_panel=_RUN),
    ] = False,
    all_checkpoints: Annotated[
        bool,
        typer.Option("--all-checkpoints", help="MODEL has checkpoints: folders, or revisions on the Hub. Audit each.",
                     rich_help_panel=_WHAT),
    ] = False,
    revisions: Revisions = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="WHERE", help="Of --all-checkpoints: a history, see `tailwise watch`.",
                     rich_help_panel=_OUT),
    ] = None,
    run_name: Run = None,
    output: Output = None,
    progress: Annotated[
        ShowProgress, typer.Option(help="A bar, or lines of JSON on stderr.", rich_help_panel=_OUT)
    ] = ShowProgress.bar,
    as_json: Json = False,
    rows: Rows = 100,
) -> None:  # fmt: skip
    """Measure every weight matrix of a model, from one streaming read.

    Leaves an audit (NAME.audit here, unless -o or --json says otherwise) that the other commands read.
    """
    from tailwise.audits.prepare import Selection, prepare
    from tailwise.audits.run import run
    from tailwise.checkpoints.open import open_checkpoint
    from tailwise.core.execution.engines import check_executor
    from tailwise.core.recipe import Recipe, RunOptions
    from tailwise.report.output_files import check_target

    recipe = Recipe(
        estimator=estimator,
        k_frac=k_frac,
        conv=conv.value,
        precision=dtype.value,
        randomize=replicas if randomize else 0,
        bootstrap=bootstrap,
        rivals=rivals,
        seed=seed,
        metrics=comma_list(metrics),
    )
    options = RunOptions(
        device=device, workers=workers, cache_dir=cache_dir, use_cache=not no_cache, executor=executor,
        num_gpus=num_gpus,
    )  # fmt: skip
    check_executor(executor)
    if all_checkpoints:
        chosen = Selection(layers, comma_list(roles))
        _audit_all(model, (recipe, options, chosen), (store, run_name, comma_list(revisions)), output, as_json=as_json)
        return
    if run_name or revisions or store:
        fix = "add --all-checkpoints; `tailwise store add` keeps a single audit"
        raise UsageError("--store, --run and --revisions belong to --all-checkpoints", fix=fix)
    for path in output or ([] if as_json or dry_run else ["./x.audit"]):
        check_target(path)
    with open_checkpoint(model, base=base, adapter_mode=adapter.value, part=part) as checkpoint:
        prepared = prepare(checkpoint, recipe, options, Selection(layers, comma_list(roles)))
        if dry_run:
            _say_plan(checkpoint, prepared, as_json)
            return
        found = _with_progress(lambda tell: run(checkpoint, prepared, tell), progress)
    _deliver(found, list(output or ()), as_json, rows)
    if any(row.status in ("UNREADABLE", "FAILED") for row in found.rows):
        raise typer.Exit(3)


def _audit_all(
    where: str,
    how: tuple[Recipe, RunOptions, Selection],
    whereto: tuple[str | None, str | None, tuple[str, ...]],
    output: list[str] | None,
    *,
    as_json: bool,
) -> None:

    if as_json or len(output or ()) > 1 or (output and Path(output[0]).suffix):
        raise UsageError("--all-checkpoints writes audits", fix="give -o FOLDER, or --store and see `tailwise history`")
    all_checkpoints(where, how, whereto, Path(output[0]) if output else None)


def _with_progress(work: Any, kind: ShowProgress) -> Audit:
    from contextlib import nullcontext

    from tailwise.cli.progress import Tell, progress_bar

    with nullcontext(Tell()) if kind == ShowProgress.json else progress_bar() as show:
        try:
            result: Audit = work(show)
        except KeyboardInterrupt:
            done = show.step
            kept = "" if done is None else f" after {done.done} of {done.total} matrices"
            typer.echo(f"tailwise: interrupted{kept}; what was computed is kept, the same command goes on", err=True)
            raise typer.Exit(130) from None
    return result


def _deliver(found: Audit, outputs: list[str], as_json: bool, rows: int) -> None:
    from tailwise.judging.diagnosis.diagnose import diagnose
    from tailwise.report import health, terminal
    from tailwise.report import output_files as files

    # Files first: a reader that closes the pipe must not cost the audit.
    written = [files.write(found, path) for path in outputs]
    if not outputs and not as_json:
        written = [_save_under_own_name(found)]
    console, path = terminal.console(stderr=as_json), next((str(one) for one in written if _is_audit(one)), "AUDIT")
    diagnosis = diagnose(found)
    if as_json:
        sys.stdout.write(files.to_json(found) + "\n")
    else:
        assert diagnosis.health is not None  # noqa: S101 - every diagnosis of an audit has one
        console.print(health.terminal(diagnosis.health, path), "", sep="\n")
        console.print(terminal.layers(found, rows, diagnosis), "", terminal.by_role(found), "", sep="\n")
    console.print(terminal.closing(found))
    if not as_json and len(found) > _SCREEN and diagnosis.health is not None:
        console.print(health.line(diagnosis.health))
    for place in written:
        console.print(f"written to {place}", soft_wrap=True, markup=False)


#: Rows from which on the first line has left the screen.
_SCREEN = 20


def _is_audit(path: Path | str) -> bool:
    return str(path).endswith((".audit", "/")) or Path(path).is_dir()


def _save_under_own_name(found: Audit) -> Path | str:
    """Save as `NAME.audit`, or beside it where that name is taken by the answer to another question."""
    from tailwise.core.recipe import digest_of

    first = Path(f"{_stem(found.model)}.audit")
    question = _question(found)
    if not first.exists() or _question_of(first) == question:
        try:
            return found.save(first, exclusive=not first.exists())
        except FileExistsError:  # another audit was faster
            if _question_of(first) == question:
                return found.save(first)
    return found.save(f"{_stem(found.model)}-{digest_of(question)[:8]}.audit")


def _stem(model: str) -> str:
    from tailwise.checkpoints.sniff import SUFFIXES

    name = Path(model).resolve().name if Path(model).exists() else model.rstrip("/").rsplit("/", 1)[-1]
    stem = name.split("@", 1)[0]
    return next((stem.removesuffix(suffix) for suffix in SUFFIXES if stem.endswith(suffix)), stem) or "model"


def _question(found: Audit) -> list[Any]:
    facts = found.provenance
    return [facts.model, dict(facts.recipe), dict(facts.selection)]


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

    facts = forecast(checkpoint, prepared)
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    from rich.filesize import decimal

    typer.echo(f"{checkpoint.uri} ({checkpoint.format}, {decimal(checkpoint.nbytes)} on disk)")
    typer.echo(f"matrices   {facts['matrices']} to measure, {facts['unmeasured']} tensors that are not")
    typer.echo(f"read       {decimal(int(facts['bytes']))}")
    typer.echo(
        f"memory     about {decimal(int(facts['memory']))} above the interpreter's own, {facts['workers']} workers"
    )
    typer.echo(f"time       about {facts['seconds']:.0f} s, {facts['cached']} matrices known already")


def all_checkpoints(
    where: str,
    how: tuple[Recipe, RunOptions, Selection],
    whereto: tuple[str | None, str | None, tuple[str, ...]],
    folder: Path | None,
) -> None:
    """Audit every checkpoint at `where` in order of step; `whereto` is the store, the run, and revisions."""
    from tailwise.cli.progress import progress_bar
    from tailwise.history.runs.found import find, nothing_found
    from tailwise.history.runs.sink import Sink, audit_all, run_name
    from tailwise.report.terminal import console

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
