"""Audits of a made model with blocks, experts and fused tensors, without any weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tailwise.audits.audit import Audit
from tailwise.audits.rows import Layer, LayerRow, Provenance
from tailwise.spectrum.spectrum import Spectrum

ROLES = {"attn_q": (64, 64), "attn_v": (32, 64), "mlp_up": (128, 64), "mlp_down": (64, 128)}


def row(name: str, role: str, block: int | None, shape: tuple[int, int], **facts) -> LayerRow:
    metrics = {"alpha": 3.0, "alpha_hill": 3.0, "alpha_hill_z": 5.0, "singular_entropy_normalized": 0.1}
    tensor = facts.pop("tensor", f"{name}.weight")
    given = {"kind": "dense", "slices": 1, "dtype": "F32", "status": "OK", "tensors": (tensor,), "metrics": metrics}
    return LayerRow(name=name, role=role, block=block, rows=shape[0], cols=shape[1], **{**given, **facts})


def rows_of(blocks: int = 4, seed: int = 0) -> list[LayerRow]:
    rng, found = np.random.default_rng(seed), []
    for block in range(blocks):
        for role, shape in ROLES.items():
            values = rng.uniform(2.0, 6.0, 3)
            metrics = {"alpha": values[0], "alpha_hill": values[1], "alpha_hill_z": 10 - values[1],
                       "singular_entropy_normalized": values[2] / 20}  # fmt: skip
            found.append(row(f"layers.{block}.{role}", role, block, shape, metrics=metrics))
    found.append(row("embed", "embed", None, (256, 64), kind="embedding"))
    found.append(row("lm_head", "lm_head", None, (256, 64)))
    return found


def audit_of(rows: list[LayerRow], estimator: str = "peak", fingerprint: str = "f" * 64) -> Audit:
    facts = Provenance("a/model", "memory", None, fingerprint, {"estimator": estimator, "k_frac": 0.1}, {}, {}, "cpu",
                       1, "", 0.0, 0, 0)  # fmt: skip
    layers = {
        item.name: Layer(item, Spectrum(np.linspace(1.0, 10.0, min(item.rows, item.cols) * item.slices), item.rows,
                                        item.cols, item.slices))
        for item in rows if item.measured
    }  # fmt: skip
    return Audit(rows, layers, facts)


def model(blocks: int = 4) -> Audit:
    return audit_of(rows_of(blocks))


def degenerate(item: LayerRow) -> LayerRow:
    return replace(item, degenerate=("alpha", "alpha_hill", "alpha_hill_z"))
