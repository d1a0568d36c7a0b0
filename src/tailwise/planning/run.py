"""`planned()`: a plan by any allocator, with the pass or the search over text that it takes."""

from __future__ import annotations

import re
from dataclasses import replace

from tailwise.audits.audit import Audit
from tailwise.compression.plans.make import plan_prune
from tailwise.compression.plans.plan import Plan
from tailwise.compression.plans.request import Request
from tailwise.compression.walking.hosts import check_causal
from tailwise.errors import UsageError
from tailwise.evaluation.images import is_classifier
from tailwise.planning.auto import plan_auto
from tailwise.planning.blend import plan_blend
from tailwise.planning.clock import Clock
from tailwise.planning.elsewhere import elsewhere
from tailwise.planning.scored import Court, Say
from tailwise.planning.sensitivity import measured_losses
from tailwise.planning.stage import StageOptions, stage_of

AUTO = "auto"
DEFAULT_SECONDS = 300.0
#: What allocators take from text, by name.
FROM_TEXT = ("owl", "dlp", "sensitivity", "blend")
NOTHING_TRIED = (
    "no calibration text was given, so nothing could be tried and the budget is spread evenly; "
    "with --calibration TEXT, candidates are scored and the best is kept"
)
_TIME = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|m|h)?\s*")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


def planned(
    audit: Audit,
    request: Request,
    *,
    allocator: str = AUTO,
    text: StageOptions | None = None,
    clock: Clock | None = None,
    say: Say | None = None,
) -> Plan:
    """A pruning plan of a model that was audited.

    `auto` tries every known way on the text and keeps the best within the clock's time, by default five minutes;
    without text it is uniform, and says so. `owl` and `dlp` take one pass over the text, `sensitivity` and
    `blend` many; the others take the audit alone. The model is read where the audit says it is. Raises `UsageError`.
    """
    if text is not None and allocator in (AUTO, *FROM_TEXT):
        check_causal_model(audit.model)
    if allocator == AUTO:
        if text is None:
            plan = plan_prune(audit, replace(request, allocator="uniform"))
            return plan.replace(notes=(NOTHING_TRIED, *plan.notes))
    elif allocator not in FROM_TEXT or text is None:
        return plan_prune(audit, replace(request, allocator=allocator))
    clock = clock or Clock(DEFAULT_SECONDS)
    with elsewhere(audit.model, _around(audit, request), text) as far:
        court = Court(stage_of(audit.model, _around(audit, request), text), clock, say or silent, far=far)
        if allocator == AUTO:
            return plan_auto(audit, request, court)
        if allocator == "blend" and "weights" not in request.settings:
            return plan_blend(audit, request, court)
        settings = {**request.settings, **_measured(audit, request, court, allocator)}
    plan = plan_prune(audit, replace(request, allocator=allocator, settings=settings))
    return plan.replace(notes=(*plan.notes, *court.stage.notes))


def silent(what: str, done: float) -> None:
    """Without a progress bar."""


def _around(audit: Audit, request: Request) -> Plan:
    return plan_prune(audit, replace(request, allocator="uniform", settings={}))


def check_causal_model(model: str) -> None:
    """`UsageError` for a model that can be scored on neither text nor images, with what can be done all the same."""
    if is_classifier(model):
        return
    try:
        check_causal(model)
    except UsageError as error:
        fix = "leave --calibration out, and take an allocator that reads the audit alone: depth, alpha"
        raise UsageError(error.what, where=model, fix=fix) from error


def _measured(audit: Audit, request: Request, court: Court, allocator: str) -> dict[str, object]:
    stage = court.stage
    if allocator in ("owl", "blend"):
        return {"statistics": stage.scores.outlier_ratios}
    if allocator == "dlp":
        return {"statistics": stage.scores.medians}

    def progress(done: int, total: int) -> None:
        court.say(f"measuring tensor {done} of {total}", done / total)

    around = _around(audit, request)
    losses = measured_losses(stage.trial, around, stage.search, progress=progress, measure=court.variant_losses)
    stage.trial.restore()
    return {"losses": losses}


def seconds_of(text: str) -> float:
    """`"5m"`, `"90s"`, `"1h"`, `"300"` in seconds. Raises `UsageError`."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not a time", fix="write 5m, 90s or 1h")
    return Clock(float(match[1]) * _SECONDS[match[2]]).seconds
