"""`tailwise plan prune|drop|show|diff|validate|export`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailwise.cli.compare import Device, Workers, check_text_target, is_audit
from tailwise.cli.options import Json, Rows, comma_list
from tailwise.cli.solver import solver_to_stderr
from tailwise.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tailwise.audits.audit import Audit
    from tailwise.compression.plan import Plan
    from tailwise.compression.plan_table import Grid

_HOW, _TRY, _WHICH = "How to spread it", "What to try it on", "Which tensors"
_RUN, _OUT = "How to run", "Output"
_DEFAULT_TARGET = "plan.json"
_SUFFIXES = (".json", ".yaml", ".yml")

app = typer.Typer(
    name="plan",
    help="Plan what to compress, where, and why; nothing is changed until the plan is applied.",
    no_args_is_help=True,
)


class Mapping3(StrEnum):
    """Whose metric decides."""

    block = "block"
    matrix = "matrix"
    mixed = "mixed"


class Theme(StrEnum):
    """Of the paper."""

    light = "light"
    dark = "dark"


@app.command()
def prune(
    model: Annotated[str, typer.Argument(metavar="AUDIT", help="An audit, or a model, which is audited first.")],
    sparsity: Annotated[
        float | None, typer.Option(help="Fraction of the chosen tensors' parameters that goes, e.g. 0.7.")
    ] = None,
    allocator: Annotated[
        str,
        typer.Option(
            help="auto (tries the others on --calibration), uniform, depth, alpha, alpha-role, entropy, owl, dlp, "
            "sensitivity.",
            rich_help_panel=_HOW,
        ),
    ] = "auto",
    operator: Annotated[
        str, typer.Option(help="magnitude, wanda, sparsegpt, low_rank, structured.", rich_help_panel=_HOW)
    ] = "magnitude",
    pattern: Annotated[
        str, typer.Option(help="unstructured, 2:4, 4:8 (N kept of M), or N:8 for a mix.", rich_help_panel=_HOW)
    ] = "unstructured",
    mapping: Annotated[
        Mapping3 | None, typer.Option(help="Of alpha and entropy: whose metric decides.", rich_help_panel=_HOW)
    ] = None,
    tau: Annotated[
        float | None, typer.Option(help="Shares lie in [1 − τ, 1 + τ]; 0.3 by default.", rich_help_panel=_HOW)
    ] = None,
    beta: Annotated[
        float | None, typer.Option(help="Of depth: step from block to block.", rich_help_panel=_HOW)
    ] = None,
    estimator: Annotated[
        str | None,
        typer.Option(help="Of α; by default peak for language models, mid for vision.", rich_help_panel=_HOW),
    ] = None,
    no_clamp: Annotated[
        bool, typer.Option("--no-clamp", help="As published: amounts above 1 stay as they are.", rich_help_panel=_HOW)
    ] = False,
    calibration: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", rich_help_panel=_TRY,
                     help="Text for auto, owl, dlp and sensitivity, as `evaluate --text` takes it. May be repeated."),
    ] = None,
    budget: Annotated[
        str, typer.Option(metavar="TIME", help="What auto may take: 90s, 5m, 1h.", rich_help_panel=_TRY)
    ] = "5m",
    samples: Annotated[
        int, typer.Option(min=1, help="Windows that inputs are measured on.", rich_help_panel=_TRY)
    ] = 32,
    window: Annotated[int, typer.Option(min=2, help="Tokens in a window.", rich_help_panel=_TRY)] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Of the windows and the search.", rich_help_panel=_TRY)] = 0,
    roles: Annotated[
        str | None, typer.Option(metavar="A,B", help="Only these roles.", rich_help_panel=_WHICH)
    ] = None,
    layers: Annotated[
        str | None, typer.Option(metavar="REGEX", help="Only tensors whose name matches.", rich_help_panel=_WHICH)
    ] = None,
    also: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Roles left out by default: embed, lm_head …", rich_help_panel=_WHICH),
    ] = None,
    device: Device = "cpu",
    workers: Workers = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, write nothing.", rich_help_panel=_OUT)
    ] = False,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="FILE", help="x.json or x.yaml; plan.json by default.",
                     rich_help_panel=_OUT),
    ] = None,
    as_json: Json = False,
    rows: Rows = 100,
) -> None:  # fmt: skip
    """Plan a pruning: an amount for every tensor, held to a budget, with the reason for each.

    With --calibration, every known way is tried on the model and the best is kept; without it the audit is all that
    is read. Embeddings, head, norms and routers stay as they are unless --also names them.
    """
    from tailwise.compression.allocate.allocator import ALLOCATORS
    from tailwise.compression.candidates import Choice
    from tailwise.compression.make import Request
    from tailwise.planning.run import AUTO, planned, seconds_of
    from tailwise.planning.stage import StageOptions

    seconds = seconds_of(budget)
    if allocator != AUTO and allocator not in ALLOCATORS:
        raise unknown_name("allocator", allocator, [AUTO, *(name for name, _ in ALLOCATORS.items())])
    given = {"mapping": mapping.value if mapping else None, "tau": tau, "beta": beta}
    request = Request(
        sparsity=sparsity,
        allocator="uniform" if allocator == AUTO else allocator,
        operator=operator,
        pattern=pattern,
        choice=Choice(comma_list(roles), layers, comma_list(also)),
        clamp=not no_clamp,
        estimator=estimator,
        settings={name: value for name, value in given.items() if value is not None},
    )
    target = None if dry_run else _target(output, as_json)
    text = None
    if calibration:
        text = StageOptions(list(calibration), samples=samples, window=window, seed=seed, device=device)
    audit = _audit_of(model, device, workers)
    with solver_to_stderr(), _saying() as say:
        plan = planned(audit, request, allocator=allocator, text=text, seconds=seconds, say=say)
    if target is not None:
        plan.save(target)
    _show(plan, as_json, rows)
    if target is not None:
        typer.echo(f"written to {target}", err=as_json)


@app.command()
def show(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="x.json or x.yaml.")],
    entries: Annotated[bool, typer.Option("--entries", help="Every tensor with its reason.")] = False,
    chart: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw it: x.png, x.svg, x.pdf, x.html or x.json.")
    ] = None,
    theme: Annotated[Theme, typer.Option(help="Light or dark paper, of --chart.")] = Theme.light,
    as_json: Json = False,
    rows: Rows = 100,
) -> None:
    """Show a plan: blocks down, roles across, and what it notes."""
    from tailwise.compression.plan import Plan

    if chart is not None:
        from tailwise.report.render import check_figure

        check_figure(chart)
    found = Plan.load(plan)
    _show(found, as_json, rows, entries=entries)
    if chart is not None:
        from tailwise.report.charts.plan import plan_chart
        from tailwise.report.render import write_figure
        from tailwise.report.theme import palette_of

        written = write_figure(plan_chart(found, palette_of(theme.value)), chart)
        typer.echo(f"written to {written}", err=as_json)


@app.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="A plan.")],
    after: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    as_json: Json = False,
    rows: Rows = 100,
) -> None:
    """Say what plan B does differently from plan A."""
    from tailwise.compression.plan import Plan
    from tailwise.compression.plan_table import diff_grid
    from tailwise.report.terminal import console

    first, second = Plan.load(before), Plan.load(after)
    found = first.diff(second)
    if as_json:
        _write_json(found.to_json())
        return
    screen = console()
    if found.head or not found.same:
        screen.print(_drawn(diff_grid(found, rows)))
    else:
        screen.print("the two do the same")
    tensors = len({change.tensor for change in found.changed})
    screen.print(
        f"{tensors} tensors changed, {len(found.added)} added, {len(found.removed)} removed; "
        f"{found.unit} {found.before:.6f} → {found.after:.6f}; {found.moved:,.0f} parameters differ"
    )


@app.command()
def validate(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="x.json or x.yaml.")],
    audit: Annotated[
        str | None, typer.Option(metavar="AUDIT", help="Of the model that it is to be applied to.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a plan after editing, and with --audit whether it still fits the model.

    Ends with 0 where it can be applied, 1 where it does not fit the model, 2 where it is wrong in itself.
    """
    from tailwise.compression.plan import Plan

    found = Plan.load(plan)
    warnings = found.validate()
    wrong: tuple[str, ...] = ()
    if audit is not None:
        from tailwise.audits.audit import Audit
        from tailwise.compression.candidates import sizes_in

        held_against = Audit.load(audit)
        wrong = found.misfits(sizes_in(held_against), held_against.provenance.fingerprint)
    if as_json:
        _write_json({"valid": not wrong, "misfits": list(wrong), "warnings": list(warnings)})
    else:
        lines = [f"does not fit: {line}" for line in wrong] + [f"note: {line}" for line in warnings]
        fits = "" if audit is None else f", fits {audit}"
        lines += [] if wrong else [f"valid{fits}: {len(found)} tensors, {found.amount_words}"]
        typer.echo("\n".join(lines))
    if wrong:
        raise typer.Exit(1)


