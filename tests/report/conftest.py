"""Audits for pictures: a small real one with every metric, its base, and large ones made from its rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import tailwise as tw
from tailwise.audits.audit import Audit
from tailwise.audits.rows import Layer
from tailwise.spectrum.spectrum import Spectrum

ROLES = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")


def weights(blocks: int, seed: int, tail: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    names = [f"model.layers.{block}.{role}.weight" for block in range(blocks) for role in ROLES]
    found = {}
    for name in ["model.embed_tokens.weight", *names, "lm_head.weight"]:
        scale = rng.pareto(tail, size=(1, 64)) + 0.2
        found[name] = rng.standard_normal((80, 64)) * scale * 0.1
    found["model.norm.weight"] = np.ones(64)
    return found


@pytest.fixture(scope="session")
def audit(_no_users_cache) -> Audit:
    """Four blocks, every metric."""
    return tw.audit(weights(4, 0, 3.0), randomize=1, bootstrap=0, use_cache=False)


@pytest.fixture(scope="session")
def base(_no_users_cache) -> Audit:
    """The same layers, lighter tails."""
    return tw.audit(weights(4, 1, 8.0), randomize=1, use_cache=False)


@pytest.fixture(scope="session")
def plain(_no_users_cache) -> Audit:
    """The same without `--randomize`."""
    return tw.audit(weights(2, 0, 3.0), use_cache=False)


@pytest.fixture(scope="session")
def large(audit):
    """n → an audit of n layers with long names, its numbers and spectra scattered so that nothing compresses well."""

    def build(n: int) -> Audit:
        rng = np.random.default_rng(n)
        rows, layers = [], {}
        kinds = [layer for layer in audit if layer.row.block is not None]
        for index in range(n):
            like = kinds[index % len(kinds)]
            block = index // len(ROLES)
            role = like.row.name.split(".", 3)[3]
            name = f"model.language_model.layers.{block}.experts.{index % 97}.{role}"
            metrics = {
                key: None if value is None else value * float(rng.uniform(0.8, 1.25))
                for key, value in like.row.metrics.items()
            }
            row = replace(like.row, name=name, block=block % 80, metrics=metrics, tensors=(name,))
            spectra = [_scattered(one, rng) for one in (like.spectrum, *like.permuted)]
            rows.append(row)
            layers[name] = Layer(row, spectra[0], tuple(spectra[1:]))
        return Audit(rows, layers, audit.provenance)

    return build


def _scattered(spectrum: Spectrum, rng: np.random.Generator) -> Spectrum:
    values = np.sort(spectrum.eigenvalues * rng.uniform(0.7, 1.4, len(spectrum.eigenvalues)))
    return Spectrum(values, spectrum.rows, spectrum.cols)
