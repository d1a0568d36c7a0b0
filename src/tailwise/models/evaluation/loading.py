"""A causal language model and its tokenizer, ready to be scored."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailwise.checkpoints.open import hub_model
from tailwise.core.errors import UsageError
from tailwise.core.execution.executor import checked_device
from tailwise.core.freed import give_back
from tailwise.core.optional import how_to_get
from tailwise.models.evaluation.adapters import base_of, in_words, is_adapter, with_adapter
from tailwise.models.evaluation.gguf_files import gguf_file_of, told
from tailwise.models.evaluation.own_code import load_error
from tailwise.models.evaluation.own_config import checked_document, config_of, room_for
from tailwise.models.evaluation.own_tokenizer import check_growth, check_tokenizer, panics_told
from tailwise.models.evaluation.quiet import quiet
from tailwise.models.walking.load_pruned import load_decoded, load_pruned
from tailwise.models.walking.shapes import PRUNED_FILE
from tailwise.models.walking.towers import is_composite

if TYPE_CHECKING:
    import torch

#: `auto` keeps what is stored, but computes in float32 on a CPU, which is slow and coarse in half precision.
DTYPES = ("auto", "float32", "bfloat16", "float16")
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
)  # fmt: skip


@dataclass(frozen=True)
class Loaded:
    """A model in memory."""

    module: torch.nn.Module
    tokenizer: Any  # of transformers; None where there is none
    name: str
    where: Any  # what `open_checkpoint` reads the stored tensors from
    notes: tuple[str, ...] = ()


def load_model(
    model: Any, tokenizer: Any = None, *, dtype: str = "auto", device: str = "cpu", base: str | None = None
) -> Loaded:
    """The model that `model` names (a folder, or a Hugging Face id), or the module itself, as it is.

    `tokenizer` is one of transformers, or where one is; by default the model's own. `UsageError` for a model that
    does not predict the next token, or whose checkpoint lacks a part of it. A folder of peft is loaded into `base`, or
    into the model that it names.
    """
    if dtype not in DTYPES:
        raise UsageError(f"{dtype!r} is no dtype to compute in", fix=f"use {', '.join(DTYPES)}")
    checked_device(device)
    if not isinstance(model, str | os.PathLike):
        loaded_tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str | os.PathLike) else tokenizer
        return Loaded(model, loaded_tokenizer, type(model).__name__, model)
    name = os.fspath(model)
    if is_adapter(name):
        return _adapted(name, tokenizer, base_of(name, base), (dtype, device))
    place, revision = address_of(name)
    transformers = _transformers(name)
    with quiet(streams=gguf_file_of(place) is not None):  # whose bars nothing switches off
        how = _wide_enough(dtype, device, place), device
        module, notes = _load(transformers, place, revision, how, name)
    if device == "cpu" and dtype == "auto" and not hasattr(module.config, "quantization_config"):
        module = _widened(module)
    if tokenizer is None:
        tokenizer = load_tokenizer(place, revision)
    loaded_tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str | os.PathLike) else tokenizer
    give_back()
    return Loaded(module.to(device).eval(), loaded_tokenizer, name, name, notes)


def _adapted(name: str, tokenizer: Any, base: str, how: tuple[str, str]) -> Loaded:
    """An adapter in its base. What is stored is counted of the base: an adapter is small beside it."""
    dtype, device = how
    if is_adapter(base):
        raise UsageError("is an adapter itself", where=base, fix="give the model that it adapts by --base")
    own = tokenizer if tokenizer is not None else load_tokenizer(name)
    loaded = load_model(base, own, dtype=dtype, device=device)
    module = with_adapter(loaded.module, name).eval()
    return Loaded(module, loaded.tokenizer, name, base, (in_words(name, base), *loaded.notes))


def address_of(name: str) -> tuple[str, str | None]:
    """Folder or Hub id, and revision, as transformers takes them."""
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path), None
    if gguf_file_of(path) is not None:
        return str(path), None
    if path.is_file():
        raise UsageError("is a file", where=name, fix="give the folder with config.json and the weights")
    address = hub_model(name)
    if address.path:
        raise UsageError("a folder within a Hub repository is not loaded", where=name, fix=f"give {address.repo}")
    return address.repo, address.revision


def _wide_enough(dtype: str, device: str, place: str) -> str:
    """float32 for `auto` of a GGUF file on a CPU: transformers would round what its types decode to, to bfloat16."""
    return "float32" if dtype == "auto" and device == "cpu" and gguf_file_of(place) is not None else dtype


def _transformers(where: str) -> Any:
    try:
        with quiet():
            import transformers
    except ImportError as error:
        fix = how_to_get("eval")
        raise UsageError("scoring a model takes `transformers`", where=where, fix=fix) from error
    return transformers


def _load(
    transformers: Any, place: str, revision: str | None, how_to_compute: tuple[str, str], name: str
) -> tuple[Any, tuple[str, ...]]:
    dtype, device = how_to_compute
    kind, config = _kind_of(transformers, place, revision, name)
    if (Path(place) / PRUNED_FILE).is_file():
        return load_pruned(place, dtype=dtype), ()
    packing = getattr(config, "quantization_config", None)
    by_library = isinstance(packing, Mapping) and packing.get("quant_method") == "compressed-tensors"
    if by_library and device == "cpu" and dtype in ("auto", "float32") and Path(place).is_dir():
        decoded = load_decoded(place)
        if decoded is not None:
            decoded = decoded.float() if dtype == "float32" else decoded
            return decoded, (f"{name}: its packed weights were decoded once, and are multiplied as any others",)
    how = {"revision": revision, "dtype": dtype, "output_loading_info": True, "config": config, **told(place)}
    if "gguf_file" in how:
        how["config"] = _config_in(place)
    try:
        with room_for(folder_of(place), revision):
            module, report = kind.from_pretrained(folder_of(place), trust_remote_code=False, **how)
    except Exception as error:  # every architecture and format fails in its own way
        raise load_error(error, name) from error
    missing = sorted(report.get("missing_keys", ()))
    if missing:
        raise UsageError(
            f"{len(missing)} of its weights are not in the checkpoint and would be random: {', '.join(missing[:3])}",
            where=name,
            fix="give a causal language model with its head",
        )
    notes = []
    if extra := sorted(report.get("unexpected_keys", ())):
        notes.append(f"{name}: {len(extra)} stored tensors have no place in the model: {', '.join(extra[:3])}")
    if getattr(module.config, "auto_map", None):
        notes.append(f"{name}: it comes with Python code, which was not run; the model is transformers' own")
    return module, tuple(notes)


def _config_in(place: str) -> Any:
    """The config of a GGUF file, with the size of a head that transformers does not read from it."""
    from tailwise.checkpoints.open import open_checkpoint

    config = config_of(folder_of(place), **told(place, "config.json"))
    with open_checkpoint(str(gguf_file_of(place))) as checkpoint:
        size = checkpoint.metadata.get(f"{checkpoint.metadata.get('general.architecture')}.attention.key_length")
    if size is not None and hasattr(config, "head_dim"):
        config.head_dim = int(size)
    return config


def folder_of(place: str) -> str:
    """The folder of a GGUF file; all else as it is."""
    path = Path(place).expanduser()
    return str(path.parent) if path.is_file() else place


def _kind_of(transformers: Any, place: str, revision: str | None, name: str) -> tuple[Any, Any]:
    """The class of transformers that loads it, and its config. Models that read images too are scored on text."""
    try:
        config = config_of(folder_of(place), revision, **told(place, "config.json"))
    except Exception as error:  # as above
        raise load_error(error, name) from error
    encoder = getattr(config, "is_encoder_decoder", False)
    if is_composite(config) and type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not encoder:
        return transformers.AutoModelForImageTextToText, config
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING or encoder:
        raise UsageError(
            f"a {config.model_type!r} is no causal language model", where=name, fix="perplexity is of decoders only"
        )
    return transformers.AutoModelForCausalLM, config


def _widened(module: Any) -> Any:
    import torch

    half = (torch.bfloat16, torch.float16)
    return module.float() if any(value.dtype in half for value in module.parameters()) else module


def load_tokenizer(place: str | os.PathLike[str], revision: str | None = None) -> Any:
    """The tokenizer in a folder or on the Hub; None where a folder has none."""
    name = os.fspath(place)
    path = Path(folder_of(name)).expanduser()
    own = any((path / file).is_file() for file in _TOKENIZER_FILES)
    inside = {} if own else told(name)
    if path.is_dir() and not own and not (inside and _has_tokenizer(name)):
        return None
    transformers = _transformers(name)
    try:
        with quiet(), panics_told(name):
            check_tokenizer(str(path) if path.is_dir() else name, revision)
            if (path / "config.json").is_file():  # which the tokenizer's class is looked up by
                checked_document(str(path))
            loaded = transformers.AutoTokenizer.from_pretrained(
                str(path) if path.is_dir() else name, revision=revision, trust_remote_code=False, **inside
            )
    except Exception as error:  # as above
        raise load_error(error, name) from error
    check_growth(loaded, name)
    return loaded


def _has_tokenizer(name: str) -> bool:
    """Whether a GGUF file holds one."""
    from tailwise.checkpoints.open import open_checkpoint

    with open_checkpoint(name) as checkpoint:
        return "tokenizer.ggml.model" in checkpoint.metadata


def vocabulary_of(module: torch.nn.Module) -> int | None:
    """Number of tokens that the model knows, where it can be told."""
    embedding = getattr(module, "get_input_embeddings", lambda: None)()
    return None if embedding is None else int(embedding.weight.shape[0])


def check_length(module: torch.nn.Module, window: int, where: str) -> None:
    """`UsageError` where a window is longer than the positions that the model was made for."""
    config: Any = getattr(module, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and 0 < limit < window:
        raise UsageError(
            f"a window of {window} tokens is longer than the model's {limit} positions",
            where=where,
            fix=f"use --window {limit}",
        )
