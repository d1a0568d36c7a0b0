"""The alias table to WeightWatcher's column names (version 0.7)."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np

from tailwise.spectrum.metrics import norms_ranks as ranks
from tailwise.spectrum.spectrum import Spectrum

#: WeightWatcher's column → this project's metric, where the two mean the same.
COLUMNS = {
    "alpha": "alpha",
    "alpha_weighted": "alpha_weighted",
    "D": "ks_distance",
    "sigma": "alpha_sigma",
    "xmin": "lambda_min",
    "xmax": "lambda_max",
    "num_pl_spikes": "num_pl_spikes",
    "log_alpha_norm": "log_alpha_norm",
    "matrix_rank": "matrix_rank",
    "rank_loss": "rank_loss",
    "log_norm": "log_norm",
    "log_spectral_norm": "log_spectral_norm",
    "stable_rank": "stable_rank",
    "entropy": "matrix_entropy",
    "detX_num": "detX_num",
    "detX_val": "detX_val",
    "num_spikes": "num_spikes",
    "sigma_mp": "sigma_mp",
    "bulk_max": "lambda_plus",
    "mp_softrank": "mp_softrank",
    "num_traps": "num_traps",
    "rand_distance": "rand_distance",
    "ww_softrank": "ww_softrank",
    "ww_maxdist": "ww_maxdist",
}
#: Columns whose definition differs on purpose; `docs/definitions.md` says how and why.
DIFFERENT = ("num_spikes", "sigma_mp", "bulk_max", "mp_softrank", "num_traps")


class _Row(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def metrics(self) -> Any: ...
    @property
    def n_params(self) -> int: ...


def weightwatcher_columns(index: int, row: _Row, spectrum: Spectrum) -> dict[str, Any]:
    """One line of WeightWatcher's `details`. Values that are not defined are NaN, never −1."""
    values = spectrum.eigenvalues
    alpha = row.metrics.get("alpha")
    line: dict[str, Any] = {
        "layer_id": index,
        "name": row.name.rsplit(".", 1)[-1],
        "longname": row.name,
        "layer_type": row.kind,
        "N": spectrum.n,
        "M": spectrum.m,
        "Q": spectrum.Q,
        "num_evals": len(values),
        "num_params": row.n_params,
        "rf": spectrum.slices,
        "norm": float(values.sum()),
        "spectral_norm": float(values[-1]),
        "lambda_max": float(values[-1]),
        "sv_max": math.sqrt(values[-1]),
        "sv_min": math.sqrt(values[0]),
        "weak_rank_loss": int(np.count_nonzero(values < 1e-6)),
        "status": "failed" if alpha is None else "success",
        "warning": _warning(alpha),
    }
    known = {column: row.metrics[name] for column, name in COLUMNS.items() if name in row.metrics}
    line |= {column: float("nan") if value is None else value for column, value in known.items()}
    rank = ranks.matrix_rank(spectrum)  # to float64's ε whatever is stored, as there
    return line | {"matrix_rank": rank, "rank_loss": len(values) - rank}


def _warning(alpha: float | None) -> str:
    if alpha is None:
        return ""
    if alpha < 2.0:
        return "over-trained"
    return "under-trained" if alpha > 6.0 else ""
