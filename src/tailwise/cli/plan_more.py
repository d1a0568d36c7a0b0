"""`tailwise plan tau|drop`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tailwise.cli.options import Begin, Bos, Device, Json, Rows, Workers, comma_list
from tailwise.cli.plan_made import SPREAD, Mapping3
from tailwise.cli.plan_shared import (
    OUT,
    SUFFIXES,
    TRY,
    WHICH,
    Calibration,
    Layers,
    Model,
    PlanFile,
    Roles,
    Samples,
    Seed,
    Window,
    Windows,
    audit_of,
    deliver,
    number,
    saying,
    target_of,
    text_of,
    write_json,
)
from tailwise.cli.solver import solver_to_stderr
from tailwise.errors import UsageError

if TYPE_CHECKING:
    from tailwise.compression.plans.plan import Plan
    from tailwise.compression.trying.tau_curve import TauCurve


def tau(
    model: Model,
    sparsity: Annotated[float, typer.Option(help="Fraction of the chosen tensors' parameters that goes.")] = 0.7,
    taus: Annotated[
        str, typer.Option(metavar="A,B", help="Values of τ; 0, uniform, is always among them.", rich_help_panel=SPREAD)
    ] = "0.05,0.1,0.2,0.3,0.4,0.5",
    allocator: Annotated[str, typer.Option(help="alpha, alpha-role, entropy.", rich_help_panel=SPREAD)] = "alpha",
    operator: Annotated[str, typer.Option(help="magnitude, wanda, sparsegpt.", rich_help_panel=SPREAD)] = "magnitude",
    mapping: Annotated[
        Mapping3 | None, typer.Option(help="Of alpha and entropy: whose metric decides.", rich_help_panel=SPREAD)
    ] = None,
    reverse: Annotated[
        bool, typer.Option("--reverse", help="More where they take less.", rich_help_panel=SPREAD)
    ] = False,
    calibration: Calibration = None,
    samples: Samples = 32,
    window: Window = 512,
    seed: Seed = 0,
    bos: Bos = Begin.auto,
    roles: Roles = None,
    layers: Layers = None,
    device: Device = "cpu",
    workers: Workers = None,
    chart: Annotated[
        str | None, typer.Option(metavar="FILE", help="The curve: x.png, x.svg, x.pdf, x.html.", rich_help_panel=OUT)
    ] = None,
    as_json: Json = False,
) -> None:
    """Try every τ on text, and draw the loss against it.

    τ says how far amounts may lie from the mean: shares in [1 − τ, 1 + τ], 0 is uniform. All are carried out and scored
    on the same windows of the text.
    """
    from tailwise.compression.making.request import Request
    from tailwise.compression.plans.candidates import Choice
    from tailwise.compression.trying.run import check_causal_model
    from tailwise.compression.trying.tau_curve import tau_curve

    if allocator not in ("alpha", "alpha-role", "entropy"):
        raise UsageError(f"{allocator} has no τ", where="--allocator", fix="take alpha, alpha-role or entropy")
    if chart is not None:
        from tailwise.report.charts.chart import require_altair
        from tailwise.report.render import check_figure

        require_altair()
        check_figure(chart)
    given = {"mapping": mapping.value if mapping else None, "reverse": reverse or None}
    settings = {name: value for name, value in given.items() if value is not None}
    request = Request(sparsity, allocator, operator, choice=Choice(comma_list(roles), layers), settings=settings)
    text = text_of(calibration, Windows(samples, window, seed, bos.value), device)
    if text is None:
        raise UsageError("every τ is tried on text, and there is none", fix="give --calibration TEXT")
    values = [number(item, "--taus") for item in comma_list(taus)]
    audit = audit_of(model, device, workers)
    check_causal_model(audit.model)
    with solver_to_stderr(), saying() as say:
        found = tau_curve(audit, request, text, taus=values, say=say)
    _show_curve(found, as_json)
    if chart is not None:
        from tailwise.report.charts.tau import tau_chart
        from tailwise.report.render import write_figure
        from tailwise.report.theme import palette_of

        typer.echo(f"written to {write_figure(tau_chart(found, palette_of('light')), chart)}", err=as_json)


def _show_curve(found: TauCurve, as_json: bool) -> None:
    from rich.table import Table

    from tailwise.report.terminal import console

    if as_json:
        write_json(found.to_json())
        return
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for index, head in enumerate(("τ", "perplexity", "against uniform", "95 %")):
        table.add_column(head, justify="right" if index else "left")
    for point in found.points:
        interval = "–" if point.low is None else f"{point.low:+.4f} to {point.high:+.4f}"
        mark = " ←" if point is found.best else ""
        table.add_row(f"{point.tau:g}{mark}", f"{point.perplexity:.4g}", f"{point.change:+.4f}", interval)
    screen = console()
    screen.print(table)
    for note in found.notes:
        screen.print(f"note: {note}", style="dim", soft_wrap=True, markup=False)


def drop(
    plan: Annotated[
        str, typer.Argument(metavar="PLAN|AUDIT", help="A structured plan, or an audit or model to begin one.")
    ],
    blocks: Annotated[
        str | None, typer.Option(metavar="A,B", help="Numbers of the blocks that go.", rich_help_panel=WHICH)
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, help="So many blocks, those that turn the states least.", rich_help_panel=WHICH),
    ] = None,
    experts: Annotated[
        str | None,
        typer.Option(metavar="N|X%", rich_help_panel=WHICH,
                     help="So many experts of each block, or such a share: those that the router picks most seldom on "
                     "--calibration; without it those of the smallest norms."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Of --count and --experts; by default the one that was audited.", rich_help_panel=TRY),
    ] = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Of --count and --experts. May be repeated.", rich_help_panel=TRY),
    ] = None,
    samples: Samples = 32,
    window: Window = 512,
    seed: Seed = 0,
    bos: Bos = Begin.auto,
    device: Device = "cpu",
    output: PlanFile = None,
    as_json: Json = False,
    rows: Rows = 100,
) -> None:  # fmt: skip
    """Take whole blocks or experts out of a model: those that are named, or those that it can spare most easily.

    What else a structured plan asks of the other blocks stays. Blocks and experts can go in one plan: give the plan
    that the first command wrote to the second.
    """
    from tailwise.compression.shrinking.blocks_dropped import named_blocks, without_blocks

    if sum(given is not None for given in (blocks, count, experts)) != 1:
        raise UsageError("which blocks, or how many experts?", fix="give one of --blocks 3,7, --count 2, --experts 2")
    target = target_of(output, as_json)
    base = _structured(plan, device)
    if blocks is not None:
        found = without_blocks(base, named_blocks(_numbers(blocks)))
    else:
        from tailwise.compression.trying.drop import DropOptions, fewer_experts, least_blocks

        options = DropOptions(list(calibration or ()), samples, window, seed, device, bos.value)
        name = model or base.model
        if experts is not None:
            found = fewer_experts(base, name, experts, options)
        else:
            found = without_blocks(base, least_blocks(base, name, count or 0, options))
    deliver(found, target, as_json, rows)


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
