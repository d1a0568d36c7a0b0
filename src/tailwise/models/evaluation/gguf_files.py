"""GGUF files as models of transformers: where one lies, and how transformers is told of it."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailwise.checkpoints.bytesource import LocalFile
from tailwise.checkpoints.formats.gguf import config_of
from tailwise.checkpoints.formats.gguf_header import read_gguf_header
from tailwise.core.errors import UsageError
from tailwise.models.evaluation.own_counts import check_counts
from tailwise.models.evaluation.own_tokenizer import check_tokens

if TYPE_CHECKING:
    from torch import nn

    from tailwise.checkpoints.checkpoint import Checkpoint

_OTHERS = (".safetensors", ".bin", ".index.json", ".pt", ".pth")


def gguf_file_of(name: str | os.PathLike[str]) -> Path | None:
    """The file itself, or the only one of a folder that has no other weights; None for all else."""
    path = Path(os.fspath(name)).expanduser()
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    if not path.is_dir():
        return None
    files = sorted(path.glob("*.gguf"))
    others = any(next(path.glob(f"*{suffix}"), None) for suffix in _OTHERS)
    return files[0] if len(files) == 1 and not others else None


def told(name: str | os.PathLike[str], own: str | None = None) -> dict[str, str]:
    """What `from_pretrained` is told of a GGUF file; nothing where there is none, or where the folder has `own`.

    Raises `UnreadableError` where the file itself asks for absurdly many parts, of which transformers makes its config,
    or has tokens so long that it would take them apart without end.
    """
    file = gguf_file_of(name)
    if file is None or (own is not None and (file.parent / own).is_file()):
        return {}
    with closing(LocalFile(file)) as source:
        said = read_gguf_header(source).metadata
    check_counts(config_of(said), str(file))
    check_tokens(said.get("tokenizer.ggml.tokens"), file)
    return {"gguf_file": file.name}


def gguf_places(model: nn.Module, checkpoint: Checkpoint) -> dict[str, str]:
    """Tensor of a GGUF file → parameter of the model that transformers makes of it, by llama.cpp's own table.

    Rows of queries and keys may stand in another order there; as matrices they are the same.
    """
    import gguf

    arch = str(checkpoint.metadata.get("general.architecture", ""))
    known = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    if arch not in known:
        raise UsageError(f"gguf knows no architecture {arch!r}", where=checkpoint.uri, fix="pip install -U gguf")
    config: Any = model.config
    table = gguf.get_tensor_name_map(known[arch], config.num_hidden_layers)
    places: dict[str, str] = {}
    for name, value in model.named_parameters():
        own = table.get_name(name, try_suffixes=(".weight", ".bias"))
        spec = checkpoint.tensors.get(str(own))
        if own is not None and spec is not None and spec.numel == value.numel():
            places[own] = name
    return places
