"""What a model says of itself, gone through before transformers builds anything from it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tailwise.checkpoints.bytesource import LocalFolder
from tailwise.checkpoints.within import check_within, names_within
from tailwise.core.errors import UnreadableError
from tailwise.core.optional import needed
from tailwise.core.storage import json_of, read_text
from tailwise.models.evaluation.own_adapter import CONFIG as ADAPTER
from tailwise.models.evaluation.own_adapter import check_settings
from tailwise.models.evaluation.own_counts import check_counts
from tailwise.models.evaluation.own_documents import check_pickles, check_sizes, folder_at, items_of
from tailwise.models.evaluation.own_patterns import check_quantization

#: Implementations that are names of repositories on the Hub would be fetched from there and run, and some others are
#: packages that are not everywhere. They belong to a machine, not to a model: transformers' own choice will do.
_IMPLEMENTATIONS = frozenset(
    ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
)
_OWN = frozenset((None, "eager", "sdpa"))
#: Weights that a config may ask for: of codes, sixteen and more lie in a byte.
_WEIGHTS_A_BYTE, _FEW_WEIGHTS = 64, 1 << 28
#: Modules, weights and tables that a model may be built of, whatever their size. The largest have some ten thousand.
_BYTES_A_PART, _FEW_PARTS, _MOST_PARTS = 1024, 100_000, 1_000_000
_FIX = "take config.json from where the weights came from"


def config_of(place: str, revision: str | None = None, **told: str) -> Any:
    """The config of a folder or Hub id, as `AutoConfig` reads it; `told` is what `gguf_files.told` says.

    Raises `UnreadableError` where it asks for absurdly many parts, or an index beside it names files elsewhere, and
    whatever transformers raises.
    """
    transformers = needed("transformers", "eval", "reading a model's config")

    folder = Path(place).expanduser()
    if folder.is_dir():
        _check_indexes(folder)
    check_sizes(folder_at(place, revision))
    document = {} if told else checked_document(place, revision)
    config = transformers.AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False, **told)
    if any(key in _IMPLEMENTATIONS and not _is_own(value) for key, value in items_of(document)):
        config._attn_implementation = config._experts_implementation = None
    return config


def checked_document(place: str, revision: str | None = None) -> Mapping[str, Any]:
    """The document of a folder's or a Hub id's config. Raises as `config_of` does."""
    transformers = needed("transformers", "eval", "reading a model's config")

    document: Mapping[str, Any]
    document, _ = transformers.PretrainedConfig.get_config_dict(place, revision=revision)
    check_counts(document, place)
    check_quantization(document, place)
    return document


def _is_own(value: Any) -> bool:
    return all(_is_own(item) for item in value.values()) if isinstance(value, dict) else value in _OWN


def _indexed(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every index file of a folder with the names of files in it."""
    for index in sorted(folder.glob("*.index.json")):
        try:
            check_within(folder, index)
            document = json_of(read_text(index))
        except (OSError, ValueError):  # who reads it says so
            continue
        names = document.get("weight_map") if isinstance(document, dict) else None
        for name in {item for item in names.values() if isinstance(item, str)} if isinstance(names, dict) else ():
            yield index, name


def _check_indexes(folder: Path) -> None:
    for index, name in _indexed(folder):
        if not names_within(name):
            raise UnreadableError(
                f"a shard lies outside the model's folder: {name[:200]!r}",
                where=index,
                fix="put all files of the model into one folder, and save it with relative names",
            )


def _check_loaded(place: str, revision: str | None) -> None:
    """What a library loads beside a config: an adapter, which it looks for by itself, and pickles."""
    folder = folder_at(place, revision)
    if folder is None:
        return
    if ADAPTER in folder.names() and (not isinstance(folder, LocalFolder) or (folder.path / ADAPTER).is_file()):
        check_settings(folder.json(ADAPTER), place)
    check_pickles(folder)


@contextmanager
def room_for(place: str, revision: str | None = None, *, made: bool = False) -> Iterator[None]:
    """Within it, a model is built of no more parts, weights and tables than `building_of` lets it.

    Before, adapters and pickles in the folder, or on the Hub, are gone through.
    """
    _check_loaded(place, revision)
    with building_of(place, made=made):
        yield


@contextmanager
def building_of(place: str, *, made: bool = False) -> Iterator[None]:
    """Within it, a model is built of no more weights, and tables (masks, sines), than the files in the folder can hold.

    Of those that stand for others until they are read; with `made`, of all that are new. Nor is it built of more parts:
    each module, weight and table is one, however small. Of what is not a folder, parts alone are bounded.

    Weights that a config asks for and no file has are made up by transformers before it says that they are missing;
    tables grow with the positions that it asks for, or their square.
    Raises `UnreadableError`.
    """
    import torch
    from torch.nn.modules.module import (
        register_module_buffer_registration_hook,
        register_module_module_registration_hook,
        register_module_parameter_registration_hook,
    )

    folder, thread, asked, parts = Path(place).expanduser(), threading.get_ident(), 0, 0
    stored = _stored_bytes(folder) if folder.is_dir() else None
    most = None if stored is None else _FEW_WEIGHTS + _WEIGHTS_A_BYTE * stored
    most_parts = _MOST_PARTS if stored is None else min(_MOST_PARTS, _FEW_PARTS + stored // _BYTES_A_PART)

    def count(_module: Any, _name: str, value: Any) -> None:
        nonlocal asked, parts
        if value is None or threading.get_ident() != thread:
            return
        parts += 1
        if parts > most_parts:
            raise UnreadableError(
                f"its config asks for more than {most_parts} modules and weights", where=place, fix=_FIX
            )
        if isinstance(value, torch.Tensor) and (made or value.is_meta):
            asked += value.numel()
        if most is not None and asked > most:
            raise UnreadableError("its config asks for far more weights than its files hold", where=place, fix=_FIX)

    hooks = [
        register_module_buffer_registration_hook(count),
        register_module_module_registration_hook(count),
        register_module_parameter_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _stored_bytes(folder: Path) -> int:
    files = {*folder.iterdir(), *(folder / name for _, name in _indexed(folder))}
    return sum(file.stat().st_size for file in files if file.is_file())
