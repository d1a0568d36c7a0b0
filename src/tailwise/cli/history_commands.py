"""`tailwise history [RUN]`."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailwise.cli.shared_options import Device, Json, Rows, Workers, comma_list
from tailwise.cli.store_options import OutcomeLines, Revisions, Run, Store, open_store, steps_of
from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from tailwise.history.read import Steps
    from tailwise.history.runs.bisect import Bisection, Onset
    from tailwise.history.runs.found import FoundCheckpoint
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

        if taken_in := str(take_in(store)):
            typer.echo(f"tailwise: {taken_in}", err=True)
    with open_store(store) as opened:
        if metric is not None and run is not None:
            table = opened.series(run, comma_list(metric), layers, comma_list(roles), bounds)
            lines = table if layers else _medians(opened, run, table, comma_list(metric))
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
            runs = opened.runs()
            document, shown = [one.to_json() for one in runs], report.runs_view(runs)
        else:
            document, shown = _whole_run(opened, run, bounds, rows)
    if as_json:
        sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        screen.print(shown)
    if written is not None:
        screen.print(f"written to {written}", soft_wrap=True, markup=False)


def _medians(opened: History, run: str, table: Any, metrics: tuple[str, ...]) -> Any:
    """The medians of roles, and of exponents those of trusted fits, with how many are left out said on stderr."""
    from tailwise.history.doubted import left_out_words, trusted_alone
    from tailwise.report import history as report

    table, lost, fits = trusted_alone(opened, run, table)
    if said := left_out_words(lost, fits):
        typer.echo(f"tailwise: {said}", err=True)
    return report.medians(table, metrics)


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


_HOW, _OUT_AUDITS = "How to watch", "Output"


def watch(
    where: Annotated[
        str, typer.Argument(metavar="DIR", help="Folder or URL in which checkpoints appear, or org/name on the Hub.")
    ],
    store: Store = None,
    run: Run = None,
    revisions: Revisions = None,
    audits: Annotated[
        Path | None,
        typer.Option("-o", "--audits", metavar="FOLDER", help="Also keep the audits, with their spectra, as files.",
                     rich_help_panel=_OUT_AUDITS),
    ] = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.", rich_help_panel=_HOW)] = 30.0,
    settle: Annotated[
        float, typer.Option(min=0.0, help="Seconds without a change that make one whole.", rich_help_panel=_HOW)
    ] = 10.0,
    once: Annotated[
        bool, typer.Option("--once", help="Audit what is there now, and end.", rich_help_panel=_HOW)
    ] = False,
    randomize: Annotated[bool, typer.Option("--randomize", help="Also count traps.", rich_help_panel=_HOW)] = False,
    device: Device = "cpu",
    workers: Workers = None,
) -> None:  # fmt: skip
    """Audit every checkpoint of a run as soon as it is whole, into a store.

    A checkpoint is taken when its index and all its shards are there, its headers agree with its sizes, and nothing
    changes any more. What the store has is not audited again, so the command may be stopped and started at any time.
    """
    from tailwise.history.runs import watch as watching
    from tailwise.history.runs.sink import Sink, run_name
    from tailwise.report.terminal import console

    screen, good, idle = console(), True, True
    lines = OutcomeLines(screen)
    with ExitStack() as stack:
        history = None if store is None and audits is not None else stack.enter_context(open_store(store, create=True))
        settings = {"device": device, "workers": workers, "randomize": int(randomize)}
        sink = Sink(run or run_name(where), history, audits, settings)  # type: ignore[arg-type]
        watched = watching.RunWatch(where, sink, comma_list(revisions), settle)
        outcomes = watching.once(watched) if once else watching.follow(watched, interval, trouble=_say_trouble)
        if not once:
            typer.echo(f"tailwise: watching {where} every {interval:g} s; Ctrl-C ends it", err=True)
        try:
            for outcome in outcomes:
                good, idle = lines.say(outcome) and good, False
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        lines.conclude()
        if idle and not watched.waiting:
            typer.echo(f"tailwise: nothing new in {where}", err=True)
        for text in watched.odd:
            _say_trouble(text)
        for name, why in watched.waiting.items():
            screen.print(f"{name}  left for later: {why}", style="yellow", markup=False, highlight=False)
    if not good:
        raise typer.Exit(3)


def _say_trouble(text: str) -> None:
    typer.echo(f"tailwise: {text}", err=True)


_WHAT_CHANGED = "What to look for"


def bisect(
    where: Annotated[
        str, typer.Argument(metavar="DIR", help="Folder or URL with checkpoints, or org/name on the Hub.")
    ],
    rule: Annotated[
        str, typer.Option(metavar="CODE", help="Of a rule of diagnosis, such as TW203.", rich_help_panel=_WHAT_CHANGED)
    ],
    layers: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Only what the rule says of these layers.", rich_help_panel=_WHAT_CHANGED),
    ] = None,
    thresholds: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml", help="Other thresholds, as `name = value` lines.", rich_help_panel=_WHAT_CHANGED
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Do not look whether what went wrong stayed wrong.", rich_help_panel=_WHAT_CHANGED
        ),
    ] = False,
    revisions: Revisions = None,
    device: Device = "cpu",
    workers: Workers = None,
    as_json: Json = False,
    rows: Rows = 100,
) -> None:
    """Find the step at which a layer went wrong, by auditing only a few of a run's checkpoints.

    Of a fault that stays, and whose rule you know. Halves the run, so that 1,000 checkpoints take about ten audits;
    then looks on both sides whether what went wrong stayed wrong, which takes twice as many again at most, and says so
    where it did not. `tailwise audit FOLDER --all-checkpoints` judges every checkpoint by all rules.
    """
    from tailwise.history.runs.bisect import bisect as search
    from tailwise.history.runs.found import find, nothing_found
    from tailwise.history.runs.judge import Judge, rule_of
    from tailwise.report.terminal import console

    chosen = rule_of(rule)
    checkpoints = find(where, comma_list(revisions))
    if not checkpoints:
        raise nothing_found(where)
    if len(checkpoints) == 1:
        raise UsageError("holds one checkpoint, and a search takes two or more", where=where)
    screen = console(stderr=True)

    def told(one: FoundCheckpoint, named: frozenset[str]) -> None:
        verdict = f"{chosen.code} of {len(named)} layers" if named - {""} else f"{chosen.code}" if named else "silent"
        verdict += ", not evaluated" if one.step in judge.blind else ""
        screen.print(f"step {one.step}  {verdict}", markup=False, highlight=False)

    judge = Judge(
        checkpoints,
        chosen.code,
        layers=layers,
        thresholds=thresholds,
        settings={"device": device, "workers": workers},
        told=told,
    )
    result = search([one.step for one in checkpoints], judge, verify=not quick)
    if as_json:
        document = {"rule": chosen.code, "title": chosen.title, **result.to_json(), "not_evaluated": judge.blind}
        sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    else:
        _say(console(), result, f"{chosen.code} ({chosen.title})", rows)
        for step, why in judge.blind.items():
            screen.print(f"step {step} counts as silent: {why}", style="yellow", markup=False, highlight=False)


def _say(screen: Console, result: Bisection, what: str, rows: int) -> None:
    def line(text: str, style: str = "") -> None:
        screen.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    line(_verdict(result, what), "bold")
    if result.turns and result.onset.bad is not None:
        listed = ", ".join(map(str, result.turns))
        line(f"Not monotone: the rule is silent again at step {listed}. This is one beginning of several.", "yellow")
    shown = [layer for layer in result.layers if layer][: rows or None]
    for layer in shown:
        line(f"  {layer}  {_between(result, result.of_layer(layer))}")
    left = len([layer for layer in result.layers if layer]) - len(shown)
    if left:
        line(f"  … and {left} more; --rows 0 shows all")
    line(f"{len(result.probed)} of {len(result.steps)} checkpoints audited")
    if result.onset.bad is None and len(result.probed) < len(result.steps):
        line("A fault that came and went may lie between: `tailwise audit FOLDER --all-checkpoints` judges each one.")


def _verdict(result: Bisection, what: str) -> str:
    if result.onset.bad is None and result.spoke:
        listed = ", ".join(map(str, result.spoke))
        return f"{what} spoke at step {listed}, and is silent again at the last step, {result.steps[-1]}"
    if result.onset.bad is None:
        return f"{what} is silent at the last step, {result.steps[-1]}, and wherever else it was asked"
    return f"{what} {_between(result, result.onset)}"


def _between(result: Bisection, onset: Onset) -> str:
    bad = None if onset.bad is None else result.steps[onset.bad]
    if onset.good is None:
        return f"is there from the first step, {bad}"
    good = onset.good
    count = 0 if onset.bad is None else onset.bad - good - 1
    between = f", {count} checkpoints between" if count else ""
    return f"began after step {result.steps[good]} and by step {bad}{between}"
