"""Tensors and an interpreter to test with."""

from __future__ import annotations

import sys

import pytest
import torch


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "embed.weight": torch.randn(40, 16, generator=generator),
        "layer.0.weight": torch.randn(16, 32, generator=generator).bfloat16(),
        "layer.0.bias": torch.randn(16, generator=generator).half(),
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "steps": torch.tensor(7),
        "empty": torch.empty(0, 5),
    }


@pytest.fixture
def python() -> str:
    """The interpreter that runs the tests."""
    return sys.executable
