"""Whether a plan can be applied to a model as asked: told before any work."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from tailwise.audits.cache import Cache, key_of
from tailwise.audits.prepare import Selection, prepare
from tailwise.audits.work import HashedMatrix
from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec
from tailwise.checkpoints.dequantized import dequantized
from tailwise.checkpoints.matrices import MatrixSource, load
from tailwise.checkpoints.writer import OutputLayout, layout_of
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.applying.by_shard import check_alone
from tailwise.compression.operators.operator import Operator
from tailwise.compression.operators.registered import OPERATORS, WITHOUT_DATA
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.plan import Plan
from tailwise.compression.treating.treated import matrix_sizes
from tailwise.core.errors import AS_NUMBERS, UsageError
from tailwise.core.layer_patterns import check_pattern_of_file
from tailwise.core.recipe import ConvMode, Recipe, RunOptions

_MODES: tuple[ConvMode, ...] = ("flatten", "slices", "pooled")


def check_own(plan: Plan, checkpoint: Checkpoint, *, force: bool) -> None:
    """`UsageError` where the plan was made from other weights than those of `checkpoint`; with `force`, nothing."""
    if not plan.fingerprint or force:
        return
    audited = plan.settings.get("audited")
    try:
        own = has_fingerprint(checkpoint, plan.fingerprint, audited)
    except (TypeError, AttributeError) as error:
        fix = "leave it as tailwise wrote it"
        raise UsageError(f"the setting audited is {audited!r}", where=checkpoint.uri, fix=fix) from error
    if not own:
        raise UsageError(
            "its weights are others than those that the plan was made from",
            where=checkpoint.uri,
            fix="audit and plan again, or apply it all the same with --force",
        )


def has_fingerprint(checkpoint: Checkpoint, wanted: str, audited: Mapping[str, Any] | None = None) -> bool:
    """Whether an audit of `checkpoint` would have the fingerprint `wanted`.

    `audited` is what a plan keeps of an audit of a part (`audited_part`): by default it was of all. Reads every
    matrix once, but for those that an earlier audit of the same unchanged files has hashed.
    """
    cache, part = Cache.of(RunOptions()), audited or {}
    left, least = set(part.get("not_measured", ())), part.get("min_evals", Recipe().min_evals)
    fix = "audit a part by a pattern of fewer repeats, and plan again, or apply it all the same with --force"
    check_pattern_of_file(part.get("layers"), checkpoint.uri, fix)
    selection = Selection(part.get("layers"), tuple(part.get("roles", ())))
    for mode in _MODES:
        matrices = prepare(checkpoint, Recipe(conv=mode, min_evals=least), selection=selection).sources
        sources = tuple(source for source in matrices if source.name not in left)
        if _fingerprint(checkpoint, sources, cache) == wanted:
            return True
        if not any(source.kind == "conv" for source in sources):
            return False
    return False


def _fingerprint(checkpoint: Checkpoint, sources: tuple[MatrixSource, ...], cache: Cache) -> str:
    lines = (f"{source.name} {_digest(checkpoint, source, cache)}" for source in sorted(sources, key=lambda s: s.name))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _digest(checkpoint: Checkpoint, source: MatrixSource, cache: Cache) -> str:
    parts = [checkpoint.identity(name) for name in source.tensors]
    key = key_of("identity", parts, repr(source)) if parts and None not in parts else None
    known = cache.note("digests", key) if key else None
    if not isinstance(known, list):
        known = [HashedMatrix(matrix, hold=False).digest for matrix in load(source, checkpoint)]
        if key:
            cache.keep_note("digests", key, known)
    return str(known[0]) if len(known) == 1 else hashlib.sha256("".join(map(str, known)).encode()).hexdigest()


_SHOWN = 5
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


def is_calibrated(plan: Plan, options: ApplyOptions) -> bool:
    """Whether the operator looks at text. `UsageError` where it lacks it, or an option means nothing here."""
    operator = OPERATORS[plan.operator]
    _check_options(operator, options)
    if operator.looks and _dequantizes(plan, options):
        raise UsageError(
            f"{plan.operator} computes with the model, which is quantized already",
            fix=f"plan with --operator rtn, or {AS_NUMBERS}",
        )
    if operator.work is None:
        check_alone(options.executor, "heads and neurons are taken out of the whole model")
        return options.calibration is not None
    if options.factored:
        check_alone(options.executor, "factors are made tensor by tensor in the model")
    if operator.looks and options.calibration is None and options.images is None:
        raise UsageError(
            f"{plan.operator} looks at the inputs of each layer, and there is no calibration text",
            fix=f"give --calibration TEXT, or plan with --operator {WITHOUT_DATA[operator.does]}",
        )
    if options.images is not None and not operator.looks:
        fix = "leave --images out, or give the images of a classifier to --calibration"
        raise UsageError(f"{plan.operator} looks at no images", fix=fix)
    calibrated = operator.looks or (options.calibration is not None and bool(operator.with_text))
    if calibrated:
        check_alone(options.executor, f"{plan.operator} goes block by block through one model")
    if options.packed is not None:
        check_alone(options.executor, "packed models are written in one piece")
    return calibrated


def _check_options(operator: Operator, options: ApplyOptions) -> None:
    prunes = operator.does == "prune"
    if options.packed is not None and prunes:
        raise UsageError("a pruned model has no codes to pack", fix="leave --packed out")
    if options.save_masks and not prunes:
        raise UsageError("quantization removes nothing, so there are no masks", fix="leave --save-masks out")
    if options.factored and prunes and not operator.ranks:
        raise UsageError(f"{operator.name} has no factors", fix="leave --factored out, or plan with low_rank")
    if options.save_masks and (operator.work is None or options.factored):
        raise UsageError("what is taken out has no mask", fix="leave --save-masks out")


def _dequantizes(plan: Plan, options: ApplyOptions) -> bool:
    return plan.quantizes and (options.dequantize or plan.settings.get("dequantize") is True)


def source_of(plan: Plan, stored: Checkpoint, uri: str, options: ApplyOptions) -> tuple[Checkpoint, OutputLayout]:
    """What is read, and the files that its dense copy has. `UsageError` for a quantized model that is to stay one."""
    layout = layout_of(stored, uri)
    asked = _dequantizes(plan, options)
    there = all(decision.tensor in stored.tensors for decision in plan)
    if not plan.quantizes or (there and not asked):
        return stored, layout
    decoded = dequantized(stored)
    if decoded is None:
        return stored, layout
    if not asked:
        fix = "give the model that it was made from, or quantize the values that it decodes to with --dequantize"
        raise UsageError("its weights are quantized", where=stored.uri, fix=fix)
    return decoded, decoded.layout(layout) if stored.format == "safetensors" else layout_of(decoded, uri)


def check_plan(plan: Plan, checkpoint: Checkpoint, *, stored: Checkpoint, force: bool) -> None:
    """`UsageError` where an entry has no tensor, or one that cannot be worked on, or the weights are others.

    `stored` is what lies on the disk, which an audit has read: `checkpoint` itself, but for models that are
    dequantized first. `force` lets other weights pass.
    """
    sizes = {name: spec.numel for name, spec in checkpoint.tensors.items()}
    wrong = list(plan.misfits(sizes))
    done = "quantized" if plan.quantizes else "pruned"
    for decision in plan:
        if decision.tensor in sizes:
            wrong += _misfits(decision, checkpoint.tensors[decision.tensor], checkpoint, done)
    if wrong:
        more = f"\n  … and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        what = "the plan does not fit the model:\n  " + "\n  ".join(wrong[:_SHOWN]) + more
        coded = any(" is stored as " in line for line in wrong)
        fix = AS_NUMBERS if coded else f"plan for this model, or apply it to {plan.model}"
        raise UsageError(what, where=checkpoint.uri, fix=fix)
    check_own(plan, stored, force=force)


def _misfits(decision: Decision, spec: TensorSpec, checkpoint: Checkpoint, done: str) -> Iterator[str]:
    if spec.dtype not in _FLOATS:
        yield f"{spec.name} is stored as {spec.dtype}, and only plain floating-point tensors can be {done}"
    elif len(spec.shape) < 2:
        yield f"{spec.name} has {len(spec.shape)} axes; a matrix needs two"
    elif decision.treatment.cast is None:
        sizes = matrix_sizes(spec.name, spec.shape, checkpoint.config)
        yield from (f"{spec.name} has {why}" for why in decision.treatment.unfit(*sizes))
