"""An audit on disk: `layers.parquet`, `spectra.parquet` and `provenance.json`, in one zip file or one folder."""

from __future__ import annotations

import io
import json
import os
import secrets
import shlex
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tailwise.audits.checked import SPECTRA, check_provenance, check_rows, check_spectra
from tailwise.audits.parquet import from_parquet
from tailwise.audits.rows import MEASURED, Layer, LayerRow, Provenance
from tailwise.audits.table import FACTS, ORIGIN, layer_table
from tailwise.core.archives import DAMAGED_ARCHIVE
from tailwise.core.atomic import could_not_write, write_whole
from tailwise.core.errors import TailwiseError, UnreadableError, UsageError
from tailwise.core.harmless import shortened
from tailwise.core.storage import ensure_room, exists, get, is_url, joined, json_of, open_regular, put, read_bytes
from tailwise.spectrum.spectrum import Spectrum

if TYPE_CHECKING:
    from tailwise.audits.audit import Audit

FORMAT = 1
#: What damaged bytes make the readers raise.
_DAMAGE = (*DAMAGED_ARCHIVE, pa.ArrowException, UsageError)
#: A part may be compressed by who packs the file again; it holds compressed tables, and cannot shrink by much.
_UNFOLDS, _SMALL_PART = 16, 1 << 22
#: Suffixes of other files, which would hold an audit that nothing opens.
_TABLES = frozenset({".csv", ".json", ".md", ".parquet", ".html", ".txt", ".xlsx", ".tsv"})
MEMBERS = ("layers.parquet", "spectra.parquet", "provenance.json")


def save(audit: Audit, path: str | Path, *, exclusive: bool = False) -> Path | str:
    """Write `audit` to a single file, or to a folder where `path` ends in a slash or is a folder; a URL is as good.

    With `exclusive`, a file that is there already is a `FileExistsError`. It appears whole or not at all. A file or
    folder that is not an audit is not overwritten (`UsageError`).
    """
    as_folder = str(path).endswith(("/", os.sep))
    if not as_folder and Path(str(path)).suffix.lower() in _TABLES:
        raise UsageError(
            f"an audit is no {Path(str(path)).suffix} file",
            where=path,
            fix="save it as x.audit; for a table take audit.table().to_pandas(), or `tailwise audit MODEL -o x.csv`",
        )
    if is_url(path):
        return _save_at_url(audit, str(path), as_folder, exclusive)
    target = Path(path)
    if target.exists() and not _is_audit(target):
        raise _not_an_audit(target)
    parts = _encode(audit)
    if not (as_folder or target.is_dir()):
        return write_whole(target, _zipped(parts), exclusive=exclusive)
    try:
        _write_folder(target, parts)
    except OSError as error:
        raise could_not_write(error, target) from error
    return target


def _save_at_url(audit: Audit, url: str, as_folder: bool, exclusive: bool) -> str:
    parts = _encode(audit)
    if as_folder:
        # Provenance last: its presence is what makes the folder an audit.
        for name in MEMBERS:
            put(str(joined(url, name)), parts[name])
        return url
    if not exclusive and exists(url) and not _is_zipped_audit(io.BytesIO(get(url))):
        raise _not_an_audit(url)
    return put(url, _zipped(parts), exclusive=exclusive)


def _not_an_audit(target: Path | str) -> UsageError:
    return UsageError("exists and is not an audit", where=target, fix="choose another name, or remove it first")


class AuditParts(NamedTuple):
    """What an `Audit` is made from."""

    rows: list[LayerRow]
    layers: dict[str, Layer]
    provenance: Provenance


def load(path: str | Path) -> AuditParts:
    """Read what an audit is made of, from a path or a URL; `Audit.load` makes it one.

    Raises `UnreadableError` where there is none, or it is damaged, or it is newer than this.
    """
    try:
        return _decode(_read_url(str(path)) if is_url(path) else _read(Path(path)))
    except UnreadableError:
        raise
    except MemoryError as error:
        raise UnreadableError("does not fit into memory", where=path, fix="read it on a larger machine") from error
    except _DAMAGE as error:
        if not exists(path):
            raise UnreadableError("no such audit", where=path, fix="run `tailwise audit MODEL` first") from error
        if (folder := Path(path)).is_dir() and not (folder / "provenance.json").exists():
            fix = f"of a model, run `{_audit_of(folder)}` first, and give what it writes"
            raise UnreadableError("is a folder that holds no audit", where=path, fix=fix) from error
        raise UnreadableError(f"is not a readable audit ({_detail(error)})", where=path, fix=_AGAIN) from error


def _audit_of(folder: Path) -> str:
    """The command that audits a folder, of an adapter with the model that it adapts."""
    merged = " --adapter merged" if (folder / "adapter_config.json").is_file() else ""
    return f"tailwise audit {shlex.quote(str(folder))}{merged}"


_AGAIN = (
    "give a file that `tailwise audit MODEL` has written; if this is one, it was damaged, or edited by other means "
    "than tailwise: audit the model again"
)


