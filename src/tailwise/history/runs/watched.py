"""A run that was watched, as an audit of its model: what its monitor measured, without a spectrum computed again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

from tailwise.audits.audit import Audit
from tailwise.audits.prepare import Prepared, prepare
from tailwise.audits.rows import Layer, LayerRow, Provenance
from tailwise.audits.run import unmeasured_row, versions
from tailwise.audits.work import row_of
from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.matrices import load
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import UsageError
from tailwise.history.point import Point
from tailwise.history.store import History
from tailwise.spectrum.spectrum import Spectrum

#: Of a monitor, unless its point says otherwise.
_ESTIMATOR, _SAID = "ks", "estimator: "
_MOVED = 0.01  # path length, in norms, below which a matrix has not moved
_CLOSE = 0.01  # share by which a norm may differ from that of the point
_NAMED = 5


@dataclass(frozen=True)
class Moved:
    """What a matrix did over a run."""

    path: float  # Σ ‖ΔW‖/‖W‖ over its steps, from those that were measured
    alpha: tuple[float, float] | None  # first and last
    still_since: int | None  # step of the first of its last measurements at which it did not move

    @property
    def still(self) -> bool:
        """Whether it has hardly moved at all."""
        return self.path < _MOVED

    def __str__(self) -> str:
        words = "did not move" if self.still else f"moved by {self.path:.2g} of its norm"
        if self.alpha is not None:
            words += f", α {self.alpha[0]:.2f} → {self.alpha[1]:.2f}"
        return words + (f", still since step {self.still_since}" if self.still_since is not None else "")


def watched_audit(model: str, history: History, run: str) -> tuple[Audit, dict[str, Moved]]:
    """The model's matrices with the numbers of the run's last full point, and what each did over the run.

    Only the headers of the model are read, and one matrix, to see that it is the model of that point. Raises
    `UsageError` where the run has no point with spectra, or its layers are not the model's.
    """
    point = history.latest(run, cadence="full")
    if point is None or not point.layers:
        raise UsageError(f"the run {run!r} has no point with spectra", where=history.where,
                         fix="plan from an audit; or watch with max_overhead=1, where the run is short")  # fmt: skip
    with open_checkpoint(model) as checkpoint:
        prepared = prepare(checkpoint)
        names = _names([source.name for source in prepared.sources], point)
        if not names:
            shown = next(iter(point.layers))
            raise UsageError(f"none of its matrices is a layer of the run {run!r}, as {shown}", where=model,
                             fix="give the model that was trained, or another run with --run")  # fmt: skip
        rows = [_row(row_of(source), point, names) for source in prepared.sources]
        rows += [unmeasured_row(item) for item in prepared.unmeasured]
        provenance = _facts(checkpoint, rows, point)
        notes = (*checkpoint.notes, *_other_weights(checkpoint, prepared, point, names))
    layers = {row.name: Layer(row, _nothing(row)) for row in rows if row.measured}
    moved = _moved(history, run)
    measured = {name: moved[theirs] for name, theirs in names.items() if theirs in moved}
    return Audit(rows, layers, replace(provenance, notes=notes)), measured


def movement_notes(moved: Mapping[str, Moved], history: History, run: str) -> tuple[str, ...]:
    """What moved and what did not, in words."""
    point = history.latest(run, cadence="full")
    by = f", trained by {optimizer}" if (optimizer := history.optimizer(run)) else ""
    step = "?" if point is None else str(point.step)
    ordered = sorted(moved, key=lambda name: -moved[name].path)
    most = ", ".join(f"{name} ({moved[name]})" for name in ordered[:2] if not moved[name].still)
    still = [name for name in ordered if moved[name].still]
    notes = [f"from the run {run!r} at step {step}{by}: no spectrum was computed again"]
    notes += [f"moved most: {most}"] if most else []
    if still:
        more = f" and {len(still) - _NAMED} more" if len(still) > _NAMED else ""
        notes.append(f"did not move, {len(still)} of {len(moved)}: {', '.join(still[:_NAMED])}{more}")
    return tuple(notes)


def _names(sources: Sequence[str], point: Point) -> dict[str, str]:
    """The model's names → those of the run, which may have a module around the model."""
    for prefix in sorted({layer.removesuffix(name) for layer in point.layers for name in sources[:1]
                          if layer.endswith(f".{name}")} | {""}, key=len):  # fmt: skip
        names = {name: f"{prefix}{name}" for name in sources if f"{prefix}{name}" in point.layers}
        if names:
            return names
    return {}


