"""`tailwise plan prune|quantize|tau|drop|import|show|diff|validate|export`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailwise.cli.arguments import Begin, Bos, Device, Json, Rows, Workers, comma_list, solver_to_stderr
from tailwise.cli.compare_commands import tell_where
from tailwise.cli.help_texts import Told
from tailwise.cli.plan_made import SPREAD, Mapping3, Option, command, prune, quantize
from tailwise.cli.plan_shared import (
    OUT,
    SUFFIXES,
    TRY,
    WHICH,
    Calibration,
    DryRun,
    Layers,
    Model,
    PlanFile,
    Roles,
    Samples,
    Seed,
    Window,
    audit_of,
    deliver,
    number,
    saying,
    show_plan,
    target_of,
    text_of,
    windows_of,
    write_json,
)
from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    from tailwise.compression.plans.plan import Plan
    from tailwise.compression.trying.tau_curve import TauCurve

OF_TAU = (
    Option("model", Model),
    Option("sparsity", float, 0.7, "Fraction of the chosen tensors' parameters that goes."),
    Option("taus", str, "0.05,0.1,0.2,0.3,0.4,0.5", "Values of τ; 0, uniform, is always among them.", panel=SPREAD,
           metavar="A,B"),
    Option("allocator", str, "alpha", "{allocators_with_tau}.", panel=SPREAD),
    Option("operator", str, "magnitude", "{shape_keeping_pruners}.", panel=SPREAD),
    Option("mapping", Mapping3 | None, None, "Of {allocators_with_mapping}: whose metric decides.", panel=SPREAD),
    Option("reverse", bool, False, "More where they take less.", ("--reverse",), SPREAD),
    Option("calibration", Calibration, None),
    Option("samples", Samples, 32),
    Option("window", Window, 512),
    Option("seed", Seed, 0),
    Option("bos", Bos, Begin.auto, panel=TRY),
    Option("roles", Roles, None),
    Option("layers", Layers, None),
    Option("device", Device, "cpu"),
    Option("workers", Workers, None),
    Option("chart", str | None, None, "The curve: x.png, x.svg, x.pdf, x.html.", panel=OUT, metavar="FILE"),
    Option("as_json", Json, False),
)  # fmt: skip
OF_DROP = (
    Option("plan", Annotated[str, typer.Argument(metavar="PLAN|AUDIT",
                                                 help="A structured plan, or an audit or model to begin one.")]),
    Option("blocks", str | None, None, "Numbers of the blocks that go.", panel=WHICH, metavar="A,B"),
    Option("count", int | None, None, "So many blocks, those that turn the states least.", panel=WHICH, least=1),
    Option("experts", str | None, None,
           "So many experts of each block, or such a share: those that the router picks most seldom on --calibration; "
           "without it those of the smallest norms.", panel=WHICH, metavar="N|X%"),
    Option("model", str | None, None, "Of --count and --experts; by default the one that was audited.", panel=TRY),
    Option("calibration", list[str] | None, None, "Text, of --count and --experts. May be repeated.", panel=TRY,
           metavar="TEXT"),
    Option("samples", Samples, 32),
    Option("window", Window, 512),
    Option("seed", Seed, 0),
    Option("bos", Bos, Begin.auto, panel=TRY),
    Option("device", Device, "cpu"),
    Option("output", PlanFile, None),
    Option("as_json", Json, False),
    Option("rows", Rows, 100),
)  # fmt: skip


def _tau(**given: Any) -> None:
    from tailwise.compression.choosing.amounts import with_tau
    from tailwise.compression.making.request import Request
    from tailwise.compression.plans.candidates import TensorChoice
    from tailwise.compression.trying.planned import check_causal_model
    from tailwise.compression.trying.tau_curve import tau_curve

    allocator, chart, mapping = given["allocator"], given["chart"], given["mapping"]
    if allocator not in with_tau():
        raise UsageError(f"{allocator} has no τ", where="--allocator", fix=f"take {', '.join(with_tau())}")
    if chart is not None:
        from tailwise.report.charts.chart import require_altair
        from tailwise.report.render import check_figure

        require_altair()
        check_figure(chart)
    told = {"mapping": mapping.value if mapping else None, "reverse": given["reverse"] or None}
    settings = {name: value for name, value in told.items() if value is not None}
    choice = TensorChoice(comma_list(given["roles"]), given["layers"])
    request = Request(given["sparsity"], allocator, given["operator"], choice=choice, settings=settings)
    text = text_of(given["calibration"], windows_of(given), given["device"])
    if text is None:
        raise UsageError("every τ is tried on text, and there is none", fix="give --calibration TEXT")
    values = [number(item, "--taus") for item in comma_list(given["taus"])]
    audit = audit_of(given["model"], given["device"], given["workers"])
    tell_where(given["model"], audit)
    check_causal_model(audit.model)
    with solver_to_stderr(), saying() as say:
        found = tau_curve(audit, request, text, taus=values, say=say)
    _show_curve(found, given["as_json"])
    if chart is not None:
        from tailwise.report.charts.tau import tau_chart
        from tailwise.report.render import write_figure
        from tailwise.report.theme import palette_of

        typer.echo(f"written to {write_figure(tau_chart(found, palette_of('light')), chart)}", err=given["as_json"])


def _show_curve(found: TauCurve, as_json: bool) -> None:
    from tailwise.report.grid import Grid
    from tailwise.report.terminal import console

    if as_json:
        write_json(found.to_json())
        return
    lines = []
    for point in found.points:
        interval = "–" if point.low is None else f"{point.low:+.4f} to {point.high:+.4f}"
        mark = " ←" if point is found.best else ""
        lines.append((f"{point.tau:g}{mark}", f"{point.perplexity:.4g}", f"{point.change:+.4f}", interval))
    screen = console()
    screen.print(Grid(("τ", "perplexity", "against uniform", "95 %"), lines, wrapping=range(4)))
    for note in found.notes:
        screen.print(f"note: {note}", style="dim", soft_wrap=True, markup=False)


def _drop(**given: Any) -> None:
    from tailwise.compression.shrinking.blocks_dropped import named_blocks, without_blocks

    blocks, count, experts = given["blocks"], given["count"], given["experts"]
    if sum(value is not None for value in (blocks, count, experts)) != 1:
        raise UsageError("which blocks, or how many experts?", fix="give one of --blocks 3,7, --count 2, --experts 2")
    target = target_of(given["output"], given["as_json"])
    base = _structured(given["plan"], given["device"])
    if blocks is not None:
        found = without_blocks(base, named_blocks(_numbers(blocks)))
    else:
        from tailwise.compression.trying.drop import DropOptions, fewer_experts, least_blocks

        text, windows = list(given["calibration"] or ()), windows_of(given)
        options = DropOptions(text, windows.samples, windows.window, windows.seed, given["device"], windows.bos)
        name = given["model"] or base.model
        if experts is not None:
            found = fewer_experts(base, name, experts, options)
        else:
            found = without_blocks(base, least_blocks(base, name, count, options))
    deliver(found, target, given["as_json"], given["rows"])


def _structured(given: str, device: str) -> Plan:
    from tailwise.compression.making.make import plan_prune
    from tailwise.compression.making.request import Request
    from tailwise.compression.plans.plan import Plan

    if given.endswith(SUFFIXES):
        return Plan.load(given)
    return plan_prune(audit_of(given, device, None), Request(0.0, operator="structured"))


def _numbers(text: str) -> list[int]:
    found = comma_list(text)
    wrong = [item for item in found if not item.isdecimal()]
    if wrong or not found:
        raise UsageError(f"{text!r} names no blocks", where="--blocks", fix="give numbers, such as 3,7")
    return [int(item) for item in found]


tau = command(
    _tau,
    OF_TAU,
    "tau",
    """Try every τ on text, and draw the loss against it.

    τ says how far amounts may lie from the mean: shares in [1 − τ, 1 + τ], 0 is uniform. All are carried out and scored
    on the same windows of the text.
    """,
)
drop = command(
    _drop,
    OF_DROP,
    "drop",
    """Take whole blocks or experts out of a model: those that are named, or those that it can spare most easily.

    What else a structured plan asks of the other blocks stays. Blocks and experts can go in one plan: give the plan
    that the first command wrote to the second.
    """,
)


class ImportSource(StrEnum):
    """Tools whose files are read."""

    alphaquant = "alphaquant"


def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="AlphaQuant's config or expanded plan, x.json.")],
    audit: Annotated[str, typer.Option(metavar="AUDIT", help="Of the model, or the model, which is audited first.")],
    source: Annotated[ImportSource, typer.Option("--from", help="Whose file it is.")] = ImportSource.alphaquant,
    dry_run: DryRun = False,
    output: PlanFile = None,
    as_json: Json = False,
    rows: Rows = 100,
) -> None:
    """Make a plan of another tool's file, for the model of an audit.

    AlphaQuant's patterns are globs, and the last that matches a layer wins. A pattern that matches none is an error.
    """
    from tailwise.compression.making.import_alphaquant import alphaquant_plan

    del source  # there is one
    target = None if dry_run else target_of(output, as_json)
    plan = alphaquant_plan(file, audit_of(audit, "cpu", None))
    deliver(plan, target, as_json, rows)


app = typer.Typer(
    name="plan",
    help="Plan what to compress, where, and why; nothing is changed until the plan is applied.",
    no_args_is_help=True,
)

app.command(cls=Told)(prune)
app.command(cls=Told)(quantize)
app.command(cls=Told)(tau)
app.command(cls=Told)(drop)
app.command("import")(import_)


class Theme(StrEnum):
    """Of the paper."""

    light = "light"
    dark = "dark"


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
    from tailwise.compression.plans.plan import Plan

    if chart is not None:
        from tailwise.report.render import check_figure

        check_figure(chart)
    found = Plan.load(plan)
    show_plan(found, as_json, rows, entries=entries)
    if chart is not None:
        from tailwise.report.charts.plan_chart import plan_chart
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
    from tailwise.compression.plans.plan import Plan
    from tailwise.report.plan_view import diff_grid
    from tailwise.report.terminal import console

    first, second = Plan.load(before), Plan.load(after)
    found = first.diff(second)
    if as_json:
        write_json(found.to_json())
        return
    screen = console()
    if found.head or not found.same:
        screen.print(diff_grid(found, rows))
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
    from tailwise.compression.plans.plan import Plan

    found = Plan.load(plan)
    warnings = found.validate()
    wrong: tuple[str, ...] = ()
    if audit is not None:
        from tailwise.audits.audit import Audit
        from tailwise.compression.plans.candidates import sizes_in

        held_against = Audit.load(audit)
        wrong = found.misfits(sizes_in(held_against), held_against.provenance.fingerprint)
    if as_json:
        write_json({"valid": not wrong, "misfits": list(wrong), "warnings": list(warnings)})
    else:
        lines = [f"does not fit: {line}" for line in wrong] + [f"note: {line}" for line in warnings]
        fits = "" if audit is None else f", fits {audit}"
        lines += [] if wrong else [f"valid{fits}: {len(found)} tensors, {found.amount_words}"]
        typer.echo("\n".join(lines))
    if wrong:
        raise typer.Exit(1)


@app.command()
def combine(
    prune_plan: Annotated[str, typer.Argument(metavar="PRUNE", help="A plan to prune.")],
    quantize_plan: Annotated[str, typer.Argument(metavar="QUANTIZE", help="A plan to quantize, of the same model.")],
    output: PlanFile = None,
    as_json: Json = False,
    rows: Rows = 100,
) -> None:
    """Make one plan of two: prune first, then quantize what is left, and let zeros be zeros."""
    from tailwise.compression.plans.combined import combined
    from tailwise.compression.plans.plan import Plan

    target = target_of(output, as_json)
    deliver(combined(Plan.load(prune_plan), Plan.load(quantize_plan)), target, as_json, rows)


@app.command(cls=Told)
def export(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="x.json or x.yaml.")],
    to: Annotated[
        str,
        typer.Option(
            metavar="TOOL",
            help="{exporters}.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="{export_suffixes}.",
            rich_help_panel=OUT,
        ),
    ],
) -> None:
    """Write a plan as another tool reads it, every layer by its exact name.

    What the tool cannot express is an error that names the layers; what the plan leaves out stays as it is.
    """
    from tailwise.compression.export.exporter import EXPORTERS
    from tailwise.compression.export.exporter import export as written
    from tailwise.compression.plans.plan import Plan

    _ = EXPORTERS[to]  # a wrong name is told before the plan is read
    for path in written(Plan.load(plan), to, output):
        typer.echo(f"written to {path}")
