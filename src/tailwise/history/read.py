"""What is asked of a store: runs, points, alarms and audits. Series of numbers are in `series.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from tailwise.audits.checked import check_provenance, check_rows
from tailwise.audits.codec import row_of
from tailwise.audits.parquet import from_parquet
from tailwise.audits.rows import LayerRow, Provenance
from tailwise.core.errors import UsageError, unknown_name
from tailwise.core.harmless import shortened
from tailwise.core.shown import Brief
from tailwise.core.storage import json_of
from tailwise.history.jsonl import from_line, numbers_from
from tailwise.history.point import Alarm, Cadence, Point
from tailwise.history.schema import ALARMS, AUDITS, LAYOUTS, METRICS, POINTS, RUNS, SPOOLS, VECTORS
from tailwise.history.sql import ColumnElement, Connection, Row, func, select
from tailwise.history.vectors import NO_LAYERS, VectorLayout, unpacked

#: First and last step, both included; None for no bound.
Steps = tuple[int | None, int | None]
#: Points fetched at once while they are listed.
_BATCH = 64


@dataclass(frozen=True, repr=False)
class RunSummary(Brief):
    """A run at a glance."""

    name: str
    points: int  # written by a monitor
    audits: int
    alarms: int
    first_step: int | None
    last_step: int | None
    updated: float | None  # seconds since the epoch: of the newest point

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


@dataclass(frozen=True, repr=False)
class KeptAudit(Brief):
    """An audit in a store, without its rows."""

    run: str
    step: int
    time: float  # at which it was added
    path: str | None  # of the .audit file with the spectra, where one was written
    provenance: Provenance
    summary: Mapping[str, float]  # mean of every metric over the layers


@dataclass(frozen=True, repr=False)
class KeptAlarm(Brief):
    """An alarm in a store, and how often it was noticed."""

    alarm: Alarm
    times: int
    last_step: int


def runs(connection: Connection) -> list[RunSummary]:
    """Every run, the one written last first."""
    counted: dict[int, dict[str, list[Any]]] = {}
    query = select(
        POINTS.c.run_id, POINTS.c.cadence, func.count(), func.min(POINTS.c.step), func.max(POINTS.c.step),
        func.max(POINTS.c.time),
    ).group_by(POINTS.c.run_id, POINTS.c.cadence)  # fmt: skip
    for run, cadence, *numbers in connection.execute(query):
        counted.setdefault(run, {})[cadence] = numbers
    noticed = select(ALARMS.c.run_id, func.count()).group_by(ALARMS.c.run_id)
    alarms: dict[int, int] = {row[0]: row[1] for row in connection.execute(noticed)}
    summaries = [
        _summary(row, counted.get(row.id, {}), alarms.get(row.id, 0)) for row in connection.execute(select(RUNS))
    ]
    return sorted(summaries, key=lambda run: (-(run.updated or 0.0), run.name))


def _summary(row: Row[Any], counted: Mapping[str, list[Any]], alarms: int) -> RunSummary:
    of_audits = counted.get("audit", [0])[0]
    total = sum(numbers[0] for numbers in counted.values())
    first = min((numbers[1] for numbers in counted.values()), default=None)
    last = max((numbers[2] for numbers in counted.values()), default=None)
    updated = max((numbers[3] for numbers in counted.values()), default=None)
    return RunSummary(row.name, total - of_audits, of_audits, alarms, first, last, updated)


def known_run(connection: Connection, name: str) -> int:
    """The number of a run. Raises `UsageError` with near names for one that is not there."""
    run = connection.execute(select(RUNS.c.id).where(RUNS.c.name == name)).scalar()
    if run is not None:
        return int(run)
    names = list(connection.execute(select(RUNS.c.name)).scalars())
    if not names:
        raise UsageError(f"there is no run named {name!r}: the store is empty")
    raise unknown_name("run", name, names)


def in_steps(steps: Steps | None) -> list[ColumnElement[bool]]:
    """Conditions on the step of a point."""
    first, last = steps or (None, None)
    bounds: list[ColumnElement[bool]] = []
    if first is not None:
        bounds.append(POINTS.c.step >= first)
    if last is not None:
        bounds.append(POINTS.c.step <= last)
    return bounds


def has_layers() -> ColumnElement[bool]:
    """A condition on points: that something was measured, and not only a number of the whole model noted."""
    return POINTS.c.layout_id.in_(select(LAYOUTS.c.id).where(LAYOUTS.c.layers != NO_LAYERS))


def latest(connection: Connection, run: str, cadence: Cadence | None) -> Point | None:
    """The point of the highest step; one without layers only where there is no other."""
    wanted = [POINTS.c.cadence == cadence] if cadence else [POINTS.c.cadence != "audit"]
    mine = select(POINTS).where(POINTS.c.run_id == known_run(connection, run), *wanted)
    order = POINTS.c.step.desc(), POINTS.c.cadence.desc()
    for query in (mine.where(has_layers()), mine):
        if heads := connection.execute(query.order_by(*order).limit(1)).all():
            return point_of(connection, run, heads[0])
    return None


def points(
    connection: Connection, run: str, cadence: Cadence | None, steps: Steps | None, newest: int | None
) -> Iterator[Point]:
    """Points of a monitor in order of step, read a few at a time; of the `newest` alone if that is given."""
    wanted = [POINTS.c.cadence == cadence] if cadence else [POINTS.c.cadence != "audit"]
    query = select(POINTS).where(POINTS.c.run_id == known_run(connection, run), *wanted, *in_steps(steps))
    query = query.order_by(POINTS.c.step.desc(), POINTS.c.cadence.desc()).limit(newest)
    heads = connection.execute(query).all()[::-1]
    for start in range(0, len(heads), _BATCH):
        yield from _with_values(connection, run, heads[start : start + _BATCH])


def point_of(connection: Connection, run: str, head: Row[Any]) -> Point:
    """One point with its values."""
    return next(_with_values(connection, run, [head]))


def _with_values(connection: Connection, run: str, heads: list[Row[Any]] | Any) -> Iterator[Point]:
    vectors = vectors_of(connection, [head.id for head in heads])
    layouts = layouts_of(connection, {head.layout_id for head in heads})
    for head in heads:
        layers = unpacked(layouts[head.layout_id], vectors.get(head.id, {}))
        scalars, notes = numbers_from(json_of(head.scalars)), tuple(json_of(head.notes))
        yield Point(run, head.step, head.cadence, head.time, layers, scalars, notes)


def vectors_of(connection: Connection, ids: list[int]) -> dict[int, dict[str, bytes]]:
    """Point → metric → its vector."""
    names = metric_names(connection)
    vectors: dict[int, dict[str, bytes]] = {}
    query = select(VECTORS).where(VECTORS.c.point_id.in_(ids)).order_by(VECTORS.c.point_id, VECTORS.c.metric_id)
    for row in connection.execute(query):
        vectors.setdefault(row.point_id, {})[names[row.metric_id]] = row.data
    return vectors


def metric_names(connection: Connection) -> dict[int, str]:
    """Every metric that the store has seen, by number."""
    return {row.id: row.name for row in connection.execute(select(METRICS.c.id, METRICS.c.name))}


def layouts_of(connection: Connection, ids: set[int]) -> dict[int, VectorLayout]:
    """Layouts by number."""
    rows = connection.execute(select(LAYOUTS.c.id, LAYOUTS.c.layers).where(LAYOUTS.c.id.in_(sorted(ids))))
    return {row.id: VectorLayout.from_json(row.layers) for row in rows}


def audits(connection: Connection, run: str) -> list[KeptAudit]:
    """The audits of a run in order of step."""
    query = (
        select(POINTS.c.step, POINTS.c.time, POINTS.c.scalars, AUDITS.c.path, AUDITS.c.provenance)
        .join(AUDITS, AUDITS.c.point_id == POINTS.c.id)
        .where(POINTS.c.run_id == known_run(connection, run))
        .order_by(POINTS.c.step)
    )
    return [
        KeptAudit(run, row.step, row.time, row.path, _provenance(row.provenance),
                  numbers_from(json_of(row.scalars)))
        for row in connection.execute(query)
    ]  # fmt: skip


def _provenance(text: str) -> Provenance:
    body = json_of(text)
    check_provenance(body)
    return Provenance(**{**body, "notes": tuple(map(shortened, body["notes"]))})


def audit_rows(connection: Connection, run: str, step: int) -> list[LayerRow]:
    """The rows of an audit, as `Audit.rows` had them."""
    owner = known_run(connection, run)
    query = (
        select(POINTS.c.id, POINTS.c.layout_id, AUDITS.c.facts)
        .join(AUDITS, AUDITS.c.point_id == POINTS.c.id)
        .where(POINTS.c.run_id == owner, POINTS.c.step == step)
    )
    head = connection.execute(query).one_or_none()
    if head is None:
        raise UsageError(f"the run {run!r} has no audit of step {step}", fix=_near(connection, owner, step))
    values = unpacked(
        layouts_of(connection, {head.layout_id})[head.layout_id], vectors_of(connection, [head.id]).get(head.id, {})
    )
    names = dict.fromkeys(name for layer in values.values() for name in layer)
    table = from_parquet(head.facts)
    check_rows(table)
    lines = table.to_pylist()
    return [row_of({**line, **_all(names, values.get(line["name"], {}))}) for line in lines]


def _all(names: Mapping[str, None], values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: values.get(name) for name in names}


def _near(connection: Connection, run: int, step: int) -> str:
    query = select(POINTS.c.step).where(POINTS.c.run_id == run, POINTS.c.cadence == "audit")
    steps = list(connection.execute(query).scalars())
    if not steps:
        return "audit its checkpoints into the store: tailwise audit --all-checkpoints DIR --store …"
    near = sorted(sorted(steps, key=lambda other: abs(other - step))[:5])
    return f"audited steps nearby: {', '.join(map(str, near))}"


def alarms(connection: Connection, run: str | None) -> list[KeptAlarm]:
    """The alarms of a run, or of all, in the order in which they were noticed."""
    query = select(ALARMS.c.body, ALARMS.c.times, ALARMS.c.last_step, ALARMS.c.severity).order_by(
        ALARMS.c.step, ALARMS.c.id
    )
    if run is not None:
        query = query.where(ALARMS.c.run_id == known_run(connection, run))
    kept_alarms = []
    for row in connection.execute(query):
        alarm = from_line(row.body)
        assert isinstance(alarm, Alarm)  # noqa: S101
        kept_alarms.append(KeptAlarm(alarm, row.times, row.last_step))
    return kept_alarms


def metrics(connection: Connection, run: str) -> list[str]:
    """Names of the metrics that a run has."""
    mine = POINTS.c.run_id == known_run(connection, run)
    used = select(VECTORS.c.metric_id).join(POINTS, POINTS.c.id == VECTORS.c.point_id).where(mine)
    return list(
        connection.execute(select(METRICS.c.name).where(METRICS.c.id.in_(used)).order_by(METRICS.c.id)).scalars()
    )


def noted(connection: Connection, run: str, begins: str) -> str:
    """What the latest note of a run says that begins so; "" where there is none."""
    mine = (POINTS.c.run_id == known_run(connection, run)) & POINTS.c.notes.like(f"%{begins}%")
    text = connection.execute(select(POINTS.c.notes).where(mine).order_by(POINTS.c.step.desc())).scalar()
    notes = [note for note in json_of(text or "[]") if note.startswith(begins)]
    return str(notes[-1]).removeprefix(begins) if notes else ""


def spool_lines(connection: Connection, spool: str) -> int:
    """Lines of a spool that have been taken over."""
    return int(connection.execute(select(SPOOLS.c.lines).where(SPOOLS.c.id == spool)).scalar() or 0)
