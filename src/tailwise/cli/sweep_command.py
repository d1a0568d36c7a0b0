"""`tailwise sweep LIST`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailwise.cli.shared_options import (
    CONV,
    DEVICE,
    HOW,
    PRECISION,
    RUN,
    SEED,
    WORKERS,
    Json,
    Option,
    comma_list,
    command,
    of,
    told,
)
from tailwise.core.recipe import Recipe, RunOptions
from tailwise.history.sweep.status import PRICE

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

    from tailwise.audits.run import Step
    from tailwise.history.sweep.catalogue import ClaimedModel
    from tailwise.history.sweep.one_model import ModelOutcome
    from tailwise.history.sweep.status import SweepStatus
    from tailwise.history.sweep.sweeping import Sweep, SweepListener


_WHAT, _OUT, _WHERE = "What to measure", "Output", "Where"
OF_SWEEP = (
    Option("models", Annotated[str, typer.Argument(
        help="A file with a model on each line, or hub:author=…,sort=downloads,limit=….")]),
    Option("output", str, "sweep", "Of the results; s3://… too.", ("-o", "--output"), _OUT, "FOLDER"),
    Option("catalogue", Annotated[
        str | None,
        typer.Option(metavar="WHERE", envvar="TAILWISE_CATALOGUE", rich_help_panel=_WHERE,
                     help="A file, or postgresql://user@host/database that many workers share; "
                          "FOLDER/catalogue.db by default."),
    ], None),
    Option("name", str | None, None, "Of the sweep in the catalogue; the list's by default.", panel=_WHERE,
           metavar="NAME"),
    Option("layers", str | None, None, "Only matrices whose name matches.", panel=_WHAT, metavar="REGEX"),
    Option("roles", str | None, None, "Only these roles.", panel=_WHAT, metavar="A,B"),
    Option("metrics", str | None, None, "Only these metrics.", panel=_WHAT, metavar="A,B"),
    of(Recipe, "estimator", "Of alpha.", panel=HOW),
    PRECISION,
    CONV,
    Option("randomize", bool, False, "Also permute each W's entries.", ("--randomize",), HOW),
    SEED,
    DEVICE,
    WORKERS,
    of(RunOptions, "executor", "Of each model's matrices: local, dask[://scheduler:8786], ray[://head:10001].",
       kind=str, panel=RUN, metavar="ENGINE"),
    of(RunOptions, "num_gpus", "GPUs a matrix takes on Ray.", panel=RUN, least=0),
    of(RunOptions, "blas", "Libraries that compute on a CPU; auto measures once.", panel=RUN),
    of(RunOptions, "cache_dir", "Where spectra are kept, a folder or s3://…; share it between workers.",
       kind=str | None, panel=RUN, metavar="WHERE"),
    Option("lease", float, 120.0, "After which a silent worker's model is another's.", panel=RUN, metavar="SECONDS"),
    Option("retry", bool, False, "Audit again what failed or could not be read.", ("--retry",), RUN),
    Option("dry_run", bool, False, "Say what it would cost, from the headers of up to 100 of the models.",
           ("--dry-run",), RUN),
    Option("show_status", bool, False, "Only say how far the sweep is.", ("--status",), _OUT),
    Option("price", float, PRICE, "Of a core for an hour.", panel=_OUT, metavar="DOLLARS", least=0.0),
    Option("as_json", Json, False),
)  # fmt: skip


def _sweep(**given: Any) -> None:
    from tailwise.history.sweep.model_list import default_name, read_models
    from tailwise.history.sweep.sweeping import Sweep

    models, price, as_json = given["models"], given["price"], given["as_json"]
    to = Sweep.at(given["name"] or default_name(models), given["output"], given["catalogue"], lease=given["lease"],
                  layers=given["layers"], roles=comma_list(given["roles"]))  # fmt: skip
    if given["show_status"]:
        _say_status(_look(to, price), as_json=as_json)
        return
    settings = told(Recipe, given) | told(RunOptions, given)
    settings |= {"randomize": int(given["randomize"]), "metrics": comma_list(given["metrics"])}
    listed = read_models(models)
    if given["dry_run"]:
        _say_forecast(listed, to, settings, price, as_json=as_json)
        return
    status = _run(listed, to, settings, (price, given["retry"]), as_json=as_json)
    _say_status(status, as_json=as_json)
    if status.troubles:
        raise typer.Exit(3)


sweep = command(
    _sweep,
    OF_SWEEP,
    "sweep",
    """Audit many models into one data set and one ranking; the same command again goes on where it was.

    Any number of workers may run it with one catalogue. A model that cannot be audited is a line that says why.
    """,
)


def _look(to: Sweep, price: float) -> SweepStatus:
    from tailwise.history.sweep.catalogue import Catalogue
    from tailwise.history.sweep.status import status_of

    with Catalogue(to.catalogue, create=False) as catalogue:
        return status_of(catalogue, to.name, price=price)


def _run(
    models: list[str], to: Sweep, settings: dict[str, Any], how: tuple[float, bool], *, as_json: bool
) -> SweepStatus:
    from tailwise.cli.sweep_command import screen
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
    estimate = forecast(models, checked(recipe), options, Selection(to.layers, to.roles), price=price)
    if as_json:
        sys.stdout.write(json.dumps(estimate.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        return
    for title, text in forecast_lines(estimate):
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


#: Seconds between two looks at the catalogue, which others write to as well.
_LOOK_EVERY = 2.0


class SweepScreen:
    """Takes what happens and draws it."""

    def __init__(self, console: Console, look: Callable[[], SweepStatus], live: Live | None) -> None:
        self._console, self._look, self._live = console, look, live
        self._status: SweepStatus | None = None
        self._looked, self._model = float("-inf"), ""

    def begun(self, claim: ClaimedModel) -> Callable[[Step], None]:
        """A model is under way."""
        self._model = claim.model
        self._draw("reading headers")
        return self._step

    def ended(self, outcome: ModelOutcome) -> None:
        """A model is finished."""
        from tailwise.report.sweep import outcome_line

        self._console.print(outcome_line(outcome), soft_wrap=True)
        self._looked = float("-inf")
        self._draw("")

    def _step(self, step: Step) -> None:
        self._draw(f"{step.done}/{step.total} matrices")

    def _draw(self, detail: str) -> None:
        if self._live is None:
            return
        from tailwise.report.sweep import dashboard

        if self._status is None or time.monotonic() > self._looked + _LOOK_EVERY:
            self._status, self._looked = self._look(), time.monotonic()
        self._live.update(dashboard(self._status, f"{self._model}: {detail}" if detail else ""))


@contextmanager
def screen(look: Callable[[], SweepStatus], *, stderr: bool) -> Iterator[SweepListener]:
    """What draws a sweep while the block runs; the dashboard leaves nothing behind."""
    from rich.live import Live

    from tailwise.history.sweep.sweeping import SweepListener
    from tailwise.report.terminal import console

    out = console(stderr=stderr)
    if not out.is_terminal:
        shown = SweepScreen(out, look, None)
        yield SweepListener(shown.begun, shown.ended)
        return
    with Live(console=out, transient=True, refresh_per_second=4) as live:
        shown = SweepScreen(out, look, live)
        yield SweepListener(shown.begun, shown.ended)
