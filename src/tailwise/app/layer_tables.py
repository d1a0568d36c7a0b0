"""The table of layers on a page and as files."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa
from fastapi import Response
from pydantic import BaseModel, Field

from tailwise.app.workspace import layers as table
from tailwise.audits.codec import to_parquet
from tailwise.audits.table import Table
from tailwise.report.output_files import to_csv

SHOWN = ("name", "role", "block", "shape", "alpha", "alpha_sigma", "ks_distance", "alpha_hill", "alpha_weighted",
         "log_spectral_norm", "stable_rank", "effective_rank", "singular_entropy", "num_spikes", "num_traps",
         "one_minus_rd", "detX_delta", "status", "findings")  # fmt: skip
_TYPES = {"csv": "text/csv; charset=utf-8", "json": "application/json", "parquet": "application/vnd.apache.parquet"}


class Columns(BaseModel):
    """What is asked of the table."""

    q: str = Field("", max_length=400)
    sort: str = Field("", max_length=80)
    down: bool = False
    page: int = Field(1, ge=1, le=1_000_000)
    size: int = Field(50, ge=1, le=1000)
    columns: str = Field("", max_length=4000)  # names by commas; the usual ones without
    export: Literal["", "csv", "json", "parquet"] = ""

    def query(self) -> table.Query:
        """As the workspace takes it."""
        return table.Query(self.q, self.sort, self.down, self.page, self.size)

    def plain(self) -> Columns:
        """Without what may be wrong."""
        return self.model_copy(update={"q": "", "sort": ""})

    def having(self, **changes: Any) -> str:
        """The query of an address that differs in this."""
        from urllib.parse import urlencode

        whole = {**self.model_dump(exclude_defaults=True), **changes}
        return "?" + urlencode({key: str(value) for key, value in whole.items() if value not in ("", None, False)})


def chosen_columns(rows: Sequence[table.Record], asked: Columns) -> list[str]:
    """Names of columns that are there, in the order asked for."""
    known = table.columns(rows)
    wanted = [name.strip() for name in asked.columns.split(",")] if asked.columns else list(SHOWN)
    columns = [name for name in wanted if name in known]
    return ["name", *(name for name in columns if name != "name")]


def exported(rows: Sequence[table.Record], asked: Columns, title: str) -> Response:
    """All lines that match, and every column unless some were chosen, as a file."""
    selected = table.select(rows, table.Query(asked.q, asked.sort, asked.down, 1, 1000))
    lines = list(selected.records)
    for page in range(2, selected.pages + 1):
        lines += table.select(rows, table.Query(asked.q, asked.sort, asked.down, page, 1000)).records
    names = chosen_columns(rows, asked) if asked.columns else table.columns(rows)
    records = [{name: line.get(name) for name in names} for line in lines]
    # A header is ASCII, whatever alphabet a title has.
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", title).strip("-.")[:100] or "audit"
    headers = {"content-disposition": f'attachment; filename="{name}-layers.{asked.export}"'}
    return Response(_as_file(records, names, asked.export), media_type=_TYPES[asked.export], headers=headers)


def _as_file(records: list[dict[str, Any]], names: Sequence[str], kind: str) -> bytes:
    if kind == "json":
        return json.dumps(records, ensure_ascii=False, allow_nan=False).encode()
    columns = {name: pa.array([one[name] for one in records], _type(name)) for name in names}
    data = pa.table(columns)
    return to_csv(Table(data)).encode() if kind == "csv" else to_parquet(data)


def _type(name: str) -> pa.DataType:
    if name in table.WORDS:
        return pa.string()
    return pa.int64() if name in ("block", "parameters") else pa.float64()
