"""What goes into a store, within one writing transaction."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from tailwise.audits.audit import Audit
from tailwise.audits.codec import to_parquet
from tailwise.audits.table import FACTS, ORIGIN
from tailwise.core.errors import unknown_name
from tailwise.core.recipe import digest_of
from tailwise.core.storage import json_of
from tailwise.history.jsonl import alarm_line, numbers_to, united
from tailwise.history.point import Alarm, Point
from tailwise.history.read import point_of
from tailwise.history.schema import ALARMS, AUDITS, LAYOUTS, METRICS, POINTS, RUNS, SPOOLS, VECTORS
from tailwise.history.sql import Connection, Row, delete, select, update
from tailwise.history.vectors import Values, VectorLayout, VectorPlace, packed

#: What became of a point: not known before, united with what was there, one that changed numbers there, or known.
Added = Literal["new", "merged", "changed", "same"]
_SEVERITIES = ("note", "warning", "error")


@dataclass(frozen=True)
class _Head:
    """A point or an audit without its values."""

    step: int
    cadence: str
    time: float
    scalars: Mapping[str, float]
    notes: Sequence[str]


def put_point(connection: Connection, point: Point) -> Added:
    """Add a point. Where the run has one of that step and cadence, layers and scalars are united; the later counts.

    So ranks that each measure a share of the layers give one point, and a point written twice is kept once.
    """
    if point.cadence not in ("cheap", "full"):
        raise unknown_name("cadence", point.cadence, ("cheap", "full"))
    run = run_id(connection, point.run)
    there = connection.execute(
        select(POINTS).where(POINTS.c.run_id == run, POINTS.c.step == point.step, POINTS.c.cadence == point.cadence)
    ).one_or_none()
    became: Added = "new"
    if there is not None:
        known = point_of(connection, point.run, there)
        point, became = _united(known, point)
        if became == "same":
            return became
        _forget(connection, there)
    head = _Head(point.step, point.cadence, point.time, point.scalars, point.notes)
    _insert(connection, run, head, VectorLayout.of_names(point.layers), point.layers)
    return became


def _united(known: Point, added: Point) -> tuple[Point, Added]:
    both = united(known, added)
    # As text: NaN is then equal to itself.
    if _text_of(both) == _text_of(known):
        return both, "same"
    same = all(
        repr(both.layers[name][metric]) == repr(value)
        for name, values in known.layers.items()
        for metric, value in values.items()
    ) and all(repr(both.scalars[name]) == repr(value) for name, value in known.scalars.items())
    return both, "merged" if same else "changed"


def _text_of(point: Point) -> str:
    layers = {name: sorted(values.items()) for name, values in point.layers.items()}
    return repr([sorted(layers.items()), sorted(point.scalars.items()), point.notes])


def put_audit(connection: Connection, audit: Audit, run: str, step: int, path: str | None) -> None:
    """Add an audit; one of that step that is there already is replaced."""
    owner = run_id(connection, run)
    there = connection.execute(
        select(POINTS).where(POINTS.c.run_id == owner, POINTS.c.step == step, POINTS.c.cadence == "audit")
    ).one_or_none()
    if there is not None:
        _forget(connection, there)
    rows = [row for row in audit.rows if row.measured]
    layout = VectorLayout(tuple(VectorPlace(row.name, row.role, row.block) for row in rows))
    values = {row.name: {key: value for key, value in row.metrics.items() if value is not None} for row in rows}
    summary = {name: value for name, value in audit.summary().items() if value is not None}
    head = _Head(step, "audit", time.time(), summary, audit.provenance.notes)
    point = _insert(connection, owner, head, layout, values)
    connection.execute(AUDITS.insert().values(
        point_id=point, path=path, provenance=json.dumps(audit.provenance.to_json(), ensure_ascii=False),
        facts=to_parquet(_facts(audit)),
    ))  # fmt: skip


def _facts(audit: Audit) -> pa.Table:
    return audit.table(unmeasured=True).arrow.select([*FACTS, *ORIGIN])


def put_alarm(connection: Connection, alarm: Alarm) -> bool:
    """Add an alarm, or count that it was noticed again; whether it is new. Severity only rises."""
    if alarm.severity not in _SEVERITIES:
        raise unknown_name("severity", alarm.severity, _SEVERITIES)
    run, key = run_id(connection, alarm.run), digest_of([alarm.rule, list(alarm.key[2])])
    mine = (ALARMS.c.run_id == run) & (ALARMS.c.key == key)
    there = connection.execute(select(ALARMS).where(mine)).one_or_none()
    if there is None:
        connection.execute(ALARMS.insert().values(
            run_id=run, key=key, step=alarm.step, severity=alarm.severity, body=alarm_line(alarm), times=1,
            last_step=alarm.step,
        ))  # fmt: skip
        return True
    again: dict[str, Any] = {}
    if alarm.step > there.last_step:
        again |= {"times": there.times + 1, "last_step": alarm.step}
    if _SEVERITIES.index(alarm.severity) > _SEVERITIES.index(there.severity):
        again |= {"severity": alarm.severity, "body": json.dumps(json_of(there.body) | {"severity": alarm.severity})}
    if again:
        connection.execute(update(ALARMS).where(mine).values(**again))
    return False


def note_spool(connection: Connection, spool: str, lines: int) -> None:
    """Note how far a spool has been taken over."""
    mine = SPOOLS.c.id == spool
    if connection.execute(update(SPOOLS).where(mine).values(lines=lines)).rowcount == 0:
        connection.execute(SPOOLS.insert().values(id=spool, lines=lines))


def forget_spool(connection: Connection, spool: str) -> None:
    """Forget a spool whose file is gone."""
    connection.execute(delete(SPOOLS).where(SPOOLS.c.id == spool))


def run_id(connection: Connection, name: str) -> int:
    """The run's number; a run that is not known is made."""
    run = connection.execute(select(RUNS.c.id).where(RUNS.c.name == name)).scalar()
    if run is not None:
        return int(run)
    made = connection.execute(RUNS.insert().values(name=name, created=time.time()))
    return key_of(made)


