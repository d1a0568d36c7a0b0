"""Models to walk through: built without weights and filled block by block, or loaded whole where that cannot be."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tailwise.checkpoints.checkpoint import Checkpoint, code_of
from tailwise.checkpoints.open import hub_model
from tailwise.core.errors import AS_NUMBERS, TailwiseError, UsageError
from tailwise.core.execution.executor import checked_device
from tailwise.core.optional import how_to_get, needed
from tailwise.models.evaluation.gguf_files import gguf_file_of, told
from tailwise.models.evaluation.own_code import load_error, needs_code
from tailwise.models.evaluation.own_config import building_of, config_of, room_for
from tailwise.models.evaluation.quiet import quiet
from tailwise.models.walking.block_inputs import Block, Home
from tailwise.models.walking.shapes import Shapes, reshape
from tailwise.models.walking.stored_names import by_content, separated, sources_of, tied_to
from tailwise.models.walking.towers import is_composite
from tailwise.models.walking.walk import InPlace

DTYPES = ("auto", "float32", "bfloat16", "float16")
_HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Host:
    """A model that can be walked through, and where each stored tensor is in it."""

    home: Home
    places: Mapping[str, str]  # stored tensor → parameter; tensors without one are left out
    notes: tuple[str, ...] = ()

    @property
    def model(self) -> nn.Module:
        """The model; its weights may not be there yet."""
        return self.home.model


@dataclass
class Streamed:
    """A model built without weights: each part is read from the checkpoint when its turn comes."""

    model: nn.Module
    device: torch.device
    dtype: torch.dtype
    checkpoint: Checkpoint
    sources: Mapping[str, str]  # parameter or buffer → stored tensor
    tied: Mapping[str, str]  # the same under every name that a tied parameter has

    def enter(self, module: nn.Module, name: str) -> None:
        """See `Home`."""
        for place, inner in module.named_modules(prefix=name):
            self._fill(inner, place)

    def leave(self, module: nn.Module, name: str) -> None:  # noqa: ARG002 - see Home
        """See `Home`."""
        for inner in module.modules():
            for key, value in inner._parameters.items():
                if value is not None:
                    inner._parameters[key] = nn.Parameter(value.to("meta"), requires_grad=False)

    def outside(self, blocks: Sequence[Block]) -> None:
        """See `Home`. The head comes after the blocks: it is not read."""
        skipped = {id(module) for block in blocks for module in block.module.modules()}
        head = getattr(self.model, "get_output_embeddings", lambda: None)()
        for name, module in self.model.named_modules():
            if id(module) not in skipped and module is not head:
                self._fill(module, name)

    def _fill(self, module: nn.Module, name: str) -> None:
        prefix = f"{name}." if name else ""
        for key, value in module._parameters.items():
            if value is not None and value.is_meta:
                module._parameters[key] = nn.Parameter(self._read(prefix + key), requires_grad=False)
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = self._read(prefix + key) if buffer.is_meta else buffer.to(self.device)

    def _read(self, name: str) -> torch.Tensor:
        tensor = self.checkpoint.read(self.tied[name])
        dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self.device, dtype, copy=True)


def load_host(
    checkpoint: Checkpoint, name: str | os.PathLike[str], *, device: str = "cpu", dtype: str = "auto"
) -> Host:
    """The model of transformers that the config beside `checkpoint` (opened from `name`) describes.

    Nothing but headers is read, unless the stored names are not the model's own. `dtype` is what the model computes
    in: `auto` is float32 on a CPU and as stored elsewhere.
    """
    if dtype not in DTYPES:
        raise UsageError(f"{dtype!r} is no dtype to compute in", fix=f"use {', '.join(DTYPES)}")
    where = torch.device(checked_device(device))
    place, revision = _address(os.fspath(name))
    architecture, config = architecture_of(place, revision)
    compute = _compute_dtype(dtype, where, checkpoint)
    with quiet(), building_of(str(Path(place).parent) if Path(place).is_file() else place):
        model = _empty(architecture, config, compute)
    names = separated(model, checkpoint)
    if Path(place).is_dir():
        reshape(model, Shapes.read(Path(place)) or Shapes())
    sources = sources_of(model, checkpoint, names)
    if sources is not None:
        places = {stored: parameter for parameter, stored in sources.items()}
        return Host(Streamed(model, where, compute, checkpoint, sources, tied_to(model, sources)), places)
    return _whole((architecture, config), (place, revision), InPlaceOptions(where, compute), checkpoint)


@dataclass(frozen=True)
class InPlaceOptions:
    """Where a whole model computes, and in what."""

    device: torch.device
    dtype: torch.dtype


def _address(name: str) -> tuple[str, str | None]:
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path), None
    if path.is_file():  # of several GGUF files in a folder, the one that is named
        return str(path if gguf_file_of(path) is not None else path.parent), None
    address = hub_model(name)
    return address.repo, address.revision


def architecture_of(place: str, revision: str | None = None, *, decoded: bool = False) -> tuple[Any, Any]:
    """The class that a model's config names, and the config; of `decoded` weights, without how they were packed."""
    try:
        with quiet():
            import transformers

            folder = str(Path(place).parent) if gguf_file_of(place) == Path(place) else place
            config = config_of(folder, revision, **told(place, "config.json"))
    except ImportError as error:
        raise UsageError("calibration takes `transformers`", where=place, fix=how_to_get("eval")) from error
    except Exception as error:  # every config fails in its own way
        fix = "calibration takes a model of transformers; the operator magnitude needs none"
        raise load_error(error, place, "its config could not be read", fix) from error
    if getattr(config, "quantization_config", None):
        if not decoded:
            raise UsageError("its weights are quantized", where=place, fix=AS_NUMBERS)
        del config.quantization_config
    names = getattr(config, "architectures", None) or []
    architecture = getattr(transformers, names[0], None) if names else None
    if not hasattr(architecture, "_from_config"):  # no model
        known = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
        if names and getattr(config, "auto_map", None):
            raise needs_code(place, f"its {names[0]} is Python code that came with it")
        composite = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        if not names and type(config) in composite:
            return _classes(composite[type(config)])[0], config
        if names or type(config) not in known:
            what = f"transformers has no {names[0]}" if names else "its config names no architecture"
            raise UsageError(what, where=place, fix="name one of its own in config.json: architectures")
        architecture = known[type(config)]
    return architecture, config


