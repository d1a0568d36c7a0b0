"""Who audits what: the models of sweeps in a database that any number of workers share.

A worker claims a model for as long as its lease runs and extends the lease while it works. A worker that is killed
extends nothing, and its model is claimed by another. What a worker says of a claim that it has lost is not taken, so
that every model is finished once.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from tailwise.core.errors import UsageError
from tailwise.core.storage import json_of
from tailwise.history.connect import connect, is_url, reading, shown, store_errors, writing
from tailwise.history.sql import ColumnElement, Connection, Engine, Row, func, select, text, update
from tailwise.history.sweep.sql_tables import MODELS, SWEEPS, bring_up_to_date

Status = Literal["waiting", "claimed", "done", "failed"]
#: Attempts at a model whose workers die or whose store does not answer.
MAX_ATTEMPTS = 3
_FARTHEST = 2 * 86_400.0  # seconds from now to the end of a lease
#: Facts that have columns of their own.
SUMMED = ("matrices", "reused", "bytes_read", "seconds", "core_seconds")
_DIED = (
    f"{MAX_ATTEMPTS} workers ended while they audited it",
    "most likely memory ran out: see tailwise audit --dry-run, use fewer --workers, then tailwise sweep --retry",
)


@dataclass(frozen=True)
class ClaimedModel:
    """A model that a worker has for itself while the lease runs."""

    id: int
    sweep: str
    model: str
    owner: str
    attempt: int


@dataclass(frozen=True)
class SweptModel:
    """A model of a sweep and what became of it."""

    model: str
    status: Status
    attempts: int
    owner: str
    until: float
    reason: str
    remedy: str
    facts: Mapping[str, Any]


class Catalogue:
    """Models of sweeps and their states, in an SQLite file or in PostgreSQL; it may lie beside a history."""

    def __init__(self, where: str | os.PathLike[str], *, create: bool = True, patience: float = 30.0) -> None:
        """Open, and make the tables; see `History` for `where`, `create` and what is raised."""
        self.where = shown(where) if is_url(os.fspath(where)) else str(Path(where).expanduser())
        self._engine = connect(where, create=create, patience=patience)
        try:
            bring_up_to_date(self._engine, self.where)
        except BaseException:
            self._engine.dispose()
            raise

    def close(self) -> None:
        """Let go of every connection."""
        self._engine.dispose()

    def __enter__(self) -> Catalogue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # What there is to do

    def enroll(self, sweep: str, output: str, question: Mapping[str, Any], models: Sequence[str]) -> int:
        """Add the models that the sweep does not have yet; how many those are.

        Raises `UsageError` where the sweep has another output folder, or asks other questions of its models.
        """
        asked = json.dumps(question, sort_keys=True)
        with writing(self._engine, self.where) as connection:
            known = connection.execute(select(SWEEPS).where(SWEEPS.c.name == sweep)).one_or_none()
            if known is None:
                _refuse_taken(connection, sweep, output, self.where)
                values = {"name": sweep, "output": output, "question": asked, "created": _now(connection)}
                connection.execute(SWEEPS.insert().values(**values))
                known = connection.execute(select(SWEEPS).where(SWEEPS.c.name == sweep)).one()
            _same_question(known, output, asked, self.where)
            there = set(connection.scalars(select(MODELS.c.model).where(MODELS.c.sweep_id == known.id)))
            place = len(there)
            new = [model for model in dict.fromkeys(models) if model not in there]
            rows = [_new_row(known.id, place + index, model) for index, model in enumerate(new)]
            if rows:
                connection.execute(MODELS.insert(), rows)
        return len(new)

    def claim(self, sweep: str, owner: str, lease: float) -> ClaimedModel | None:
        """The next model for `owner`, for `lease` seconds; None where none is to be had now."""
        while True:
            with beside(self._engine, self.where) as connection:
                claim, dead = self._claim(connection, sweep, owner, lease)
            if not dead:
                return claim

    def _claim(self, connection: Connection, sweep: str, owner: str, lease: float) -> tuple[ClaimedModel | None, bool]:
        now = _now(connection)
        row = None
        for status in ("claimed", "waiting"):  # what a dead worker left comes first: it is the oldest
            chosen = select(MODELS).where(_of(sweep), MODELS.c.status == status, _is_over(now, lease))
            # Rows that another worker is just taking are passed over, not waited for. SQLite's writers take turns.
            chosen = chosen.order_by(MODELS.c.place).limit(1).with_for_update(skip_locked=True)
            row = connection.execute(chosen).one_or_none()
            if row is not None:
                break
        if row is None:
            return None, False
        if row.status == "claimed" and row.attempts >= MAX_ATTEMPTS:
            _set(connection, MODELS.c.id == row.id, status="failed", reason=_DIED[0], remedy=_DIED[1], finished=now)
            return None, True
        attempt = row.attempts + 1
        _set(connection, MODELS.c.id == row.id, status="claimed", owner=owner, attempts=attempt, until=now + lease)
        return ClaimedModel(row.id, sweep, row.model, owner, attempt), False

    def extend(self, claim: ClaimedModel, lease: float) -> bool:
        """Let the lease run for `lease` seconds from now; False where the claim is lost."""
        with beside(self._engine, self.where) as connection:
            return _set(connection, _held(claim), until=_now(connection) + lease)

    # What became of it

    def finish(self, claim: ClaimedModel, measured: Mapping[str, Any], *, reason: str = "", remedy: str = "") -> bool:
        """The model is audited; False where the claim is lost, and another's word counts."""
        with beside(self._engine, self.where) as connection:
            values: dict[str, Any] = {"reason": reason, "remedy": remedy, "finished": _now(connection)}
            values |= {"facts": json.dumps(measured)} | {name: measured[name] for name in SUMMED}
            return _set(connection, _held(claim), status="done", **values)

    def fail(self, claim: ClaimedModel, reason: str, remedy: str, *, again_in: float | None = None) -> Status | None:
        """The model could not be audited; with `again_in` seconds it waits once more, up to `MAX_ATTEMPTS`.

        Its status now, or None where the claim is lost.
        """
        again = again_in is not None and claim.attempt < MAX_ATTEMPTS
        with beside(self._engine, self.where) as connection:
            now = _now(connection)
            values: dict[str, Any] = {"reason": reason, "remedy": remedy}
            values |= {"until": now + (again_in or 0.0)} if again else {"finished": now}
            status: Status = "waiting" if again else "failed"
            return status if _set(connection, _held(claim), status=status, **values) else None

    def release(self, claim: ClaimedModel) -> None:
        """Give a claim back as it was, where its worker is interrupted."""
        with beside(self._engine, self.where) as connection:
            _set(connection, _held(claim), status="waiting", owner="", attempts=claim.attempt - 1, until=0.0)

    def retry(self, sweep: str) -> int:
        """Let the failed models wait again, and those of which matrices could not be read; how many those are."""
        with writing(self._engine, self.where) as connection:
            again = _of(sweep) & _troubled()
            values = {"status": "waiting", "attempts": 0, "until": 0.0, "owner": ""}
            return connection.execute(update(MODELS).where(again).values(**values)).rowcount

    # Looking

    def sweeps(self) -> list[str]:
        """Names, in the order they were begun."""
        with reading(self._engine, self.where) as connection:
            return list(connection.scalars(select(SWEEPS.c.name).order_by(SWEEPS.c.id)))

    def output(self, sweep: str) -> str:
        """Where the results of a sweep go. Raises `UsageError` where there is no such sweep."""
        with reading(self._engine, self.where) as connection:
            output = connection.execute(select(SWEEPS.c.output).where(SWEEPS.c.name == sweep)).scalar()
        if output is None:
            known = ", ".join(self.sweeps()) or "none"
            raise UsageError(f"there is no sweep named {sweep!r}", where=self.where, fix=f"known: {known}")
        return str(output)

    def counts(self, sweep: str) -> dict[str, int]:
        """Status → number of models."""
        with reading(self._engine, self.where) as connection:
            asked = select(MODELS.c.status, func.count()).where(_of(sweep)).group_by(MODELS.c.status)
            counts = {row[0]: int(row[1]) for row in connection.execute(asked)}
        return {status: counts.get(status, 0) for status in ("waiting", "claimed", "done", "failed")}

    def totals(self, sweep: str) -> dict[str, float]:
        """Sums of `SUMMED` over the models that are done."""
        asked = select(*(func.coalesce(func.sum(MODELS.c[name]), 0).label(name) for name in SUMMED))
        with reading(self._engine, self.where) as connection:
            row = connection.execute(asked.where(_of(sweep), MODELS.c.status == "done")).one()
        return {name: float(value) for name, value in row._mapping.items()}

    def entries(self, sweep: str, *, status: Status | None = None) -> Iterator[SweptModel]:
        """Every model in order, read as they are asked for."""
        return self._entries(_of(sweep) if status is None else _of(sweep) & (MODELS.c.status == status))

    def troubles(self, sweep: str) -> Iterator[SweptModel]:
        """The models that failed, and those of which matrices could not be read."""
        return self._entries(_of(sweep) & _troubled())

    def _entries(self, which: ColumnElement[bool]) -> Iterator[SweptModel]:
        asked = select(MODELS).where(which).order_by(MODELS.c.place)
        with reading(self._engine, self.where) as connection:
            for row in connection.execution_options(yield_per=500).execute(asked):
                yield SweptModel(
                    row.model, row.status, row.attempts, row.owner, row.until, row.reason, row.remedy,
                    json_of(row.facts),
                )  # fmt: skip

    def now(self) -> float:
        """Seconds since the epoch, by the clock that leases run by."""
        with reading(self._engine, self.where) as connection:
            return _now(connection)


