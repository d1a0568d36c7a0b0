"""Full fine-tuning that keeps zeros at zero: which parameters move, and what is written of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.formats.common import torch_dtype

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


def masks_in(model: nn.Module, checkpoint: Checkpoint, places: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Parameter → True where its stored tensor is not zero, for the matrices that hold a zero.

    Vectors have no mask: a bias that begins at zero is no pruned one.
    """
    masks: dict[str, torch.Tensor] = {}
    for stored, name in places.items():
        spec = checkpoint.tensors[stored]
        if spec.dtype not in _FLOATS or len(spec.shape) < 2:
            continue
        mask = checkpoint.read(stored) != 0
        if not bool(mask.all()):
            masks[name] = mask.to(model.get_parameter(name).device)
    return masks


def trainable(model: nn.Module, checkpoint: Checkpoint, places: Mapping[str, str]) -> dict[str, nn.Parameter]:
    """The parameters that are stored as they are, each once; the others are frozen, since they could not be written."""
    model.requires_grad_(requires_grad=False)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    chosen: dict[str, nn.Parameter] = {}
    seen = set[int]()
    for stored, name in places.items():
        value = parameters.get(name)
        if value is None or checkpoint.tensors[stored].dtype not in _FLOATS or id(value) in seen:
            continue
        seen.add(id(value))
        value.requires_grad_()
        chosen[name] = value
    return chosen


@dataclass(frozen=True)
class Written:
    """Stored name → its new tensor, in the stored dtype and with its zeros; None where nothing moved."""

    checkpoint: Checkpoint
    places: Mapping[str, str]  # stored tensor → parameter
    values: Mapping[str, torch.Tensor]  # parameter → value
    masks: Mapping[str, torch.Tensor]

    def __call__(self, stored: str) -> torch.Tensor | None:
        """See `tailwise.checkpoints.writer.Change`."""
        name = self.places.get(stored, "")
        value = self.values.get(name)
        if value is None:
            return None
        mask = self.masks.get(name)
        masked = value.detach() if mask is None else torch.where(mask, value.detach(), torch.zeros_like(value))
        return masked.to("cpu", torch_dtype(self.checkpoint.tensors[stored].dtype, where=stored))
