"""`tailwise predict MODEL|STUDY`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tailwise.cli.audit_inputs import tell_where
from tailwise.cli.plan_shared import TRY, Layers, Roles, Samples, Seed, Window, audit_of, saying
from tailwise.cli.shared_options import Device, Json, Workers, comma_list, solver_to_stderr
from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tailwise.compression.trying.predictors import Foresight
    from tailwise.report.grid import Cell

_HOW, _OUT = "What each matrix is made to bear", "Output"


def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL|STUDY", help="A model, an audit, or x.json of `precision`.")],
    calibration: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="What losses are measured on, as `evaluate --text` takes it.",
                     rich_help_panel=TRY),
    ] = None,
    sparsity: Annotated[float, typer.Option(help="Pruned to this, and 0.1 more.", rich_help_panel=_HOW)] = 0.7,
    formats: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Bits in place of pruning: one matrix in the lowest, the others in the next.",
                     rich_help_panel=_HOW),
    ] = None,
    operator: Annotated[
        str | None,
        typer.Option(help="{shape_keeping_pruners}; with --formats {quantizers}.", rich_help_panel=_HOW),
    ] = None,
    estimator: Annotated[
        str | None, typer.Option(help="Of α; AlphaPruning's for this kind of model.", rich_help_panel=_HOW)
    ] = None,
    samples: Samples = 32,
    window: Window = 512,
    seed: Seed = 0,
    roles: Roles = None,
    layers: Layers = None,
    device: Device = "cpu",
    workers: Workers = None,
    output: Annotated[
        list[str] | None,
        typer.Option("-o", "--output", metavar="FILE", help="x.json or x.csv; may be repeated.", rich_help_panel=_OUT),
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Measure whether α, entropy, norms, depth or outliers predict what a matrix tolerates, on your own model.

    One matrix after the other is pruned (or rounded), alone and among others, and the loss is held against each
    number: rank correlations with intervals, pooled and within roles. A study of `precision` is read as it is: there
    the distortions of the weights take the place of losses.
    """
    from tailwise.cli.audit_inputs import check_text_target

    for path in output or ():
        check_text_target(path, (".json", ".csv"))
    if model.endswith(".json"):
        _of_study(model, list(output or ()), as_json)
        return
    if not calibration:
        raise UsageError(
            "how much a matrix tolerates is measured on text", fix="give --calibration TEXT, or a study.json"
        )
    foresight = _of_model(model, (sparsity, formats, operator, estimator), (roles, layers),
                      (list(calibration), samples, window, seed, device), workers)  # fmt: skip
    _deliver(foresight, list(output or ()), as_json)


def _of_model(
    model: str,
    what: tuple[float, str | None, str | None, str | None],
    which: tuple[str | None, str | None],
    where: tuple[list[str], int, int, int, str],
    workers: int | None,
) -> Foresight:
    from tailwise.compression.making.request import QuantizeRequest, Request
    from tailwise.compression.plans.candidates import TensorChoice
    from tailwise.compression.trying.planned import check_causal_model
    from tailwise.compression.trying.predictors import foretold
    from tailwise.compression.trying.stage import StageOptions

    sparsity, formats, operator, estimator = what
    choice = TensorChoice(comma_list(which[0]), which[1])
    request: Request | QuantizeRequest
    if formats is None:
        request = Request(sparsity, "alpha", operator or "magnitude", choice=choice, estimator=estimator)
    else:
        request = QuantizeRequest(4.0, formats=comma_list(formats), operator=operator or "rtn", choice=choice)
    text, samples, window, seed, device = where
    audit = audit_of(model, device, workers)
    tell_where(model, audit)
    check_causal_model(audit.model)
    options = StageOptions(text, samples=samples, window=window, seed=seed, device=device)
    with solver_to_stderr(), saying() as say:
        return foretold(audit, request, options, say=say)


def _of_study(path: str, outputs: list[str], as_json: bool) -> None:
    from tailwise.audits.precision.study import PrecisionStudy
    from tailwise.audits.precision.study_files import prediction_rows, to_csv
    from tailwise.core.atomic import write_whole
    from tailwise.report.precision.precision_terminal import prediction
    from tailwise.report.terminal import console

    study = PrecisionStudy.load(path)
    rows = prediction_rows(study)
    text = json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if as_json:
        sys.stdout.write(text)
    else:
        console().print(prediction(study))
    for target in outputs:
        write_whole(target, (text if target.endswith(".json") else to_csv(rows)).encode())
        typer.echo(f"written to {target}", err=as_json)


def _deliver(foresight: Foresight, outputs: list[str], as_json: bool) -> None:
    from rich.text import Text

    from tailwise.core.atomic import write_whole
    from tailwise.report.grid import Grid
    from tailwise.report.terminal import console

    document = json.dumps(foresight.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    screen = console(stderr=as_json)
    if as_json:
        sys.stdout.write(document)
    else:
        screen.print(Text(f"{foresight.model} · {foresight.operator}: rank correlation with the loss", style="bold"))
        for label in foresight.losses:
            lines: list[Sequence[Cell]] = []
            for name in dict.fromkeys(item.predictor for item in foresight.correlations):
                within, pooled = (foresight.of(name, label, scope) for scope in ("within roles", "pooled"))
                cells = (Text(_interval(item), style="bold" if item.seen else "") for item in (within, pooled))
                lines.append((name, *cells, str(within.n)))
            screen.print("", Grid((label, "within roles", "pooled", "tensors"), lines), sep="\n")
        screen.print("", Text("ρ > 0: where the number is high, the loss is larger. Bold: it is clear of 0; of 20 "
                              "one does by chance.", style="dim"), sep="\n")  # fmt: skip
        for line in (*foresight.answers, *(f"note: {note}" for note in foresight.notes)):
            screen.print(line, markup=False, soft_wrap=True)
    for target in outputs:
        write_whole(target, (document if target.endswith(".json") else _csv(foresight)).encode())
        screen.print(f"written to {target}", markup=False, soft_wrap=True)


def _interval(item: object) -> str:
    rho, low, high = (getattr(item, name) for name in ("rho", "low", "high"))
    if rho is None:
        return "–"
    return f"{rho:+.2f}" if low is None else f"{rho:+.2f} [{low:+.2f}, {high:+.2f}]"


def _csv(foresight: Foresight) -> str:
    from tailwise.report.grid import to_csv

    heads = ("predictor", "measured", "scope", "spearman", "low", "high", "p", "tensors")
    lines = ((item.predictor, item.measured, item.scope, item.rho, item.low, item.high, item.p, item.n)
             for item in foresight.correlations)  # fmt: skip
    return to_csv(heads, lines)
