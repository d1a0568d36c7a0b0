"""Whether a name or a path stays in a folder: by its text, and when links are followed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from tailwise.core.errors import MALFORMED, UnreadableError
from tailwise.core.storage import json_of, read_bytes

_MOST = 64 << 20  # bytes of a file of settings that lies elsewhere


def names_within(location: str) -> bool:
    """Whether a name, by its text, stays inside the folder that it is looked up in."""
    path = PurePosixPath(location)
    return not (not location or path.is_absolute() or ".." in path.parts or "\\" in location or "\0" in location)


def stays_within(root: Path, path: Path) -> bool:
    """Whether what stands at `path` lies in a folder when links are followed."""
    home, target = Path(os.path.realpath(root)), Path(os.path.realpath(path))
    if target.is_relative_to(home):
        return True
    # The Hub's cache keeps files as links from snapshots/COMMIT to blobs/ of the same model.
    snapshots = next((parent for parent in home.parents if parent.name == "snapshots"), None)
    return snapshots is not None and target.is_relative_to(snapshots.parent / "blobs")


#: File of settings → keys of which one stands in every such file: what has none is something else by that name.
_MARKS: Mapping[str, frozenset[str]] = {
    "config.json": frozenset({"model_type", "architectures", "_class_name", "_diffusers_version"}),
    "params.json": frozenset({"dim", "n_layers"}),
    "adapter_config.json": frozenset({"peft_type"}),
    "generation_config.json": frozenset({"transformers_version", "eos_token_id", "bos_token_id", "pad_token_id"}),
    "tokenizer_config.json": frozenset({"tokenizer_class", "model_max_length", "added_tokens_decoder"}),
    "special_tokens_map.json": frozenset({"eos_token", "bos_token", "unk_token", "pad_token", "cls_token"}),
    "preprocessor_config.json": frozenset({
        "image_processor_type", "feature_extractor_type", "processor_class", "image_mean", "do_resize", "do_normalize",
    }),
    "processor_config.json": frozenset({"processor_class", "image_processor", "feature_extractor"}),
    "quantize_config.json": frozenset({"bits", "quant_method"}),
    "trainer_state.json": frozenset({"global_step", "log_history"}),
}  # fmt: skip
_INDEX = frozenset({"weight_map"})


def check_within(root: Path, path: Path) -> None:
    """`UnreadableError` where a file of a model's settings is a link to what is no such file outside its folder.

    What settings say goes into audits and copies, so a link must not make a secret of them. People do link whole models
    (DVC, git-annex, several fine-tunes with one config): what lies there is by its content what its name says, and
    followed. Weights that lie elsewhere are nobody's secret.
    """
    if not (stays_within(root, path) or _is_by_content(path)):
        raise UnreadableError(
            "is a link to a file outside the model's folder that is no such file by its content, and is not read",
            where=path, fix="if it is the model's own, put a copy of it into the folder",
        )  # fmt: skip


def _is_by_content(path: Path) -> bool:
    """Whether a file of settings is what its name says."""
    try:
        text = read_bytes(path, _MOST).decode()
        if path.suffix == ".jinja":
            return "{%" in text or "{{" in text
        data = json_of(text)
    except (*MALFORMED, OSError, UnreadableError):
        return False
    if path.name == "modules.json":
        return isinstance(data, list) and all(isinstance(one, dict) and {"path", "type"} <= set(one) for one in data)
    if not isinstance(data, dict):
        return False
    if path.name == "added_tokens.json":
        return all(type(number) is int for number in data.values())
    marks = _INDEX if path.name.endswith(".index.json") else _MARKS.get(path.name, frozenset())
    return not marks.isdisjoint(data)
