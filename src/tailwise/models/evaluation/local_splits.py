"""Which files of a folder are which split of a data set: as its card says, or as `datasets` tells it by their names.

`datasets` is never shown the card: what it reads differently could ask any address, or search the whole disk.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from tailwise.checkpoints.within import names_within, stays_within
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.storage import read_text
from tailwise.core.yaml_text import NotYamlError, yaml_of

#: Where a folder says which of its files are what; the second counts where both do.
_CARDS = ("README.md", ".huggingface.yaml")
_MOST_CARD = 4 << 20
#: Names of files that a card gives; of those with a wildcard, which are held against every file, and their signs.
_MOST_ITEMS, _MOST_GLOBS, _LONGEST_GLOB = 100_000, 1000, 1000
_WILDCARD = re.compile(r"[*?\[]")
_FIX = "put all files of the data set into one folder, with relative names"

# What follows is the documentation of `datasets`, "Structure your repository", and its module data_files.
_IGNORED = frozenset((
    "README.md", "config.json", "dataset_info.json", "dataset_infos.json", "dummy_data.zip", "dataset_dict.json",
))  # fmt: skip
_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_APART = "[-._ 0-9]"
_OF_FOLDERS = ("**/{0}/**", f"**/{{0}}{_APART}*/**", f"**/*{_APART}{{0}}/**", f"**/*{_APART}{{0}}{_APART}*/**")
_OF_FILES = (f"**/{{0}}{_APART}*", f"**/*{_APART}{{0}}{_APART}*")
_SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
#: Of as many files of each, the kind that is taken.
_PREFERRED = (".csv", ".json", ".jsonl", ".arrow", ".parquet")
#: Files of pictures, and what may lie beside them and says of each what it shows.
IMAGES = "imagefolder"
_BESIDE = frozenset(("metadata.csv", "metadata.jsonl", "metadata.parquet"))


@dataclass(frozen=True)
class Splits:
    """The splits of a folder, each with its files in their order, all of them in the folder and of one kind."""

    parts: Mapping[str, tuple[Path, ...]]
    kind: str | None  # None: none of those that are known
    separator: str | None = None  # of fields, where the card says it


def splits_of(folder: Path, kinds: Mapping[str, str], where: str) -> Splits:
    """The splits of a folder, of files whose names end as `kinds` says, which are of those kinds.

    Nothing but names and the card is read. `UnreadableError` where the card names what is not in the folder, links
    included that lead out of it.
    """
    said = _configuration(folder, where)
    inner = said.get("data_dir") or ""
    if not isinstance(inner, str) or not stays_within(folder, folder / inner):
        raise UnreadableError("its data_dir is no folder in it", where=where, fix=_FIX)
    names = _names_in(folder / inner, folder)
    given = said.get("data_files")
    patterns = _by_split(given, folder) if given else _default_patterns(names)
    chosen = {split: list(_resolved(globs, names, folder)) for split, globs in patterns.items()}
    kind, kept = _of_one_kind({split: found for split, found in chosen.items() if found}, kinds, where)
    parts = {split: tuple(folder / inner / name for name in found) for split, found in kept.items()}
    for path in (path for paths in parts.values() for path in paths):
        if not stays_within(folder, path):
            raise UnreadableError(f"{path.name} lies outside the data set's folder", where=where, fix=_FIX)
    separator = said.get("delimiter") or said.get("sep")
    return Splits(parts, kind, separator if isinstance(separator, str) else None)


def _configuration(folder: Path, where: str) -> Mapping[str, Any]:
    """The one that is taken unless one is named; nothing where a folder says nothing of itself."""
    document: dict[str, Any] = {}
    for name in _CARDS:
        if (folder / name).is_file():
            document |= _document(folder, folder / name)
    listed = document.get("configs") or []
    if not isinstance(listed, list) or not all(isinstance(item, dict) and "config_name" in item for item in listed):
        raise UnreadableError("its card lists configurations without names", where=where, fix="give each a config_name")
    for item in listed:
        _check_places(item, folder)
    marked = [item for item in listed if item["config_name"] == "default" or item.get("default")]
    if len(listed) > 1 and len(marked) != 1:
        names = ", ".join(str(item["config_name"])[:80] for item in listed[:20])
        raise UsageError(f"it has several configurations ({names})", where=where, fix="give a file of it")
    return dict((marked or listed or [{}])[0])


def _document(folder: Path, path: Path) -> dict[str, Any]:
    if not stays_within(folder, path):
        raise UnreadableError(f"{path.name} lies outside the data set's folder", where=folder, fix=_FIX)
    text = read_text(path, most=_MOST_CARD).removeprefix("\ufeff")
    if path.suffix == ".md":
        lines = text.splitlines()
        if not lines or lines[0].rstrip() != "---" or "---" not in (rest := [line.rstrip() for line in lines[1:]]):
            return {}
        text = "\n".join(lines[1 : 1 + rest.index("---")])
    try:
        said = yaml_of(text)
    except NotYamlError as error:
        raise UnreadableError(f"is no YAML: {error}", where=path, fix="mend it, or take it away") from error
    return said if isinstance(said, dict) else {}


def _check_places(said: Mapping[str, Any], folder: Path) -> None:
    """`UnreadableError` where a configuration names files elsewhere, or on another machine."""
    waiting: list[Any] = [said.get(key) for key in ("data_files", "data_dir")]
    globs = 0
    for _ in range(_MOST_ITEMS):
        if not waiting:
            return
        value = waiting.pop()
        if isinstance(value, str):
            globs += _WILDCARD.search(value) is not None
            if len(value) > _LONGEST_GLOB or globs > _MOST_GLOBS:
                break
            if value and (not names_within(value) or "://" in value or "::" in value):
                raise UnreadableError(
                    f"its card names a file outside the data set's folder: {value[:200]!r}", where=folder, fix=_FIX
                )
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif value is not None:
            raise UnreadableError(f"its card names {str(value)[:80]!r}, which is no file", where=folder)
    raise UnreadableError("it names more files than a data set has", where=folder)


def _names_in(place: Path, root: Path) -> list[str]:
    """Every file in a folder and below, by its path from there; links to folders lead no further than `root`."""
    found, seen = [], set[str]()
    for base, folders, files in os.walk(place, followlinks=True):
        real = os.path.realpath(base)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        inner = sorted((Path(base, name).is_symlink(), name) for name in folders)
        folders[:] = [name for _, name in inner if stays_within(root, Path(base, name))]
        paths = [Path(base, name) for name in files]
        found += [path.relative_to(place).as_posix() for path in paths if path.is_file()]
    return sorted(found)


def _by_split(given: Any, folder: Path) -> dict[str, list[str]]:
    """Patterns by split, of the spellings that a card may have."""
    items = given if isinstance(given, list) else [given]
    if isinstance(given, dict):
        items = [{"split": split, "path": path} for split, path in given.items()]
    if all(isinstance(item, str) for item in items):
        return {"train": items}
    found: dict[str, list[str]] = {}
    for item in items:
        paths = item.get("path") if isinstance(item, dict) else None
        listed: list[Any] = paths if isinstance(paths, list) else [paths]
        if not isinstance(item, dict) or "split" not in item or not all(isinstance(path, str) for path in listed):
            raise UnreadableError(
                "its card does not say which files are which split", where=folder, fix="data_files: {split: path}"
            )
        found.setdefault(str(item["split"]), []).extend(listed)
    return found


def _default_patterns(names: Sequence[str]) -> dict[str, list[str]]:
    shards = {match[1] for name in names if (match := _SHARD.fullmatch(name))}
    if shards:
        order = [split for split in _KEYWORDS if split in shards] + sorted(shards - set(_KEYWORDS))
        return {split: [f"data/{split}-{'[0-9]' * 5}-of-{'[0-9]' * 5}*.*"] for split in order}
    for forms in (_OF_FOLDERS, _OF_FILES):
        tried = {split: [form.format(word) for word in words for form in forms] for split, words in _KEYWORDS.items()}
        if found := {split: globs for split, globs in tried.items() if any(_resolved(globs, names, None))}:
            return found
    return {"train": ["**"]}


def _resolved(patterns: Iterable[str], names: Sequence[str], folder: Path | None) -> Iterator[str]:
    """The names that patterns take, each once. `UnreadableError` where one without a wildcard names no file."""
    known, taken = frozenset(names), set[str]()
    for pattern in patterns:
        glob = PurePosixPath(pattern)
        if _WILDCARD.search(pattern):
            found = [name for name in names if _takes(glob, PurePosixPath(name))]
        elif str(glob) in known:
            found = [str(glob)]
        elif folder is not None:
            raise UnreadableError(f"its card names {pattern[:200]!r}, which is not there", where=folder, fix=_FIX)
        else:
            found = []
        yield from (name for name in found if name not in taken)
        taken.update(found)


def _takes(glob: PurePosixPath, path: PurePosixPath) -> bool:
    if path.name in _IGNORED and path.name != glob.name:
        return False
    # Hidden files, and folders such as __pycache__, are taken by what names them so.
    for parts, of, begin in ((path.parts, glob.parts, "."), (path.parts[:-1], glob.parts[:-1], "__")):
        if sum(part.startswith(begin) for part in parts) != sum(part.startswith(begin) for part in of):
            return False
    return _fits(glob.parts, path.parts)


def _fits(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether a glob takes a path, both in parts; `**` stands for any number of folders."""
    stages = [*pattern, "*"] if pattern[-1] == "**" else list(pattern)
    places = {0}
    for part in [*parts, ""]:
        for at, stage in enumerate(stages):
            if stage == "**" and at in places:
                places.add(at + 1)
        if part:
            kept = {at for at in places if at < len(stages) and stages[at] == "**"}
            places = kept | {at + 1 for at in places - kept if at < len(stages) and fnmatchcase(part, stages[at])}
    return len(stages) in places


