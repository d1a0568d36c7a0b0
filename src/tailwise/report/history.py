"""Histories of runs in the terminal and as files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Group, RenderableType
from rich.text import Text

from tailwise.audits.codec import to_parquet
from tailwise.audits.table import Table
from tailwise.core.atomic import write_whole
from tailwise.core.errors import UsageError
from tailwise.history.read import KeptAlarm, KeptAudit, RunSummary
from tailwise.report.grid import Grid, cut_words, moment
from tailwise.report.output_files import to_csv

_MOST_COLUMNS = 8
#: Scalars that people look for first; the others follow in their own order.
_FIRST = ("loss", "val_loss", "lr", "alpha", "alpha_hill", "stable_rank", "log_norm")


@dataclass(frozen=True)
class RunView:
    """What is shown of a run."""

    name: str
    points: pa.Table  # step, cadence, time, scalars
    audits: Sequence[KeptAudit]
    alarms: Sequence[KeptAlarm]
    metrics: Sequence[str]
    no_alarm: str  # what it means that there is none
    optimizer: str = ""  # that trains it, where that is known


def runs_view(runs: Sequence[RunSummary]) -> RenderableType:
    """A line a run."""
    if not runs:
        return Text("no runs yet")
    lines = []
    for run in runs:
        steps = "–" if run.first_step is None else f"{run.first_step} … {run.last_step}"
        numbers = (steps, str(run.points), str(run.audits), str(run.alarms), moment(run.updated))
        lines.append((run.name, *numbers))
    return Grid(("run", "steps", "points", "audits", "alarms", "written"), lines)


def run_view(run: RunView, rows: int) -> RenderableType:
    """A run: points with their scalars, audits, alarms, and what can be asked of it."""
    head = run.name + (f", trained by {run.optimizer}" if run.optimizer else "")
    parts: list[RenderableType] = [Text(head, style="bold"), "", table_view(_for_people(run.points), rows)]
    if run.audits:
        files = sum(one.path is not None for one in run.audits)
        parts.append(Text(f"{len(run.audits)} audits, of which {files} have a file with their spectra"))
    parts += [
        "",
        alarms_view(run.alarms, rows, run.no_alarm),
        "",
        Text(f"metrics: {', '.join(run.metrics) or 'none'}", style="dim"),
    ]
    return Group(*parts)


def _for_people(points: pa.Table) -> pa.Table:
    times = pa.array([moment(time) for time in points["time"].to_pylist()], pa.string())
    scalars = [name for name in points.column_names if name not in ("step", "cadence", "time")]
    ordered = sorted(scalars, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    shown = ordered[: _MOST_COLUMNS - 1]
    return pa.table({"step": points["step"], "cadence": points["cadence"], "written": times,
                     **{name: points[name] for name in shown}})  # fmt: skip


def alarms_view(alarms: Sequence[KeptAlarm], rows: int, none: str = "no alarms") -> RenderableType:
    """A line an alarm, the last ones; `none` where there is none."""
    if not alarms:
        return Text(none)
    heads, lines = ("rule", "severity", "alarm", "layers", "step", "since", "times", "last step"), []
    shown = alarms[-rows:] if rows else alarms
    for kept in shown:
        alarm = kept.alarm
        layers = ", ".join(alarm.layers[:3]) + (f" and {len(alarm.layers) - 3} more" if len(alarm.layers) > 3 else "")
        words = (alarm.rule, alarm.severity, alarm.title, layers or "the whole model")
        since = "–" if alarm.since is None else str(alarm.since)
        lines.append((*words, str(alarm.step), since, str(kept.times), str(kept.last_step)))
    return Grid(heads, lines, below=cut_words(len(alarms) - len(shown), "before"), words=range(4), wrapping=(2,))


def table_view(table: pa.Table, rows: int) -> RenderableType:
    """The last lines of a table."""
    if table.num_rows == 0:
        return Text("nothing there")
    shown = table.slice(max(0, table.num_rows - rows)) if rows else table
    words = [index for index, field in enumerate(table.schema) if not _is_number(field.type)]
    lines = [[_cell(value) for value in line.values()] for line in shown.to_pylist()]
    below = cut_words(table.num_rows - shown.num_rows, "before")
    return Grid(tuple(table.column_names), lines, below=below, words=words)


def medians(table: pa.Table, metrics: Sequence[str]) -> pa.Table:
    """Series of layers → the median of every role at every step."""
    plain = pa.table({"step": table["step"], **{name: table[name].cast(pa.string()) for name in ("cadence", "role")},
                      **{name: table[name] for name in metrics}})  # fmt: skip
    keys = ["step", "cadence", "role"]
    grouped = plain.group_by(keys, use_threads=False).aggregate([(name, "list") for name in metrics])
    columns = {name: pa.array([_median(values) for values in grouped[f"{name}_list"].to_pylist()], pa.float64())
               for name in metrics}  # fmt: skip
    joined = pa.table({**{key: grouped[key] for key in keys}, **columns})
    return joined.take(pc.sort_indices(joined, [(key, "ascending") for key in keys]))


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return float(np.median(known)) if known else None


def plain(table: pa.Table) -> list[dict[str, Any]]:
    """Lines of plain JSON: null for what is no number."""
    return [{name: _finite(value) for name, value in line.items()} for line in table.to_pylist()]


def alarm_line(item: KeptAlarm) -> dict[str, Any]:
    """An alarm as plain JSON."""
    return {**item.alarm.to_json(), "times": item.times, "last_step": item.last_step}


def audit_line(stored: KeptAudit) -> dict[str, Any]:
    """An audit as plain JSON."""
    provenance = stored.provenance
    return {"step": stored.step, "time": stored.time, "model": provenance.model, "revision": provenance.revision,
            "path": stored.path, "fingerprint": provenance.fingerprint,
            "summary": {k: _finite(v) for k, v in stored.summary.items()}}  # fmt: skip


def write_table(table: pa.Table, path: str) -> Path | str:
    """Write a table as what the suffix says."""
    suffix = Path(path).suffix.lower()
    if suffix == ".csv":
        return write_whole(path, to_csv(Table(table)).encode())
    if suffix == ".json":
        return write_whole(path, json.dumps(plain(table), indent=1, ensure_ascii=False, allow_nan=False).encode())
    if suffix == ".parquet":
        return write_whole(path, to_parquet(table))
    raise UsageError(f"the suffix {suffix!r} is not known", where=path, fix="use .csv, .json or .parquet")


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