def _detail(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = error.what if isinstance(error, TailwiseError) else str(error)
    return f"{type(error).__name__}: {text}"[:300]


def _is_audit(target: Path) -> bool:
    if target.is_dir():
        return (target / MEMBERS[2]).is_file() or not any(target.iterdir())
    return _is_zipped_audit(target)


def _is_zipped_audit(file: Path | io.BytesIO) -> bool:
    try:
        with open_regular(file) if isinstance(file, Path) else file as opened, zipfile.ZipFile(opened) as archive:
            return set(MEMBERS) <= set(archive.namelist())
    except (*DAMAGED_ARCHIVE, UnreadableError):
        return False


def _zipped(parts: Mapping[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for name, data in parts.items():
            # A fixed date: the same audit gives the same bytes.
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
    return sink.getvalue()


def _write_folder(target: Path, parts: Mapping[str, bytes]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    # Inside the folder, which may be a mount of its own: a rename must not cross devices.
    staging = target / f".new-{secrets.token_hex(4)}"
    try:
        staging.mkdir()
        for name, data in parts.items():
            (staging / name).write_bytes(data)
        # Provenance last: its presence is what makes the folder an audit.
        for name in MEMBERS:
            (staging / name).replace(target / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _read(source: Path) -> dict[str, bytes]:
    if source.is_dir():
        return {name: read_bytes(source / name) for name in MEMBERS}
    return _unzipped(source)


def _read_url(url: str) -> dict[str, bytes]:
    if not url.endswith("/"):
        try:
            return _unzipped(io.BytesIO(get(url)))
        except UnreadableError:
            if not exists(joined(url, MEMBERS[2])):
                raise
    return {name: get(str(joined(url, name))) for name in MEMBERS}


def _unzipped(file: Path | io.BytesIO) -> dict[str, bytes]:
    with open_regular(file) if isinstance(file, Path) else file as opened, zipfile.ZipFile(opened) as archive:
        for name in MEMBERS:
            part = archive.getinfo(name)
            if part.file_size > _SMALL_PART + _UNFOLDS * part.compress_size:
                raise ValueError(f"{name} would unfold from {part.compress_size} to {part.file_size} bytes")
        return {name: archive.read(name) for name in MEMBERS}


def _encode(audit: Audit) -> dict[str, bytes]:
    ensure_room()  # Arrow ends the process where it finds none
    provenance = {"audit_format": FORMAT, **audit.provenance.to_json()}
    return {
        "layers.parquet": to_parquet(layer_table(audit.rows).arrow),
        "spectra.parquet": to_parquet(_spectra_table(audit)),
        "provenance.json": json.dumps(provenance, indent=1, ensure_ascii=False).encode(),
    }


def to_parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _spectra_table(audit: Audit) -> pa.Table:
    entries = [entry for layer in audit for entry in _entries(layer)]
    columns: dict[str, Any] = {
        "name": [name for name, _, _ in entries],
        "kind": [kind for _, kind, _ in entries],
    }
    attributes = [name for name in SPECTRA if name not in columns]
    columns |= {name: [getattr(spectrum, name) for _, _, spectrum in entries] for name in attributes}
    return pa.table({name: pa.array(columns[name], kind) for name, kind in SPECTRA.items()})


def _entries(layer: Layer) -> list[tuple[str, str, Spectrum]]:
    name = layer.row.name
    windows = [] if layer.windows is None else [(name, "windows", layer.windows)]
    return [(name, "weights", layer.spectrum), *((name, "permuted", s) for s in layer.permuted), *windows]


def _decode(parts: Mapping[str, bytes]) -> AuditParts:
    provenance = json_of(parts["provenance.json"])
    if not isinstance(provenance, dict):
        raise ValueError("its provenance is no mapping")
    if provenance.pop("audit_format") != FORMAT:
        raise ValueError("it was written by another version of tailwise; upgrade, or audit the model again")
    ensure_room()
    check_provenance(provenance)
    known = {item.name for item in fields(Provenance)}
    settings: dict[str, Any] = {name: value for name, value in provenance.items() if name in known}
    settings["notes"] = tuple(map(shortened, settings.get("notes", ())))
    table = from_parquet(parts["layers.parquet"])
    check_rows(table)
    rows = [row_of(line) for line in table.to_pylist()]
    spectra: dict[str, dict[str, list[Spectrum]]] = {}
    for line in _spectra_lines(parts["spectra.parquet"]):
        name, kind, spectrum = line
        spectra.setdefault(name, {}).setdefault(kind, []).append(spectrum)
    layers = {row.name: _layer(row, spectra[row.name]) for row in rows if row.measured}
    return AuditParts(rows, layers, Provenance(**settings))


def _spectra_lines(data: bytes) -> list[tuple[str, str, Spectrum]]:
    table = from_parquet(data)
    check_spectra(table)
    values = table.column("eigenvalues")
    lines = table.drop_columns(["eigenvalues"]).to_pylist()
    out = []
    for index, line in enumerate(lines):
        eigenvalues = np.asarray(values[index].values.to_numpy(zero_copy_only=False), dtype=np.float64)
        name, kind = line.pop("name"), line.pop("kind")
        try:
            out.append((name, kind, Spectrum(eigenvalues, **line)))
        except TailwiseError as error:
            raise ValueError(f"{name}: {error.what}") from error
    return out


def row_of(line: dict[str, Any]) -> LayerRow:
    """A line of `Audit.table(unmeasured=True)` as the row it came from."""
    known = {item.name for item in fields(LayerRow)} - {"metrics"}
    line["reason"] = shortened(line["reason"])
    for name in ("tensors", "degenerate"):
        line[name] = tuple(line.get(name) or ())
    metrics = {key: value for key, value in line.items() if key not in FACTS and key not in ORIGIN}
    measured = metrics if line["status"] in MEASURED else {}
    return LayerRow(**{key: value for key, value in line.items() if key in known}, metrics=measured)


def _layer(row: LayerRow, spectra: Mapping[str, list[Spectrum]]) -> Layer:
    windows, own = spectra.get("windows"), spectra["weights"][0]
    if {row.rows, row.cols} != {own.rows, own.cols}:
        raise ValueError(f"{row.name} is {row.rows} × {row.cols}, and its spectrum that of {own.rows} × {own.cols}")
    return Layer(row, own, tuple(spectra.get("permuted", ())), windows[0] if windows else None)
