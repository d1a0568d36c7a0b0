"""Small models on disk, some of which share tensors, and catalogues of either kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

Made = Callable[..., Path]


@pytest.fixture
def make(tmp_path) -> Made:
    """(name, seed, shared seed) → a model of three matrices; one of them depends on the shared seed alone."""

    def build(name: str, seed: int = 0, shared: int | None = None) -> Path:
        def weights(index: int, own: int) -> torch.Tensor:
            return torch.randn(40, 30 + index, generator=torch.Generator().manual_seed(1000 * index + own))

        tensors = {f"layers.{index}.mlp.up_proj.weight": weights(index, seed) for index in range(2)}
        tensors["layers.0.mlp.gate_proj.weight"] = weights(7, seed if shared is None else shared)
        folder = tmp_path / name
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text('{"model_type": "llama"}')
        return folder

    return build


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request, tmp_path) -> str:
    """The address of an empty catalogue, of either kind."""
    if request.param == "sqlite":
        return str(tmp_path / "catalogue.db")
    return request.getfixturevalue("postgres").new_store()
