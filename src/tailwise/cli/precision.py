"""`tailwise precision MODEL`."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailwise.cli.arguments import Device, Json, Workers, comma_list
from tailwise.cli.audit_commands import Dtype
from tailwise.core.errors import UsageError
from tailwise.core.optional import how_to_get, missing

if TYPE_CHECKING:
    from tailwise.audits.precision.study import PrecisionStudy
    from tailwise.audits.precision.verdict import Bound

_WHAT, _HOW, _RUN, _OUT = "What to study", "How to measure", "How to run", "Output"


class LoadDtype(StrEnum):
    """What the weights are rounded to as they are loaded."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


class PlotFormat(StrEnum):
    """Of the pictures."""

    png = "png"
    pdf = "pdf"
    svg = "svg"


class LogLevel(StrEnum):
    """From which severity on lines go to stderr."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"
    CRITICAL = "CRITICAL"


def _list(precisions: str) -> str:
    if precisions.strip().lower() != "list":
        return precisions
    from tailwise.number_formats.formats import format_names

    for name, summary in format_names().items():
        typer.echo(f"{name:<10}  {summary}")
    raise typer.Exit


def precision(
    model: Annotated[
        str, typer.Argument(help="Folder, file, URL, or Hugging Face id (org/name or org/name@revision).")
    ],
    precisions: Annotated[
        str,
        typer.Option(
            "--precisions",
            "--formats",
            metavar="A,B",
            callback=_list,
            is_eager=True,  # the list needs no model
            help="Number formats, e.g. bf16,int8,int4-g64,nvfp4; 'all' for one of each; 'list' names them.",
            rich_help_panel=_WHAT,
        ),
    ] = "fp16,bf16,fp8,int8,int4",
    filter_layers: Annotated[
        str | None,
        typer.Option(
            "--filter-layers",
            "--layers",
            metavar="REGEX",
            help="Only matrices whose name matches.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    roles: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Only these roles, e.g. attn_q,mlp_up.", rich_help_panel=_WHAT),
    ] = None,
    load_dtype: Annotated[
        LoadDtype, typer.Option(help="The weights are rounded to this first.", rich_help_panel=_HOW)
    ] = LoadDtype.fp32,
    k_frac: Annotated[float, typer.Option(help="Tail fraction of alpha_hill.", rich_help_panel=_HOW)] = 0.1,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="Also these metrics in each format; see `tailwise metrics`.", rich_help_panel=_HOW
        ),
    ] = None,
    directions: Annotated[
        int, typer.Option(min=1, help="Leading directions whose overlap is measured.", rich_help_panel=_HOW)
    ] = 16,
    bound: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MEASURE=LIMIT",
            rich_help_panel=_HOW,
            help="What the verdict allows, e.g. relative_error=0.05 or sqnr_db=25; may be repeated. "
            "alpha_shift=0.05 also marks layers as sensitive.",
        ),
    ] = None,
    dtype: Annotated[
        Dtype,
        typer.Option(
            "--precision", help="Of the solver: float64 is exact; float32 is twice as fast.", rich_help_panel=_HOW
        ),
    ] = Dtype.float64,
    device: Device = "cpu",
    workers: Workers = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep and reuse nothing.", rich_help_panel=_RUN)] = False,
    log_level: Annotated[
        LogLevel, typer.Option(case_sensitive=False, help="Of lines on stderr.", rich_help_panel=_RUN)
    ] = LogLevel.WARNING,
    output_dir: Annotated[
        Path,
        typer.Option("-o", "--output-dir", metavar="DIR", help="Where everything is written.", rich_help_panel=_OUT),
    ] = Path("results/precision_analysis"),
    plot_format: Annotated[PlotFormat, typer.Option(help="Of the pictures.", rich_help_panel=_OUT)] = PlotFormat.png,
    max_layers_per_plot: Annotated[
        int, typer.Option(min=0, help="Layers in one combined picture; 0 for all.", rich_help_panel=_OUT)
    ] = 10,
    basic: Annotated[
        bool, typer.Option("--basic", help="Only the tables of alpha and the pictures.", rich_help_panel=_OUT)
    ] = False,
    plots: Annotated[
        bool, typer.Option("--plots/--no-plots", help="Also draw a picture of every layer.", rich_help_panel=_OUT)
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure every weight matrix in several number formats, and say which each layer bears.

    Writes tables, the study itself (study.json) and a report (report.html) to the output folder; pictures of each layer
    where --plots asks for them. Ends with 3
    where a layer failed, in all formats or in one; the others are written all the same.
    """
    from tailwise.audits.precision.studying import StudyOptions, study
    from tailwise.audits.precision.verdict import Bound
    from tailwise.number_formats.formats import format_names

    logging.basicConfig(level=log_level.value, format="%(levelname)s %(message)s", stream=sys.stderr)
    bounds = [Bound.parse(text) for text in bound or ()]
    drawable = _check_output(output_dir, drawn=plots or not basic)
    options = StudyOptions(layers=filter_layers, roles=comma_list(roles), load_dtype=load_dtype.value,
                           directions=directions)  # fmt: skip
    formats = tuple(format_names()) if precisions.strip().lower() == "all" else comma_list(precisions)
    found = _with_progress(
        lambda show: study(model, formats, options=options, progress=show, k_frac=k_frac, device=device,
                           metrics=comma_list(metrics), precision=dtype.value, workers=workers,
                           use_cache=not no_cache)
    )  # fmt: skip
    pictures = None if not plots or not drawable else (plot_format.value, max_layers_per_plot)
    written = _write(found, output_dir, bounds, pictures, basic=basic, drawable=drawable)
    if not drawable:
        typer.echo(f"tailwise: without pictures and report; for these, {how_to_get('report')}", err=True)
    _say(found, bounds, as_json=as_json)
    typer.echo(f"{len(written)} files written to {output_dir}", err=as_json)
    if not len(found) or found.failed:
        raise typer.Exit(3)


