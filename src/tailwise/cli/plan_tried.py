"""`tailwise plan tau|drop`: how far amounts may spread, and which blocks or experts go, by trying them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailwise.cli.audit_inputs import tell_where
from tailwise.cli.plan_made import SPREAD, Mapping3, sparsity_of
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
    audit_of,
    deliver,
    number,
    saying,
    target_of,
    text_of,
    windows_of,
    write_json,
)
from tailwise.cli.shared_options import (
    Begin,
    Bos,
    Device,
    Json,
    Option,
    Rows,
    Workers,
    comma_list,
    command,
    solver_to_stderr,
)
from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    from tailwise.compression.plans.plan import Plan
    from tailwise.compression.trying.tau_curve import TauCurve


OF_TAU = (
    Option("model", Model),
    Option("sparsity", str, "0.7", "Fraction of the chosen tensors' parameters that goes, e.g. 0.7 or 70%.",
           metavar="FRACTION"),
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
    request = Request(sparsity_of(given["sparsity"]), allocator, given["operator"], choice=choice, settings=settings)
    text = text_of(given["calibration"], windows_of(given), given["device"])
    if text is None:
        raise UsageError("every τ is tried on text, and there is none", fix="give --calibration TEXT")
    values = [number(item, "--taus") for item in comma_list(given["taus"])]
    audit = audit_of(given["model"], given["device"], given["workers"])
    tell_where(given["model"], audit)
    check_causal_model(audit.model)
    with solver_to_stderr(), saying() as say:
        curve = tau_curve(audit, request, text, taus=values, say=say)
    _show_curve(curve, given["as_json"])
    if chart is not None:
        from tailwise.report.charts.tau import tau_chart
        from tailwise.report.render import write_figure
        from tailwise.report.theme import palette_of

        typer.echo(f"written to {write_figure(tau_chart(curve, palette_of('light')), chart)}", err=given["as_json"])


def _show_curve(curve: TauCurve, as_json: bool) -> None:
    from tailwise.report.grid import Grid
    from tailwise.report.terminal import console

    if as_json:
        write_json(curve.to_json())
        return
    lines = []
    for point in curve.points:
        interval = "–" if point.low is None else f"{point.low:+.4f} to {point.high:+.4f}"
        mark = " ←" if point is curve.best else ""
        lines.append((f"{point.tau:g}{mark}", f"{point.perplexity:.4g}", f"{point.change:+.4f}", interval))
    screen = console()
    screen.print(Grid(("τ", "perplexity", "against uniform", "95 %"), lines, wrapping=range(4)))
    for note in curve.notes:
        screen.print(f"note: {note}", style="dim", soft_wrap=True, markup=False)


def _drop(**given: Any) -> None:
    from tailwise.compression.shrinking.blocks_dropped import named_blocks, without_blocks

    blocks, count, experts = given["blocks"], given["count"], given["experts"]
    if sum(value is not None for value in (blocks, count, experts)) != 1:
        raise UsageError("which blocks, or how many experts?", fix="give one of --blocks 3,7, --count 2, --experts 2")
    target = target_of(given["output"], given["as_json"])
    base = _structured(given["plan"], given["device"])
    if blocks is not None:
        plan = without_blocks(base, named_blocks(_numbers(blocks)))
    else:
        from tailwise.compression.trying.drop import DropOptions, fewer_experts, least_blocks

        text, windows = list(given["calibration"] or ()), windows_of(given)
        options = DropOptions(text, windows.samples, windows.window, windows.seed, given["device"], windows.bos)
        name = given["model"] or base.model
        if experts is not None:
            plan = fewer_experts(base, name, experts, options)
        else:
            plan = without_blocks(base, least_blocks(base, name, count, options))
    deliver(plan, target, given["as_json"], given["rows"])


def _structured(given: str, device: str) -> Plan:
    from tailwise.compression.making.make import plan_prune
    from tailwise.compression.making.request import Request
    from tailwise.compression.plans.plan import Plan

    if given.endswith(SUFFIXES):
        return Plan.load(given)
    return plan_prune(audit_of(given, device, None), Request(0.0, operator="structured"))


def _numbers(text: str) -> list[int]:
    parts = comma_list(text)
    wrong = [item for item in parts if not item.isdecimal()]
    if wrong or not parts:
        raise UsageError(f"{text!r} names no blocks", where="--blocks", fix="give numbers, such as 3,7")
    return [int(item) for item in parts]


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
