"""Finished blocks, kept so that a run that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.compression.plans.plan import Plan
from tailwise.core.atomic import write_whole
from tailwise.core.storage import json_of

if TYPE_CHECKING:
    import torch


def key_of_run(plan: Plan, checkpoint: Checkpoint, settings: Mapping[str, object], inputs: bytes = b"") -> str:
    """A digest of all that the pruned weights depend on: of the model all weights, and how they compute."""
    entries = [[d.tensor, d.sparsity, d.pattern, d.rank, d.format] for d in plan]
    weights = [[name, checkpoint.identity(name)] for name in checkpoint.tensors]
    model = [checkpoint.uri, dict(checkpoint.config), weights]
    parts = [version("tailwise"), plan.operator, entries, model, dict(settings)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode() + inputs).hexdigest()


def digest_of_inputs(*inputs: Mapping[str, torch.Tensor]) -> bytes:
    """Of the calibration data: what the model is called with, by name."""
    import torch

    state = hashlib.sha256()
    for name, value in (item for given in inputs for item in sorted(given.items())):
        state.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        state.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.digest()


class Journal:
    """A folder with one file for each finished block, and where each stored tensor is in them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Path] = {}
        self.notes: list[str] = []
        self.finished: set[str] = set()
        for path in sorted(folder.glob("block-*.safetensors")):
            self._know(path)
        self.resumed = len(self.finished)  # blocks that an earlier run had finished

    @property
    def tensors(self) -> frozenset[str]:
        """The tensors of all finished blocks."""
        return frozenset(self._files)

    def keep(self, block: str, index: int, tensors: Mapping[str, torch.Tensor], notes: list[str]) -> None:
        """Keep the pruned tensors of a block, by their stored names."""
        from safetensors.torch import save

        path = self._folder / f"block-{index:05d}-{block}.safetensors"  # of two towers, blocks have one number
        metadata = {"block": block, "notes": json.dumps(notes)}
        write_whole(path, save({name: value.cpu().contiguous() for name, value in tensors.items()}, metadata=metadata))
        self._know(path)

    def read(self, name: str) -> torch.Tensor | None:
        """A pruned tensor, or None where the plan does not name it."""
        from safetensors import safe_open

        if name not in self._files:
            return None
        with safe_open(self._files[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor

    def _know(self, path: Path) -> None:
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            self._files |= dict.fromkeys(file.keys(), path)
        self.finished.add(metadata["block"])
        self.notes += json_of(metadata["notes"])
