"""`foretold()`: do α and its rivals predict which matrix tolerates compression? Measured on the model at hand.

The losses are those that `sensitivity` measures: what the model loses on text when one tensor alone is pruned or
rounded, with all others dense, and with all others compressed too. They are held against numbers of the spectra, and
against depth and outliers, which are there to be beaten.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tailwise.audits.audit import Audit
from tailwise.audits.precision.prediction import Scope, stratified_spearman
from tailwise.compression.making.make import plan_prune, plan_quantize
from tailwise.compression.making.request import QuantizeRequest, Request, parsed_formats
from tailwise.compression.plans.budget import MOST
from tailwise.compression.plans.candidates import Candidate, candidates, estimator_for
from tailwise.compression.plans.plan import Plan
from tailwise.compression.trying.scored import Say
from tailwise.compression.trying.sensitivity import Variant, variant_losses
from tailwise.compression.trying.stage import Stage, StageOptions, stage_of
from tailwise.core.bars import listener, of_share
from tailwise.core.errors import UsageError

#: Sparsity that is added to one tensor among others that are pruned already.
MORE = 0.1
#: What is held against the losses: name → the metric of a candidate, or "" where it is another number.
PREDICTORS: Mapping[str, str] = {
    "alpha": "alpha", "alpha_hill": "alpha_hill", "likeness to noise": "alpha_hill_z",
    "singular_entropy": "singular_entropy_normalized", "log_norm": "log_norm",
    "log_spectral_norm": "log_spectral_norm", "stable_rank": "stable_rank", "depth": "", "owl": "",
}  # fmt: skip
_SCOPES: tuple[Scope, ...] = ("pooled", "within roles")


@dataclass(frozen=True)
class Foretold:
    """One rank correlation. ρ > 0: tensors where the number is high cost more when they are compressed."""

    predictor: str
    measured: str  # which losses
    scope: Scope
    rho: float | None
    low: float | None  # 95 %
    high: float | None
    p: float | None
    n: int  # tensors

    @property
    def seen(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Foresight:
    """What was measured of one model, and what it answers."""

    model: str
    operator: str
    kind: str  # prune or quantize
    losses: Mapping[str, Mapping[str, float]]  # what was measured → tensor → nats a token
    correlations: tuple[Foretold, ...]
    answers: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def of(self, predictor: str, measured: str, scope: Scope) -> Foretold:
        """One of them."""
        wanted = (predictor, measured, scope)
        return next(item for item in self.correlations if (item.predictor, item.measured, item.scope) == wanted)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def foretold(
    audit: Audit, request: Request | QuantizeRequest, text: StageOptions, *, say: Say | bool | None = None
) -> Foresight:
    """Measure what each tensor costs, and correlate.

    A `Request` prunes one tensor to its sparsity alone in the dense model, and by 0.1 more among all others at that
    sparsity. A `QuantizeRequest` gives one tensor the format of fewest bits, alone in the dense model, and among all
    others in the next. Raises `UsageError`.
    """
    plan = _around(audit, request)
    stage = stage_of(audit.model, plan, text)
    with listener(say, "predict", of_share) as told:
        measured = dict(_measured(plan, request, stage, told or (lambda _what, _done: None)))
    stage.trial.restore()
    eligible, _ = candidates(audit, request.choice, request.estimator or estimator_for(audit))
    numbers = _numbers(eligible, stage)
    correlations = tuple(
        _correlated(name, values, label, losses, (eligible, scope))
        for label, losses in measured.items()
        for name, values in numbers.items()
        for scope in _SCOPES
    )
    kind = "quantize" if isinstance(request, QuantizeRequest) else "prune"
    few = (f"{len(eligible)} tensors are few: intervals are wide",) if len(eligible) < 30 else ()
    return Foresight(audit.model, plan.operator, kind, measured, correlations, tuple(_answers(correlations, kind)),
                     (*few, *stage.notes))  # fmt: skip


def _around(audit: Audit, request: Request | QuantizeRequest) -> Plan:
    if isinstance(request, Request):
        return plan_prune(audit, replace(request, allocator="uniform", settings={}, estimator=None))
    formats = sorted(parsed_formats(request.formats), key=lambda item: item.bits_per_weight(1024, 1024))
    if len(formats) < 2:
        raise UsageError("one format is compared with nothing", fix="give two or more, e.g. --formats int2,int3")
    bare = replace(request, bits=None, formats=(formats[1].name,), allocator="uniform", estimator=None)
    return plan_quantize(audit, bare)


def _measured(
    plan: Plan, request: Request | QuantizeRequest, stage: Stage, say: Say
) -> Sequence[tuple[str, dict[str, float]]]:
    """Label → tensor → loss, for one tensor alone and for one among the others."""
    if isinstance(request, QuantizeRequest):
        lowest = min(parsed_formats(request.formats), key=lambda item: item.bits_per_weight(1024, 1024)).name
        dense = plan.replace(decisions=tuple(item.but(format="fp32") for item in plan))
        changed = [item.but(format=lowest) for item in plan]
        ways = ((f"{lowest}, all else dense", dense, changed),
                (f"{lowest}, all else {plan.decisions[0].format}", plan, changed))  # fmt: skip
    else:
        level = float(plan.budget["requested"])
        more = min(round(level + MORE, 6), MOST)
        dense = plan.replace(decisions=tuple(item.but(sparsity=0.0) for item in plan))
        ways = (
            (f"alone at {100 * level:.0f} %", dense, [item.but(sparsity=level) for item in plan]),
            (f"{100 * more:.0f} % among {100 * level:.0f} %", plan, [item.but(sparsity=more) for item in plan]),
        )
    measured = []
    for index, (label, around, entries) in enumerate(ways):
        variants = [Variant(item.tensor, {place: item}) for place, item in enumerate(entries)]

        def tell(done: int, total: int, index: int = index, label: str = label) -> None:
            say(f"{label}: tensor {done} of {total}", (index + done / total) / len(ways))

        losses: dict[Hashable, float] = variant_losses(stage.trial, around, stage.search, variants, progress=tell)
        measured.append((label, {str(tensor): loss for tensor, loss in losses.items()}))
    return measured


def _numbers(eligible: Sequence[Candidate], stage: Stage) -> dict[str, list[float]]:
    """Predictor → a number for each candidate, NaN where it has none; those that no candidate has are left out."""
    outliers = stage.scores.outlier_ratios
    numbers = {}
    for name, metric in PREDICTORS.items():
        if metric:
            sign = -1.0 if metric == "alpha_hill_z" else 1.0
            values = [np.nan if (value := item.value(metric)) is None else sign * value for item in eligible]
        elif name == "owl":
            values = [outliers.get(item.block, np.nan) if item.block is not None else np.nan for item in eligible]
        else:
            values = [np.nan if item.block is None else float(item.block) for item in eligible]
        if np.isfinite(values).any():
            numbers[name] = values
    return numbers


def _correlated(
    name: str,
    values: Sequence[float],
    label: str,
    losses: Mapping[str, float],
    where: tuple[Sequence[Candidate], Scope],
) -> Foretold:
    numbers, scope = where
    pairs = [
        (value, losses[item.tensor], item.role if scope == "within roles" else "")
        for item, value in zip(numbers, values, strict=True)
        if item.block is not None and np.isfinite(value) and np.isfinite(losses.get(item.tensor, np.nan))
    ]
    x, y = (np.array([item[place] for item in pairs], dtype=np.float64) for place in (0, 1))
    rho, low, high, p, n = stratified_spearman(x, y, [item[2] for item in pairs])
    return Foretold(name, label, scope, rho, low, high, p, n)


def _answers(correlations: Sequence[Foretold], kind: str) -> list[str]:
    """Of the two questions that AlphaPruning leaves to the reader: does α predict it, and do simpler numbers too?"""
    lines = []
    less = "fewer bits" if kind == "quantize" else "more sparsity"
    for label in dict.fromkeys(item.measured for item in correlations):
        within = {item.predictor: item for item in correlations if item.measured == label and item.scope != "pooled"}
        alpha = within.get("alpha")
        if alpha is None or alpha.rho is None or alpha.low is None or alpha.high is None:
            lines.append(f"{label}: too few tensors of a role to tell whether α predicts the loss.")
            continue
        interval = f"ρ {alpha.rho:+.2f} [{alpha.low:+.2f}, {alpha.high:+.2f}] within roles"
        if alpha.high < 0:
            lines.append(f"{label}: where α is high the loss is smaller, as giving {less} there asks for ({interval}).")
        elif alpha.low > 0:
            lines.append(f"{label}: where α is high the loss is larger, the reverse of what {less} there asks for "
                         f"({interval}).")  # fmt: skip
        else:
            lines.append(f"{label}: α does not predict the loss ({interval}).")
        known = [item for item in within.values() if item.rho is not None and item.predictor != "alpha"]
        ahead = sorted(
            (item for item in known if abs(item.rho or 0.0) > abs(alpha.rho)), key=lambda i: -abs(i.rho or 0)
        )
        if ahead:
            names = ", ".join(f"{item.predictor} ({item.rho:+.2f}{'' if item.seen else ', not told from 0'})"
                              for item in ahead[:4])  # fmt: skip
            lines.append(f"{label}: further from 0 than α, within roles: {names}.")
        else:
            lines.append(f"{label}: no other number is further from 0 than α, within roles.")
    return lines
