"""Whether a plan fits the checkpoint that it is to be applied to."""

from __future__ import annotations

from collections.abc import Callable

from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec
from tailwise.compression.applying.fingerprint import check_own
from tailwise.compression.plans.packed_rows import AS_NUMBERS
from tailwise.compression.plans.plan import Decision, Plan
from tailwise.errors import UsageError

_SHOWN = 5
#: Why one tensor cannot be worked on as decided; nothing where it can.
Misfits = Callable[[Decision, TensorSpec, Checkpoint], list[str]]


def check_plan(plan: Plan, checkpoint: Checkpoint, misfits: Misfits, *, stored: Checkpoint, force: bool) -> None:
    """`UsageError` where an entry has no tensor, or one that cannot be worked on, or the weights are others.

    `stored` is what lies on the disk, which an audit has read: `checkpoint` itself, but for models that are
    de-quantized first. `force` lets other weights pass.
    """
    sizes = {name: spec.numel for name, spec in checkpoint.tensors.items()}
    wrong = list(plan.misfits(sizes))
    for decision in plan:
        if decision.tensor in sizes:
            wrong += misfits(decision, checkpoint.tensors[decision.tensor], checkpoint)
    if wrong:
        more = f"\n  … and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        what = "the plan does not fit the model:\n  " + "\n  ".join(wrong[:_SHOWN]) + more
        coded = any(" is stored as " in line for line in wrong)
        fix = AS_NUMBERS if coded else f"plan for this model, or apply it to {plan.model}"
        raise UsageError(what, where=checkpoint.uri, fix=fix)
    check_own(plan, stored, force=force)