def key_of(result: Any) -> int:
    """The number of a row that was inserted."""
    return int(result.inserted_primary_key[0])


def _insert(connection: Connection, run: int, head: _Head, layout: VectorLayout, values: Values) -> int:
    made = connection.execute(POINTS.insert().values(
        run_id=run, step=head.step, cadence=head.cadence, time=head.time,
        layout_id=_layout_id(connection, run, layout), scalars=json.dumps(numbers_to(head.scalars)),
        notes=json.dumps(list(head.notes), ensure_ascii=False),
    ))  # fmt: skip
    point = key_of(made)
    vectors = packed([item.name for item in layout.places], values)
    ids = _metric_ids(connection, vectors)
    lines = [{"point_id": point, "metric_id": ids[metric], "data": data} for metric, data in vectors.items()]
    if lines:
        connection.execute(VECTORS.insert(), lines)
    return point


def _layout_id(connection: Connection, run: int, layout: VectorLayout) -> int:
    digest = layout.digest
    mine = select(LAYOUTS.c.id).where(LAYOUTS.c.run_id == run, LAYOUTS.c.digest == digest)
    known = connection.execute(mine).scalar()
    if known is not None:
        return int(known)
    return key_of(connection.execute(LAYOUTS.insert().values(run_id=run, digest=digest, layers=layout.to_json())))


def _metric_ids(connection: Connection, names: Mapping[str, Any]) -> dict[str, int]:
    known = {row.name: int(row.id) for row in connection.execute(select(METRICS))}
    for name in names:
        if name not in known:
            known[name] = key_of(connection.execute(METRICS.insert().values(name=name)))
    return known


def _forget(connection: Connection, point: Row[Any]) -> None:
    for table in (VECTORS, AUDITS):
        connection.execute(delete(table).where(table.c.point_id == point.id))
    connection.execute(delete(POINTS).where(POINTS.c.id == point.id))
