"""What the commands on plans share: options, where a plan is written, and how it is shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailwise.cli.audit_inputs import check_text_target, is_audit
from tailwise.cli.progress_bar import shares
from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    from tailwise.audits.audit import Audit
    from tailwise.compression.plans.plan import Plan
    from tailwise.compression.trying.stage import StageOptions

WHICH, TRY, OUT = "Which tensors", "What to try it on", "Output"
SUFFIXES = (".json", ".yaml", ".yml")
_DEFAULT_TARGET = "plan.json"

Model = Annotated[str, typer.Argument(metavar="AUDIT", help="An audit, or a model, which is audited first.")]
Roles = Annotated[str | None, typer.Option(metavar="A,B", help="Only these roles.", rich_help_panel=WHICH)]
Layers = Annotated[
    str | None, typer.Option(metavar="REGEX", help="Only tensors whose name matches.", rich_help_panel=WHICH)
]
Also = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="Left out by default: embed, lm_head …, vision, audio.", rich_help_panel=WHICH),
]
Calibration = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", rich_help_panel=TRY,
                 help="Text for auto and what is measured, as `evaluate --text` takes it. May be repeated."),
]  # fmt: skip
TimeBudget = Annotated[str, typer.Option(metavar="TIME", help="What auto may take: 90s, 5m, 1h.", rich_help_panel=TRY)]
Samples = Annotated[int, typer.Option(min=1, help="Windows that inputs are measured on.", rich_help_panel=TRY)]
Window = Annotated[int, typer.Option(min=2, help="Tokens in a window.", rich_help_panel=TRY)]
Seed = Annotated[int, typer.Option(min=0, help="Of the windows and the search.", rich_help_panel=TRY)]
Engine = Annotated[
    str,
    typer.Option("--executor", metavar="ENGINE", rich_help_panel=TRY,
                 help="Tries plans side by side on dask[://scheduler:8786] or ray[://head:10001]."),
]  # fmt: skip
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan, write nothing.", rich_help_panel=OUT)]
PlanFile = Annotated[
    str | None,
    typer.Option("-o", "--output", metavar="FILE", help="x.json or x.yaml; plan.json by default.",
                 rich_help_panel=OUT),
]  # fmt: skip


@dataclass(frozen=True)
class Windows:
    """How windows are cut from a text."""

    samples: int = 32
    window: int = 512
    seed: int = 0
    bos: str = "auto"


def windows_of(given: Mapping[str, Any]) -> Windows:
    """How windows are cut, of the options of a command."""
    return Windows(given["samples"], given["window"], given["seed"], given["bos"].value)


def text_of(
    calibration: list[str] | None, windows: Windows, device: str, executor: str = "local"
) -> StageOptions | None:
    """What plans are tried on, where there is any, and where."""
    from tailwise.core.execution.executor import check_executor

    check_executor(executor)
    if not calibration:
        return None
    from tailwise.compression.trying.stage import StageOptions

    return StageOptions(
        list(calibration),
        samples=windows.samples,
        window=windows.window,
        seed=windows.seed,
        bos=windows.bos,
        device=device,
        executor=executor,
    )


@contextmanager
def saying() -> Iterator[Callable[[str, float], None]]:
    """How far a search is, on stderr; what is said at 0 is a line that stays."""
    with shares() as show:

        def say(what: str, done: float) -> None:
            if done == 0.0:
                typer.echo(what, err=True)
            else:
                show(what, done)

        yield say


def deliver(plan: Plan, target: str | None, as_json: bool, rows: int) -> None:
    """Write a plan that was made, where there is a target, and show it."""
    if target is not None:
        plan.save(target)
    show_plan(plan, as_json, rows)
    if target is not None:
        typer.echo(f"written to {target}", err=as_json)


def target_of(output: str | None, as_json: bool) -> str | None:
    """The file that a new plan goes to, or None; `UsageError` where it cannot go there."""
    if output is None and as_json:
        return None
    target = output or _DEFAULT_TARGET
    check_text_target(target, SUFFIXES)
    if output is None and Path(target).exists():  # it may have been edited
        raise UsageError("exists", where=target, fix="name the plan with -o; an existing file is then replaced")
    return target


def audit_of(model: str, device: str, workers: int | None) -> Audit:
    """An audit that is there, or one of a model made now."""
    from tailwise.audits.audit import Audit

    if is_audit(model):
        return Audit.load(model)
    from tailwise.audits.run import audit
    from tailwise.cli.progress_bar import progress_bar
    from tailwise.compression.plans.candidates import READ

    with progress_bar() as show_progress:
        return audit(
            model,
            progress=show_progress,
            estimator="peak",
            metrics=("alpha", "alpha_sigma", "ks_distance", *READ),
            device=device,
            workers=workers,
        )


def show_plan(plan: Plan, as_json: bool, rows: int, *, entries: bool = False) -> None:
    """A plan on the terminal, or as JSON on stdout."""
    if as_json:
        write_json(plan.to_json())
        return
    from tailwise.compression.plans.bits import formats_words, whole_model_words
    from tailwise.report.plan_view import entries_grid, plan_grid
    from tailwise.report.terminal import console

    screen = console()
    title = " · ".join(part for part in (plan.model, plan.operator, plan.allocator) if part)
    screen.print(title, style="bold", soft_wrap=True, markup=False)
    screen.print(entries_grid(plan, rows) if entries else plan_grid(plan, rows), "", sep="\n")
    for part in plan.parts:
        asked, reached = part.budget.get("requested"), part.budget.get("achieved")
        unit = f" {part.budget['unit']}" if "unit" in part.budget else ""
        nbytes = part.budget.get("requested_bytes")
        if asked is not None and reached is not None and nbytes is not None:
            screen.print(
                f"budget: requested {nbytes:,} bytes for the whole model, which leaves {asked:.6f}{unit} of "
                f"{part.n_params:,} parameters; achieved {reached:.6f}",
                soft_wrap=True,
            )
        elif asked is not None and reached is not None:
            screen.print(f"budget: requested {asked:g}, achieved {reached:.6f}{unit} of {part.n_params:,} parameters")
        for words in (whole_model_words(part), formats_words(part)):
            if words:
                screen.print(words, soft_wrap=True, markup=False)
    for note in plan.notes:
        screen.print(f"note: {note}", style="dim", soft_wrap=True, markup=False)


def number(text: str, where: str) -> float:
    """A number of an option. `UsageError` for anything else."""
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is no number", where=where, fix="e.g. 0.3") from error


def write_json(document: Any) -> None:
    """JSON on stdout."""
    sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