def _of_one_kind(
    chosen: Mapping[str, list[str]], kinds: Mapping[str, str], where: str
) -> tuple[str | None, dict[str, list[str]]]:
    """The kind that most files have, and the files of that kind; all files where none has one."""
    found = {split: _kind_of_most(names, kinds) for split, names in chosen.items()}
    if len(set(found.values())) > 1:
        said = ", ".join(f"{split}: {kind or 'none'}" for split, kind in found.items())
        raise UsageError(f"its splits are of several kinds ({said})", where=where, fix="give a file of it")
    kind = next(iter(found.values()), None)
    if kind is None:
        return None, dict(chosen)
    kept = {split: [name for name in names if _is_of(name, kind, kinds)] for split, names in chosen.items()}
    return kind, kept


def _kind_of_most(names: Sequence[str], kinds: Mapping[str, str]) -> str | None:
    plain = [name for name in names if name.rpartition("/")[2] not in _BESIDE] or names
    counted = Counter(suffix for name in plain for suffix in _suffixes(name) if suffix in kinds)
    if not counted:
        return None
    return kinds[max(counted, key=lambda suffix: (
        counted[suffix], _PREFERRED.index(suffix) if suffix in _PREFERRED else -1, suffix))]  # fmt: skip


def _is_of(name: str, kind: str, kinds: Mapping[str, str]) -> bool:
    beside = kind == IMAGES and name.rpartition("/")[2] in _BESIDE
    return beside or any(kinds.get(suffix) == kind for suffix in _suffixes(name))


def _suffixes(name: str) -> list[str]:
    return [f".{part.lower()}" for part in name.rpartition("/")[2].split(".")[1:]]
