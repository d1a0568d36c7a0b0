"""What lies beside a model's weights and is read whole by others: settings, vocabularies, templates of chats."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import closing
from copy import copy
from pathlib import Path
from typing import cast

from tailwise.checkpoints.bytesource import Folder, LocalFolder
from tailwise.checkpoints.formats.pickle_bounds import check_file
from tailwise.checkpoints.hub import HubAddress, HubFolder, cached_snapshot, is_offline, parse_hub
from tailwise.core.errors import UnreachableError, UnreadableError
from tailwise.core.storage import json_of, read_text

#: Read as JSON or text into objects that take twenty times as much. The largest that models carry: 2 MB and 40 MB.
_MOST_SETTINGS, _MOST_VOCABULARY = 16 << 20, 128 << 20
_SETTINGS = re.compile(
    r"config\.json|\w+_config\.json|special_tokens_map\.json|added_tokens\.json|chat_template\.(json|jinja)"
)
_VOCABULARY = re.compile(
    r"tokenizer(\..+)?\.json|tokenizer\.model.*|(\w+[.-])?vocab(-\w+|_\w+)?\.(json|txt)|merges\.txt|bpe\.codes|dict\.txt|"
    r"tekken\.json|\w+\.tiktoken|(spiece|spm\w*|sentencepiece(\.bpe)?|tiktoken)\.model|(source|target)\.spm|"
    r"(normalizer|emoji|byte_maps)\.json|\w+\.tokenizer"
)
#: The one folder beside the weights that is looked into.
_TEMPLATES = "additional_chat_templates"
_HIGHEST_TOKEN = 10_000_000  # for each number below it some tokenizers make a token
#: Where a vocabulary itself may stand; a name in its place is opened, wherever it leads.
_NO_NAMES = ("vocab", "merges", "gguf_file")
#: Weights as pickles, and what safetensors in their place are called.
_PICKLES = (
    (re.compile(r"pytorch_model.*\.bin"), "model"),
    (re.compile(r"adapter_model.*\.bin"), "adapter_model"),
)
_FIX = "take the file from where the model came from"


def check_sizes(folder: Folder | None) -> None:
    """`UnreadableError` where a file that transformers reads whole is larger than any of its kind."""
    if folder is None:
        return
    for name, most in _bounded(folder):
        with closing(folder.source(name)) as source:
            if source.size > most:
                raise UnreadableError(
                    f"has {source.size / 1e6:.0f} MB, and no file of its kind has more than {most / 1e6:.0f}",
                    where=source.name,
                    fix=_FIX,
                )


def folder_at(place: str, revision: str | None = None) -> Folder | None:
    """The files of a folder or a Hub id, where they are; None where they cannot be told, which others then say."""
    path = Path(place).expanduser()
    if path.is_dir():
        return LocalFolder(path)
    address = parse_hub(place, revision)
    if address is None:
        return None
    try:
        return _cached(address) if is_offline() else HubFolder(address)
    except UnreachableError:
        return _cached(address)
    except UnreadableError:  # no such model, or none that this token can see: transformers says so
        return None


def _cached(address: HubAddress) -> Folder | None:
    snapshot = cached_snapshot(address)
    return None if snapshot is None else LocalFolder(snapshot)


def _bounded(folder: Folder) -> Iterator[tuple[str, int]]:
    for name in sorted(folder.names()):
        most = _MOST_SETTINGS if _SETTINGS.fullmatch(name) else _MOST_VOCABULARY if _VOCABULARY.fullmatch(name) else 0
        if most and _is_regular(folder, name):
            yield name, most
    for name in sorted(_templates(folder)):
        if name.endswith(".jinja") and _is_regular(folder, name):
            yield name, _MOST_SETTINGS


def _templates(folder: Folder) -> Iterator[str]:
    if _TEMPLATES not in folder.subfolders():
        return
    if isinstance(folder, HubFolder):
        inner: Folder | None = copy(folder)
        cast("HubFolder", inner).enter(_TEMPLATES)
    else:
        inner = folder.inner(_TEMPLATES)
    yield from (f"{_TEMPLATES}/{name}" for name in (inner.names() if inner is not None else ()))


def _is_regular(folder: Folder, name: str) -> bool:
    """Whether it is a file; what is none is passed over by transformers too."""
    return not isinstance(folder, LocalFolder) or (folder.path / name).is_file()


def check_tokenizer_settings(file: Path) -> None:
    """`UnreadableError` where a tokenizer_config.json names files elsewhere, or a token beyond any vocabulary.

    Other damage is left to who reads it.
    """
    try:
        said = json_of(read_text(file, most=_MOST_SETTINGS))
    except (OSError, ValueError):
        return
    if not isinstance(said, Mapping):
        return
    for key, value in said.items():
        if isinstance(value, str) and (key in _NO_NAMES or _is_device(value)):
            raise UnreadableError(f"its {key} is the name of another file: {value[:200]!r}", where=file, fix=_FIX)
    added = said.get("added_tokens_decoder")
    for number in added if isinstance(added, Mapping) else ():
        if not number.isdecimal() or len(number) > 9 or int(number) > _HIGHEST_TOKEN:
            raise UnreadableError(
                f"adds a token of number {number[:40]!r}, and no vocabulary has more than {_HIGHEST_TOKEN}",
                where=file,
                fix=_FIX,
            )


def _is_device(name: str) -> bool:
    """Whether a name is that of a device, a pipe or a socket, which are read without end."""
    try:
        mode = os.stat(name).st_mode if os.sep in name else 0  # noqa: PTH116 - whatever text stands there
    except (OSError, ValueError):
        return False
    return bool(mode) and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def check_pickles(folder: Folder) -> None:
    """`UnreadableError` where a pickle that transformers or peft would load unfolds without measure.

    They read safetensors where there are any.
    """
    names = folder.names()
    for pattern, better in _PICKLES:
        if any(name.startswith(better) and name.endswith(".safetensors") for name in names):
            continue
        indexed = _indexed(folder, pattern.pattern.partition(".")[0] + ".bin.index.json")
        for name in sorted({name for name in names if pattern.fullmatch(name)} | indexed):
            with closing(folder.source(name)) as source:
                is_zip = source.head.startswith(b"PK\3\4")
                check_file(source.local_path(), source.name, is_zip=is_zip)


def _indexed(folder: Folder, index: str) -> set[str]:
    """Files that an index names and that are there."""
    try:
        said = folder.json(index) if index in folder.names() else {}
    except UnreadableError:  # who reads it says so
        return set()
    listed = said.get("weight_map")
    named = {name for name in listed.values() if isinstance(name, str)} if isinstance(listed, Mapping) else set()
    return named & folder.names()
