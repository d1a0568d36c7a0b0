"""Series of a run without the exponents of fits that are not trusted, for medians."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from tailwise.audits.trusted import OF_FIT, doubt

if TYPE_CHECKING:
    from tailwise.history.store import History


def trusted_alone(history: History, run: str, series: pa.Table) -> tuple[pa.Table, int, int]:
    """The series with nulls where an audit's fit is not trusted; (table, fits left out, fits of audits).

    A monitor's points stay as they are: they do not hold what a fit is judged by.
    """
    names = [name for name in series.column_names if name in OF_FIT]
    steps = {step for step, cadence in _places(series) if cadence == "audit"}
    if not names or not steps:
        return series, 0, 0
    doubted = set()
    for stored in history.audits(run):
        if stored.step in steps:
            kind = str(stored.provenance.recipe.get("estimator", "ks"))
            rows = history.audit_rows(run, stored.step)
            doubted |= {(stored.step, row.name) for row in rows if row.measured and doubt(row, kind)}
    places, layers = _places(series), series["layer"].to_pylist()
    of_audits = [cadence == "audit" for _, cadence in places]
    gone = [audit and (step, layer) in doubted
            for (step, _), layer, audit in zip(places, layers, of_audits, strict=True)]  # fmt: skip
    for name in names:
        values = [None if out else value for value, out in zip(series[name].to_pylist(), gone, strict=True)]
        series = series.set_column(series.column_names.index(name), name, pa.array(values, pa.float64()))
    return series, sum(gone), sum(of_audits)


def _places(series: pa.Table) -> list[tuple[int, str]]:
    return list(zip(series["step"].to_pylist(), series["cadence"].to_pylist(), strict=True))