@app.command()
def drop(
    plan: Annotated[
        str, typer.Argument(metavar="PLAN|AUDIT", help="A structured plan, or an audit or model to begin one.")
    ],
    blocks: Annotated[
        str | None, typer.Option(metavar="A,B", help="Numbers of the blocks that go.", rich_help_panel=_WHICH)
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, help="So many blocks, those that turn the states least.", rich_help_panel=_WHICH),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Of --count; by default the one that was audited.", rich_help_panel=_TRY)
    ] = None,
    calibration: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Of --count. May be repeated.", rich_help_panel=_TRY)
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Windows of it.", rich_help_panel=_TRY)] = 32,
    window: Annotated[int, typer.Option(min=2, help="Tokens in a window.", rich_help_panel=_TRY)] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Of the windows.", rich_help_panel=_TRY)] = 0,
    device: Device = "cpu",
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="FILE", help="x.json or x.yaml; plan.json by default.",
                     rich_help_panel=_OUT),
    ] = None,
    as_json: Json = False,
    rows: Rows = 100,
) -> None:  # fmt: skip
    """Take whole blocks out of a model: those that are named, or those that change its states least.

    What else a structured plan asks of the other blocks stays.
    """
    from tailwise.compression.blocks_dropped import named_blocks, without_blocks

    if (blocks is None) == (count is None):
        raise UsageError("which blocks?", fix="give --blocks 3,7 or --count 2")
    target = _target(output, as_json)
    base = _structured(plan, device)
    if blocks is not None:
        chosen = named_blocks(_numbers(blocks))
    else:
        from tailwise.planning.drop import DropOptions, least_blocks

        options = DropOptions(list(calibration or ()), samples, window, seed, device)
        chosen = least_blocks(base, model or base.model, count or 0, options)
    found = without_blocks(base, chosen)
    if target is not None:
        found.save(target)
    _show(found, as_json, rows)
    if target is not None:
        typer.echo(f"written to {target}", err=as_json)


