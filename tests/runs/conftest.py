"""A run of small checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs_helpers import UP, Q
from safetensors.torch import save_file


def write_checkpoint(folder: Path, *, seed: int = 0, collapsed: bool = False) -> Path:
    """Two matrices of 96 × 64; `collapsed` makes one of them rank one."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{name}.weight": torch.randn(96, 64, generator=generator) for name in (Q, UP)}
    if collapsed:
        tensors[f"{UP}.weight"] = torch.outer(
            torch.randn(96, generator=generator), torch.randn(64, generator=generator)
        )
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.fixture
def make_run(tmp_path) -> Callable[..., Path]:
    """(steps, the step from which on a layer is collapsed) → the folder of the run."""

    def make(steps=range(100, 600, 100), collapsed_from: int | None = None, name: str = "step-{}") -> Path:
        folder, made = tmp_path / "run", {}
        for step in steps:
            collapsed = collapsed_from is not None and step >= collapsed_from
            place = folder / name.format(step)
            if collapsed in made:
                shutil.copytree(made[collapsed], place)
            else:
                made[collapsed] = write_checkpoint(place, collapsed=collapsed)
        return folder

    return make
