"""From what names a text to its documents: files, folders, data sets, or strings at hand."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tailwise.checkpoints.open import looks_local, names_like
from tailwise.checkpoints.within import stays_within
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.optional import how_to_get
from tailwise.core.storage import read_text
from tailwise.models.evaluation.local_data_sets import is_saved, rows_at
from tailwise.models.evaluation.own_code import load_error
from tailwise.models.evaluation.quiet import quiet

#: Endings of files that a folder is searched for.
TEXT_SUFFIXES = frozenset((
    ".txt", ".md", ".rst", ".tex", ".html", ".xml", ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".go",
    ".java", ".js", ".ts", ".rs", ".rb", ".php", ".sh", ".sql", ".toml", ".yaml", ".yml",
))  # fmt: skip
#: A line that holds this alone separates two documents, as in TinyStories.
SEPARATOR = "<|endoftext|>"
#: Texts by a short name: data set, configuration, split, column, and what joins the rows to one document.
#: WikiText-2 is joined as in GPTQ's evaluation (Frantar et al. 2022), which the pruning papers use.
KNOWN: Mapping[str, tuple[str, str, str, str, str]] = {
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1", "test", "text", "\n\n"),
}
_TABLES = frozenset((".jsonl", ".parquet", ".csv"))
_ID = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Documents:
    """Texts that were written apart from one another."""

    texts: tuple[str, ...]
    name: str = "documents"
    notes: tuple[str, ...] = ()


def documents_of(source: str | os.PathLike[str] | Documents, *, separator: str = SEPARATOR) -> Documents:
    """The documents that `source` names.

    A text file (UTF-8): one document, or several between lines that hold only `separator`; a folder: every text
    file in it and below, in the order of their paths; a data set: a row each. A data set is `wikitext2`, or
    `org/name[/config][:split[:column]]` on the Hugging Face Hub, or a folder that `datasets` saved or can load, or
    a .jsonl, .parquet or .csv file, each with `[:split[:column]]`. The split is `test` and the column `text` unless
    named. An empty `separator` splits nothing.
    """
    if isinstance(source, Documents):
        return source
    text = os.fspath(source)
    path = Path(text).expanduser()
    place, _, rest = text.partition(":")
    if _exists(path):
        return _of_path(path, separator)
    if text in KNOWN:
        return _of_known(text)
    if rest and _exists(Path(place).expanduser()):
        return _of_data(str(Path(place).expanduser()), rest, text)
    path = Path(place).expanduser()
    table = path.suffix.lower() in _TABLES
    if table or (not rest and (path.suffix.lower() in TEXT_SUFFIXES or looks_local(place))):
        a_set = f"; a data set of that name is {place}:test" if _ID.fullmatch(place) and not table else ""
        raise UnreadableError("no such text file or folder", where=text, fix=f"check the path{names_like(path)}{a_set}")
    if _ID.fullmatch(place):
        return _of_data(place, rest, text)
    names = ", ".join(KNOWN)
    raise UnreadableError(
        "no such text", where=text, fix=f"give a file, a folder, {names}, or a data set as org/name:split:column"
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _of_path(path: Path, separator: str) -> Documents:
    if path.is_dir():
        if is_saved(path):
            return _of_data(str(path), "", str(path))
        return _of_folder(path, separator)
    if path.suffix in _TABLES:
        return _of_data(str(path), "", str(path))
    return Documents(tuple(_split(_read(path), separator)), str(path))


def _of_folder(folder: Path, separator: str) -> Documents:
    found = sorted(file for file in folder.rglob("*") if file.is_file())
    files = [file for file in found if stays_within(folder, file)]
    wanted = [file for file in files if file.suffix.lower() in TEXT_SUFFIXES]
    if not wanted and any(file.suffix in _TABLES for file in files):
        return _of_data(str(folder), "", str(folder))
    texts: list[str] = []
    unreadable: list[str] = []
    for file in wanted:
        try:
            texts += _split(_read(file), separator)
        except UnreadableError:
            unreadable.append(file.relative_to(folder).as_posix())
    notes = []
    if len(files) < len(found):
        notes.append(f"{folder}: {len(found) - len(files)} links to files outside the folder were left out")
    if len(wanted) < len(files):
        notes.append(f"{folder}: {len(files) - len(wanted)} of {len(files)} files do not end as a text does: left out")
    if unreadable:
        notes.append(f"{folder}: {len(unreadable)} files are not UTF-8 and were left out: {', '.join(unreadable[:5])}")
    return Documents(tuple(texts), str(folder), tuple(notes))


def _read(path: Path) -> str:
    try:
        return read_text(path, "utf-8-sig")  # a mark that an editor began the file with is no text
    except OSError as error:
        raise UnreadableError(f"could not be read ({error.strerror or error})", where=path) from error
    except UnicodeDecodeError as error:
        raise UnreadableError("is not text in UTF-8", where=path, fix="convert it, or leave it out") from error


def _split(text: str, separator: str) -> Iterator[str]:
    """The parts between separator lines, without the line breaks around them; the text itself where there is none."""
    parts = re.split(rf"^[ \t]*{re.escape(separator)}[ \t]*$", text, flags=re.MULTILINE) if separator else [text]
    for part in parts:
        document = part.strip("\r\n") if len(parts) > 1 else part
        if document.strip():
            yield document


def _of_known(name: str) -> Documents:
    place, config, split, column, joint = KNOWN[name]
    rows = _rows(place, config, split, column, name)
    return Documents((joint.join(rows),), name)


def _of_data(place: str, rest: str, where: str) -> Documents:
    split, _, column = rest.partition(":")
    config = None
    if not _exists(Path(place)) and place.count("/") == 2:
        place, _, config = place.rpartition("/")
    rows = _rows(place, config, split, column or "text", where)
    return Documents(tuple(row for row in rows if row.strip()), where)


def _rows(place: str, config: str | None, split: str, column: str, where: str) -> list[str]:
    try:
        with quiet():
            datasets = import_module("datasets")
    except ImportError as error:
        raise UsageError("reading it takes `datasets`", where=where, fix=how_to_get("eval")) from error
    if _exists(Path(place)):
        return rows_at(Path(place), split, column, where)
    with quiet():
        table = _table(datasets, place, config, split, where)
    if column not in table.column_names:
        fix = f"name one of {', '.join(table.column_names)} as …:split:column"
        raise UsageError(f"it has no column {column!r}", where=where, fix=fix)
    rows = list(table[column])
    if not all(isinstance(row, str) for row in rows):
        raise UsageError(f"the column {column!r} does not hold text", where=where)
    return rows


def _table(datasets: Any, place: str, config: str | None, split: str, where: str) -> Any:
    try:
        table = datasets.load_dataset(place, config, trust_remote_code=False)
    except Exception as error:  # `datasets` raises whatever its readers do
        raise load_error(error, where, fix="check the name; a local file or folder is given by its path") from error
    if not hasattr(table, "keys"):  # one table without splits
        return table
    wanted = split or ("test" if "test" in table or len(table) > 1 else next(iter(table)))
    if wanted not in table:
        raise UsageError(f"it has no split {wanted!r}", where=where, fix=f"name one of {', '.join(table)}")
    return table[wanted]
