"""What `plan prune|quantize` plan from: an audit, a model, or with `--history` a run that was watched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tailwise.cli.audit_inputs import is_audit
from tailwise.cli.plan_shared import audit_of
from tailwise.cli.store_options import only_run, open_store
from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    from tailwise.audits.audit import Audit
    from tailwise.compression.plans.plan import Plan

#: Of α in a monitor's points, unless it was told another.
KEPT_ESTIMATOR = "ks"


@dataclass(frozen=True)
class Source:
    """Where a plan's numbers come from."""

    model: str
    device: str
    workers: int | None
    history: str | None
    run: str | None


def planned_from(source: Source) -> tuple[Audit, Callable[[Plan], Plan]]:
    """The audit to plan from, and what adds to the plan what the audit cannot know: what moved and what did not."""
    if source.history is None:
        return audit_of(source.model, source.device, source.workers), lambda plan: plan
    from tailwise.history.runs.watched import movement_notes, watched_audit

    if is_audit(source.model):
        raise UsageError("is an audit, which has numbers of its own", where=source.model,
                         fix="leave --history out, or give the model that was trained")  # fmt: skip
    with open_store(source.history) as history:
        run = only_run(history, source.run)
        audit, moved = watched_audit(source.model, history, run)
        notes = (*movement_notes(moved, history, run), *audit.provenance.notes)

    def finished(plan: Plan) -> Plan:
        decisions = tuple(
            replace(one, reason="; ".join(filter(None, (one.reason, str(moved[one.matrix])))))
            if one.matrix in moved else one for one in plan.decisions
        )  # fmt: skip
        return replace(plan, decisions=decisions, notes=(*plan.notes, *notes))

    return audit, finished
