"""Tables: Arrow inside, pandas and polars on request."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

    from tailwise.audits.audit import Audit
    from tailwise.audits.rows import LayerRow

#: Columns of `Audit.table()` before the metrics, in order.
FACTS = {
    "name": pa.string(),
    "role": pa.string(),
    "block": pa.int32(),
    "kind": pa.string(),
    "rows": pa.int64(),
    "cols": pa.int64(),
    "slices": pa.int32(),
    "n_params": pa.int64(),
    "dtype": pa.string(),
    "nbytes": pa.int64(),
    "status": pa.string(),
    "reason": pa.string(),
}
#: Columns after the metrics.
ORIGIN = {
    "degenerate": pa.list_(pa.string()),
    "tensors": pa.list_(pa.string()),
    "reading": pa.string(),
    "input_axis": pa.int8(),
    "solver": pa.string(),
    "error_bound": pa.float64(),
    "digest": pa.string(),
    "reused": pa.bool_(),
    "seconds": pa.float64(),
}
_SHOWN = ("name", "role", "block", "rows", "cols", "alpha", "alpha_sigma", "ks_distance", "alpha_hill", "stable_rank",
          "singular_entropy", "status")  # fmt: skip


class Table:
    """An Arrow table with the conversions that people use.

    Anything that takes the Arrow C stream interface (polars, duckdb, pandas ≥ 2.2) takes it as it is.
    """

    def __init__(self, arrow: pa.Table) -> None:
        self.arrow = arrow

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]]) -> Table:
        """One dict per row; missing keys are null."""
        names = dict.fromkeys(name for row in rows for name in row)
        return cls(pa.table({name: [row.get(name) for row in rows] for name in names}))

    @property
    def column_names(self) -> list[str]:
        """Names in order."""
        return list(self.arrow.column_names)

    def __len__(self) -> int:
        return int(self.arrow.num_rows)

    def __getitem__(self, column: str) -> list[Any]:
        """One column as a list."""
        if column not in self.arrow.column_names:
            from tailwise.core.errors import unknown_name

            raise unknown_name("column", column, self.arrow.column_names)
        return list(self.arrow.column(column).to_pylist())

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.arrow.__arrow_c_stream__(requested_schema)

    def to_arrow(self) -> pa.Table:
        """The pyarrow table."""
        return self.arrow

    def to_pandas(self) -> pd.DataFrame:
        """A pandas frame; needs pandas."""
        try:
            frame: pd.DataFrame = self.arrow.to_pandas()
        except ModuleNotFoundError as error:
            raise UsageError("pandas is not installed", fix='pip install "tailwise[frames]"') from error
        return frame

    def to_polars(self) -> pl.DataFrame:
        """A polars frame; needs polars."""
        try:
            import polars
        except ModuleNotFoundError as error:
            raise UsageError("polars is not installed", fix='pip install "tailwise[frames]"') from error
        return polars.DataFrame(self.arrow)

    def to_dicts(self) -> list[dict[str, Any]]:
        """One dict per row."""
        return list(self.arrow.to_pylist())

    def __repr__(self) -> str:
        return f"Table({len(self)} rows × {len(self.column_names)} columns: {', '.join(self.column_names)})"


def layer_table(rows: Sequence[LayerRow]) -> Table:
    """Rows of an audit as a table with fixed column types."""
    names = dict.fromkeys(name for row in rows for name in row.metrics)
    columns = {
        **{key: pa.array([getattr(row, key) for row in rows], kind) for key, kind in FACTS.items()},
        **{name: pa.array([row.metrics.get(name) for row in rows], pa.float64()) for name in names},
        **{key: pa.array([_plain(getattr(row, key)) for row in rows], kind) for key, kind in ORIGIN.items()},
    }
    return Table(pa.table(columns))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def html_table(audit: Audit) -> str:
    """A small table for notebooks."""
    table = audit.table()
    shown = [name for name in _SHOWN if name in table.column_names]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in shown)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_cell(row[name]))}</td>" for name in shown) + "</tr>"
        for row in table.to_dicts()
    )
    return f"<p>{html.escape(repr(audit))}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
