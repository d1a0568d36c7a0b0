"""What lies beside a model's weights and is read whole by others: settings, vocabularies, templates of chats."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import closing
from copy import copy
from pathlib import Path
from typing import Any, cast

from tailwise.checkpoints.bytesource import Folder, LocalFolder
from tailwise.checkpoints.formats.pickle_bounds import check_file
from tailwise.checkpoints.formats.torch_pickle import check_pickles_let_in
from tailwise.checkpoints.hub import HubAddress, HubFolder, cached_snapshot, is_offline, parse_hub
from tailwise.checkpoints.within import stays_within
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
#: What transformers puts its own files in place of, or never opens. Old settings name files here that were elsewhere.
_NOT_OPENED = frozenset((
    "tokenizer_file", "special_tokens_map_file", "added_tokens_file", "tokenizer_config_file", "chat_template_file",
    "name_or_path", "_name_or_path",
))  # fmt: skip
#: Texts that are no names of files, whatever lies beside where a command is run.
_TEXTS = re.compile(r".*_tokens?|content|chat_template|template|\w+_class|\w+_type|auto_map")
#: Settings whose values are names also where no folder stands in them.
_NAMES = re.compile(r".*(file|files|path|dir|folder|vocab|model|inputs)")
_LONGEST_NAME = 4096
#: By which an image processor of transformers opens a file, or asks the Hub for one, of another repository.
_OTHERS_SETTINGS = ("repo_path", "class_info_file")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
#: Weights as pickles, and the files that libraries take before they look for those.
_PICKLES = (
    (re.compile(r"pytorch_model.*\.bin"), ("model.safetensors", "model.safetensors.index.json")),
    (re.compile(r"adapter_model.*\.bin"), ("adapter_model.safetensors",)),
)
_INDEX = ".index.json"
_FIX = "take the file from where the model came from"


def check_sizes(folder: Folder | None) -> None:
    """`UnreadableError` where a file that transformers reads whole is larger than any of its kind.

    Settings are not read behind a link to what is none (`check_within`), too: they are written out with the model.
    """
    if folder is None:
        return
    for name, most in _bounded(folder):
        with closing(folder.settings(name) if most == _MOST_SETTINGS else folder.source(name)) as source:
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


def items_of(document: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every name and value in a document, those in lists under the list's name."""
    waiting = [(name, document)]
    while waiting:
        key, value = waiting.pop()
        yield key, value
        if isinstance(value, Mapping):
            waiting += [(str(inner), item) for inner, item in value.items()]
        elif isinstance(value, list):
            waiting += [(key, item) for item in value]


def check_tokenizer_settings(file: Path) -> None:
    """`UnreadableError` where a tokenizer_config.json names files elsewhere, or a token beyond any vocabulary.

    Other damage is left to who reads it.
    """
    said = _settings_in(file)
    _check_names({key: value for key, value in said.items() if key not in _NOT_OPENED}, file)
    added = said.get("added_tokens_decoder")
    for number in added if isinstance(added, Mapping) else ():
        if not number.isdecimal() or len(number) > 9 or int(number) > _HIGHEST_TOKEN:
            raise UnreadableError(
                f"adds a token of number {number[:40]!r}, and no vocabulary has more than {_HIGHEST_TOKEN}",
                where=file,
                fix=_FIX,
            )
    _check_devices(said, file)


def check_token_map(file: Path) -> None:
    """The same of a special_tokens_map.json, whose values are taken last: nothing is put in place of a name there."""
    said = _settings_in(file)
    _check_names(said, file)
    _check_devices(said, file)


def check_processor_settings(place: str, revision: str | None = None) -> None:
    """`UnreadableError` where what says how pictures are made ready names files elsewhere.

    `place` is a folder or a Hub id, whose settings are fetched into its cache, as transformers would.
    """
    folder = folder_at(place, revision)
    if folder is None:
        return
    check_sizes(folder)
    for name in sorted(folder.names().intersection(_PROCESSORS)):
        if not _is_regular(folder, name):
            continue
        with closing(folder.settings(name)) as source:
            file = source.local_path()
            said = _settings_in(file)
        for key, value in items_of(said):
            if key in _OTHERS_SETTINGS and isinstance(value, str):
                raise _named_elsewhere(key, value, file)
        _check_names(said, file)


def _settings_in(file: Path) -> Mapping[str, Any]:
    try:
        said = json_of(read_text(file, most=_MOST_SETTINGS))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, Mapping) else {}


def _check_names(said: Mapping[str, Any], file: Path) -> None:
    for key, value in items_of(said):
        if isinstance(value, str) and ((key in _NO_NAMES) or _leads_out(key, value, file.parent)):
            raise _named_elsewhere(key, value, file)


def _check_devices(said: Mapping[str, Any], file: Path) -> None:
    for key, value in said.items():
        if isinstance(value, str) and _is_device(value):
            raise _named_elsewhere(key, value, file)


def _named_elsewhere(key: str, value: str, file: Path) -> UnreadableError:
    fix = f"{_FIX}, or delete {key} there if you know that it was left behind"
    return UnreadableError(f"its {key} is the name of another file: {value[:200]!r}", where=file, fix=fix)


def _leads_out(key: str, value: str, home: Path) -> bool:
    """Whether a setting is the name of something that exists outside the folder, from where it is or from here.

    What does not exist is not opened: names of that kind are left in many settings.
    """
    if not value or len(value) > _LONGEST_NAME or _TEXTS.fullmatch(key):
        return False
    is_name = _NAMES.fullmatch(key) is not None
    parts = {value, *value.split()} if os.sep in value else {value} if is_name else set()
    # A plain name in the folder is the model's own file, also where it is a link.
    paths = [Path(part) for part in parts] + [home / part for part in parts if os.sep in part]
    return any(_exists_outside(path, home, folders=is_name) for path in paths)


def _exists_outside(path: Path, home: Path, *, folders: bool) -> bool:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError, RuntimeError):
        return False
    return not (stays_within(home, path) or (stat.S_ISDIR(mode) and not folders))


def _is_device(name: str) -> bool:
    """Whether a name is that of a device, a pipe or a socket, which are read without end."""
    try:
        mode = os.stat(name).st_mode if os.sep in name else 0  # noqa: PTH116 - whatever text stands there
    except (OSError, ValueError):
        return False
    return bool(mode) and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def check_pickles(folder: Folder) -> None:
    """`UnreadableError` where a pickle that transformers or peft would load unfolds without measure.

    They take for one whatever an index or the config names that does not end in `.safetensors`.
    """
    names = folder.names()
    pickles = {name for index in names if index.endswith(_INDEX) for name in _indexed(folder, index)}
    for pattern, better in _PICKLES:
        if not names & set(better):
            pickles |= {name for name in names if pattern.fullmatch(name)}
    for name in sorted(name for name in pickles if not name.endswith(".safetensors")):
        check_pickles_let_in(f"{folder.uri}/{name}", "give a model in safetensors or GGUF")
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
