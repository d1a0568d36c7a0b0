"""Matrices that try a codec: ordinary, heavy-tailed, with zeros of both signs, huge and tiny groups, real ones."""

from __future__ import annotations

import pytest


def made(kind: str, rows: int = 24, cols: int = 256):
    import torch

    generator = torch.Generator().manual_seed(7)
    normal = torch.randn(rows, cols, generator=generator) * 0.02
    if kind == "normal":
        return normal
    if kind == "bf16":
        return normal.to(torch.bfloat16)
    if kind == "heavy":
        return normal / torch.rand(rows, cols, generator=generator).clamp_min(1e-4)
    if kind == "zeros":
        normal[:, 64:192] = 0.0
        normal[:4] = 0.0
        normal[5, ::2] = -0.0
        normal[6, 1:] = 0.0
        return normal
    if kind == "scales":  # groups from 1e-30 to 1e30
        exponents = torch.linspace(-30, 30, rows * cols // 16).reshape(rows, -1).repeat_interleave(16, 1)
        return normal * 10.0**exponents
    assert kind == "ties", kind  # sixteenths, of which many lie midway between elements
    return torch.randint(-128, 129, (rows, cols), generator=generator) / 16.0


KINDS = ("normal", "bf16", "heavy", "zeros", "ties")


@pytest.fixture(params=KINDS)
def matrix(request):
    """(24, 256), one of each kind."""
    return made(request.param)


@pytest.fixture
def mixed():
    """(32, 256), some rows of each kind."""
    import torch

    return torch.cat([made(kind)[:8].float() for kind in ("normal", "heavy", "zeros", "ties")])


@pytest.fixture
def make():
    """kind → matrix."""
    return made


@pytest.fixture(scope="session")
def real(pycode):
    """A query projection of the small Llama, bf16."""
    from safetensors import safe_open

    with safe_open(pycode / "model.safetensors", "pt") as file:
        return file.get_tensor("model.layers.3.self_attn.q_proj.weight")
