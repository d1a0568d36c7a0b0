"""Series of a run without the exponents of fits that are not trusted, for medians."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tailwise.audits.trusted import OF_FIT, doubt
from tailwise.spectrum.trust import SEARCHED, poor_tails

if TYPE_CHECKING:
    from tailwise.history.store import History

#: What a monitor's points have of a fit: its tail, its D, and, together, the eigenvalues of the matrix.
_TAIL, _DISTANCE, _COUNTED = "num_pl_spikes", "ks_distance", ("matrix_rank", "rank_loss")
_FEW = 50  # eigenvalues: fewer give no verdict, in an audit by its status

Flags = NDArray[np.bool_]


def trusted_alone(history: History, run: str, series: pa.Table) -> tuple[pa.Table, int, int]:
    """The series with nulls where a fit is not trusted; (table, fits left out, fits).

    A fit of an audit is judged as everywhere. A monitor's point has no exponent of noise of the shape: its fit is
    judged by the number of eigenvalues, the tail and D, as far as the point has them.
    """
    names = [name for name in series.column_names if name in OF_FIT]
    if not names:
        return series, 0, 0
    gone = _in_audits(history, run, series) | _in_points(history, run, series)
    values = {name: series[name].to_numpy() for name in names}
    fits = np.logical_or.reduce([np.isfinite(one) for one in values.values()])
    for name, own in values.items():
        kept = pa.array(own, pa.float64(), mask=gone | ~np.isfinite(own))
        series = series.set_column(series.column_names.index(name), name, kept)
    return series, int((gone & fits).sum()), int(fits.sum())


def left_out_words(lost: int, fits: int) -> str:
    """`5 of 6 fits of alpha are not trusted, and left out of the medians`; "" where none is."""
    be = "is" if lost == 1 else "are"
    return f"{lost:,} of {fits:,} fits of alpha {be} not trusted, and left out of the medians" if lost else ""


def _in_audits(history: History, run: str, series: pa.Table) -> Flags:
    """Lines of audits whose fit is doubted."""
    mine = _of_cadence(series, "audit")
    steps = set(series["step"].to_numpy()[mine].tolist())
    doubted = set()
    for stored in history.audits(run) if steps else ():
        if stored.step in steps:
            kind = str(stored.provenance.recipe.get("estimator", "ks"))
            rows = history.audit_rows(run, stored.step)
            doubted |= {(stored.step, row.name) for row in rows if row.measured and doubt(row, kind)}
    if doubted:
        lines = series.filter(pa.array(mine))
        pairs = zip(lines["step"].to_pylist(), lines["layer"].to_pylist(), strict=True)
        mine[mine] = [pair in doubted for pair in pairs]
        return mine
    return np.zeros(len(series), dtype=bool)


def _in_points(history: History, run: str, series: pa.Table) -> Flags:
    """Lines of a monitor's points whose fit is doubted by what the points have of it."""
    mine = _of_cadence(series, "full")
    have = [name for name in (_TAIL, _DISTANCE, *_COUNTED) if name in history.metrics(run)] if mine.any() else []
    if not have:
        return np.zeros(len(series), dtype=bool)
    steps = series["step"].to_numpy()[mine]
    layers = series["layer"].unique().to_pylist()
    facts = history.series(run, have, layers, None, (int(steps.min()), int(steps.max())))
    facts = facts.filter(pa.array(_of_cadence(facts, "full")))
    keys = zip(facts["step"].to_pylist(), facts["layer"].to_pylist(), strict=True)
    poor = dict(zip(keys, _poor(facts, history.estimator(run)).tolist(), strict=True))
    lines = series.filter(pa.array(mine))
    pairs = zip(lines["step"].to_pylist(), lines["layer"].to_pylist(), strict=True)
    mine[mine] = [poor.get(pair, False) for pair in pairs]
    return mine


def _poor(facts: pa.Table, estimator: str) -> Flags:
    """Whether each line's fit is doubted; NaN and what is absent are no reason."""
    columns = {name: facts[name].to_numpy() for name in facts.column_names if name in (_TAIL, _DISTANCE, *_COUNTED)}
    nothing = np.full(len(facts), np.nan)
    tail, distance = columns.get(_TAIL, nothing), columns.get(_DISTANCE, nothing)
    rank, loss = (columns.get(name, nothing) for name in _COUNTED)
    searched = estimator.removeprefix("farms:") in SEARCHED
    poor: Flags = poor_tails(tail, distance if searched else nothing) | (rank + loss < _FEW)
    return poor


def _of_cadence(series: pa.Table, cadence: str) -> Flags:
    return np.array([one == cadence for one in series["cadence"].to_pylist()], dtype=bool)
