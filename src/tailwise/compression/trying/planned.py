"""`planned()`: a plan by any way to choose, with the pass or the search over text that it takes."""

from __future__ import annotations

import re
from dataclasses import replace

from tailwise.audits.audit import Audit
from tailwise.compression.making.request import QuantizeRequest, Request
from tailwise.compression.plans.plan import Plan
from tailwise.compression.trying.clock import Clock
from tailwise.compression.trying.material import Objective
from tailwise.compression.trying.scored import PlanScorer, Say
from tailwise.compression.trying.search_amounts import Amounts
from tailwise.compression.trying.search_formats import Formats
from tailwise.compression.trying.stage import StageOptions, stage_of
from tailwise.compression.trying.trial_tasks import trials_on_engine
from tailwise.core.bars import listener, of_share
from tailwise.core.errors import UsageError
from tailwise.models.evaluation.images import is_classifier
from tailwise.models.walking.hosts import check_causal

AUTO = "auto"
DEFAULT_SECONDS = 300.0
#: What `auto` makes small: see docs/evidence.md, where both were tried.
BEST_OBJECTIVE: Objective = "kl"
_TIME = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|m|h)?\s*")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


def planned(
    audit: Audit,
    request: Request | QuantizeRequest,
    *,
    allocator: str = AUTO,
    text: StageOptions | None = None,
    clock: Clock | None = None,
    say: Say | bool | None = None,
) -> Plan:
    """A plan to prune or to quantize a model that was audited.

    `auto` tries every known way on the text and keeps the best within the clock's time, by default five minutes;
    without text it is uniform, and says so. Of amounts, `owl` and `dlp` take one pass over the text, `sensitivity` and
    `blend` many; of formats, `outputs` takes one, and `sensitivity` and a rise of perplexity many. The others take the
    audit alone. The model is read where the audit says it is. `say` is called with what is done and the share of the
    time that is spent; True shows a bar, as notebooks and interactive shells do by default. Raises `UsageError`.
    """
    made = Amounts(audit, request) if isinstance(request, Request) else Formats(audit, request)
    if text is None:
        made.check_without_text(allocator)
        if allocator != AUTO:
            return made.plan(allocator)
        plan = made.plan("uniform")
        return plan.replace(notes=(made.untried, *plan.notes))
    if allocator != AUTO and not made.reads(allocator):
        return made.plan(allocator)
    clock = clock or Clock(DEFAULT_SECONDS)
    check_causal_model(audit.model)
    around = made.around()
    if made.by_perplexity:
        text = replace(text, objective="loss")
    elif allocator == AUTO:
        text = replace(text, objective=text.objective or BEST_OBJECTIVE, divergences=True)
    with listener(say, "plan", of_share) as told:

        def tell(what: str) -> None:
            # At 0 it would be a line that stays; nothing is done before the first trial, whatever the time is.
            (told or silent)(what, min(max(clock.share, 1e-9), _READY))

        stage = stage_of(audit.model, around, text, clock if allocator == AUTO else None, tell)
        with trials_on_engine(audit.model, around, stage.options) as engine:
            scorer = PlanScorer(stage, clock, told or silent, engine=engine)
            return made.auto(scorer) if allocator == AUTO else made.measured(scorer, allocator)


#: Of the bar, what all that comes before the first trial may take.
_READY = 0.5


def silent(what: str, done: float) -> None:
    """Without a progress bar."""


def check_causal_model(model: str) -> None:
    """`UsageError` for a model that can be scored on neither text nor images, with what can be done all the same."""
    if is_classifier(model):
        return
    try:
        check_causal(model)
    except UsageError as error:
        fix = "leave --calibration out, and take an allocator that reads the audit alone: depth, alpha"
        raise UsageError(error.what, where=model, fix=fix) from error


def seconds_of(text: str) -> float:
    """`"5m"`, `"90s"`, `"1h"`, `"300"` in seconds. Raises `UsageError`."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not a time", fix="write 5m, 90s or 1h")
    return Clock(float(match[1]) * _SECONDS[match[2]]).seconds