@contextmanager
def beside(engine: Engine, where: str) -> Iterator[Connection]:
    """A transaction beside those of other workers.

    Not `writing`: its lock would let workers on PostgreSQL claim one after the other.
    """
    with store_errors(where), engine.connect().execution_options(writes=True) as connection, connection.begin():
        yield connection


def _now(connection: Connection) -> float:
    """The server's clock where there is a server, since workers' clocks differ."""
    if connection.dialect.name == "postgresql":
        return float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())::float8")).scalar_one())
    return time.time()


def _of(sweep: str) -> ColumnElement[bool]:
    condition: ColumnElement[bool] = (
        MODELS.c.sweep_id == select(SWEEPS.c.id).where(SWEEPS.c.name == sweep).scalar_subquery()
    )
    return condition


def _is_over(now: float, lease: float) -> ColumnElement[bool]:
    """Whether a lease is over. One that ends days from now was given before a clock was set back."""
    over: ColumnElement[bool] = (MODELS.c.until <= now) | (MODELS.c.until > now + max(_FARTHEST, 2 * lease))
    return over


def _troubled() -> ColumnElement[bool]:
    return (MODELS.c.status == "failed") | ((MODELS.c.status == "done") & (MODELS.c.reason != ""))


def _held(claim: ClaimedModel) -> ColumnElement[bool]:
    return (
        (MODELS.c.id == claim.id)
        & (MODELS.c.status == "claimed")
        & (MODELS.c.owner == claim.owner)
        & (MODELS.c.attempts == claim.attempt)
    )


