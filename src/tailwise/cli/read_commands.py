"""`tailwise show AUDIT`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailwise.cli.shared_options import Json, Output, Rows, comma_list
from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    from tailwise.judging.diagnosis.finding import Diagnosis
    from tailwise.models.evaluation.candidates import Evaluation


def show(
    audit: Annotated[str, typer.Argument(help="An audit file or folder.")],
    layer: Annotated[str | None, typer.Option(metavar="NAME", help="Every number of one matrix.")] = None,
    unmeasured: Annotated[bool, typer.Option("--unmeasured", help="List what was not measured, and why.")] = False,
    output: Output = None,
    as_json: Json = False,
    rows: Rows = 100,
) -> None:
    """Print a saved audit, or convert it."""
    from tailwise.audits.audit import Audit
    from tailwise.judging.diagnosis.diagnose import diagnose as verdict_of
    from tailwise.report import health, terminal
    from tailwise.report import output_files as files

    for path in output or ():
        files.check_target(path)
    loaded = Audit.load(audit)
    console = terminal.console(stderr=as_json)
    for path in output or ():
        console.print(f"written to {files.write(loaded, path)}", soft_wrap=True, markup=False)
    if as_json:
        sys.stdout.write(files.to_json(loaded) + "\n")
    elif layer is not None:
        console.print(terminal.one_layer(loaded[layer]))
    elif unmeasured:
        for row in loaded.unmeasured:
            console.print(f"{row.name}: {row.status}: {row.reason}", soft_wrap=True, markup=False)
    elif not output:
        diagnosis = verdict_of(loaded)
        if diagnosis.health is not None:
            console.print(health.terminal(diagnosis.health, audit), "", sep="\n")
        parts = (terminal.layers(loaded, rows, diagnosis), terminal.by_role(loaded), terminal.closing(loaded))
        console.print(*(part for one in parts for part in (one, "")), sep="\n")


def report(
    audits: Annotated[
        list[str],
        typer.Argument(metavar="AUDIT...", help="Audits side by side; or evaluations (`evaluate -o x.json`)."),
    ],
    output: Annotated[str, typer.Option("-o", "--output", metavar="FILE", help="Where to write it.")] = "report.html",
    base: Annotated[str | None, typer.Option(metavar="AUDIT", help="Also compare each with this audit.")] = None,
) -> None:
    """Write findings, charts and every layer into one HTML file that needs no network.

    Of evaluations: quality against size, the models that no other is better and smaller than, intervals.
    """
    from tailwise.audits.audit import Audit
    from tailwise.report.charts.chart import require_altair

    require_altair()
    from tailwise.report import html

    html.check_page(output)
    if (evaluated := _evaluations(audits, base)) is not None:
        from tailwise.report.evaluations.evaluation_page import write_report

        _say_written(write_report(evaluated, output))
        return
    loaded = [Audit.load(path) for path in audits]
    written = html.write_report(loaded, output, base=Audit.load(base) if base else None)
    _say_written(written)


def _say_written(written: Path | str) -> None:
    size = "" if isinstance(written, str) else f" ({written.stat().st_size / 1e6:.1f} MB)"
    typer.echo(f"written to {written}{size}")


def _evaluations(paths: list[str], base: str | None) -> dict[str, Evaluation] | None:
    """Evaluations by the names of their files; None where the files are audits. `UsageError` for some of each."""
    from tailwise.models.evaluation.candidates import is_evaluation, read_evaluation

    told = [Path(path).suffix.lower() == ".json" and is_evaluation(path) for path in paths]
    if not any(told):
        return None
    if not all(told):
        other = paths[told.index(False)]
        raise UsageError("is no evaluation, as the others are", where=other, fix="report audits and evaluations apart")
    if base is not None:
        raise UsageError("evaluations name their base themselves", fix="leave --base out, or evaluate with --against")
    stems = [Path(path).stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else paths
    return {name: read_evaluation(path) for name, path in zip(names, paths, strict=True)}


class Theme(StrEnum):
    """Of the paper."""

    light = "light"
    dark = "dark"


def plot(
    audits: Annotated[list[str] | None, typer.Argument(metavar="AUDIT", help="One audit, or several.")] = None,
    chart: Annotated[str | None, typer.Option(metavar="NAME", help="Which chart; see --list.")] = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE", help="x.png, x.svg, x.pdf, x.html or x.json.")
    ] = None,
    base: Annotated[str | None, typer.Option(metavar="AUDIT", help="For charts against a base.")] = None,
    layer: Annotated[str | None, typer.Option(metavar="NAME", help="For charts of one layer.")] = None,
    metric: Annotated[str | None, typer.Option(metavar="NAME", help="For the heat map.")] = None,
    theme: Annotated[Theme, typer.Option(help="Light or dark paper.")] = Theme.light,
    listed: Annotated[bool, typer.Option("--list", help="List the charts.")] = False,
    as_json: Json = False,
) -> None:
    """Draw one chart of an audit as a picture, a page, or a Vega-Lite spec."""
    if listed:
        _list(as_json)
        return
    if not audits or chart is None or (output is None and not as_json):
        raise UsageError("a plot needs an audit, --chart and -o", fix="tailwise plot AUDIT --chart alpha_hist -o x.png")
    from tailwise.audits.audit import Audit
    from tailwise.report import render

    if output is not None:
        render.check_figure(output)
    loaded = [Audit.load(path) for path in audits]
    against = Audit.load(base) if base else None
    figure = render.plot(chart, loaded, base=against, layer=layer, metric=metric, theme=theme.value)
    if as_json:
        typer.echo(json.dumps(figure.to_dict(validate=False), ensure_ascii=False))
    if output is not None:
        typer.echo(f"written to {render.write_figure(figure, output)}", err=as_json)


def _list(as_json: bool) -> None:
    from tailwise.report.charts.chart import CHARTS

    charts = [{"name": item.name, "scope": item.scope, "summary": item.summary, "needs": list(item.needs)}
              for _, item in CHARTS.items()]  # fmt: skip
    if as_json:
        typer.echo(json.dumps(charts, ensure_ascii=False, indent=1))
        return
    width = max(len(str(line["name"])) for line in charts)
    for line in charts:
        typer.echo(f"{line['name']:<{width}}  {line['scope']:<8}  {line['summary']}")


_RULES, _OUT = "Rules", "Output"


class FailOn(StrEnum):
    """Severity from which the command ends with 1."""

    warning = "warning"
    error = "error"


def diagnose(
    audits: Annotated[list[str], typer.Argument(help="Audit files or folders.")],
    thresholds: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="Other thresholds, as `name = value` lines.", rich_help_panel=_RULES),
    ] = None,
    mute: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CODES",
            help="TW101, TW2xx, or TW101:REGEX for some layers; commas, or repeat.",
            rich_help_panel=_RULES,
        ),
    ] = None,
    history: Annotated[
        bool,
        typer.Option("--history", help="The audits are one run, oldest first: judge the last.", rich_help_panel=_RULES),
    ] = False,
    base: Annotated[
        Path | None,
        typer.Option(metavar="AUDIT", help="Of the base or the first checkpoint: was a matrix moved at all?",
                     rich_help_panel=_RULES),
    ] = None,
    atlas: Annotated[
        Path | None,
        typer.Option(metavar="FILE.atlas", help="Healthy models to compare with; see `tailwise atlas`.",
                     rich_help_panel=_RULES),
    ] = None,
    fail_on: Annotated[
        FailOn | None, typer.Option(help="End with 1 where something this bad is found.", rich_help_panel=_OUT)
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option("-o", "--output", metavar="FILE", help="x.json or x.md; may be repeated.", rich_help_panel=_OUT),
    ] = None,
    as_json: Json = False,
    rows: Annotated[
        int, typer.Option(min=0, help="Lines of evidence a finding (2 of a note); 0 for all.", rich_help_panel=_OUT)
    ] = 8,
) -> None:  # fmt: skip
    """Say what is wrong with a model, why, and what to do, with the numbers.

    The rules, their thresholds and how well founded each is are in the documentation under Rules.
    """
    from tailwise.judging.diagnosis.finding import SEVERITIES
    from tailwise.report import findings_view as findings
    from tailwise.report import health, terminal

    for path in output or ():
        findings.check_target(path)
    # What follows a colon is a regular expression, which may have commas of its own.
    muted = [code for item in mute or () for code in ([item] if ":" in item else comma_list(item))]
    diagnoses = _diagnosed(audits, {"thresholds": thresholds, "mute": muted, "atlas": atlas}, base, history=history)
    console = terminal.console(stderr=as_json)
    if as_json:
        sys.stdout.write(findings.to_json(diagnoses) + "\n")
    else:
        for one, path in zip(diagnoses, audits[-len(diagnoses) :], strict=True):
            console.print(findings.terminal(one, rows))
            if one.health is not None:
                console.print("", health.terminal(one.health, path, ran="tailwise diagnose AUDIT"), sep="\n")
    for path in output or ():
        console.print(f"written to {findings.write(diagnoses, path)}", soft_wrap=True, markup=False)
    worst = [SEVERITIES.index(one.worst) for one in diagnoses if one.worst]
    if fail_on and worst and max(worst) >= SEVERITIES.index(fail_on.value):
        raise typer.Exit(1)


def _diagnosed(paths: list[str], how: dict[str, Any], base: Path | None, *, history: bool) -> list[Diagnosis]:
    from tailwise.audits.audit import Audit
    from tailwise.judging.diagnosis.diagnose import diagnose as verb

    audits = [Audit.load(path) for path in paths]
    before = None if base is None else Audit.load(base)
    if history:
        return [verb(audits[-1], history=audits[:-1], base=before, **how)]
    return [verb(audit, base=before, **how) for audit in audits]


def metrics(
    names: Annotated[list[str] | None, typer.Argument(help="Only these.")] = None, as_json: Json = False
) -> None:
    """List every metric with its formula and source."""
    from tailwise.report import terminal
    from tailwise.spectrum.metrics.metric import METRICS

    chosen = [METRICS[name].name for name in names] if names else list(METRICS)
    if as_json:
        keys = ("name", "family", "summary", "formula", "unit", "source")
        described = [asdict(METRICS[name]) for name in chosen]
        typer.echo(json.dumps([{key: item[key] for key in keys} for item in described], ensure_ascii=False, indent=1))
    else:
        terminal.console().print(terminal.metrics_table(chosen))


def doctor(
    as_json: Json = False,
    clear_cache: Annotated[bool, typer.Option("--clear-cache", help="Remove all kept spectra.")] = False,
) -> None:
    """Check the installation: versions, extras, device, cache, and the solver against a known answer."""
    from tailwise.audits.installation import check, clear

    if clear_cache:
        typer.echo(f"removed {clear()} files")
        return
    checks = check()
    if as_json:
        typer.echo(json.dumps([vars(item) for item in checks], indent=1))
    else:
        for item in checks:
            mark = "ok" if item.ok else "--" if item.optional else "!!"
            typer.echo(f"{mark}  {item.name:<16} {item.detail}")
    if not all(item.ok or item.optional for item in checks):
        raise typer.Exit(1)