def _check_output(folder: Path, *, drawn: bool) -> bool:
    """Whether charts and a report can be drawn, where they are asked for."""
    from tailwise.report.output_files import check_target

    check_target(str(folder / "study.json"))
    for inner in (folder / "plots", folder / "plots" / "individual_layers"):
        if inner.exists() and not inner.is_dir():
            raise UsageError("is in the way of a folder", where=inner, fix="move it, or choose another --output-dir")
    return not drawn or not missing("altair", "vl_convert")


def _with_progress(work: Callable[..., PrecisionStudy]) -> PrecisionStudy:
    from tailwise.cli.progress import progress_bar

    with progress_bar() as show:
        try:
            return work(show)
        except KeyboardInterrupt:
            typer.echo("tailwise: interrupted; what was computed is kept, the same command goes on", err=True)
            raise typer.Exit(130) from None


def _write(
    found: PrecisionStudy,
    folder: Path,
    bounds: list[Bound],
    pictures: tuple[str, int] | None,
    *,
    basic: bool,
    drawable: bool,
) -> list[Path]:
    from tailwise.audits.precision import study_files as tables

    written = tables.write_documented(found, folder, bounds) if basic else tables.write_all(found, folder, bounds)
    if not basic:
        written.append(Path(found.save(folder / "study.json")))
    if not len(found):
        return written
    if pictures is not None:
        from tailwise.report.precision.plots import write_plots

        written += write_plots(found, folder / "plots", plot_format=pictures[0], max_layers=pictures[1])
    if drawable and not basic:
        from tailwise.report.precision.page import write_report

        written.append(Path(write_report(found, folder / "report.html", bounds=bounds)))
    return written


def _say(found: PrecisionStudy, bounds: list[Bound], *, as_json: bool) -> None:
    from tailwise.report.precision import precision_terminal as terminal
    from tailwise.report.terminal import console

    if as_json:
        sys.stdout.write(json.dumps(found.to_json(), ensure_ascii=False, allow_nan=False) + "\n")
        return
    console().print(terminal.terminal(found, bounds))
