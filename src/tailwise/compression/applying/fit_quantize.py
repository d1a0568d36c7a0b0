"""Whether a plan to quantize can be applied to a model: told before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec
from tailwise.checkpoints.dequantized import dequantized
from tailwise.checkpoints.writer import Layout, layout_of
from tailwise.compression.applying.fit import check_plan
from tailwise.compression.applying.shards import check_alone
from tailwise.compression.operators.table import OPERATORS
from tailwise.compression.plans.plan import Decision, Plan
from tailwise.errors import UsageError

if TYPE_CHECKING:
    from tailwise.compression.applying.apply import ApplyOptions

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


def is_calibrated(plan: Plan, options: ApplyOptions) -> bool:
    """Whether the operator looks at text. `UsageError` where it lacks it, or an option means nothing here."""
    if options.save_masks:
        raise UsageError("quantization removes nothing, so there are no masks", fix="leave --save-masks out")
    needs = OPERATORS[plan.operator].needs != "none"
    if needs and (options.dequantize or plan.settings.get("dequantize") is True):
        raise UsageError(
            f"{plan.operator} computes with the model, which is quantized already", fix="plan with --operator rtn"
        )
    if needs and options.calibration is None:
        raise UsageError(
            f"{plan.operator} looks at the inputs of each layer, and there is no calibration text",
            fix="give --calibration TEXT, or plan with --operator rtn",
        )
    if needs:
        check_alone(options.executor, f"{plan.operator} goes block by block through one model")
    if options.packed is not None:
        check_alone(options.executor, "packed models are written in one piece")
    return needs


def source_of(plan: Plan, stored: Checkpoint, uri: str, *, dequantize: bool) -> tuple[Checkpoint, Layout]:
    """What is read, and the files that its dense copy has. `UsageError` for a quantized model that is to stay one."""
    layout = layout_of(stored, uri)
    asked = dequantize or plan.settings.get("dequantize") is True
    if all(decision.tensor in stored.tensors for decision in plan) and not asked:
        return stored, layout
    found = dequantized(stored)
    if found is None:
        return stored, layout
    if not asked:
        fix = "give the model that it was made from, or quantize the values that it decodes to with --dequantize"
        raise UsageError("its weights are quantized", where=stored.uri, fix=fix)
    return found, found.layout(layout) if stored.format == "safetensors" else layout_of(found, uri)


def check_fit(plan: Plan, checkpoint: Checkpoint, stored: Checkpoint, *, force: bool) -> None:
    """`UsageError` where an entry has no tensor, or one that is no matrix of plain numbers.

    `stored` is what lies on the disk, which an audit has read.
    """
    check_plan(plan, checkpoint, _misfits, stored=stored, force=force)


def _misfits(decision: Decision, spec: TensorSpec, checkpoint: Checkpoint) -> list[str]:  # noqa: ARG001 - as asked
    if spec.dtype not in _FLOATS:
        return [f"{spec.name} is stored as {spec.dtype}, and only plain floating-point tensors can be quantized"]
    if len(spec.shape) < 2:
        return [f"{spec.name} has {len(spec.shape)} axes; a matrix needs two"]
    return []
