"""From a precision study to the squared error of every tensor in every format. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tailwise.audits.audit import Audit
from tailwise.compression.plans.candidates import Candidate
from tailwise.core.errors import UsageError
from tailwise.audits.precision.study import LayerStudy, PrecisionStudy

_PART = re.compile(r"[#\[].*")  # of a fused tensor `name#part`, of stacked experts `name[e]`


def errors_of(
    study: PrecisionStudy, audit: Audit, found: Iterable[Candidate], formats: Sequence[str], *, relative: bool = False
) -> dict[tuple[str, str], float]:
    """(tensor, format) → ‖Ŵ − W‖²_F, or with `relative` ‖Ŵ − W‖²_F / ‖W‖²_F.

    The study has ‖Ŵ − W‖_F / ‖W‖_F of each matrix, the audit ‖W‖²_F = Σλ. `UsageError` where the study lacks a
    tensor or a format, or is of a model of other sizes.
    """
    missing = [name for name in formats if name not in study.formats]
    if missing:
        fix = f"tailwise precision {audit.model} --formats {','.join(formats)}"
        raise UsageError(f"the study has no {', '.join(missing)}", where=study.model, fix=fix)
    by_module: dict[str, list[LayerStudy]] = {}
    for layer in study:
        by_module.setdefault(_PART.sub("", layer.name), []).append(layer)
    table: dict[tuple[str, str], float] = {}
    for item in found:
        layers = by_module.get(_PART.sub("", item.matrix), [])
        if sum(layer.numel for layer in layers) != item.n_params:
            fix = "study and audit the same model"
            raise UsageError(f"the study does not hold {item.tensor}", where=study.model, fix=fix)
        for name in formats:
            table[item.tensor, name] = _error(layers, audit, name, relative)
    return table


def _error(layers: Sequence[LayerStudy], audit: Audit, name: str, relative: bool) -> float:
    squares = [float(audit[layer.name].spectrum.eigenvalues.sum()) for layer in layers]
    total = 0.0
    for layer, square in zip(layers, squares, strict=True):
        error = layer.readings[name].relative_error if name in layer.readings else None
        if error is None:
            raise UsageError(f"the study could not measure {layer.name} in {name}", fix="leave the format or it out")
        total += error * error * square
    return total / (sum(squares) or 1.0) if relative else total
