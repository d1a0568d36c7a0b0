"""What becomes of points when a run goes back to an earlier step: they are a run of their own."""

from __future__ import annotations

import json
import time

from tailwise.core.storage import json_of
from tailwise.history.point import Resumed
from tailwise.history.schema import ALARMS, LAYOUTS, POINTS, RUNS
from tailwise.history.sql import Connection, func, select, update
from tailwise.history.write import key_of


def put_resumed(connection: Connection, resumed: Resumed) -> str | None:
    """Move what is later than the step that a run goes on from to a run of its own; its name, None where nothing is.

    Audits stay: they are of checkpoints that are still there, or are written anew.
    """
    run = connection.execute(select(RUNS.c.id).where(RUNS.c.name == resumed.run)).scalar()
    if run is None:
        return None
    later = (POINTS.c.run_id == run) & (POINTS.c.step > resumed.step) & (POINTS.c.cadence != "audit")
    heads = connection.execute(select(POINTS.c.id, POINTS.c.layout_id, POINTS.c.step).where(later)).all()
    alarms = (ALARMS.c.run_id == run) & (ALARMS.c.step > resumed.step)
    if not heads and connection.execute(select(func.count()).select_from(ALARMS).where(alarms)).scalar() == 0:
        return None
    last = max((head.step for head in heads), default=resumed.step)
    name = _free_name(connection, f"{resumed.run}, left at step {last}")
    branch = key_of(connection.execute(RUNS.insert().values(name=name, created=time.time())))
    layouts = _copied(connection, {head.layout_id for head in heads}, branch)
    for old, new in layouts.items():
        moved = later & (POINTS.c.layout_id == old)
        connection.execute(update(POINTS).where(moved).values(run_id=branch, layout_id=new))
    _move_alarms(connection, run, branch, (resumed, name))
    return name


def _free_name(connection: Connection, wanted: str) -> str:
    names = set(connection.execute(select(RUNS.c.name)).scalars())
    return next(
        name for n in range(1, len(names) + 2) if (name := wanted if n == 1 else f"{wanted} ({n})") not in names
    )


def _copied(connection: Connection, ids: set[int], run: int) -> dict[int, int]:
    """Layouts belong to a run: the same ones for another."""
    copied = {}
    for row in connection.execute(select(LAYOUTS).where(LAYOUTS.c.id.in_(sorted(ids)))).all():
        made = connection.execute(LAYOUTS.insert().values(run_id=run, digest=row.digest, layers=row.layers))
        copied[row.id] = key_of(made)
    return copied


def _move_alarms(connection: Connection, run: int, branch: int, told: tuple[Resumed, str]) -> None:
    resumed, name = told
    for row in connection.execute(select(ALARMS).where(ALARMS.c.run_id == run)).all():
        if row.step > resumed.step:
            body = json.dumps(json_of(row.body) | {"run": name}, ensure_ascii=False)
            connection.execute(update(ALARMS).where(ALARMS.c.id == row.id).values(run_id=branch, body=body))
        elif row.last_step > resumed.step:
            connection.execute(update(ALARMS).where(ALARMS.c.id == row.id).values(last_step=resumed.step))
