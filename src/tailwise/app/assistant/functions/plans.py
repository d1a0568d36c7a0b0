"""Plans that there are, and plans that an audit alone can make; nothing is written here."""

from __future__ import annotations

from typing import Any

from tailwise.app.assistant.answer import Fact
from tailwise.app.assistant.functions.audits import AUDIT
from tailwise.app.assistant.functions.function import Place, function
from tailwise.app.workspace import links
from tailwise.compression.choosing.amounts import ALLOCATORS
from tailwise.compression.choosing.bit_formats import ASSIGNERS
from tailwise.compression.plans.bits import mean_bits
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.plan import Plan
from tailwise.core.errors import TailwiseError, UsageError

_MOST = 8
_LOOKED = 60  # plans that are read to see whose they are
#: That bits are chosen from.
FORMATS = ("int2-g64", "int3-g64", "int4-g64", "int8")


def _from_audit() -> str:
    amounts, bits = (
        ", ".join(name for name, item in registry.items() if item.reads_audit_alone)
        for registry in (ALLOCATORS, ASSIGNERS)
    )
    return f"an allocator that reads the audit alone: {amounts}; bits: {bits}"


@function(plan="identity of a plan, from `list`; the one on screen where it is left out")
def plan(place: Place, plan: str = "") -> Fact:
    """A plan to prune or quantize: its budget, what goes in each role, the extremes, what was tried, and its notes."""
    wanted = plan or place.screen.plan or ""
    entries = place.workspace.entries("plan")
    if not wanted and len(entries) != 1:
        shown = ", ".join(entry.id for entry in entries[:12])
        raise UsageError("which plan?", fix=f"name one of {shown}" if shown else "make one with `tailwise plan`")
    titled = [entry.id for entry in entries if not wanted or wanted in (entry.id, entry.title)]
    name = titled[0] if titled else place.workspace.entry(wanted, "plan").id
    title = place.workspace.entry(name, "plan").title
    return {"plan": name, "title": title, **plan_fact(place.workspace.plan(name)),
            "links": [place.link(title, links.plan(name))]}  # fmt: skip


@function(
    audit=AUDIT,
    kind="prune or quantize",
    amount="prune: the fraction that goes, 0 to 0.99; quantize: mean bits per weight",
    allocator=_from_audit(),
)
def draft_plan(place: Place, kind: str, amount: float, audit: str = "", allocator: str = "uniform") -> Fact:
    """Make a plan from an audit alone, to look at; it is not kept and was not tried on text."""
    check_kind(kind)
    name = place.audit(audit)
    measured = place.workspace.audit(name)
    if kind == "prune":
        from tailwise.compression.making.make import plan_prune
        from tailwise.compression.making.request import Request

        made = plan_prune(measured, Request(amount, allocator))
    else:
        from tailwise.compression.making.make import plan_quantize
        from tailwise.compression.making.request import QuantizeRequest

        made = plan_quantize(measured, QuantizeRequest(bits=amount, formats=FORMATS, allocator=allocator))
    untried = "not tried on text: `tailwise plan … --calibration TEXT` measures what a plan costs"
    return {"audit": name, "kept": False, "limit": untried, **plan_fact(made), "links": [place.to_audit(name)]}


def check_kind(kind: str) -> None:
    """`UsageError` for what is no kind of plan."""
    if kind not in ("prune", "quantize"):
        raise UsageError(f"{kind[:40]!r} is no kind of plan", fix="prune or quantize")


@function(audit=AUDIT, kind="prune or quantize; both where it is left out")
def plans_for(place: Place, audit: str = "", kind: str = "") -> Fact:
    """The plans of the workspace that were made for exactly the weights of an audit, the newest first."""
    name = place.audit(audit)
    fingerprint, plans, failed = place.workspace.audit(name).provenance.fingerprint, [], 0
    entries = place.workspace.entries("plan")
    for entry in entries[:_LOOKED]:
        try:
            made = place.workspace.plan(entry.id)
        except TailwiseError:  # a plan that was edited into nonsense is no plan of this model
            failed += 1
            continue
        if made.fingerprint == fingerprint and kind in ("", *made.kind.split("+")):
            plans.append({"plan": entry.id, "title": entry.title, "kind": made.kind, "allocator": made.allocator,
                          "operator": made.operator, "amount": made.amount_words, "was_tried": bool(made.tried),
                          "links": [place.link(entry.title, links.plan(entry.id))]})  # fmt: skip
    return {"audit": name, "plans": plans[:_MOST], "plans_in_all": len(plans), "looked_at": min(len(entries), _LOOKED),
            "unreadable": failed, "links": [place.link("all plans", links.plans())]}  # fmt: skip


def plan_fact(plan: Plan) -> Fact:
    """What a plan says, without most of its entries."""
    roles = dict.fromkeys(decision.role for decision in plan)
    by_amount = sorted(plan, key=lambda item: (_amount(item), item.tensor))
    return {
        "kind": plan.kind,
        "operator": plan.operator,
        "allocator": plan.allocator,
        "model": plan.model,
        "amount": plan.amount_words,
        "budget": {key: value for key, value in plan.budget.items() if isinstance(value, int | float | str)},
        "tensors": len(plan),
        "parameters": plan.n_params,
        "roles": [{"role": role, **_of([item for item in plan if item.role == role])} for role in roles],
        "least": [_entry(item) for item in by_amount[:_MOST]],
        "most": [_entry(item) for item in by_amount[: -_MOST - 1 : -1]],
        "tried": [_tried(item) for item in plan.tried[:_MOST]],
        "tried_in_all": len(plan.tried),
        "was_tried": bool(plan.tried),
        "notes": list(plan.notes[:6]),
    }  # fmt: skip


def _amount(item: Decision) -> float:
    return -mean_bits([item]) if item.format else item.sparsity or 0.0


def _of(items: list[Decision]) -> Fact:
    total = sum(item.n_params for item in items)
    totals: Fact = {"tensors": len(items)}
    if any(item.sparsity is not None for item in items):
        totals["sparsity"] = sum(item.removed for item in items) / total if total else 0.0
    if formats := dict.fromkeys(item.format for item in items if item.format):
        totals |= {"formats": list(formats)[:6], "bits": mean_bits([item for item in items if item.format])}
    return totals


def _entry(item: Decision) -> Fact:
    entry: dict[str, Any] = {"tensor": item.tensor, "role": item.role, "block": item.block, "sparsity": item.sparsity,
                             "format": item.format, "rank": item.rank, "reason": item.reason}  # fmt: skip
    return {key: value for key, value in entry.items() if value not in (None, "")}


def _tried(item: Any) -> Fact:
    return {key: value for key, value in dict(item).items() if isinstance(value, int | float | str | bool | list)}
