"""`plan_within_rise()`: the fewest bits that keep the perplexity below a limit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from tailwise.audits.audit import Audit
from tailwise.compression.making.asked import asked_of
from tailwise.compression.making.request import QuantizeRequest
from tailwise.compression.plans.plan import Plan
from tailwise.compression.trying.scored import PlanScorer
from tailwise.core.errors import UsageError
from tailwise.models.evaluation.intervals import mean_interval

_STEPS = 7  # of the bisection: to 1 % of what the formats span
_WIDER = 1.03  # bits are multiplied by this where the last choice finds the limit broken
_TRIES = 6
_BISECTING = 0.3  # of the time, after which the bits are those of the last step that kept the limit
_HURRY = 6  # judgements that a turn takes at least: with less time than that, the next one is the last

Make = Callable[[QuantizeRequest], Plan]


def plan_within_rise(audit: Audit, request: QuantizeRequest, scorer: PlanScorer, ways: tuple[Make, Make]) -> Plan:
    """The plan with the fewest bits whose perplexity is at most 1 + `request.rise` times that of the dense model.

    Bits are found by bisection on the windows of the search, with the plans of the first of `ways`; the second makes
    the plan that is kept. It is held against the limit on windows that no step has seen, and gets more bits until it
    stays below, or all that the formats have where the time is over. Raises `UsageError` where no choice of the
    formats does.
    """
    assert request.rise is not None  # noqa: S101 - the caller has looked
    quick, final = ways
    limit, stage = math.log1p(request.rise), scorer.stage
    dense = float(stage.trial.dense_losses(stage.search).mean())

    def at(bits: float) -> QuantizeRequest:
        return replace(request, bits=bits, bytes=None, rise=None)

    def rises(bits: float) -> float:
        rise = float(scorer.score(quick(at(bits))).mean()) - dense
        scorer.tell(f"{bits:.3f} bits: perplexity × {math.exp(min(rise, 50.0)):.4f}")
        return rise if math.isfinite(rise) else math.inf

    low, most = ends(audit, request)
    high = most
    if rises(high) > limit:
        names = ", ".join(request.formats)
        raise UsageError(
            f"in none of {names} the perplexity stays within {100 * request.rise:g} % of the dense model's",
            where=audit.model,
            fix="allow more, or add a format with more bits",
        )
    if rises(low) <= limit:
        high = low
    else:
        high = _bisected(rises, (low, high), limit, over=lambda: scorer.clock.share > _BISECTING)
    return _held(scorer, final, at, (high, most), limit)


def ends(audit: Audit, request: QuantizeRequest) -> tuple[float, float]:
    """The fewest and most bits per weight of any choice of the formats."""
    asked = asked_of(audit, replace(request, allocator="uniform", settings={}))
    bits, total = asked.choices.bits, float(asked.choices.sizes.sum())
    most = np.where(np.isfinite(bits), bits, -np.inf).max(axis=1)
    return float(bits.min(axis=1).sum()) / total, float(most.sum()) / total


def _bisected(
    rises: Callable[[float], float], span: tuple[float, float], limit: float, *, over: Callable[[], bool]
) -> float:
    low, high = span
    for _ in range(_STEPS):
        if over():
            break
        middle = (low + high) / 2
        low, high = (low, middle) if rises(middle) <= limit else (middle, high)
    return high


def _held(
    scorer: PlanScorer, final: Make, at: Callable[[float], QuantizeRequest], span: tuple[float, float], limit: float
) -> Plan:
    """The final plan, with as many bits more as it takes on the windows that no step has seen."""
    stage, (bits, most) = scorer.stage, span
    dense = stage.trial.dense_losses(stage.guard)
    for turn in range(_TRIES):
        plan = final(at(bits))
        began = scorer.clock.spent
        change = stage.trial.applied_losses(plan, stage.looked, stage.guard) - dense
        if float(change.mean()) <= limit or bits >= most:
            break
        hurried = scorer.clock.left < _HURRY * (scorer.clock.spent - began)
        bits = most if turn == _TRIES - 2 or hurried else min(bits * _WIDER, most)
    stage.trial.restore()
    interval = mean_interval(change)
    around = (
        "" if interval is None else f" [{100 * math.expm1(interval[0]):+.2f}, {100 * math.expm1(interval[1]):+.2f}]"
    )
    note = (
        f"asked for a perplexity at most {100 * math.expm1(limit):g} % above the dense model's; on text that the "
        f"search had not seen it is {100 * math.expm1(float(change.mean())):+.2f} %{around}"
    )
    budget = {**plan.budget, "requested_rise": round(math.expm1(limit), 9), "rise": round(math.expm1(change.mean()), 6)}
    return plan.replace(budget=budget, notes=(note, *plan.notes))
