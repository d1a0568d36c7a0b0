"""`tailwise plan prune|quantize|tau|drop|import|show|diff|validate|export`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from tailwise.cli.filled_help import Told
from tailwise.cli.plan_made import prune, quantize
from tailwise.cli.plan_shared import (
    OUT,
    DryRun,
    PlanFile,
    audit_of,
    deliver,
    show_plan,
    target_of,
    write_json,
)
from tailwise.cli.plan_tried import drop, tau
from tailwise.cli.shared_options import (
    Json,
    Rows,
)

if TYPE_CHECKING:
    pass


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
    loaded = Plan.load(plan)
    show_plan(loaded, as_json, rows, entries=entries)
    if chart is not None:
        from tailwise.report.charts.plan_chart import plan_chart
        from tailwise.report.render import write_figure
        from tailwise.report.theme import palette_of

        written = write_figure(plan_chart(loaded, palette_of(theme.value)), chart)
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
    difference = first.diff(second)
    if as_json:
        write_json(difference.to_json())
        return
    screen = console()
    if difference.head or not difference.same:
        screen.print(diff_grid(difference, rows))
    else:
        screen.print("the two do the same")
    tensors = len({change.tensor for change in difference.changed})
    screen.print(
        f"{tensors} tensors changed, {len(difference.added)} added, {len(difference.removed)} removed; "
        f"{difference.unit} {difference.before:.6f} → {difference.after:.6f}; {difference.moved:,.0f} parameters differ"
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

    loaded = Plan.load(plan)
    warnings = loaded.validate()
    wrong: tuple[str, ...] = ()
    if audit is not None:
        from tailwise.audits.audit import Audit
        from tailwise.compression.plans.candidates import sizes_in

        held_against = Audit.load(audit)
        wrong = loaded.misfits(sizes_in(held_against), held_against.provenance.fingerprint)
    if as_json:
        write_json({"valid": not wrong, "misfits": list(wrong), "warnings": list(warnings)})
    else:
        lines = [f"does not fit: {line}" for line in wrong] + [f"note: {line}" for line in warnings]
        fits = "" if audit is None else f", fits {audit}"
        lines += [] if wrong else [f"valid{fits}: {len(loaded)} tensors, {loaded.amount_words}"]
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
