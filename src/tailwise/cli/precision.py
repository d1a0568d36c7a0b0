"""`tailwise precision MODEL`."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailwise.cli.shared_options import (
    DEVICE,
    HOW,
    K_FRAC,
    PRECISION,
    RUN,
    WORKERS,
    Json,
    Option,
    comma_list,
    command,
    told,
)
from tailwise.core.errors import UsageError
from tailwise.core.optional import how_to_get, missing
from tailwise.core.recipe import Recipe, RunOptions

if TYPE_CHECKING:
    from tailwise.audits.precision.study import PrecisionStudy
    from tailwise.audits.precision.verdict import Bound

_WHAT, _OUT = "What to study", "Output"


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


OF_PRECISION = (
    Option("model", Annotated[str, typer.Argument(
        help="Folder, file, URL, or Hugging Face id (org/name or org/name@revision).")]),
    Option("precisions", Annotated[
        str,
        typer.Option(
            "--precisions", "--formats", metavar="A,B", callback=_list, is_eager=True,  # the list needs no model
            help="Number formats, e.g. bf16,int8,int4-g64,nvfp4; 'all' for one of each; 'list' names them.",
            rich_help_panel=_WHAT,
        ),
    ], "fp16,bf16,fp8,int8,int4"),
    Option("layers", str | None, None, "Only matrices whose name matches.", ("--filter-layers", "--layers"), _WHAT,
           "REGEX"),
    Option("roles", str | None, None, "Only these roles, e.g. attn_q,mlp_up.", panel=_WHAT, metavar="A,B"),
    Option("load_dtype", LoadDtype, LoadDtype.fp32, "The weights are rounded to this first.", panel=HOW),
    K_FRAC,
    Option("metrics", str | None, None, "Also these metrics in each format; see `tailwise metrics`.", panel=HOW,
           metavar="A,B"),
    Option("directions", int, 16, "Leading directions whose overlap is measured.", panel=HOW, least=1),
    Option("bound", list[str] | None, None,
           "What the verdict allows, e.g. relative_error=0.05 or sqnr_db=25; may be repeated. "
           "alpha_shift=0.05 also marks layers as sensitive.", panel=HOW, metavar="MEASURE=LIMIT"),
    replace(PRECISION, help="Of the solver: float64 is exact; float32 is twice as fast."),
    DEVICE,
    WORKERS,
    Option("no_cache", bool, False, "Keep and reuse nothing.", ("--no-cache",), RUN),
    Option("log_level", Annotated[
        LogLevel, typer.Option(case_sensitive=False, help="Of lines on stderr.", rich_help_panel=RUN)
    ], LogLevel.WARNING),
    Option("output_dir", Path, Path("results/precision_analysis"), "Where everything is written.",
           ("-o", "--output-dir"), _OUT, "DIR"),
    Option("plot_format", PlotFormat, PlotFormat.png, "Of the pictures.", panel=_OUT),
    Option("max_layers_per_plot", int, 10, "Layers in one combined picture; 0 for all.", panel=_OUT, least=0),
    Option("basic", bool, False, "Only the tables of alpha and the pictures.", ("--basic",), _OUT),
    Option("plots", bool, False, "Also draw a picture of every layer.", ("--plots/--no-plots",), _OUT),
    Option("as_json", Json, False),
)  # fmt: skip


def _precision(**given: Any) -> None:
    from tailwise.audits.precision.studying import StudyOptions, study
    from tailwise.audits.precision.verdict import Bound
    from tailwise.number_formats.formats import format_names

    logging.basicConfig(level=given["log_level"].value, format="%(levelname)s %(message)s", stream=sys.stderr)
    bounds, folder, basic = [Bound.parse(text) for text in given["bound"] or ()], given["output_dir"], given["basic"]
    drawable = _check_output(folder, drawn=given["plots"] or not basic)
    asked = told(StudyOptions, given) | {"roles": comma_list(given["roles"]), "load_dtype": given["load_dtype"].value}
    settings = told(Recipe, given) | told(RunOptions, given)
    settings |= {"metrics": comma_list(given["metrics"]), "use_cache": not given["no_cache"]}
    formats = tuple(format_names()) if given["precisions"].strip().lower() == "all" else comma_list(given["precisions"])
    made = _with_progress(
        lambda show: study(given["model"], formats, options=StudyOptions(**asked), progress=show, **settings)
    )
    pictures = (
        None if not given["plots"] or not drawable else (given["plot_format"].value, given["max_layers_per_plot"])
    )
    written = _write(made, folder, bounds, pictures, basic=basic, drawable=drawable)
    if not drawable:
        typer.echo(f"tailwise: without pictures and report; for these, {how_to_get('report')}", err=True)
    _say(made, bounds, as_json=given["as_json"])
    typer.echo(f"{len(written)} files written to {folder}", err=given["as_json"])
    if not len(made) or made.failed:
        raise typer.Exit(3)


precision = command(
    _precision,
    OF_PRECISION,
    "precision",
    """Measure every weight matrix in several number formats, and say which each layer tolerates.

    Writes tables, the study itself (study.json) and a report (report.html) to the output folder; pictures of each layer
    where --plots asks for them. Ends with 3
    where a layer failed, in all formats or in one; the others are written all the same.
    """,
)


def _check_output(folder: Path, *, drawn: bool) -> bool:
    """Whether charts and a report can be drawn, where they are asked for."""
    from tailwise.report.output_files import check_target

    check_target(str(folder / "study.json"))
    for inner in (folder / "plots", folder / "plots" / "individual_layers"):
        if inner.exists() and not inner.is_dir():
            raise UsageError("is in the way of a folder", where=inner, fix="move it, or choose another --output-dir")
    return not drawn or not missing("altair", "vl_convert")


def _with_progress(work: Callable[..., PrecisionStudy]) -> PrecisionStudy:
    from tailwise.cli.progress_bar import progress_bar

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
