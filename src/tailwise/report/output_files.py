"""An audit's table as a file, by suffix: json, csv, parquet, md; or the audit itself."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tailwise.audits.audit import Audit
from tailwise.audits.rows import MEASURED
from tailwise.audits.table import Table
from tailwise.core.atomic import write_whole
from tailwise.core.errors import UsageError
from tailwise.core.harmless import as_code, cells, in_markdown, visible
from tailwise.core.storage import filesystem, is_url
from tailwise.judging.diagnosis.diagnose import diagnose
from tailwise.report import health
from tailwise.report.grid import to_csv as csv_text


def to_json(audit: Audit) -> str:
    """The whole table, measured or not, with provenance and summary. No NaN: null where there is no value."""
    diagnosis = diagnose(audit)
    document = {
        "health": None if diagnosis.health is None else diagnosis.health.to_json(),
        "provenance": audit.provenance.to_json(),
        "summary": audit.summary(),
        "layers": [_without_nulls(row) for row in audit.table(unmeasured=True).to_dicts()],
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)


def _without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    if row["status"] in MEASURED:
        return dict(row)
    return {key: value for key, value in row.items() if value is not None}


def to_csv(table: Table) -> str:
    """Comma-separated, full precision, empty where there is no value."""
    return csv_text(table.column_names, (cells(map(_flat, row.values())) for row in table.to_dicts()))


def _flat(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else value


def to_markdown(audit: Audit) -> str:
    """A table for an issue or a wiki, with the verdict, the columns that matter, and what was not measured below it."""
    from tailwise.report.columns import BRIEF, columns_grid

    rows = audit.table().to_dicts()
    shown = [column for column in BRIEF if not rows or column.key in rows[0] or column.combined]
    verdict = [] if (health_line := diagnose(audit).health) is None else health.markdown(health_line, "AUDIT")
    lines = [f"# Audit of {in_markdown(audit.model)}", "", *verdict, columns_grid(shown, rows).to_markdown()]
    if audit.unmeasured:
        lines += ["", "Not measured:", ""]
        lines += [f"- {as_code(row.name)} ({row.status}): {in_markdown(str(row.reason))}" for row in audit.unmeasured]
    return visible("\n".join(lines)) + "\n"


def _parquet(audit: Audit) -> bytes:
    import pyarrow.parquet as pq

    table = audit.table(unmeasured=True).arrow
    note = json.dumps(audit.provenance.to_json(), ensure_ascii=False)
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"tailwise": note}), sink, compression="zstd")
    return sink.getvalue()


_WRITERS: Mapping[str, Callable[[Audit], bytes]] = {
    ".json": lambda audit: to_json(audit).encode(),
    ".csv": lambda audit: to_csv(audit.table(unmeasured=True)).encode(),
    ".parquet": _parquet,
    ".md": lambda audit: to_markdown(audit).encode(),
}


def check_target(path: str) -> None:
    """Fail before the work, not after it: `UsageError` where nothing could be written to `path`."""
    target = Path(path)
    if not _is_audit_path(path) and target.suffix.lower() not in _WRITERS:
        known = ", ".join([*_WRITERS, ".audit"])
        raise UsageError(f"the suffix {target.suffix!r} is not known", where=path, fix=f"choose one of {known}")
    check_place(path)


def check_place(path: str) -> None:
    """The same of a file of whatever suffix."""
    target = Path(path)
    if is_url(path):
        filesystem(path)  # whether its driver is there; that it may be written shows when it is
        return
    folder = target.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError("cannot be written here", where=path, fix=f"check the folder {folder}")
    if target.is_dir() and not _is_audit_path(path):
        raise UsageError("is a folder", where=path)


def write(audit: Audit, path: str) -> Path | str:
    """Write what the suffix of `path` says. The file appears whole or not at all."""
    if _is_audit_path(path):
        return audit.save(path)
    return write_whole(path, _WRITERS[Path(path).suffix.lower()](audit))


def _is_audit_path(path: str) -> bool:
    return path.endswith(("/", ".audit")) or (Path(path).is_dir() and (Path(path) / "provenance.json").exists())