def _row(row: LayerRow, point: Point, names: Mapping[str, str]) -> LayerRow:
    values = point.layers.get(names.get(row.name, ""), {})
    if not values:
        return replace(row, reason="the monitor did not measure it")
    metrics = {name: value if math.isfinite(value) else None for name, value in values.items()}
    return replace(row, status="OK", metrics=metrics)


def _facts(checkpoint: Checkpoint, rows: Sequence[LayerRow], point: Point) -> Provenance:
    notes = [note.removeprefix(_SAID) for note in point.notes if note.startswith(_SAID)]
    config = {key: value for key, value in checkpoint.config.items() if isinstance(value, str | int | float | bool)}
    recipe = {"estimator": notes[-1] if notes else _ESTIMATOR}
    return Provenance(checkpoint.uri, checkpoint.format, checkpoint.revision, "", recipe, config, versions(), "", 1, "",
                      0.0, sum(row.measured for row in rows), 0)  # fmt: skip


def _other_weights(checkpoint: Checkpoint, prepared: Prepared, point: Point, names: Mapping[str, str]) -> list[str]:
    """A note where the smallest matrix is not as it was at the point."""
    import torch

    known = [source for source in prepared.sources if "log_norm" in point.layers.get(names.get(source.name, ""), {})]
    if not known:
        return []
    smallest = min(known, key=lambda source: source.n_params)
    squares = [float(torch.as_tensor(block).double().square().sum()) for part in load(smallest, checkpoint)
               for block in part.row_blocks(1 << 62)]  # fmt: skip
    norm, then = math.sqrt(math.fsum(squares)), 10.0 ** (point.layers[names[smallest.name]]["log_norm"] / 2)
    if abs(norm - then) <= _CLOSE * then:
        return []
    return [
        f"{smallest.name} has a norm of {norm:.3g} here and had {then:.3g} at step {point.step}: "
        "these are other weights"
    ]


def _nothing(row: LayerRow) -> Spectrum:
    import numpy as np

    return Spectrum(np.zeros(min(row.rows, row.cols) * row.slices), row.rows, row.cols, row.slices, solver="not kept")


def _moved(history: History, run: str) -> dict[str, Moved]:
    known = set(history.metrics(run))
    ratios: dict[str, list[tuple[int, float]]] = {}
    alphas: dict[str, list[float]] = {}
    if "update_ratio" in known:
        for line in history.series(run, ["update_ratio"]).to_pylist():
            if line["cadence"] == "cheap" and line["update_ratio"] is not None:
                ratios.setdefault(line["layer"], []).append((line["step"], line["update_ratio"]))
    if "alpha" in known:
        for line in history.series(run, ["alpha"]).to_pylist():
            if line["cadence"] == "full" and line["alpha"] is not None:
                alphas.setdefault(line["layer"], []).append(line["alpha"])
    return {layer: _of(series, alphas.get(layer, [])) for layer, series in ratios.items()}


def _of(series: Sequence[tuple[int, float]], alphas: Sequence[float]) -> Moved:
    finite = [(step, ratio) for step, ratio in series if math.isfinite(ratio)]
    gaps = [after - before for (before, _), (after, _) in pairwise(finite)]
    usual = median(gaps) if gaps else 1
    path = sum(ratio * gap for (_, ratio), gap in zip(finite, [usual, *gaps], strict=False))
    still = None
    for step, ratio in reversed(finite):
        if ratio > 0.0:
            break
        still = step
    return Moved(path, (alphas[0], alphas[-1]) if len(alphas) > 1 else None, still if path > 0.0 else None)
