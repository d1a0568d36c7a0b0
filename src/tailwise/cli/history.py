"""`tailwise history [RUN]`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailwise.cli.options import Json, Rows, comma_list
from tailwise.cli.stores import Store, open_store, steps_of
from tailwise.errors import UsageError

if TYPE_CHECKING:
    from tailwise.history.read import Steps
    from tailwise.history.store import History

_WHAT, _OUT = "What to show", "Output"


def history(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run; without one, all are listed.")] = None,
    store: Store = None,
    metric: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="These metrics over time: medians of the roles.", rich_help_panel=_WHAT),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="With --metric: a line for each layer that matches.", rich_help_panel=_WHAT),
    ] = None,
    roles: Annotated[
        str | None, typer.Option(metavar="A,B", help="With --metric: only these roles.", rich_help_panel=_WHAT)
    ] = None,
    steps: Annotated[
        str | None, typer.Option(metavar="FIRST:LAST", help="Only these steps; either may be left out.",
                                 rich_help_panel=_WHAT),
    ] = None,
    alarms: Annotated[
        bool, typer.Option("--alarms", help="Only alarms; without a run, of all.", rich_help_panel=_WHAT)
    ] = False,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="FILE", help="Of --metric: x.csv, x.json or x.parquet.",
                     rich_help_panel=_OUT),
    ] = None,
    as_json: Json = False,
    rows: Rows = 20,
) -> None:  # fmt: skip
    """Look into the history of training runs: which there are, and a run's points, audits, alarms and metrics."""
    if (layers or roles or output) and metric is None:
        raise UsageError("--layers, --roles and -o say more of a --metric", fix="give --metric alpha, for example")
    if run is None and (metric is not None or steps is not None):
        raise UsageError("a metric is one of a run", fix="give the run: tailwise history RUN --metric alpha")
    from tailwise.report import history as report
    from tailwise.report.terminal import console

    bounds, written = steps_of(steps), None
    screen = console(stderr=as_json)
    if store:
        from tailwise.history.waiting import take_in

        if said := str(take_in(store)):
            typer.echo(f"tailwise: {said}", err=True)
    with open_store(store) as opened:
        if metric is not None and run is not None:
            table = opened.series(run, comma_list(metric), layers, comma_list(roles), bounds)
            lines = table if layers else report.medians(table, comma_list(metric))
            if output is not None:
                written = report.write_table(table, output)
            document: Any = report.plain(lines)
            shown = report.table_view(lines, rows)
        elif alarms:
            kept = opened.kept_alarms(run)
            document, shown = (
                [report.alarm_line(one) for one in kept],
                report.alarms_view(kept, rows, opened.no_alarm(run)),
            )
        elif run is None:
            found = opened.runs()
            document, shown = [one.to_json() for one in found], report.runs_view(found)
        else:
            document, shown = _whole_run(opened, run, bounds, rows)
    if as_json:
        sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        screen.print(shown)
    if written is not None:
        screen.print(f"written to {written}", soft_wrap=True, markup=False)


def _whole_run(opened: History, run: str, bounds: Steps | None, rows: int) -> tuple[Any, Any]:
    from tailwise.report import history as report

    summary, optimizer = next((one for one in opened.runs() if one.name == run), None), opened.optimizer(run)
    points, audits, alarms = opened.scalars(run, bounds), opened.audits(run), opened.kept_alarms(run)
    latest = opened.latest(run)
    document = {
        "run": None if summary is None else summary.to_json(),
        "optimizer": optimizer,
        "points": report.plain(points),
        "audits": [report.audit_line(one) for one in audits],
        "alarms": [report.alarm_line(one) for one in alarms],
        "metrics": opened.metrics(run),
        "latest": None if latest is None else latest.to_json(),
    }
    shown = report.run_view(
        report.RunView(run, points, audits, alarms, opened.metrics(run), opened.no_alarm(run), optimizer), rows
    )
    return document, shown
