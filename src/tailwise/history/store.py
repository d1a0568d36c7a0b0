"""`History`: the store of training runs."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import pyarrow as pa

from tailwise.audits.audit import Audit
from tailwise.audits.rows import LayerRow
from tailwise.core.validation import checked
from tailwise.history import prune as pruning
from tailwise.history import read, write
from tailwise.history.branch import put_resumed
from tailwise.history.connect import connect, is_url, plain, reading, shown, store_errors, writing
from tailwise.history.export import export_parquet
from tailwise.history.migrate import bring_up_to_date
from tailwise.history.point import ESTIMATOR, OPTIMIZER, Alarm, Cadence, Point, Resumed, no_alarm
from tailwise.history.prune import Retention
from tailwise.history.read import KeptAlarm, KeptAudit, RunSummary, Steps
from tailwise.history.series import Layers, scalars, series
from tailwise.history.write import Added

_log = logging.getLogger(__name__)


class History:
    """Points, audits and alarms of training runs, in an SQLite file or in PostgreSQL.

    >>> from tailwise.runs import History, Point
    >>> with History("history.db") as history:
    ...     history.add_point(Point("run", 10, "full", 0.0, layers={"up": {"alpha": 3.1}}))
    ...     [(run.name, run.last_step) for run in history.runs()]
    'new'
    [('run', 10)]

    Any number of processes may read while one writes; writers wait for each other. What a method wrote is there when
    it returns, also where the process is killed next. A `History` may be used by several threads. After a fork, open
    another.
    """

    @checked
    def __init__(self, where: str | os.PathLike[str], *, create: bool = True, patience: float = 30.0) -> None:
        """Open the store at a path or `postgresql://…` URL, and bring it up to date.

        Parameters
        ----------
        create
            Make the file where there is none; False for those who only read.
        patience
            Seconds to wait for a server, or for another process that writes.

        Raises `UsageError` for an address that can be none, `UnreachableError` where the store cannot be reached just
        now, and `UnreadableError` where it is damaged, newer than this code, or not there.
        """
        where = plain(where)
        self.where = shown(where)
        if not is_url(where):
            self.where = str(Path(where).expanduser())
        self._disputed: set[str] = set()
        self._engine = connect(where, create=create, patience=patience)
        try:
            bring_up_to_date(self._engine, self.where)
        except BaseException:
            self._engine.dispose()
            raise

    # Writing

    def add_point(self, point: Point) -> Added:
        """Add a point, and say what became of it.

        `new`; or, where the run has a point of that step and cadence: `merged` (its layers and scalars were united with
        those there, as ranks that each measure some layers want it), `changed` (numbers there were replaced by other
        ones, which is also logged once for a run), or `same`.
        """
        return self.add_all([point])[0]

    def add_all(self, points: Iterable[Point]) -> list[Added]:
        """Add several points in one transaction, which is much faster than one by one."""
        listed = list(points)
        with writing(self._engine, self.where) as connection:
            became = [write.put_point(connection, point) for point in listed]
        for point, word in zip(listed, became, strict=True):
            self._mention(point, word)
        return became

    def _mention(self, point: Point, became: Added) -> None:
        if became == "changed" and point.run not in self._disputed:
            self._disputed.add(point.run)
            _log.warning(
                "step %d of the run %r had other numbers, which were replaced: it was resumed from before that step, or"
                " another process writes the same layers under the same name",
                point.step,
                point.run,
            )

    def add_audit(self, audit: Audit, run: str, step: int, *, path: str | os.PathLike[str] | None = None) -> None:
        """Add the rows of an audit; one of that step that is there already is replaced.

        Its spectra stay where they are: `path` is the `.audit` file that has them, or None.
        """
        where = None if path is None else str(Path(path).resolve())
        with writing(self._engine, self.where) as connection:
            write.put_audit(connection, audit, run, step, where)

    def add_alarm(self, alarm: Alarm) -> bool:
        """Add an alarm; whether it is new. One of the same key is counted, and its severity only rises."""
        with writing(self._engine, self.where) as connection:
            return write.put_alarm(connection, alarm)

    def resume(self, resumed: Resumed) -> str | None:
        """Say that a run goes on from an earlier step, so that its series stay one line.

        Points and alarms of later steps become a run of their own, whose name is returned; None where there are none.
        """
        with writing(self._engine, self.where) as connection:
            return put_resumed(connection, resumed)

    def take_over(self, spool: str, lines: int, items: Sequence[Point | Alarm | Resumed]) -> None:
        """Add what waited in a spool, and note in the same transaction that it has come to `lines`."""
        with writing(self._engine, self.where) as connection:
            for item in items:
                if isinstance(item, Point):
                    write.put_point(connection, item)
                elif isinstance(item, Resumed):
                    put_resumed(connection, item)
                else:
                    write.put_alarm(connection, item)
            write.note_spool(connection, spool, lines)

    def taken_over(self, spool: str) -> int:
        """Lines of a spool that are in the store already."""
        with reading(self._engine, self.where) as connection:
            return read.spool_lines(connection, spool)

    def forget_spool(self, spool: str) -> None:
        """Forget a spool whose file is gone."""
        with writing(self._engine, self.where) as connection:
            write.forget_spool(connection, spool)

    # Reading

    def runs(self) -> list[RunSummary]:
        """Every run at a glance, the one written last first."""
        with reading(self._engine, self.where) as connection:
            return read.runs(connection)

    def points(
        self, run: str, *, cadence: Cadence | None = None, steps: Steps | None = None, newest: int | None = None
    ) -> Iterator[Point]:
        """The points of a run in order of step, read as they are asked for; with `newest`, only the last so many.

        `steps` are the first and the last, both included, None for no bound. For numbers of many steps, `series` is
        far faster.
        """
        with reading(self._engine, self.where) as connection:
            yield from read.points(connection, run, cadence, steps, newest)

    def latest(self, run: str, *, cadence: Cadence | None = None) -> Point | None:
        """The point of the highest step, or None where there is none; of two cadences, the full one.

        Points without layers, as evaluations between two measurements leave them, count only where there are no others.
        """
        with reading(self._engine, self.where) as connection:
            return read.latest(connection, run, cadence)

    def metrics(self, run: str) -> list[str]:
        """Names of the metrics that a run has, of points or audits."""
        with reading(self._engine, self.where) as connection:
            return read.metrics(connection, run)

    def series(
        self, run: str, metrics: Sequence[str], layers: Layers = None, roles: Collection[str] | None = None,
        steps: Steps | None = None,
    ) -> pa.Table:  # fmt: skip
        """Numbers over time: a line per step, cadence and layer, in order of step, and a column per metric.

        Parameters
        ----------
        metrics
            Names, of points or of audits; null where a layer has no value there.
        layers
            A regular expression that the names must match somewhere, or names.
        roles
            Only these roles.
        steps
            First and last, both included, None for no bound.

        Columns: `step`, `cadence` (cheap, full or audit), `layer`, `role`, `block`, and the metrics.
        """
        with reading(self._engine, self.where) as connection:
            return series(connection, run, metrics, (layers, roles), steps)

    def scalars(self, run: str, steps: Steps | None = None) -> pa.Table:
        """A line per point: step, cadence, time, and a column per scalar. Of an audit: means over its layers."""
        with reading(self._engine, self.where) as connection:
            return scalars(connection, run, steps)

    def audits(self, run: str) -> list[KeptAudit]:
        """The audits of a run in order of step, without their rows."""
        with reading(self._engine, self.where) as connection:
            return read.audits(connection, run)

    def audit_rows(self, run: str, step: int) -> list[LayerRow]:
        """The rows of an audit, measured or not. Raises `UsageError` with the nearest steps where there is none."""
        with reading(self._engine, self.where) as connection:
            return read.audit_rows(connection, run, step)

    def alarms(self, run: str | None = None) -> list[Alarm]:
        """The alarms of a run, or of all, in the order in which they were noticed first."""
        return [item.alarm for item in self.kept_alarms(run)]

    def kept_alarms(self, run: str | None = None) -> list[KeptAlarm]:
        """The same, with how often and until when each was noticed."""
        with reading(self._engine, self.where) as connection:
            return read.alarms(connection, run)

    def optimizer(self, run: str) -> str:
        """Names of the optimizers that train a run, such as `Muon, AdamW`; "" where its monitor was not told."""
        with reading(self._engine, self.where) as connection:
            return read.noted(connection, run, OPTIMIZER)

    def estimator(self, run: str) -> str:
        """The estimator of `alpha` in the points of a run's monitor: `ks` unless they say otherwise."""
        with reading(self._engine, self.where) as connection:
            return read.noted(connection, run, ESTIMATOR) or "ks"

    def no_alarm(self, run: str | None = None) -> str:
        """What it means that a run (or all of them) has no alarm: whether rules looked at it."""
        return "No alarm in any run." if run is None else no_alarm(self.latest(run, cadence="cheap"))

    # Keeping house

    def prune(self, retention: Retention, run: str | None = None, *, dry: bool = False) -> int:
        """Remove the points and audits that `retention` does not keep; how many. With `dry`, only count them."""
        with writing(self._engine, self.where) as connection:
            count = pruning.prune(connection, run, retention, dry=dry)
        self._compact(count and not dry)
        return count

    def delete_run(self, run: str) -> int:
        """Remove a run; how many points and audits it had. Files of audits stay where they are."""
        with writing(self._engine, self.where) as connection:
            count = pruning.delete_run(connection, run)
        self._compact(count)
        return count

    def _compact(self, needed: object) -> None:
        if needed:
            with store_errors(self.where):
                pruning.compact(self._engine)

    def export_parquet(self, folder: str | os.PathLike[str], run: str | None = None) -> list[Path]:
        """Write a run, or all, as Parquet files below `folder`, one folder per run; the paths."""
        return export_parquet(self, Path(folder), run)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def __enter__(self) -> History:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"History({self.where!r})"
