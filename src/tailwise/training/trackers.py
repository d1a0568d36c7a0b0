"""Points to experiment trackers. Each is a sink: `Monitor(..., sinks=[TensorBoard(writer)])`.

A tracker gets the mean of every metric over the layers, and of the metrics in `per_layer` a series a layer. Points of
full measurements come later than their step; where a tracker takes steps in order only, the step is a value.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Sequence
from typing import Any

from tailwise.history.point import Point

PER_LAYER = ("alpha", "stable_rank", "singular_entropy", "update_ratio")


def flat(point: Point, per_layer: Sequence[str] = PER_LAYER) -> dict[str, float]:
    """Series → value: `tailwise/loss`, `tailwise/mean/alpha`, `tailwise/alpha/<layer>`; only what is finite."""
    numbers = {f"tailwise/{name}": value for name, value in point.scalars.items()}
    columns: dict[str, list[float]] = {}
    for layer, values in point.layers.items():
        for name, value in values.items():
            if math.isfinite(value):
                columns.setdefault(name, []).append(value)
                numbers |= {f"tailwise/{name}/{layer}": value} if name in per_layer else {}
    numbers |= {f"tailwise/mean/{name}": sum(values) / len(values) for name, values in columns.items()}
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}


class Wandb:
    """Weights & Biases. `run` is what `wandb.init` gave; ours are the series over `tailwise/step`.

    A run of W&B has one counter of rows, and drops what is logged for a row below it. So our numbers ride on the rows
    of the training's own log: each goes into the row that is open, and no row is ended by them. Where the training logs
    more rarely than points come, they wait, and are written at the end. `commit=True` ends a row for each point at
    once: for trainings that log nothing of their own.
    """

    def __init__(self, run: Any, per_layer: Sequence[str] = PER_LAYER, *, commit: bool = False) -> None:
        self._run, self._per_layer, self._commit = run, per_layer, commit
        self._waiting: deque[dict[str, float]] = deque()
        self._row: int | None = None  # of the run, that has a point of ours
        run.define_metric("tailwise/*", step_metric="tailwise/step")

    def write(self, point: Point) -> None:
        """One row, or a part of one."""
        numbers = {**flat(point, self._per_layer), "tailwise/step": float(point.step)}
        last = self._waiting[-1] if self._waiting else {}
        if last.get("tailwise/step") == point.step:
            last.update(numbers)  # norms and spectra of one step
        else:
            self._waiting.append(numbers)
        if self._commit:
            self.flush()
        elif self._row is None or self._run.step > self._row + 1:
            # The training logs on another thread, and a row may end before its number does: two on, it has ended.
            self._run.log(self._waiting.popleft(), commit=False)
            self._row = self._run.step

    def flush(self) -> None:
        """Write what waits, a row each."""
        if self._row is not None and self._run.step <= self._row + 1:
            self._run.log({}, commit=True)  # ends the row that has one of ours
        while self._waiting:
            self._run.log(self._waiting.popleft())


class TensorBoard:
    """`writer` is a `torch.utils.tensorboard.SummaryWriter`."""

    def __init__(self, writer: Any, per_layer: Sequence[str] = PER_LAYER) -> None:
        self._writer, self._per_layer = writer, per_layer

    def write(self, point: Point) -> None:
        """One value a series."""
        for name, value in flat(point, self._per_layer).items():
            self._writer.add_scalar(name, value, global_step=point.step, walltime=point.time)


class Mlflow:
    """`client` is an `mlflow.MlflowClient`, `run_id` that of a run that exists."""

    _BATCH = 1000  # metrics that MLflow takes at once

    def __init__(self, client: Any, run_id: str, per_layer: Sequence[str] = PER_LAYER) -> None:
        self._client, self._run_id, self._per_layer = client, run_id, per_layer

    def write(self, point: Point) -> None:
        """One batch, or several."""
        from mlflow.entities import Metric

        # MLflow takes few characters in names; parts of fused tensors have others.
        named = {re.sub(r"[^\w\-./ ]", "_", name): value for name, value in flat(point, self._per_layer).items()}
        metrics = [Metric(name, value, int(1000 * point.time), point.step) for name, value in named.items()]
        for start in range(0, len(metrics), self._BATCH):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + self._BATCH])


class Trackio:
    """`run` is what `trackio.init` gave: `trackio.log` finds no run on the monitor's thread.

    Rows stand at the step of their point, and the count of rows that are logged without a step stays the training's.
    """

    def __init__(self, run: Any, per_layer: Sequence[str] = PER_LAYER) -> None:
        self._run, self._per_layer = run, per_layer

    def write(self, point: Point) -> None:
        """One row."""
        before = getattr(self._run, "_next_step", None)
        self._run.log(flat(point, self._per_layer), step=point.step)
        if before is not None and self._run._next_step == point.step + 1:
            self._run._next_step = before
