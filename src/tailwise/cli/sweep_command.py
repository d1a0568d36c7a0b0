"""`tailwise sweep LIST`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailwise.cli.arguments import Json, comma_list
from tailwise.cli.audit_commands import Conv, Dtype
from tailwise.history.sweep.status import PRICE

if TYPE_CHECKING:
    from tailwise.history.sweep.status import SweepStatus
    from tailwise.history.sweep.sweeping import Sweep

_WHAT, _HOW, _RUN, _OUT, _WHERE = "What to measure", "How to measure", "How to run", "Output", "Where"


def sweep(
    models: Annotated[
        str, typer.Argument(help="A file with a model on each line, or hub:author=…,sort=downloads,limit=….")
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FOLDER", help="Of the results; s3://… too.", rich_help_panel=_OUT)
    ] = "sweep",
    catalogue: Annotated[
        str | None,
        typer.Option(metavar="WHERE", envvar="TAILWISE_CATALOGUE", rich_help_panel=_WHERE,
                     help="A file, or postgresql://user@host/database that many workers share; "
                          "FOLDER/catalogue.db by default."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of the sweep in the catalogue; the list's by default.",
                     rich_help_panel=_WHERE),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(metavar="REGEX", help="Only matrices whose name matches.", rich_help_panel=_WHAT)
    ] = None,
    roles: Annotated[
        str | None, typer.Option(metavar="A,B", help="Only these roles.", rich_help_panel=_WHAT)
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="A,B", help="Only these metrics.", rich_help_panel=_WHAT)
    ] = None,
    estimator: Annotated[str, typer.Option(help="Of alpha.", rich_help_panel=_HOW)] = "ks",
    dtype: Annotated[
        Dtype, typer.Option("--precision", help="float64 is exact; float32 is twice as fast.", rich_help_panel=_HOW)
    ] = Dtype.float64,
    conv: Annotated[Conv, typer.Option(help="Matrices of a convolution.", rich_help_panel=_HOW)] = Conv.flatten,
    randomize: Annotated[
        bool, typer.Option("--randomize", help="Also permute each W's entries.", rich_help_panel=_HOW)
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.", rich_help_panel=_HOW)] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:0.", rich_help_panel=_RUN)] = "cpu",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Matrices at once; one per core by default.", rich_help_panel=_RUN)
    ] = None,
    executor: Annotated[
        str,
        typer.Option(metavar="ENGINE", rich_help_panel=_RUN,
                     help="Of each model's matrices: local, dask[://scheduler:8786], ray[://head:10001]."),
    ] = "local",
    num_gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs a matrix takes on Ray.", rich_help_panel=_RUN)
    ] = None,
    cache_dir: Annotated[
        str | None,
        typer.Option(metavar="WHERE", help="Where spectra are kept, a folder or s3://…; share it between workers.",
                     rich_help_panel=_RUN),
    ] = None,
    lease: Annotated[
        float, typer.Option(metavar="SECONDS", help="After which a silent worker's model is another's.",
                            rich_help_panel=_RUN)
    ] = 120.0,
    retry: Annotated[
        bool, typer.Option("--retry", help="Audit again what failed or could not be read.", rich_help_panel=_RUN)
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", rich_help_panel=_RUN,
                     help="Say what it would cost, from the headers of up to 100 of the models."),
    ] = False,
    show_status: Annotated[
        bool, typer.Option("--status", help="Only say how far the sweep is.", rich_help_panel=_OUT)
    ] = False,
    price: Annotated[
        float, typer.Option(min=0.0, metavar="DOLLARS", help="Of a core for an hour.", rich_help_panel=_OUT)
    ] = PRICE,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Audit many models into one data set and one ranking; the same command again goes on where it was.

    Any number of workers may run it with one catalogue. A model that cannot be audited is a line that says why.
    """
    from tailwise.history.sweep.model_list import default_name, read_models
    from tailwise.history.sweep.sweeping import Sweep

    to = Sweep.at(name or default_name(models), output, catalogue, lease=lease, layers=layers, roles=comma_list(roles))
    if show_status:
        _say_status(_look(to, price), as_json=as_json)
        return
    settings: dict[str, Any] = {
        "estimator": estimator, "precision": dtype.value, "conv": conv.value, "randomize": int(randomize),
        "seed": seed, "metrics": comma_list(metrics), "device": device, "workers": workers, "cache_dir": cache_dir,
        "executor": executor, "num_gpus": num_gpus,
    }  # fmt: skip
    listed = read_models(models)
    if dry_run:
        _say_forecast(listed, to, settings, price, as_json=as_json)
        return
    status = _run(listed, to, settings, (price, retry), as_json=as_json)
    _say_status(status, as_json=as_json)
    if status.troubles:
        raise typer.Exit(3)


def _look(to: Sweep, price: float) -> SweepStatus:
    from tailwise.history.sweep.catalogue import Catalogue
    from tailwise.history.sweep.status import status_of

    with Catalogue(to.catalogue, create=False) as catalogue:
        return status_of(catalogue, to.name, price=price)


def _run(
    models: list[str], to: Sweep, settings: dict[str, Any], how: tuple[float, bool], *, as_json: bool
) -> SweepStatus:
    from tailwise.cli.sweep_screen import screen
    from tailwise.history.sweep.catalogue import Catalogue
    from tailwise.history.sweep.sweeping import sweep as run

    price, retry = how
    if retry:
        with Catalogue(to.catalogue, create=False) as catalogue:
            catalogue.retry(to.name)
    with screen(lambda: _look(to, price), stderr=as_json) as watch:
        try:
            run(models, to, watch=watch, **settings)
        except KeyboardInterrupt:
            typer.echo("tailwise: interrupted; what was audited is kept, the same command goes on", err=True)
            raise typer.Exit(130) from None
    return _look(to, price)


def _say_forecast(models: list[str], to: Sweep, settings: dict[str, Any], price: float, *, as_json: bool) -> None:
    from tailwise.audits.prepare import Selection, checked
    from tailwise.audits.run import split_settings
    from tailwise.history.sweep.forecast import forecast
    from tailwise.report.sweep import forecast_lines

    recipe, options = split_settings(settings)  # type: ignore[arg-type]
    found = forecast(models, checked(recipe), options, Selection(to.layers, to.roles), price=price)
    if as_json:
        sys.stdout.write(json.dumps(found.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        return
    for title, text in forecast_lines(found):
        typer.echo(f"{title:<11}{text}")


def _say_status(status: SweepStatus, *, as_json: bool) -> None:
    from tailwise.report import sweep as report
    from tailwise.report.terminal import console

    if as_json:
        sys.stdout.write(json.dumps(status.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        return
    shown = console()
    shown.print(report.dashboard(status))
    if status.troubles:
        shown.print("", report.troubles(status), sep="\n", soft_wrap=True)
    if status.done > 1 and not status.waiting + status.claimed:
        shown.print(f"\nresults in {status.folder}; order them: tailwise rank {status.folder}", soft_wrap=True)
