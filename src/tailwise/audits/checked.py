"""What an audit's file says, checked before anything is made of it: a file may have been edited, or made to harm.

Every function raises `ValueError` (or `TypeError`) with what is wrong; `codec.load` says of which file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tailwise.audits.rows import MEASURED, LayerRow, Provenance
from tailwise.audits.table import FACTS, ORIGIN
from tailwise.core.harmless import LONGEST_TEXT
from tailwise.core.recipe import Recipe
from tailwise.core.typed import is_finite

#: Columns of `spectra.parquet`.
SPECTRA = {
    "name": pa.string(),
    "kind": pa.string(),
    "rows": pa.int64(),
    "cols": pa.int64(),
    "slices": pa.int32(),
    "solver": pa.string(),
    "error_bound": pa.float64(),
    "zero_vectors": pa.int32(),
    "weak_vectors": pa.int32(),
    "order_z": pa.float64(),
    "eigenvalues": pa.list_(pa.float64()),
}
#: What is in the provenance, where pages and reports count on it.
_KINDS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("model", "format", "fingerprint", "device", "started"), (str,)),
    **dict.fromkeys(("recipe", "config", "versions", "selection"), (dict,)),
    **dict.fromkeys(("workers", "reused", "bytes_read"), (int,)),
    "revision": (str, type(None)),
    "seconds": (int, float),
    "notes": (list,),
}
#: Columns that may have gaps, and those that older audits do not have.
_OPTIONAL = frozenset({"block", "input_axis", "zero_vectors", "weak_vectors", "order_z"})
_LATER = frozenset({"zero_vectors", "weak_vectors", "order_z"})
_MOST_ENTRIES = 1 << 62


def check_provenance(provenance: Mapping[str, Any]) -> None:
    """Types of everything that is read of it, a recipe that can be, and nothing that is no text or no number."""
    # JSON may hold halves of characters, which are no text, and NaN, which is no JSON.
    json.dumps(provenance, ensure_ascii=False, allow_nan=False).encode()
    for item in fields(Provenance):
        if item.name in provenance:
            _check_kind(item.name, provenance[item.name])
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ValueError(f"the provenance has no {item.name}")
    versions = provenance["versions"]
    if any(len(text) > LONGEST_TEXT for item in versions.items() for text in item if isinstance(text, str)):
        raise ValueError("versions of the provenance are texts beyond measure")
    for name, kind in (("notes", provenance.get("notes", ())), ("versions", versions.values())):
        if not all(isinstance(value, str) for value in kind):
            raise TypeError(f"{name} of the provenance are not all text")
    if not 0 <= provenance["seconds"] < math.inf:
        raise ValueError("seconds of the provenance are no length of time")
    _check_selection(provenance.get("selection", {}))
    check_recipe(provenance["recipe"])


def _check_kind(name: str, value: Any) -> None:
    kinds = _KINDS.get(name)
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        raise ValueError(f"{name} of the provenance is a text of {len(value)} signs")
    if kinds is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
        raise TypeError(f"{name} of the provenance is {type(value).__name__}, not {kinds[0].__name__}")


def _check_selection(selection: Mapping[str, Any]) -> None:
    layers, roles = selection.get("layers"), selection.get("roles") or ()
    if not (layers is None or isinstance(layers, str)):
        raise TypeError("layers of the selection is no pattern")
    if isinstance(roles, str) or not isinstance(roles, Sequence) or not all(isinstance(role, str) for role in roles):
        raise TypeError("roles of the selection are no names")
    if selection.get("adapter") not in (None, "delta", "merged"):
        raise ValueError("adapter of the selection is neither delta nor merged")
    if not isinstance(selection.get("base"), str | None):
        raise TypeError("base of the selection is no text")


def check_recipe(recipe: Mapping[str, Any]) -> None:
    """Each setting that is known has the type of its default and a value that a recipe takes."""
    known = {item.name: item.default for item in fields(Recipe)}
    given = {name: value for name, value in recipe.items() if name in known}
    for name, value in given.items():
        default = known[name]
        if isinstance(default, tuple):
            fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
        elif isinstance(default, float):
            fits = is_finite(value)
        else:
            fits = type(value) is type(default)
        if not fits:
            raise TypeError(f"{name} of the recipe is {type(value).__name__}, not {type(default).__name__}")
    plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    Recipe(**plain)


def check_rows(table: pa.Table) -> None:
    """Columns of an audit's table: types, no nulls where none can be, finite numbers, each name once."""
    names = table.column_names
    if any(len(name) > LONGEST_TEXT for name in names):
        raise ValueError("a column has a name beyond measure")
    if len(set(names)) != len(names):
        raise ValueError("a column stands there twice")
    needed = {item.name for item in fields(LayerRow) if item.default is MISSING and item.default_factory is MISSING}
    facts = FACTS | ORIGIN
    lacking = sorted((needed - {"metrics"}) - set(names))
    if lacking:
        raise ValueError(f"the column {lacking[0]} is missing")
    for name in names:
        _check_column(name, table.column(name), facts.get(name, pa.float64()), nullable=name not in facts)
    if len(pc.unique(table.column("name"))) != len(table):
        raise ValueError("a name stands there twice")
    for line in table.select(["name", "rows", "cols", "slices", "status"]).to_pylist():
        _check_shape(line)


def check_spectra(table: pa.Table) -> None:
    """Columns of the table of spectra."""
    for name, kind in SPECTRA.items():
        if name in table.column_names:
            _check_column(name, table.column(name), kind, nullable=False)
        elif name not in _LATER:
            raise ValueError(f"the column {name} is missing")


def _check_column(name: str, column: pa.ChunkedArray, kind: pa.DataType, *, nullable: bool) -> None:
    if not _alike(column.type, kind):
        raise TypeError(f"the column {name} holds {column.type}, not {kind}")
    if column.null_count and not nullable and name not in _OPTIONAL:
        raise ValueError(f"the column {name} has gaps")
    values = column
    if pa.types.is_list(column.type):
        values = pc.list_flatten(column)
        if values.null_count:
            raise ValueError(f"the column {name} has gaps")
    if pa.types.is_string(values.type) and name != "reason":
        longest = pc.max(pc.utf8_length(values)).as_py() or 0
        if longest > LONGEST_TEXT:
            raise ValueError(f"the column {name} has a text of {longest} signs")
    if pa.types.is_integer(values.type):
        values.cast(kind.value_type if pa.types.is_list(kind) else kind)  # ArrowInvalid, a ValueError, beyond its range
    if pa.types.is_floating(values.type) and not pc.all(pc.is_finite(values), min_count=0).as_py():
        raise ValueError(f"the column {name} has numbers that are not finite")


def _alike(found: pa.DataType, kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return bool(pa.types.is_list(found) and _alike(found.value_type, kind.value_type))
    if pa.types.is_integer(kind):
        return bool(pa.types.is_signed_integer(found))
    return bool(found == kind)


def _check_shape(line: Mapping[str, Any]) -> None:
    rows, cols, slices = line["rows"], line["cols"], line["slices"]
    least = 1 if line["status"] in MEASURED else 0
    if min(rows, cols, slices) < least or rows * cols * slices > _MOST_ENTRIES:
        raise ValueError(f"{line['name']} has the shape {slices} × {rows} × {cols}")
