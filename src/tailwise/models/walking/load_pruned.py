"""`load_pruned()`: models whose layers differ in width, or are stored as two factors.

`tailwise_pruned.json` beside the weights says what the config cannot: the size of each layer that was cut, the heads
of each attention, the rank of each factored layer. A folder without it is what transformers loads by itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.dtypes import torch_dtype
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.execution.executor import checked_device
from tailwise.core.storage import json_of, read_text
from tailwise.models.evaluation.own_code import load_error
from tailwise.models.evaluation.quiet import quiet
from tailwise.models.walking.hosts import DTYPES, _empty, _sources, architecture_of, lacking, separated
from tailwise.models.walking.statistics import PLAIN

PRUNED_FILE = "tailwise_pruned.json"
FORMAT = 1
_VERSION = "tailwise_pruned"


@dataclass(frozen=True)
class Sizes:
    """Of a linear layer. With `rank` it is two: inputs → rank → outputs."""

    inputs: int
    outputs: int
    rank: int | None = None


@dataclass(frozen=True)
class Heads:
    """Of an attention module: query heads, key-value heads, and the size of one."""

    queries: int
    groups: int
    size: int


@dataclass(frozen=True)
class Shapes:
    """What differs from the config, by module."""

    layers: Mapping[str, Sizes] = field(default_factory=dict)
    heads: Mapping[str, Heads] = field(default_factory=dict)

    def to_text(self) -> str:
        """The file."""
        named = {name: {k: v for k, v in asdict(sizes).items() if v is not None} for name, sizes in self.layers.items()}
        found = {_VERSION: FORMAT, "layers": named, "heads": {name: asdict(item) for name, item in self.heads.items()}}
        return json.dumps(found, indent=1) + "\n"

    @staticmethod
    def read(folder: Path) -> Shapes | None:
        """Those of a folder; None where it has no such file."""
        path = folder / PRUNED_FILE
        if not path.is_file():
            return None
        try:
            found = json_of(read_text(path))
            if found[_VERSION] != FORMAT:
                fix = "update tailwise"
                raise UnreadableError(
                    f"is of format {found[_VERSION]}; this tailwise reads {FORMAT}", where=path, fix=fix
                )
            layers = {name: Sizes(**sizes) for name, sizes in found["layers"].items()}
            return Shapes(layers, {name: Heads(**heads) for name, heads in found["heads"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            fix = "write the model again with `tailwise apply`"
            raise UnreadableError("does not say how the layers were cut", where=path, fix=fix) from error


class Factored(nn.Module):
    """W ≈ A·B as two linear layers: x → B·x (rank) → A·(B·x) + bias."""

    def __init__(self, sizes: Sizes, *, bias: bool, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        where: dict[str, Any] = {"dtype": dtype, "device": device}
        rank = sizes.rank or 0
        self.first = nn.Linear(sizes.inputs, rank, bias=False, **where)
        self.second = nn.Linear(rank, sizes.outputs, bias=bias, **where)

    @property
    def weight(self) -> torch.Tensor:
        """A·B, (outputs × inputs), for code that asks a layer for its dtype or its matrix, as T5's does."""
        return self.second.weight @ self.first.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """Of the second layer."""
        return self.second.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, inputs) → (…, outputs)."""
        found: torch.Tensor = self.second(self.first(x))
        return found


def load_pruned(folder: str | os.PathLike[str], *, dtype: str = "auto", device: str = "cpu") -> nn.Module:
    """The model that `tailwise apply` wrote to `folder`, as a model of transformers that generates as usual.

    `dtype` is `auto` (as stored), float32, bfloat16 or float16. Static caches, whose size comes from the config, do
    not fit layers with other numbers of heads; the default cache does. `UnreadableError` where the weights do not
    fit what `tailwise_pruned.json` says.
    """
    if dtype not in DTYPES:
        raise UsageError(f"{dtype!r} is no dtype to compute in", fix=f"use {', '.join(DTYPES)}")
    checked_device(device)
    place = Path(os.fspath(folder)).expanduser()
    if not place.is_dir():
        raise UnreadableError("no such folder", where=folder, fix="give what `tailwise apply` wrote")
    architecture, config = architecture_of(str(place))
    shapes = Shapes.read(place)
    with open_checkpoint(place) as checkpoint:
        compute = _stored_dtype(checkpoint) if dtype == "auto" else getattr(torch, dtype)
        if shapes is None:
            return _ordinary(architecture, place, compute).to(device).eval()
        with quiet():
            model = _empty(architecture, config, compute)
        names = separated(model, checkpoint)
        _reshaped(model, shapes, place)
        _fill(model, checkpoint, (compute, names), place)
    with quiet():
        if (place / "generation_config.json").is_file() and hasattr(model, "generation_config"):
            import transformers

            vars(model)["generation_config"] = transformers.GenerationConfig.from_pretrained(str(place))
    return model.to(device).eval()


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    codes = [spec.dtype for spec in checkpoint.tensors.values() if len(spec.shape) > 1 and spec.dtype[0] in "BF"]
    return torch_dtype(codes[0], where=checkpoint.uri) if codes else torch.float32


def _ordinary(architecture: Any, place: Path, dtype: torch.dtype) -> nn.Module:
    """As transformers loads it: stored names need not be the model's own then."""
    try:
        with quiet():
            found: nn.Module = architecture.from_pretrained(str(place), dtype=dtype, trust_remote_code=False)
    except Exception as error:  # every architecture fails in its own way
        raise load_error(error, place) from error
    return found


