"""A history as Parquet files, for everything that reads those."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from tailwise.audits.codec import to_parquet
from tailwise.core.atomic import could_not_write, write_whole

if TYPE_CHECKING:
    from tailwise.history.store import History

_STEPS_AT_ONCE = 200


def export_parquet(history: History, folder: Path, run: str | None) -> list[Path]:
    """A folder per run: `series`, `points` (scalars), `alarms` and `audits`, each a Parquet file."""
    names = [item.name for item in history.runs()] if run is None else [run]
    written: list[Path] = []
    for name in names:
        into = folder / _folder_of(name)
        points = history.scalars(name)
        tables = {"points": points, "alarms": _alarms(history, name), "audits": _audits(history, name)}
        written += [write_whole(into / f"{part}.parquet", to_parquet(table)) for part, table in tables.items()]
        written.append(_series(history, name, sorted(set(points["step"].to_pylist())), into / "series.parquet"))
    return written


def _folder_of(run: str) -> str:
    """A run's name as that of a folder below another, whatever it has in it."""
    plain = quote(run, safe=" @+=,")
    return plain if plain.strip(".") else plain.replace(".", "%2E") or "%"


def _series(history: History, run: str, steps: list[int], path: Path) -> Path:
    metrics = history.metrics(run)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    starts = range(0, max(1, len(steps)), _STEPS_AT_ONCE)
    ranges = [(part[0], part[-1]) if (part := steps[at : at + _STEPS_AT_ONCE]) else (0, 0) for at in starts]
    tables = (history.series(run, metrics, steps=bounds) for bounds in ranges)
    try:
        _write(aside, tables)
        aside.replace(path)
    except OSError as error:
        raise could_not_write(error, path) from error
    finally:
        aside.unlink(missing_ok=True)
    return path


def _write(path: Path, tables: Iterable[pa.Table]) -> None:
    writer: pq.ParquetWriter | None = None
    try:
        for table in tables:
            # Words are spelled out: each part has a dictionary of its own, and a file has one schema.
            plain = _spelled(table)
            writer = writer or pq.ParquetWriter(path, plain.schema, compression="zstd")
            writer.write_table(plain)
    finally:
        if writer is not None:
            writer.close()


def _spelled(table: pa.Table) -> pa.Table:
    schema = pa.schema(
        [(field.name, pa.string() if pa.types.is_dictionary(field.type) else field.type) for field in table.schema]
    )
    return table.cast(schema)


def _alarms(history: History, run: str) -> pa.Table:
    lines = [
        {**item.alarm.to_json(), "evidence": list(item.alarm.evidence.items()), "times": item.times,
         "last_step": item.last_step}
        for item in history.kept_alarms(run)
    ]  # fmt: skip
    schema = pa.schema([
        ("run", pa.string()), ("step", pa.int64()), ("time", pa.float64()), ("rule", pa.string()),
        ("severity", pa.string()), ("title", pa.string()), ("layers", pa.list_(pa.string())),
        ("evidence", pa.map_(pa.string(), pa.float64())), ("since", pa.int64()),
        ("remedies", pa.list_(pa.string())), ("times", pa.int64()), ("last_step", pa.int64()),
    ])  # fmt: skip
    return pa.Table.from_pylist(lines, schema)


def _audits(history: History, run: str) -> pa.Table:
    table = history.audits(run)
    return pa.table({
        "step": pa.array([item.step for item in table], pa.int64()),
        "time": pa.array([item.time for item in table], pa.float64()),
        "model": pa.array([item.provenance.model for item in table], pa.string()),
        "revision": pa.array([item.provenance.revision for item in table], pa.string()),
        "fingerprint": pa.array([item.provenance.fingerprint for item in table], pa.string()),
        "path": pa.array([item.path for item in table], pa.string()),
    })  # fmt: skip
