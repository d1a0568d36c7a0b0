"""`load_pruned()`: models whose layers differ in width, or are stored as two factors.

A folder without `tailwise_pruned.json` is what transformers loads by itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.formats.common import torch_dtype
from tailwise.checkpoints.open import open_checkpoint
from tailwise.checkpoints.readings.partition import claimed
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.execution.executor import checked_device
from tailwise.core.validation import checked
from tailwise.models.evaluation.own_code import load_error
from tailwise.models.evaluation.own_config import building_of, room_for
from tailwise.models.evaluation.quiet import quiet
from tailwise.models.walking.hosts import DTYPES, _empty, architecture_of
from tailwise.models.walking.shapes import PRUNED_FILE, Shapes, reshape
from tailwise.models.walking.stored_names import lacking, separated, sources_of


@checked
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
            return _ordinary((architecture, config), place, compute).to(device).eval()
        with quiet(), building_of(str(place)):
            model = _empty(architecture, config, compute)
        names = separated(model, checkpoint)
        _reshaped(model, shapes, place)
        _fill(model, checkpoint, (compute, names), place)
    with quiet():
        if (place / "generation_config.json").is_file() and hasattr(model, "generation_config"):
            import transformers

            try:
                vars(model)["generation_config"] = transformers.GenerationConfig.from_pretrained(str(place))
            except Exception as error:  # it says what it likes of a file that anyone may have written
                raise load_error(error, place) from error
    return model.to(device).eval()


def load_decoded(folder: str | os.PathLike[str]) -> nn.Module | None:
    """A folder packed by compressed-tensors, its codes decoded once and rounded to the dtype of its config.

    transformers decodes them anew at every product, which takes a CPU several times as long as the product. None
    where what is stored is not the model's own.
    """
    place = Path(os.fspath(folder)).expanduser()
    architecture, config = architecture_of(str(place), decoded=True)
    dtype = getattr(config, "dtype", None)
    with open_checkpoint(place) as stored:
        checkpoint = claimed(stored)
        with quiet(), building_of(str(place)):
            model = _empty(architecture, config, dtype if isinstance(dtype, torch.dtype) else torch.float32)
        names = separated(model, checkpoint)
        sources = sources_of(model, checkpoint, names)
        if sources is None or lacking(model, sources):
            return None
        _fill(model, checkpoint, (next(model.parameters()).dtype, names), place)
    return model


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    codes = [spec.dtype for spec in checkpoint.tensors.values() if len(spec.shape) > 1 and spec.dtype[0] in "BF"]
    return torch_dtype(codes[0], where=checkpoint.uri) if codes else torch.float32


def _ordinary(kind: tuple[Any, Any], place: Path, dtype: torch.dtype) -> nn.Module:
    """As transformers loads it: stored names need not be the model's own then."""
    architecture, config = kind
    try:
        with quiet(), room_for(str(place)):
            found: nn.Module = architecture.from_pretrained(
                str(place), config=config, dtype=dtype, trust_remote_code=False
            )
    except Exception as error:  # every architecture fails in its own way
        raise load_error(error, place) from error
    return found


def _reshaped(model: nn.Module, shapes: Shapes, place: Path) -> None:
    try:
        reshape(model, shapes)
    except (AttributeError, UsageError) as error:
        fix = "write the model again with `tailwise apply`"
        raise UnreadableError(f"does not fit its config ({error})", where=place / PRUNED_FILE, fix=fix) from error


def _fill(model: nn.Module, checkpoint: Checkpoint, how: tuple[torch.dtype, Mapping[str, str]], place: Path) -> None:
    dtype, names = how
    sources = sources_of(model, checkpoint, names)
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
