"""What each tensor loses in each number format, without running the model: errors of its weights and outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from tailwise.compression.plans.fusing import merged_by_servers
from tailwise.compression.plans.plan import Plan
from tailwise.compression.trying.stage import Stage
from tailwise.compression.trying.trial import MOST_HESSIANS, hessian_bytes, seen_by
from tailwise.models.activations import Activations
from tailwise.number_formats.formats import parse_format

Table = dict[tuple[str, str], float]  # (tensor, format)


@dataclass(frozen=True)
class ErrorTables:
    """Squared errors of rounding to nearest, of every tensor in every format.

    Sums over the matrices of a tensor; X are the inputs of its layer on the calibration windows.
    """

    weight: Table = field(default_factory=dict)  # ‖Ŵ − W‖²_F
    weight_relative: Table = field(default_factory=dict)  # the same over ‖W‖²_F
    output: Table = field(default_factory=dict)  # ‖(Ŵ − W)·X‖²_F; a tensor that no input reaches has none
    output_relative: Table = field(default_factory=dict)  # the same over ‖W·X‖²_F


def error_tables(
    stage: Stage,
    plan: Plan,
    formats: Sequence[str],
    *,
    ends: Callable[[], bool] = lambda: False,
    progress: Callable[[float], None] = lambda _share: None,
) -> ErrorTables | None:
    """The errors of the tensors of `plan`, with one pass over the calibration windows.

    XᵀX of every layer is held where all of them fit into memory, else the norms of its inputs alone: errors of
    different inputs are then taken to be independent. `progress` is called with the share of the entries that are
    measured; None where it `ends` before all are.
    """
    if ends():
        return None
    trial = stage.trial
    trial.restore()
    hessians = hessian_bytes(plan)
    inputs: Mapping[str, Activations] = trial.inputs
    if trial.how.needs != "hessian":
        need = "hessian" if hessians <= MOST_HESSIANS else "norms"
        inputs = seen_by(trial.model, trial.places, need, trial.material.inputs(stage.looked))  # type: ignore[arg-type]
    tables, done, entries = ErrorTables(), 0, max(1, sum(item.n_params for item in plan) * len(formats))
    for item in plan:
        W = trial.dense(item.tensor).to(trial.dtypes[item.tensor])
        seen = inputs.get(item.tensor)
        whole = (_square(W), _through(W, seen))
        for chosen in map(parse_format, formats):
            if ends():
                return None
            reaches = trial.reaches(item.tensor) if merged_by_servers(chosen) else ()
            each = zip(W, reaches or [None] * len(W), strict=True)
            rounded = [chosen.quantize(matrix, reach).values.to(W.dtype) for matrix, reach in each]
            errors = torch.stack(rounded).float() - W.float()
            key, weight, output = (item.tensor, chosen.name), _square(errors), _through(errors, seen)
            tables.weight[key], tables.weight_relative[key] = weight, weight / (whole[0] or 1.0)
            if output is not None and whole[1] is not None:
                tables.output[key], tables.output_relative[key] = output, output / (whole[1] or 1.0)
            done += item.n_params
            progress(done / entries)
    return tables


def _square(matrices: torch.Tensor) -> float:
    return float(matrices.double().square().sum())


def _through(matrices: torch.Tensor, seen: Activations | None) -> float | None:
    """‖W·X‖²_F up to a factor of the windows, summed over (count, out, in)."""
    if seen is None:
        return None
    W = matrices.float()  # as many as groups, each with its own inputs, or all of them with those of the one group
    if seen.hessian is not None:
        return float(((W @ seen.hessian) * W).double().sum())
    if seen.norms is not None:
        return float((W * seen.norms[:, None]).double().square().sum())
    return None
