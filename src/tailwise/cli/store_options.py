"""Options of the commands that work with a store or with a run's checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from tailwise.audits.audit import Audit
    from tailwise.history.read import Steps
    from tailwise.history.runs.sink import CheckpointOutcome
    from tailwise.history.store import History

Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="WHERE",
        envvar="TAILWISE_STORE",
        help="The history: a file, or postgresql://user@host/database; or set TAILWISE_STORE.",
        rich_help_panel="Where",
    ),
]
Run = Annotated[
    str | None,
    typer.Option("--run", metavar="NAME", help="Of the run in the store; its folder's by default.",
                 rich_help_panel="Where"),
]  # fmt: skip
Revisions = Annotated[
    str | None,
    typer.Option(
        metavar="A,B",
        help="Of a model on the Hub: only these; all branches and tags named after a step by default.",
        rich_help_panel="Where",
    ),
]


def open_store(where: str | None, *, create: bool = False) -> History:
    """The store that an option names. Raises `UsageError` where none was given."""
    from tailwise.history.store import History

    if not where:
        raise UsageError("no store was given", fix="give --store history.db, or set TAILWISE_STORE")
    return History(where, create=create)


def only_run(history: History, name: str | None) -> str:
    """The run of that name; where none is given, the only one there is."""
    names = [run.name for run in history.runs()]
    if name is not None:
        return name
    if len(names) == 1:
        return names[0]
    if not names:
        raise UsageError("the store is empty", where=history.where)
    shown = ", ".join(names[:12]) + (" …" if len(names) > 12 else "")
    raise UsageError("the store has several runs", where=history.where, fix=f"give --run with one of {shown}")


def steps_of(text: str | None) -> Steps | None:
    """`"100:500"`, `"100:"`, `":500"` or `"100"` → first and last."""
    if text is None:
        return None
    first, colon, last = text.partition(":")
    try:
        steps = (int(first) if first.strip() else None, int(last) if last.strip() else None)
    except ValueError as error:
        raise UsageError(f"{text!r} is no range of steps", fix="write it as 100:500, 100:, :500 or 100") from error
    low, high = steps if colon else (steps[0], steps[0])
    if low is not None and high is not None and low > high:
        raise UsageError(f"{text!r} ends before it begins", fix=f"write it as {high}:{low}")
    return low, high


class OutcomeLines:
    """What became of each checkpoint of a run, on a screen, in the order of their steps."""

    def __init__(self, screen: Console) -> None:
        from tailwise.history.over_steps import RunVerdicts

        self._screen, self._verdicts = screen, RunVerdicts()

    def say(self, outcome: CheckpointOutcome) -> bool:
        """A line, and another where its weights are not healthy or those of the last one; whether all is well."""
        head = f"step {outcome.found.step}"
        if outcome.known:
            self._print(f"{head}  known")
            return True
        if outcome.audit is not None:
            self._print(f"{head}  {_measured(outcome.audit)}" + (f", {outcome.path}" if outcome.path else ""))
            self._judge(outcome.found.step, outcome.audit)
        if outcome.trouble:
            self._print(f"{head}  {outcome.trouble}", "red")
        return not outcome.trouble

    def conclude(self) -> None:
        """What all of them say of the run, where they are several."""
        found = self._verdicts.found
        if len(found.checkpoints) > 1:
            self._print(found.conclusion, "yellow" if any(one.odd for one in found.checkpoints) else "")

    def _judge(self, step: int, audit: Audit) -> None:
        from tailwise.history.over_steps import place_of

        health = (one := self._verdicts.take(place_of(step), audit)).health
        for line in one.lines:
            self._print(f"  {line}", "red" if line == health.line and health.word == "unhealthy" else "yellow")

    def _print(self, line: str, style: str = "") -> None:
        self._screen.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def _measured(audit: Audit) -> str:
    alpha, provenance = audit.summary().get("alpha"), audit.provenance
    mean = "" if alpha is None else f", mean alpha {alpha:.2f}"
    return f"{len(audit)} matrices{mean}, {provenance.seconds:.1f} s, {provenance.reused} spectra reused"
