"""Points, alarms and audits made up."""

from __future__ import annotations

import numpy as np

from tailwise.audits.audit import Audit
from tailwise.audits.rows import Layer, LayerRow, Provenance
from tailwise.history.point import Alarm, Point
from tailwise.spectrum.spectrum import Spectrum

UP, DOWN, Q = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj"


def point(step: int, *, run: str = "a", cadence="cheap", scalars=None, notes=(), **layers) -> Point:
    """A point of two layers, unless others are given by name."""
    values = layers or {UP: {"alpha": 2.0 + step, "norm": 1.0}, DOWN: {"alpha": 3.0 + step}}
    return Point(
        run, step, cadence, 1000.0 + step, values, {"loss": 1.0 / (1 + step)} if scalars is None else scalars, notes
    )


def alarm(step: int, *, run: str = "a", rule: str = "TW401", severity="warning", layers=(UP,)) -> Alarm:
    return Alarm(
        run, step, 5.0, rule, severity, "it drifts", layers, {"alpha": 7.0}, since=step - 1, remedies=("clip",)
    )


def audit(alpha: float = 3.0, *, size: int = 32) -> Audit:
    """Two measured layers, one that is not, and one that is too small."""
    rng = np.random.default_rng(0)
    rows = [
        LayerRow(UP, "mlp_up", 0, "dense", size, 2 * size, 1, "F32", "OK", tensors=(f"{UP}.weight",), nbytes=4096,
                 solver="gram", error_bound=1e-9, digest="d1", seconds=0.5,
                 metrics={"alpha": alpha, "stable_rank": 4.0, "num_traps": None}),
        LayerRow(Q, "attn_q", 0, "dense", size, size, 1, "F32", "DEGENERATE", reason="no spread", degenerate=("alpha",),
                 tensors=(f"{Q}.weight",), digest="d2", metrics={"alpha": None, "stable_rank": 1.0, "num_traps": None}),
        LayerRow("model.norm", "norm", None, "", size, 1, 1, "F32", "NOT_A_MATRIX", reason="one axis",
                 tensors=("model.norm.weight",)),
    ]  # fmt: skip
    layers = {
        row.name: Layer(row, Spectrum(np.sort(rng.random(size)), row.rows, row.cols)) for row in rows if row.measured
    }
    facts = Provenance(
        "some/model", "safetensors", "abc", "f" * 64, {"estimator": "ks", "metrics": []}, {"a": 1}, {"python": "3"},
        "cpu", 1, "2026-01-01T00:00:00+00:00", 1.0, 0, 10, {"layers": None}, ("a note",),
    )  # fmt: skip
    return Audit(rows, layers, facts)