@app.command()
def export(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="x.json or x.yaml.")],
    to: Annotated[str, typer.Option(help="llmcompressor, alphapruning.")],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="recipe.yaml, or ratios.npy.", rich_help_panel=_OUT)
    ],
) -> None:
    """Write a plan as another tool reads it."""
    from tailwise.compression.export.exporter import EXPORTERS
    from tailwise.compression.export.exporter import export as written
    from tailwise.compression.plan import Plan

    _ = EXPORTERS[to]  # a wrong name is told before the plan is read
    for path in written(Plan.load(plan), to, output):
        typer.echo(f"written to {path}")


def _structured(given: str, device: str) -> Plan:
    from tailwise.compression.make import Request, plan_prune
    from tailwise.compression.plan import Plan

    if given.endswith(_SUFFIXES):
        return Plan.load(given)
    return plan_prune(_audit_of(given, device, None), Request(0.0, operator="structured"))


def _numbers(text: str) -> list[int]:
    found = comma_list(text)
    wrong = [item for item in found if not item.isdecimal()]
    if wrong or not found:
        raise UsageError(f"{text!r} names no blocks", where="--blocks", fix="give numbers, such as 3,7")
    return [int(item) for item in found]


@contextmanager
def _saying() -> Iterator[Callable[[str, float], None]]:
    """A line on stderr that tells how far a search is; silent where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda what, done: bar.update(task, description=what, completed=done)


def _target(output: str | None, as_json: bool) -> str | None:
    if output is None and as_json:
        return None
    target = output or _DEFAULT_TARGET
    check_text_target(target, _SUFFIXES)
    if output is None and Path(target).exists():  # it may have been edited
        raise UsageError("exists", where=target, fix="name the plan with -o; an existing file is then replaced")
    return target


def _audit_of(model: str, device: str, workers: int | None) -> Audit:
    from tailwise.audits.audit import Audit

    if is_audit(model):
        return Audit.load(model)
    from tailwise.audits.run import audit
    from tailwise.cli.progress import progress_bar
    from tailwise.compression.candidates import READ

    with progress_bar() as show_progress:
        return audit(
            model, progress=show_progress, estimator="peak", metrics=("alpha", *READ), device=device, workers=workers
        )


def _show(plan: Plan, as_json: bool, rows: int, *, entries: bool = False) -> None:
    if as_json:
        _write_json(plan.to_json())
        return
    from tailwise.compression.plan_table import entries_grid, plan_grid
    from tailwise.report.terminal import console

    screen = console()
    title = " · ".join(part for part in (plan.model, plan.operator, plan.allocator) if part)
    screen.print(title, style="bold", soft_wrap=True, markup=False)
    screen.print(_drawn(entries_grid(plan, rows) if entries else plan_grid(plan, rows)), "", sep="\n")
    asked, reached = plan.budget.get("asked"), plan.budget.get("reached")
    unit = f" {plan.budget['unit']}" if "unit" in plan.budget else ""
    if asked is not None:
        screen.print(f"budget: asked {asked:g}, reached {reached:.6f}{unit} of {plan.n_params:,} parameters")
    for note in plan.notes:
        screen.print(f"note: {note}", style="dim", soft_wrap=True, markup=False)


def _drawn(grid: Grid) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for index, head in enumerate(grid.heads):
        table.add_column(head, justify="right" if index and not grid.words else "left", no_wrap=not grid.words)
    for line in grid.lines:
        table.add_row(*(Text(cell) for cell in line))
    return Group(table, Text(f"… and {grid.left} more; --rows 0 shows all", style="dim")) if grid.left else table


def _write_json(document: Any) -> None:
    sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
