"""What is let go of when a history grows: points that no rule of retention keeps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tailwise.core.errors import UsageError
from tailwise.history.read import has_layers, known_run
from tailwise.history.schema import ALARMS, AUDITS, LAYOUTS, POINTS, RUNS, VECTORS
from tailwise.history.sql import Connection, Engine, case, delete, select

_CHUNK = 500  # ids in one statement


@dataclass(frozen=True)
class Retention:
    """What is kept. A point goes where it is old enough and neither of the other two keeps it.

    The first step of a run, and steps at which an alarm was noticed, are always kept.
    """

    keep_every: int | None = None  # steps that this divides
    keep_last: int | None = None  # the newest points of each cadence, and of those that note numbers alone
    older_than: float | None = None  # days; younger points are kept

    def __post_init__(self) -> None:
        if self.keep_every is None and self.keep_last is None and self.older_than is None:
            raise UsageError("nothing says what to keep", fix="give keep_every, keep_last or older_than")
        if self.keep_every is not None and self.keep_every < 1:
            raise UsageError(f"keep_every is {self.keep_every}", fix="give one or more")
        for name in ("keep_last", "older_than"):
            if (getattr(self, name) or 0) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}", fix="give zero or more")


def prune(connection: Connection, run: str | None, retention: Retention, *, dry: bool) -> int:
    """Remove what goes, of a run or of all, and say how many points and audits that is; with `dry`, only say it."""
    runs = [known_run(connection, run)] if run is not None else list(connection.execute(select(RUNS.c.id)).scalars())
    going = [point for owner in runs for point in _going(connection, owner, retention)]
    if not dry:
        _remove(connection, going)
        _unused_layouts(connection, runs)
    return len(going)


def _going(connection: Connection, run: int, retention: Retention) -> list[int]:
    kind = case((has_layers(), POINTS.c.cadence), else_="noted")  # numbers of the whole model displace no measurement
    query = select(POINTS.c.id, POINTS.c.step, kind.label("cadence"), POINTS.c.time).where(POINTS.c.run_id == run)
    heads = connection.execute(query.order_by(POINTS.c.step.desc())).all()
    written = _written(connection) if retention.older_than is not None else {}
    kept_steps = _steps_of_alarms(connection, run) | {head.step for head in heads[-1:]}
    before = time.time() - 86400 * (retention.older_than or 0.0)
    seen: dict[str, int] = {}
    going = []
    for head in heads:
        seen[head.cadence] = seen.get(head.cadence, 0) + 1
        every = retention.keep_every is not None and head.step % retention.keep_every == 0
        last = seen[head.cadence] <= (retention.keep_last or 0)
        young = retention.older_than is not None and written[head.id] > before
        if not (every or last or young or head.step in kept_steps):
            going.append(head.id)
    return going


def _written(connection: Connection) -> dict[int, float]:
    """When each point was written, as far as that is known: not before those that were there already.

    A clock may go back for a while, and then points of the last minutes say that they are years old.
    """
    latest, now, times = -math.inf, time.time(), {}
    for row in connection.execute(select(POINTS.c.id, POINTS.c.time).order_by(POINTS.c.id)):
        if row.time <= now:  # one of the future says nothing of those after it
            latest = max(latest, row.time)
        times[row.id] = max(latest, row.time)
    return times


def _steps_of_alarms(connection: Connection, run: int) -> set[int]:
    rows = connection.execute(select(ALARMS.c.step, ALARMS.c.last_step).where(ALARMS.c.run_id == run))
    return {step for row in rows for step in row}


def delete_run(connection: Connection, run: str) -> int:
    """Remove a run with all that belongs to it, and say how many points and audits that is."""
    owner = known_run(connection, run)
    ids = list(connection.execute(select(POINTS.c.id).where(POINTS.c.run_id == owner)).scalars())
    _remove(connection, ids)
    for table in (LAYOUTS, ALARMS):
        connection.execute(delete(table).where(table.c.run_id == owner))
    connection.execute(delete(RUNS).where(RUNS.c.id == owner))
    return len(ids)


def _remove(connection: Connection, ids: Sequence[int]) -> None:
    for start in range(0, len(ids), _CHUNK):
        chunk = ids[start : start + _CHUNK]
        for table in (VECTORS, AUDITS):
            connection.execute(delete(table).where(table.c.point_id.in_(chunk)))
        connection.execute(delete(POINTS).where(POINTS.c.id.in_(chunk)))


def _unused_layouts(connection: Connection, runs: Iterable[int]) -> None:
    for run in runs:
        used = select(POINTS.c.layout_id).where(POINTS.c.run_id == run)
        connection.execute(delete(LAYOUTS).where(LAYOUTS.c.run_id == run, LAYOUTS.c.id.not_in(used)))


def compact(engine: Engine) -> None:
    """Give the space of what was removed back to the disk. PostgreSQL does so on its own account."""
    if engine.dialect.name != "sqlite":
        return
    raw = engine.raw_connection()
    try:
        cursor = raw.cursor()
        cursor.execute("PRAGMA incremental_vacuum")
        cursor.fetchall()  # each row is a page; it stops where nobody asks
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        cursor.close()
    finally:
        raw.close()
