"""Data sets in files and folders of this machine: which files they are of, none of them elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailwise.checkpoints.within import names_within, stays_within
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.storage import json_of, read_text
from tailwise.models.evaluation.arrow_files import NoTextError
from tailwise.models.evaluation.local_splits import splits_of
from tailwise.models.evaluation.own_code import load_error
from tailwise.models.evaluation.table_files import KINDS, NoColumnError, Room, kind_of, rows_of

#: By which a folder that `datasets` saved is known, and what lists its splits.
_STATE, _SPLITS = "state.json", "dataset_dict.json"
_FIX = "put all files of the data set into one folder, with relative names"


@dataclass(frozen=True)
class Subset:
    """A split: its files in their order, and what separates the fields in them."""

    files: tuple[Path, ...]
    separator: str = ","


def is_saved(folder: Path) -> bool:
    """Whether `datasets` saved a folder."""
    return any((folder / name).is_file() for name in (_STATE, _SPLITS))


def rows_at(path: Path, split: str, column: str, where: str) -> list[str]:
    """The values of a column of text. `split` is `test` unless it is named, or there is only one.

    Raises `UsageError` where there is no such split or column, or it holds no text, and `UnreadableError`.
    """
    try:
        part = _part(_parts(path, where), split, where)
        stored = sum(file.stat().st_size for file in part.files)
        room = Room(stored, where)
        rows = [row for file in part.files for row in rows_of(file, column, room, part.separator)]
    except NoColumnError as error:
        fix = f"name one of {', '.join(map(str, error.args[0]))} as …:split:column"
        raise UsageError(f"it has no column {column!r}", where=where, fix=fix) from error
    except NoTextError:
        rows = [None]
    except (UsageError, UnreadableError):
        raise
    except Exception as error:  # readers raise errors of their own
        raise load_error(error, where, fix="check the name; a local file or folder is given by its path") from error
    if not all(isinstance(row, str) for row in rows):
        raise UsageError(f"the column {column!r} does not hold text", where=where)
    return rows


def _part(parts: Mapping[str, Subset] | Subset, split: str, where: str) -> Subset:
    if isinstance(parts, Subset):
        return parts
    wanted = split or ("test" if "test" in parts or len(parts) > 1 else next(iter(parts)))
    if wanted not in parts:
        raise UsageError(f"it has no split {wanted!r}", where=where, fix=f"name one of {', '.join(parts)}")
    return parts[wanted]


def _parts(path: Path, where: str) -> Mapping[str, Subset] | Subset:
    if path.is_file():
        if kind_of(path) in (None, "text"):
            raise UsageError("is no kind of table that can be read", where=where, fix="give .jsonl or .parquet")
        return Subset((path,))
    if (path / _SPLITS).is_file():
        said = _document(path, path / _SPLITS)
        names = said.get("splits")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UnreadableError("it lists no splits", where=path / _SPLITS)
        return {name: _saved(path, path / _own(path, name, _SPLITS)) for name in names}
    if (path / _STATE).is_file():
        return _saved(path, path)
    return _found(path, where)


def _own(folder: Path, name: str, said_by: str) -> str:
    """A name that stays in the folder, also when links are followed."""
    if not names_within(name) or not stays_within(folder, folder / name):
        raise UnreadableError(
            f"its {said_by} names a file outside the data set's folder: {name[:200]!r}", where=folder, fix=_FIX
        )
    return name


def _document(root: Path, path: Path) -> dict[str, Any]:
    _own(root, path.relative_to(root).as_posix(), path.name)
    said = json_of(read_text(path))
    if not isinstance(said, dict):
        raise UnreadableError(f"holds a JSON {type(said).__name__}, and an object was expected", where=path)
    return said


def _saved(root: Path, folder: Path) -> Subset:
    """The files of one table that `datasets` saved, in their order."""
    listed = _document(root, folder / _STATE).get("_data_files")
    names = [item.get("filename") if isinstance(item, dict) else None for item in listed or ()]
    if not all(isinstance(name, str) for name in names):
        raise UnreadableError("it lists no files", where=folder / _STATE)
    files = [folder / _own(folder, str(name), _STATE) for name in names]
    if any(kind_of(file) != "arrow" for file in files):
        raise UnreadableError("it lists files that are none of Arrow", where=folder / _STATE)
    for file in files:
        _own(root, file.relative_to(root).as_posix(), _STATE)
    return Subset(tuple(files))


def _found(folder: Path, where: str) -> dict[str, Subset]:
    """Splits of a folder of tables."""
    found = splits_of(folder, KINDS, where)
    if found.kind is None:
        raise UnreadableError(
            "there is no table in it that can be read", where=where, fix="give .jsonl, .parquet or .csv"
        )
    parts = {}
    for split, paths in found.parts.items():
        if strange := next((path.name for path in paths if kind_of(path) is None), None):
            raise UsageError(f"{strange} is no kind of table that can be read", where=where,
                             fix="give .jsonl, .parquet or .csv, or unpack it")  # fmt: skip
        parts[split] = Subset(paths, found.separator or ",")
    return parts