def _set(connection: Connection, which: ColumnElement[bool], **values: Any) -> bool:
    return connection.execute(update(MODELS).where(which).values(**values)).rowcount == 1


def _new_row(sweep: int, place: int, model: str) -> dict[str, Any]:
    empty: dict[str, Any] = {"status": "waiting", "attempts": 0, "owner": "", "until": 0.0, "finished": None}
    empty |= dict.fromkeys(SUMMED, 0)
    return empty | {"reason": "", "remedy": "", "facts": "{}", "sweep_id": sweep, "place": place, "model": model}


def _refuse_taken(connection: Connection, sweep: str, output: str, where: str) -> None:
    owner = connection.execute(select(SWEEPS.c.name).where(SWEEPS.c.output == output)).scalar()
    if owner is not None:
        fix = f"give another -o, or --name {owner} to add models to that sweep"
        raise UsageError(f"{output} holds the results of the sweep {owner!r}, not of {sweep!r}", where=where, fix=fix)


def _same_question(known: Row[Any], output: str, asked: str, where: str) -> None:
    other = "give another --name, or another catalogue"
    if known.output != output:
        what = f"the sweep {known.name!r} writes to {known.output}, and {output} was given"
        raise UsageError(what, where=where, fix=f"give -o {known.output}, or {other}")
    if known.question != asked:
        before, now = json_of(known.question), json_of(asked)
        changed = ", ".join(sorted(key for key in before | now if before.get(key) != now.get(key)))
        what = f"the sweep {known.name!r} was begun with other settings ({changed})"
        raise UsageError(what, where=where, fix=f"use the same settings, or {other}")
