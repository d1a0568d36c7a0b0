"""`quantize_planned()`: a plan to quantize by any allocator, with the pass or the search over text that it takes."""

from __future__ import annotations

from dataclasses import replace

from tailwise.audits.audit import Audit
from tailwise.compression.plans.asked import asked_of
from tailwise.compression.plans.make import plan_quantize
from tailwise.compression.plans.plan import Plan
from tailwise.compression.plans.request import QuantizeRequest, parsed_formats
from tailwise.errors import UsageError
from tailwise.planning.auto_quantize import measured_formats, plan_auto_quantize
from tailwise.planning.clock import Clock
from tailwise.planning.elsewhere import elsewhere
from tailwise.planning.errors import error_tables
from tailwise.planning.rise import ends, plan_within_rise
from tailwise.planning.run import AUTO, DEFAULT_SECONDS, check_causal_model, silent
from tailwise.planning.scored import Court, Say
from tailwise.planning.stage import StageOptions, stage_of

#: Measured on text, from one pass over it: what is called sensitivity elsewhere, without a loss.
OUTPUTS = "outputs"
FROM_TEXT = ("sensitivity", OUTPUTS)
_TURN = 0.4  # of the time that is left, for each search within a rise of perplexity
NOTHING_TRIED = (
    "no calibration text was given, so nothing could be tried and the bits are spent evenly; "
    "with --calibration TEXT, candidates are scored and the best is kept"
)


def quantize_planned(
    audit: Audit,
    request: QuantizeRequest,
    *,
    allocator: str = AUTO,
    text: StageOptions | None = None,
    clock: Clock | None = None,
    say: Say | None = None,
) -> Plan:
    """A plan to quantize a model that was audited.

    `auto` tries every known way on the text and keeps the best within the clock's time, by default five minutes;
    without text it is uniform, and says so. `sensitivity` measures the loss of every group in every format, `outputs`
    the errors of its outputs in one pass; the others take the audit alone. The model is read where the audit says it
    is. Raises `UsageError`.
    """
    say = say or silent
    needs = "a rise of perplexity" if request.rise is not None else allocator if allocator in FROM_TEXT else None
    if needs is not None and text is None:
        raise UsageError(f"{needs} is measured on text, and there is none", fix="give --calibration TEXT")
    if allocator == AUTO or needs is not None:
        if text is None:
            plan = plan_quantize(audit, replace(request, allocator="uniform"))
            return plan.replace(notes=(NOTHING_TRIED, *plan.notes))
        check_causal_model(audit.model)
        around = _around(audit, request)
        with elsewhere(audit.model, around, text) as far:
            court = Court(stage_of(audit.model, around, text), clock or Clock(DEFAULT_SECONDS), say, far=far)
            made = _tried if request.rise is None else _within_rise
            return made(audit, request, court, allocator)
    return plan_quantize(audit, replace(request, allocator=allocator))


def _around(audit: Audit, request: QuantizeRequest) -> Plan:
    """A plan of the same tensors that needs no text; with the most bits where they are yet to be found."""
    bare = replace(request, allocator="uniform", settings={}, study=None, relative=False, estimator=None)
    if request.rise is not None:
        bare = replace(bare, rise=None, bits=ends(audit, request)[1])
    return plan_quantize(audit, bare)


def _tried(audit: Audit, request: QuantizeRequest, court: Court, allocator: str) -> Plan:
    if allocator == AUTO:
        return plan_auto_quantize(audit, request, court)
    if allocator in FROM_TEXT:
        return _measured(audit, request, court, allocator)
    return plan_quantize(audit, replace(request, allocator=allocator))


def _within_rise(audit: Audit, request: QuantizeRequest, court: Court, allocator: str) -> Plan:
    if allocator != AUTO:

        def made(found: QuantizeRequest) -> Plan:
            return _tried(audit, found, court, allocator)

        return plan_within_rise(audit, request, court, (made, made))
    formats = [item.name for item in parsed_formats(request.formats)]
    errors = error_tables(court.stage, _around(audit, request), formats).output

    def quick(found: QuantizeRequest) -> Plan:
        return plan_quantize(audit, replace(found, allocator=OUTPUTS, settings={"losses": errors}))

    def final(found: QuantizeRequest) -> Plan:
        return plan_auto_quantize(audit, found, replace(court, clock=court.clock.part(_TURN)))

    return plan_within_rise(audit, request, court, (quick, final))


def _measured(audit: Audit, request: QuantizeRequest, court: Court, allocator: str) -> Plan:
    around = _around(audit, request)
    choices = asked_of(audit, replace(request, allocator="uniform", settings={})).choices
    if allocator == OUTPUTS:
        losses = error_tables(court.stage, around, choices.formats).output
    else:
        losses = measured_formats(court, choices, around, court.stage.search)
    court.stage.trial.restore()
    plan = plan_quantize(audit, replace(request, allocator=allocator, settings={"losses": losses}))
    return plan.replace(notes=(*plan.notes, *court.stage.notes))
