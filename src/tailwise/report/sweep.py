"""A sweep in the terminal: how far it is, what it has cost, what went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.progress_bar import ProgressBar
from rich.table import Table as RichTable
from rich.text import Text

from tailwise.history.sweep.status import ModelUnderway, SweepStatus
from tailwise.report.columns import printable

if TYPE_CHECKING:
    from tailwise.history.sweep.forecast import Forecast

#: Lines of running models and of troubles on the dashboard.
_SHOWN = 6


def dashboard(status: SweepStatus, detail: str = "") -> RenderableType:
    """The state of a sweep in a few lines; `detail` is of the model under way here."""
    finished = status.done + status.failed
    table = RichTable(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row(Text(printable(status.sweep)), ProgressBar(total=max(status.total, 1), completed=finished, width=40))
    for title, text in _lines(status):
        table.add_row(title, text)
    parts: list[RenderableType] = [table]
    parts += [Text(f"  {_running(one)}", style="cyan") for one in status.running[:_SHOWN]]
    if len(status.running) > _SHOWN:
        parts.append(Text(f"  … and {len(status.running) - _SHOWN} more workers", style="cyan"))
    if detail:
        parts.append(Text(f"  {printable(detail)}", style="dim"))
    return Group(*parts)


def _lines(status: SweepStatus) -> Sequence[tuple[str, str]]:
    models = [f"{status.done + status.failed} of {status.total}"]
    models += [f"{status.failed} failed"] if status.failed else []
    models += [f"{status.claimed} under way"] if status.claimed else []
    share = f", {status.reused} of them known ({status.reused / status.matrices:.0%})" if status.reused else ""
    cost = f"{status.core_hours:.3g} core hours, ${status.dollars:.2f}"
    if status.dollars_left is not None and status.claimed + status.waiting:
        cost += f"; about ${status.dollars_left:.2f} to come"
    lines = [
        ("models", ", ".join(models)),
        ("matrices", f"{status.matrices}{share}; {decimal(status.bytes_read)} read"),
        ("cost", cost),
    ]
    if status.seconds_left:
        lines.append(("time left", f"about {duration(status.seconds_left)} with the workers of now"))
    return lines


def _running(one: ModelUnderway) -> str:
    late = "" if one.lease_left > 0 else ", its worker gives no sign"
    again = f", attempt {one.attempt}" if one.attempt > 1 else ""
    return f"{printable(one.model)}  ({one.owner.rpartition(':')[0]}{again}{late})"


def duration(seconds: float) -> str:
    """`90.0` → `1.5 min`."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def troubles(status: SweepStatus) -> RenderableType:
    """One line for each model that failed, and what to do."""
    lines: list[RenderableType] = []
    for one in status.troubles:
        lines.append(Text(printable(f"{one.model}: {one.status.upper()}: {one.reason}"), style="red"))
        if one.remedy:
            lines.append(Text(f"  → {printable(one.remedy)}"))
    unread = status.failed - sum(one.status == "failed" for one in status.troubles)
    if unread > 0:
        lines.append(Text(f"… and {unread} more; models.parquet has all"))
    return Group(*lines)


def forecast_lines(forecast: Forecast) -> Sequence[tuple[str, str]]:
    """What a sweep would cost, as titles and texts."""
    cost = forecast.cost
    looked = (
        "" if forecast.sampled == forecast.models else f", from the headers of {forecast.sampled} at even distances"
    )
    spread = f" (± {forecast.spread:.0%})" if forecast.spread else ""
    known = f", {cost.known} of them known or shared" if cost.known else ""
    unreadable = (
        [("not read", f"{len(forecast.unreadable)} of the {forecast.sampled} looked at:")]
        if forecast.unreadable
        else []
    )
    return [
        ("models", f"{forecast.models}{looked}"),
        *unreadable,
        *(("", printable(f"{model}: {reason}")) for model, reason in forecast.unreadable[:_SHOWN]),
        ("matrices", f"{cost.matrices}{known}"),
        ("work", f"{cost.flops:.2e} operations (n·m² + 4/3·m³ a matrix)"),
        ("read", decimal(cost.bytes)),
        ("processor", f"{duration(cost.core_seconds)} of one core{spread}"),
        ("time", f"{duration(cost.wall_seconds)} with {forecast.workers} workers here, if reading keeps up"),
        ("memory", f"{decimal(forecast.memory)} above the interpreter's own, for the largest"),
        ("results", f"about {decimal(cost.kept_bytes)}"),
        ("dollars", f"{forecast.dollars:.2f}{spread}"),
    ]


def outcome_line(outcome: Any) -> Text:
    """One line on a model that is finished."""
    model, reason, remedy = map(printable, (outcome.model, outcome.reason, outcome.remedy))
    if outcome.became == "done":
        measured = outcome.facts
        alpha = measured["values"].get("mean_alpha")
        mean = "" if alpha is None else f", mean alpha {alpha:.2f}"
        said = (
            f"{model}: {measured['matrices']} matrices{mean}, {measured['seconds']:.1f} s, {measured['reused']} known"
        )
        return Text(f"{said}; {reason}" if reason else said, style="yellow" if reason else "")
    said = {"failed": "FAILED", "waiting": "to be tried again", "lost": "another worker has it"}[outcome.became]
    text = f"{model}: {said}" + (f": {reason}" if reason else "")
    return Text(text + (f"\n  → {remedy}" if remedy else ""), style="red" if said == "FAILED" else "yellow")
