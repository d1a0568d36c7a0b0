"""Tables: Arrow inside, pandas and polars on request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tailwise.core.errors import UsageError, unknown_name
from tailwise.core.optional import how_to_get
from tailwise.core.shown import Shown, as_html
from tailwise.core.synonyms import known_name
from tailwise.spectrum.metrics.metric import METRICS

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
#: Columns whose whole numbers may be missing, whatever the model.
_NULLABLE = ("block", "input_axis", "step")
_NAMED = 12
_SHOWN = ("model", "step", "name", "role", "block", "rows", "cols", "alpha", "alpha_sigma", "ks_distance",
          "alpha_hill", "stable_rank", "singular_entropy", "status", "trusted")  # fmt: skip


class Table:
    """An Arrow table with the conversions that people use.

    What takes the Arrow C stream interface (polars, duckdb, `pd.DataFrame.from_arrow` of pandas 3) takes it as it is.
    Iterating gives its rows, one dict each, so that `pd.DataFrame(table)` is a frame too.
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
        column = known_name(column, self.arrow.column_names) if isinstance(column, str) else column
        if column not in self.arrow.column_names:
            raise unknown_name("column", column, self.arrow.column_names)
        return list(self.arrow.column(column).to_pylist())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.to_dicts())

    def __contains__(self, column: object) -> bool:
        return column in self.arrow.column_names

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "arrow" not in self.__dict__:  # not there yet while a copy is being made
            raise AttributeError(name)
        if name in self.arrow.column_names:
            raise AttributeError(f"a Table has no {name!r}; its column is table[{name!r}]")
        raise AttributeError(f"a Table has no {name!r}; a frame may: table.to_pandas().{name}, or table.to_polars()")

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.arrow.__arrow_c_stream__(requested_schema)

    def to_arrow(self) -> pa.Table:
        """The pyarrow table."""
        return self.arrow

    def to_pandas(self) -> pd.DataFrame:
        """A pandas frame; needs pandas."""
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise UsageError("pandas is not installed", fix=how_to_get("frames")) from error
        frame: pd.DataFrame = self.arrow.to_pandas()
        for column in self.arrow.schema:
            values = self.arrow.column(column.name)
            # A whole number stays one where some are missing, as the block of an embedding is.
            if pa.types.is_integer(column.type) and (values.null_count or column.name in _NULLABLE):
                frame[column.name] = pandas.array(values.to_pylist(), dtype="Int64")
        return frame

    def to_polars(self) -> pl.DataFrame:
        """A polars frame; needs polars."""
        try:
            import polars
        except ModuleNotFoundError as error:
            raise UsageError("polars is not installed", fix=how_to_get("frames")) from error
        return polars.DataFrame(self.arrow)

    def to_dicts(self) -> list[dict[str, Any]]:
        """One dict per row."""
        return list(self.arrow.to_pylist())

    def __repr__(self) -> str:
        names = self.column_names
        more = f", … {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return f"Table({len(self)} rows × {len(names)} columns: {', '.join(names[:_NAMED])}{more})"

    def _repr_html_(self) -> str:
        shown = [name for name in _SHOWN if name in self.column_names] or self.column_names[:_NAMED]
        return as_html(Shown(repr(self), shown, _rows(self, shown), "`to_pandas()`"))

    def _ipython_key_completions_(self) -> list[str]:
        return self.column_names


def layer_table(rows: Sequence[LayerRow]) -> Table:
    """Rows of an audit as a table with fixed column types."""
    names = dict.fromkeys(name for row in rows for name in row.metrics)
    columns = {
        **{key: pa.array([getattr(row, key) for row in rows], kind) for key, kind in FACTS.items()},
        **{name: pa.array([row.metrics.get(name) for row in rows], pa.float64()) for name in names},
        **{key: pa.array([_plain(getattr(row, key)) for row in rows], kind) for key, kind in ORIGIN.items()},
    }
    return Table(pa.table(columns))


def with_trust(table: Table, trusted: Sequence[bool], of_bulk: Sequence[bool]) -> Table:
    """The same with two columns behind the reasons.

    `trusted`: whether `alpha` may be read as an exponent; `of_bulk`: whether its fit has more than half of the
    eigenvalues, so that it describes the bulk rather than a tail.
    """
    place, arrow = table.arrow.column_names.index("reason") + 1, table.arrow
    for name, values in (("of_bulk", of_bulk), ("trusted", trusted)):
        arrow = arrow.add_column(place, name, pa.array(values, pa.bool_()))
    return Table(arrow)


def with_counts(table: Table) -> Table:
    """The same with whole numbers in the columns of metrics that count something; files hold them as floats."""
    arrow = table.arrow
    for place, column in enumerate(arrow.schema):
        if column.name in METRICS and METRICS[column.name].unit == "count":
            values = arrow.column(column.name).to_pylist()
            if all(value is None or float(value).is_integer() for value in values):
                whole = pa.array([None if value is None else int(value) for value in values], pa.int64())
                arrow = arrow.set_column(place, column.name, whole)
    return Table(arrow)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def html_table(audit: Audit) -> str:
    """A small table for notebooks."""
    table = audit.table()
    shown = [name for name in _SHOWN if name in table.column_names]
    return as_html(Shown(repr(audit), shown, _rows(table, shown), "`table()`"))


def _rows(table: Table, shown: Sequence[str]) -> list[list[Any]]:
    return [list(row.values()) for row in table.arrow.select(list(shown)).to_pylist()] if shown else []
