"""A sound model, the same with a collapsed and a broken layer, and the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import tailwise as tw


def heavy(seed: int, exponent: float) -> np.ndarray:
    left, _, right = np.linalg.svd(np.random.default_rng(seed).standard_normal((96, 64)), full_matrices=False)
    return ((left * (3 * np.arange(1, 65) ** -exponent)) @ right).astype(np.float32)


def weights(exponent: float) -> dict[str, np.ndarray]:
    parts = ("self_attn.q_proj", "mlp.up_proj")
    return {
        f"model.layers.{b}.{part}.weight": heavy(10 * b + i, exponent + 0.05 * b)
        for b in range(4)
        for i, part in enumerate(parts)
    }


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """sound.audit, lighter.audit and sick.audit, and the models that they are of."""
    here = tmp_path_factory.mktemp("gates")
    sick = weights(0.6)
    sick["model.layers.0.mlp.up_proj.weight"][0, 0] = np.nan
    sick["model.layers.1.mlp.up_proj.weight"] = np.zeros((96, 64), dtype=np.float32)
    for name, tensors in (("sound", weights(0.6)), ("lighter", weights(0.3)), ("sick", sick)):
        save_file(tensors, here / f"{name}.safetensors")
        tw.audit(here / f"{name}.safetensors", use_cache=False, baseline_replicas=4).save(here / f"{name}.audit")
    return here


@pytest.fixture(scope="session")
def sound(folder) -> tw.Audit:
    return tw.Audit.load(folder / "sound.audit")


@pytest.fixture(scope="session")
def lighter(folder) -> tw.Audit:
    return tw.Audit.load(folder / "lighter.audit")


@pytest.fixture(scope="session")
def sick(folder) -> tw.Audit:
    return tw.Audit.load(folder / "sick.audit")
