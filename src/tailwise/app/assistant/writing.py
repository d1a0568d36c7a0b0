"""What agents may do where writing is allowed: audit a model below the roots, and make a plan. Nothing is replaced.

The verbs are handed in by the command line: this room needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailwise.app.assistant.answer import Fact
from tailwise.app.assistant.functions.audits import AUDIT
from tailwise.app.assistant.functions.audits import audit as told_of_audit
from tailwise.app.assistant.functions.function import Function, Place
from tailwise.app.assistant.functions.plans import check_kind, plan_fact
from tailwise.app.workspace.entry import identity
from tailwise.audits.audit import Audit
from tailwise.compression.choosing.amounts import ALLOCATORS
from tailwise.compression.choosing.bit_formats import ASSIGNERS
from tailwise.compression.plans.plan import Plan
from tailwise.core.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,79}")


@dataclass(frozen=True)
class PlanOrder:
    """What is asked of a plan."""

    kind: str
    amount: float
    allocator: str
    calibration: Path | None


@dataclass(frozen=True)
class Verbs:
    """What reads weights and takes time."""

    audit: Callable[[Path, bool], Audit]  # a model, and whether entries are permuted too
    plan: Callable[[Audit, PlanOrder], Plan]


def writing_functions(verbs: Verbs) -> dict[str, Function]:
    """The functions that write, by name."""

    def run_audit(place: Place, model: str, name: str, randomize: bool = False) -> Fact:
        target = _target(place, name, ".audit")
        made = verbs.audit(place.workspace.confined(model), randomize)
        try:
            made.save(target, exclusive=True)
        except FileExistsError as error:
            raise _taken(target) from error
        return told_of_audit(place, _identity(place, target))

    def make_plan(  # noqa: PLR0913, PLR0917 - a plan has as many parts
        place: Place,
        kind: str,
        amount: float,
        name: str,
        audit: str = "",
        allocator: str = "auto",
        calibration: str = "",
    ) -> Fact:
        check_kind(kind)
        target = _target(place, name, ".json")
        text = place.workspace.confined(calibration) if calibration else None
        planned = place.workspace.audit(place.audit(audit))
        if text is not None:  # on which the model is tried, wherever the audit says that it is
            place.workspace.confined(planned.model)
        made = verbs.plan(planned, PlanOrder(kind, amount, allocator, text))
        if target.exists():  # it may have come while the plan was made
            raise _taken(target)
        made.save(target)
        return {"plan": _identity(place, target), "kept": True, **plan_fact(made)}

    name = {"type": "string", "description": "of the file that is written, without a folder; an existing one is kept"}
    allocators = ", ".join(dict.fromkeys([*ALLOCATORS, *ASSIGNERS]))
    return {
        "run_audit": _function(
            "run_audit", "Measure every weight matrix of a model below the roots, and keep the audit as a file.",
            {"model": {"type": "string", "description": "path of a checkpoint below a root"}, "name": name,
             "randomize": {"type": "boolean", "description": "also permute entries, to count traps"}},
            ("model", "name"), run_audit),
        "make_plan": _function(
            "make_plan", "Make a plan to prune or quantize, and keep it as a file; with calibration text it is tried.",
            {"kind": {"type": "string", "description": "prune or quantize"},
             "amount": {"type": "number", "description": "prune: fraction that goes; quantize: mean bits per weight"},
             "name": name, "audit": {"type": "string", "description": AUDIT},
             "allocator": {"type": "string", "description": f"auto, {allocators}"},
             "calibration": {"type": "string", "description": "path of a text or folder below a root"}},
            ("kind", "amount", "name"), make_plan),
    }  # fmt: skip


def _function(
    name: str, summary: str, properties: dict[str, Any], required: tuple[str, ...], call: Callable[..., Fact]
) -> Function:
    schema = {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
    return Function(name, summary, schema, call)


def _target(place: Place, name: str, suffix: str) -> Path:
    stem = name.removesuffix(suffix)
    if not _NAME.fullmatch(stem):
        raise UsageError(f"{name[:80]!r} is no name for a file", fix="letters, digits, and -_. ; no folder")
    root = place.workspace.roots[0]
    if not root.is_dir():
        raise UsageError("there is no folder to write into", fix="start with a folder as the first root")
    target = root / f"{stem}{suffix}"
    if target.exists() or target.is_symlink():
        raise _taken(target)
    return target


def _taken(target: Path) -> UsageError:
    return UsageError(f"{target.name} exists", fix="give another name; nothing is replaced")


def _identity(place: Place, target: Path) -> str:
    return place.workspace.entry(identity(target, target.parent)).id  # which looks again for a name that is new