def check_causal(place: str | os.PathLike[str]) -> None:
    """`UsageError` where text cannot calibrate the model: it does not predict the next token."""
    transformers = needed("transformers", "eval", "calibration")

    name, revision = _address(os.fspath(place))
    architecture, config = architecture_of(name, revision)
    known = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    # Looked up by the config: to list all of its values would import every model of transformers.
    causal = type(config) in known and architecture is known[type(config)]
    causal = causal or reads_text(architecture, config)
    masked = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if not causal or (masked and hasattr(config, "is_decoder")):
        raise UsageError(
            f"{architecture.__name__} is no causal language model, and text alone does not calibrate it",
            where=place,
            fix="give its inputs by name from Python, or use the operator magnitude",
        )


def reads_text(architecture: Any, config: Any) -> bool:
    """Whether a class is a composite model that predicts text, and takes text alone."""
    transformers = needed("transformers", "eval", "calibration")

    known = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return is_composite(config) and type(config) in known and architecture in _classes(known[type(config)])


def _classes(config_class: Any) -> tuple[Any, ...]:
    return config_class if isinstance(config_class, tuple) else (config_class,)


def _compute_dtype(dtype: str, device: torch.device, checkpoint: Checkpoint) -> torch.dtype:
    if dtype != "auto":
        resolved: torch.dtype = getattr(torch, dtype)
        return resolved
    if device.type == "cpu":
        return torch.float32  # half precision is slow there
    stored = {spec.dtype for spec in checkpoint.tensors.values() if len(spec.shape) > 1}
    return next((half for half in _HALF if code_of(half) in stored), torch.float32)


def _empty(architecture: Any, config: Any, dtype: torch.dtype) -> nn.Module:
    """The model on the meta device, but for buffers that are computed and not stored."""
    with torch.device("meta"):
        model: Any = architecture._from_config(config, dtype=dtype)
    for module, owner in _owned(model, model):
        computed = [
            key for key in module._non_persistent_buffers_set if (value := module._buffers.get(key)) is not None
            and value.is_meta
        ]  # fmt: skip
        for key in computed:
            like: Any = module._buffers[key]
            blank = math.nan if like.is_floating_point() else 0
            module._buffers[key] = torch.full_like(like, blank, device="cpu")
        if computed:
            owner._init_weights(module)  # as from_pretrained does
        _check_computed(module, computed, architecture.__name__)
    built: nn.Module = model.eval()
    return built


def _check_computed(module: nn.Module, buffers: Collection[str], model: str) -> None:
    """`UsageError` where a buffer still holds nothing: neither the config nor `_init_weights` gave it a value."""
    for key in buffers:
        buffer: Any = module._buffers[key]
        if buffer.is_floating_point() and buffer.numel() and bool(buffer.isnan().any()):
            raise UsageError(
                f"{type(module).__name__}.{key} of a {model} is computed in a way that is not known",
                fix="use an operator that looks at the weights alone: magnitude, or rtn",
            )


def _owned(module: nn.Module, owner: Any) -> Iterator[tuple[nn.Module, Any]]:
    """Every module, and the innermost model of transformers that it lies in: that one knows how it begins."""
    yield module, owner
    for inner in module.children():
        yield from _owned(inner, inner if hasattr(inner, "_init_weights") else owner)


def layer_of(places: Mapping[str, str], tensor: str, layers: Iterable[str]) -> str | None:
    """The layer whose weight a stored tensor is, or None."""
    name = places.get(tensor, "")
    layer = name.removesuffix(".weight")
    return layer if name.endswith(".weight") and layer in set(layers) else None


def _whole(
    kind: tuple[Any, Any], address: tuple[str, str | None], options: InPlaceOptions, checkpoint: Checkpoint
) -> Host:
    (architecture, config), (place, revision) = kind, address
    try:
        with quiet(), room_for(place, revision):
            model = architecture.from_pretrained(
                place, config=config, revision=revision, dtype=options.dtype, trust_remote_code=False
            )
    except TailwiseError:
        raise
    except Exception as error:  # every architecture fails in its own way
        raise load_error(error, place) from error
    model = model.to(options.dtype).eval().requires_grad_(False)
    separated(model, checkpoint)
    note = "its stored names are not the model's own, so it was loaded as a whole"
    return Host(InPlace(model, options.device), by_content(model, checkpoint), (note,))
