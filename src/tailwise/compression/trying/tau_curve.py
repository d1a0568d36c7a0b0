"""`tau_curve()`: what AlphaPruning's one setting does, from uniform (τ = 0) on, measured on the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tailwise.audits.audit import Audit
from tailwise.compression.making.make import plan_prune
from tailwise.compression.making.request import Request
from tailwise.compression.trying.clock import Clock
from tailwise.compression.trying.scored import PlanScorer, Say, Scored, perplexity
from tailwise.compression.trying.stage import StageOptions, stage_of
from tailwise.core.bars import listener, of_share
from tailwise.core.errors import UsageError
from tailwise.models.evaluation.intervals import mean_interval

_NO_END = 1e9  # seconds: every τ is tried
#: The manual's values, and uniform.
TAUS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True)
class TauPoint:
    """One τ: losses on windows of text, in nats a token."""

    tau: float
    loss: float
    perplexity: float
    change: float  # of the loss, against τ = 0 on the same windows
    low: float | None  # 95 % interval of the change
    high: float | None


@dataclass(frozen=True)
class TauCurve:
    """The points, ascending in τ."""

    model: str
    allocator: str
    operator: str
    sparsity: float
    points: tuple[TauPoint, ...]
    windows: int
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> TauPoint:
        """The τ of least loss."""
        return min(self.points, key=lambda point: point.loss)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "best": self.best.tau}


def tau_curve(
    audit: Audit, request: Request, text: StageOptions, *, taus: Sequence[float] = TAUS, say: Say | bool | None = None
) -> TauCurve:
    """Carry the plan of every τ out and score it, all on the same windows.

    `request` names the allocator (alpha, alpha-role or entropy) and its other settings. Raises `UsageError`.
    """
    chosen = sorted({0.0, *taus})
    if len(chosen) < 2 or not 0.0 <= chosen[0] <= chosen[-1] <= 1.0:
        raise UsageError("τ goes from 0 (uniform) to 1", fix="give some values, e.g. 0.1,0.2,0.3")
    plans = {
        tau: plan_prune(audit, replace(request, settings={**request.settings, "tau": tau})) for tau in chosen
    }  # fmt: skip
    stage = stage_of(audit.model, plans[0.0], text)
    scorer = PlanScorer(stage, Clock(_NO_END))
    curve: list[Scored] = []
    with listener(say, "tau", of_share) as told:
        for index, (tau, plan) in enumerate(plans.items()):
            scored = Scored(f"tau {tau:g}", {"tau": tau}, plan, stage.trial.losses(plan, stage.search))
            scorer.judge([scored])
            curve.append(scored)
            if told is not None:
                told(f"τ {tau:g}: perplexity {perplexity(scored.judged):.4g}", (index + 1) / len(chosen))
    stage.trial.restore()
    points = tuple(_point(tau, item, curve[0]) for tau, item in zip(chosen, curve, strict=True))
    notes = [*stage.notes]
    best = min(points, key=lambda point: point.loss)
    if best.tau and (best.high is None or best.high >= 0):
        notes.append(f"the best τ, {best.tau:g}, is not told from uniform on {len(stage.guard)} windows")
    asked = float(plans[0.0].budget["requested"])
    return TauCurve(audit.model, request.allocator, request.operator, asked, points, len(stage.guard), tuple(notes))


def _point(tau: float, item: Scored, uniform: Scored) -> TauPoint:
    assert item.guard is not None and uniform.guard is not None  # noqa: S101, PT018 - judged before
    change = item.guard - uniform.guard
    interval = None if item is uniform else mean_interval(change)
    low, high = (None, None) if interval is None else interval
    return TauPoint(tau, item.judged, perplexity(item.judged), float(change.mean()), low, high)
