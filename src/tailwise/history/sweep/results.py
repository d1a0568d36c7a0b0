"""Where a sweep's results lie: an audit and a part of the Parquet data set for each model, and a table of the models.

    FOLDER/audits/NAME.audit      the audit with its spectra
    FOLDER/layers/NAME.parquet    one row a matrix; all parts have the same columns
    FOLDER/models.parquet         one row a model, those that failed included

The folder may be a URL. Names are of the model alone, so a model that is audited again replaces its files.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tailwise.audits.codec import to_parquet
from tailwise.audits.parquet import from_parquet
from tailwise.audits.table import FACTS, ORIGIN, layer_table
from tailwise.core.atomic import write_whole
from tailwise.core.errors import MALFORMED, UnreadableError
from tailwise.core.recipe import Recipe
from tailwise.core.storage import exists, get, is_url, joined, json_of, read_bytes
from tailwise.core.typed import is_finite
from tailwise.judging.compare.ranking import ModelNumbers
from tailwise.judging.compare.summary import SUMMARIES
from tailwise.spectrum.metrics.facts import selected

if TYPE_CHECKING:
    from tailwise.audits.audit import Audit
    from tailwise.history.sweep.catalogue import SweptModel

MODELS_FILE = "models.parquet"
#: Columns of the data set before those of an audit's table.
_MODEL = {"model": pa.string(), "revision": pa.string(), "model_type": pa.string()}
_TABLE: dict[str, pa.DataType] = {
    "model": pa.string(), "status": pa.string(), "reason": pa.string(), "remedy": pa.string(),
    "attempts": pa.int32(), "audit": pa.string(), "revision": pa.string(), "fingerprint": pa.string(),
    "model_type": pa.string(), "matrices": pa.int64(), "reused": pa.int64(), "bytes": pa.int64(),
    "bytes_read": pa.int64(), "flops": pa.float64(), "seconds": pa.float64(),
    **dict.fromkeys(SUMMARIES, pa.float64()),
}  # fmt: skip


#: Columns without which nothing can be ranked; numbers may be fewer, as an earlier version wrote them.
_NEEDED = ("model", "status", "model_type")


def stem(model: str) -> str:
    """A file name for a model: readable, and of no other model."""
    # ASCII alone, since file systems count bytes; cut first, since a name that begins with a dot is hidden from globs.
    plain = re.sub(r"[^\w.-]+", "-", model, flags=re.ASCII)[-80:].strip("-.") or "model"
    return f"{plain}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"


def audit_file(folder: str | Path, model: str) -> str | Path:
    """Where a model's audit lies."""
    return joined(folder, "audits", f"{stem(model)}.audit")


def write_audit(audit: Audit, model: str, folder: str | Path, recipe: Recipe) -> str:
    """Write a model's audit and its part of the data set; the audit's file within the folder."""
    # The part last: whoever sees it finds the audit too.
    audit.save(audit_file(folder, model))
    write_whole(joined(folder, "layers", f"{stem(model)}.parquet"), to_parquet(_part(audit, model, recipe)))
    return f"audits/{stem(model)}.audit"


def _part(audit: Audit, model: str, recipe: Recipe) -> pa.Table:
    """A model's rows, with the same columns whatever was measured."""
    rows = layer_table(audit.rows).arrow
    config = audit.provenance.config
    known = {"model": model, "revision": audit.provenance.revision, "model_type": config.get("model_type")}
    count = len(audit.rows)
    columns = {name: pa.array([known[name]] * count, kind) for name, kind in _MODEL.items()}
    metrics = {metric.name: pa.float64() for metric in selected(recipe)}
    for name, kind in {**FACTS, **metrics, **ORIGIN}.items():
        columns[name] = rows.column(name) if name in rows.column_names else pa.nulls(count, kind)
    return pa.table(columns)


def write_models(entries: Iterable[SweptModel], folder: str | Path, recipe: Recipe) -> str | Path:
    """Write the table of the models; it says what was asked, so that it can be ranked without a catalogue."""
    lines = [_line(entry) for entry in entries]
    table = pa.table({name: pa.array([line.get(name) for line in lines], kind) for name, kind in _TABLE.items()})
    note = json.dumps(recipe.to_json())
    return write_whole(joined(folder, MODELS_FILE), to_parquet(table.replace_schema_metadata({"tailwise": note})))


def _line(entry: SweptModel) -> dict[str, Any]:
    """A model's row; one that says so where a catalogue holds what no sweep has written."""
    try:
        stated = {name: getattr(entry, name) for name in ("model", "status", "reason", "remedy", "attempts")}
        measured = entry.facts if entry.status == "done" else {}
        line = {**measured, **measured.get("values", {}), **stated}
        for name, kind in _TABLE.items():
            pa.scalar(line.get(name), kind)
    except (TypeError, ValueError, AttributeError, OverflowError, pa.ArrowException):
        what = "the catalogue holds other facts of it than a sweep writes"
        return {"model": str(entry.model), "status": "failed", "reason": what, "remedy": "sweep with a new catalogue"}
    return line


def is_results(folder: str) -> bool:
    """Whether `folder` is that of a sweep."""
    if is_url(folder) and folder.startswith("http"):
        return False
    return exists(joined(folder, MODELS_FILE))


def read_numbers(folder: str) -> list[ModelNumbers]:
    """What a ranking takes of every model that was audited."""
    where = joined(folder, MODELS_FILE)
    try:
        table = from_parquet(read_bytes(where) if isinstance(where, Path) else get(where))
        return _numbers_in(table, json_of(table.schema.metadata[b"tailwise"]))
    except (*MALFORMED, OSError, pa.ArrowException) as error:
        raise UnreadableError(
            f"is no table of models ({error})", where=where, fix="run tailwise sweep again"
        ) from error


def _numbers_in(table: pa.Table, recipe: Any) -> list[ModelNumbers]:
    """The numbers of a table that is as `write_models` makes them, or an error of `MALFORMED`: it may be anybody's."""
    if not isinstance(recipe, dict):
        raise TypeError(f"its recipe is a JSON {type(recipe).__name__}")
    for name in (*_NEEDED, *(name for name in SUMMARIES if name in table.column_names)):
        if (kind := table.column(name).type) != _TABLE[name]:
            raise TypeError(f"its column {name} holds {kind}, not {_TABLE[name]}")
    done = [line for line in table.to_pylist() if line["status"] == "done"]
    if any(line["model"] is None for line in done):
        raise ValueError("a model has no name")
    return [ModelNumbers(line["model"], _finite(line), recipe, line["model_type"]) for line in done]


def _finite(line: Mapping[str, Any]) -> dict[str, float | None]:
    """Every number of a row; None where it has none that could be put in an order."""
    given = ((name, line.get(name)) for name in SUMMARIES)
    return {name: value if is_finite(value) else None for name, value in given}
