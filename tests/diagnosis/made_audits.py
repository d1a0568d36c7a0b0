"""Audits made from rows, without any weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tailwise.audits.audit import Audit
from tailwise.audits.rows import Layer, LayerRow, Provenance
from tailwise.spectrum.spectrum import Spectrum

M, N, BLOCKS = 128, 256, 6
ROLES = {
    "attn_q": "self_attn.q_proj",
    "attn_o": "self_attn.o_proj",
    "mlp_up": "mlp.up_proj",
    "mlp_down": "mlp.down_proj",
}
#: Numbers of a well-trained matrix of this shape.
HEALTHY = {
    "alpha": 3.0, "alpha_sigma": 0.35, "alpha_baseline": 9.5, "alpha_baseline_sd": 5.0, "alpha_z": 1.3,
    "ks_distance": 0.05, "num_pl_spikes": 32.0,
    "alpha_hill": 2.5, "alpha_hill_sigma": 0.4, "alpha_hill_baseline": 9.7, "alpha_hill_baseline_sd": 0.4,
    "alpha_hill_z": 18.0, "singular_entropy": 0.25, "singular_entropy_baseline": 0.05, "singular_entropy_z": 200.0,
    "stable_rank": 10.0, "log_spectral_norm": 1.0, "num_spikes": 20.0, "mp_distance": 0.06, "detX_delta": -8.0,
    "detX_num": 40.0, "rank_loss": 0.0, "num_traps": 0.0,
}  # fmt: skip
#: What changes where a matrix is noise.
NOISE = {
    "alpha": 8.0, "alpha_sigma": 2.0, "ks_distance": 0.27, "num_pl_spikes": 12.0, "alpha_hill": 9.5,
    "alpha_hill_sigma": 2.4, "alpha_hill_z": 0.5, "singular_entropy": 0.0505, "singular_entropy_z": 0.6,
    "num_spikes": 0.0, "mp_distance": 0.02, "stable_rank": 45.0,
}  # fmt: skip


def name(role: str, block: int) -> str:
    return f"model.layers.{block}.{ROLES[role]}"


def healthy_rows(blocks: int = BLOCKS) -> dict[str, LayerRow]:
    """Every role in every block, with a little scatter."""
    rng, rows = np.random.default_rng(0), {}
    for block in range(blocks):
        for role in ROLES:
            metrics = {**HEALTHY, "alpha_hill": 2.5 + 0.1 * rng.standard_normal()}
            metrics["log_spectral_norm"] += 0.05 * rng.standard_normal()
            metrics["singular_entropy"] += 0.01 * rng.standard_normal()
            metrics["stable_rank"] += rng.standard_normal()
            rows[name(role, block)] = LayerRow(
                name(role, block), role, block, "dense", M, N, 1, "F32", "OK", digest=f"{role}{block}", metrics=metrics
            )
    return rows


def changed(rows: Mapping[str, LayerRow], which: str, **metrics: float | None) -> dict[str, LayerRow]:
    """The rows with some metrics of one of them replaced."""
    row = rows[which]
    return {**rows, which: replace(row, metrics={**row.metrics, **metrics})}


def audit_of(
    rows: Mapping[str, LayerRow],
    *,
    spectra: Mapping[str, np.ndarray] | None = None,
    recipe: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    dead: Mapping[str, int | None] | None = None,
) -> Audit:
    """`dead` counts rows of zeros by layer; 0 where it says nothing."""
    used = recipe or {"estimator": "ks"}
    facts = Provenance("a/model", "memory", None, "", used, config or {}, {}, "cpu", 1, "", 0.0, 0, 0)
    layers = {
        row.name: Layer(
            row,
            Spectrum(
                (spectra or {}).get(row.name, np.linspace(1.0, 10.0, min(row.rows, row.cols))),
                row.rows,
                row.cols,
                zero_vectors=(dead or {}).get(row.name, 0),
                weak_vectors=(dead or {}).get(row.name, 0),
                order_z=1.5 if (row.metrics.get("alpha_hill_z") or 9.0) < 2 else 40.0,
            ),
        )
        for row in rows.values()
        if row.measured
    }
    return Audit(list(rows.values()), layers, facts)
