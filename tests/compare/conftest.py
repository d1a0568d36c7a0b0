"""Small families of models, audited once."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import tailwise as tw

PLANTED = "model.layers.3.mlp.up_proj"


def noise(seed: int, blocks: int = 8, rows: int = 96, cols: int = 64) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        f"model.layers.{block}.{part}.weight": rng.standard_normal((rows, cols)) / 8
        for block in range(blocks)
        for part in ("self_attn.q_proj", "mlp.up_proj")
    }


def heavy(seed: int, rows: int = 96, cols: int = 64, exponent: float = 1.0) -> np.ndarray:
    """A matrix whose singular values are a power law."""
    rng = np.random.default_rng(seed)
    left, _, right = np.linalg.svd(rng.standard_normal((rows, cols)), full_matrices=False)
    return (left * (np.arange(1, len(right) + 1) ** -exponent)) @ right


def audited(weights: dict[str, np.ndarray], **settings) -> tw.Audit:
    return tw.audit(weights, use_cache=False, workers=1, **{"baseline_replicas": 2, **settings})


@pytest.fixture(scope="session")
def make():
    """`make.noise`, `make.heavy`, `make.audited` and the name of the planted layer."""
    return SimpleNamespace(noise=noise, heavy=heavy, audited=audited, planted=PLANTED)


@pytest.fixture(scope="session")
def before():
    return audited(noise(1))


@pytest.fixture(scope="session")
def after():
    """Re-seeded noise, but for one planted power law."""
    return audited(noise(2) | {f"{PLANTED}.weight": heavy(5)})


@pytest.fixture(scope="session")
def pair(pycode_pair_folders, tmp_path_factory):
    """Two blocks of the example model, half trained and trained."""
    cache = tmp_path_factory.mktemp("pair")
    return tuple(tw.audit(folder, layers=r"layers\.[01]\.", cache_dir=cache) for folder in pycode_pair_folders)


@pytest.fixture(scope="session")
def pycode_pair_folders(data):
    folders = [data / "pycode-8m" / part for part in ("mid", "final")]
    if not all((folder / "model.safetensors").is_file() for folder in folders):
        pytest.skip("the stages of pycode-8m are not there")
    return folders