def _reshaped(model: nn.Module, shapes: Shapes, place: Path) -> None:
    try:
        reshape(model, shapes)
    except (AttributeError, UsageError) as error:
        fix = "write the model again with `tailwise apply`"
        raise UnreadableError(f"does not fit its config ({error})", where=place / PRUNED_FILE, fix=fix) from error


def reshape(model: nn.Module, shapes: Shapes) -> None:
    """Give the layers of `model` other sizes in place; their new weights have no values (meta device)."""
    for name, sizes in shapes.layers.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, _resized(model.get_submodule(name), sizes, name))
    for name, heads in shapes.heads.items():
        _set_heads(model.get_submodule(name), heads)


def _resized(module: nn.Module, sizes: Sizes, name: str) -> nn.Module:
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, torch.Tensor) or type(module).__name__ not in PLAIN:
        raise UsageError(f"{name} is no linear layer but a {type(module).__name__}")
    meta = torch.device("meta")
    if sizes.rank is not None:
        return Factored(sizes, bias=bias is not None, dtype=weight.dtype, device=meta)
    shape = (sizes.outputs, sizes.inputs)
    if type(module).__name__ == "Conv1D":
        shape = shape[::-1]
        module.nf, module.nx = sizes.outputs, sizes.inputs  # type: ignore[assignment]
    else:
        module.in_features, module.out_features = sizes.inputs, sizes.outputs  # type: ignore[assignment]
    module.weight = nn.Parameter(torch.empty(shape, dtype=weight.dtype, device=meta))
    if bias is not None:
        module.bias = nn.Parameter(torch.empty(sizes.outputs, dtype=weight.dtype, device=meta))
    return module


def _set_heads(module: nn.Module, heads: Heads) -> None:
    """What modules of transformers keep of the number of heads, under the names that they use."""
    width = heads.queries * heads.size
    known = {
        "num_heads": heads.queries, "num_attention_heads": heads.queries, "n_heads": heads.queries,
        "n_head": heads.queries, "num_key_value_heads": heads.groups,
        "num_key_value_groups": heads.queries // heads.groups, "all_head_size": width, "split_size": width,
    }  # fmt: skip
    for name, value in known.items():
        if hasattr(module, name):
            setattr(module, name, value)


def _fill(model: nn.Module, checkpoint: Checkpoint, how: tuple[torch.dtype, Mapping[str, str]], place: Path) -> None:
    dtype, names = how
    sources = _sources(model, checkpoint, names)
    fix = "write the model again with `tailwise apply`"
    if sources is None:
        raise UnreadableError(f"its weights do not have the shapes of {PRUNED_FILE}", where=place, fix=fix)
    if lost := lacking(model, sources):
        raise UnreadableError(f"{', '.join(lost[:3])} is not among its weights", where=place, fix=fix)

    def value(name: str) -> torch.Tensor:
        found = checkpoint.read(sources[name])
        return found.to(dtype if found.is_floating_point() else found.dtype, copy=True)

    for prefix, module in model.named_modules():
        before = f"{prefix}." if prefix else ""
        for key in [key for key, held in module._parameters.items() if held is not None and before + key in sources]:
            module._parameters[key] = nn.Parameter(value(before + key))
        for key in [key for key, held in module._buffers.items() if held is not None and before + key in sources]:
            module._buffers[key] = value(before + key)
    tie = getattr(model, "tie_weights", None)
    if callable(tie):
        tie()
