"""A plan to quantize, of a GGUF file, to a GGUF file: what the plan leaves alone stays byte for byte."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.draft import Draft, check_output, check_space
from tailwise.checkpoints.formats.gguf import GgufCheckpoint
from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.applying.card import card
from tailwise.compression.applying.carry_out import Progress, put_in_place
from tailwise.compression.applying.gguf_inputs import RoundedTensor, SeenInputs, digest_of, seen_in
from tailwise.compression.applying.plan_fit import check_own, is_calibrated
from tailwise.compression.operators.registered import OPERATORS
from tailwise.compression.packing.gguf_copy import GgufCopy, write_imatrix
from tailwise.compression.packing.gguf_packing import FILE, TYPES, file_type
from tailwise.compression.packing.llama_quantize import PROGRAM, found_program, quantized_by
from tailwise.compression.plans.combined import how_of
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.phrasing import listed
from tailwise.compression.plans.plan import Plan
from tailwise.compression.plans.treatment import REPORT
from tailwise.compression.treating.applied import Applied, Reached, relative_error, whole_model
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.optional import how_to_get
from tailwise.models.walking.statistics import reaching
from tailwise.number_formats.casts import PlainCast
from tailwise.number_formats.ggml_blocks import BlockFormat
from tailwise.number_formats.ggml_library import ggml_library
from tailwise.number_formats.ggml_types import GgmlFormat
from tailwise.number_formats.number_format import NumberFormat

if TYPE_CHECKING:
    import torch

IMATRIX = "imatrix.gguf"
LOADS = f"`{FILE}` is what llama.cpp runs."
_PLAIN = ("F64", "F32", "F16", "BF16")


def is_for_gguf(plan: Plan, options: ApplyOptions) -> bool:
    """Whether a GGUF file is to become another: where it is said, or where the formats are llama.cpp's own."""
    if not plan.quantizes or plan.is_both or OPERATORS[plan.operator].needs == "hessian":
        return False
    if options.packed is not None:
        return options.packed == "gguf"
    formats = [decision.number_format for decision in plan]
    known = all(item.name in TYPES for item in formats)
    return known and any(not isinstance(item, PlainCast) for item in formats)


def apply_to_gguf(plan: Plan, file: Path, output: Path, options: ApplyOptions, progress: Progress) -> Applied:
    """Write the file anew, with an importance matrix where the operator looks at inputs, and read it back.

    `UsageError` before any work where the plan does not fit the file, or a format is no type of llama.cpp.
    """
    started = time.perf_counter()
    check_output(output, force=options.force, source=file)
    looks = is_calibrated(plan, options)
    with open_checkpoint(file) as stored:
        assert isinstance(stored, GgufCheckpoint)  # noqa: S101 - of its suffix
        _check(plan, stored)
        check_own(plan, stored, force=options.force)
        check_space(output, sum(spec.nbytes for spec in stored.tensors.values()) + (1 << 20))
        program = _program(plan, stored)
        seen = seen_in(plan, stored, file, (options, progress), rounds=program is None) if looks else SeenInputs()
        run = _Rewriting(plan, stored, seen, program)
        with Draft(output, force=options.force) as draft:
            before = sum(part.size for part in stored.files)
            done = run.write(draft.folder, progress)
            after = (draft.folder / FILE).stat().st_size
            unused = options.calibration is not None and not looks
            said = (f"{plan.operator} looks at no text: the calibration was not used",) if unused else ()
            done = replace(done, output=output, sizes=(before, after), settings=seen.settings,
                           notes=(*said, *_notes(run, looks=looks)))  # fmt: skip
            done = replace(done, seconds=time.perf_counter() - started, whole=whole_model(stored, done.tensors))
            put_in_place(draft, plan, card(plan, done, str(file)))
    return done


def _check(plan: Plan, stored: GgufCheckpoint) -> None:
    wrong = list(plan.misfits({name: spec.numel for name, spec in stored.tensors.items()}))
    for decision in plan:
        spec = stored.tensors.get(decision.tensor)
        chosen = decision.number_format
        if spec is None:
            continue
        if len(spec.shape) < 2:
            wrong.append(f"{spec.name} has {len(spec.shape)} axes; a matrix needs two")
        elif chosen.name not in TYPES:
            wrong.append(f"{spec.name}: llama.cpp has no type for {chosen.name}")
        elif (group := chosen.fitting(spec.shape[-1]).group_size) is not None and spec.shape[-1] % group:
            wrong.append(
                f"{spec.name} has {spec.shape[-1]} inputs, which blocks of {group} ({chosen.name}) do not divide"
            )
        elif spec.name in stored.unsupported:
            wrong.append(f"{spec.name}: {stored.unsupported[spec.name]}")
    if wrong:
        more = f"\n  … and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        what = "the plan does not fit the file:\n  " + "\n  ".join(wrong[:5]) + more
        raise UsageError(what, where=stored.uri, fix=f"plan for this file, with {', '.join(TYPES)}")


def _program(plan: Plan, stored: GgufCheckpoint) -> str | None:
    """llama.cpp's own program, where the plan takes ggml and no library of it is at hand; None where it is not needed.

    `UsageError` where neither is there.
    """
    weighs = OPERATORS[plan.operator].needs == "norms"
    fitted = [item.number_format.fitting(stored.tensors[item.tensor].shape[-1]) for item in plan]
    by_ggml = [
        item.name for item in fitted if isinstance(item, GgmlFormat) or (weighs and isinstance(item, BlockFormat))
    ]
    if not by_ggml or ggml_library() is not None:
        return None
    program = found_program()
    if program is None:
        raise UsageError(
            f"{by_ggml[0]} is rounded by llama.cpp's own code, and neither a library of ggml nor {PROGRAM} is there",
            where=stored.uri,
            fix=f"put {PROGRAM} on PATH, or {how_to_get('ggml')}",
        )
    return program


@dataclass
class _Rewriting:
    """Each planned tensor rounded from its own stored values: its rows are in llama.cpp's order, its columns are the
    model's.
    """

    plan: Plan
    stored: GgufCheckpoint
    seen: SeenInputs
    program: str | None = None  # llama.cpp's own, that rounds in place of this process
    _made: dict[str, tuple[float, str]] = field(default_factory=dict)  # tensor → relative error, digest of its values

    def __post_init__(self) -> None:
        self._decisions = {decision.tensor: decision for decision in self.plan}
        self._how = how_of(self.plan, text=True)

    def write(self, folder: Path, progress: Progress) -> Applied:
        """The file, its importance matrix where there is one, and what is read back."""
        found = self.seen.importances()
        said: dict[str, str | int] = {}
        if found:
            dataset = str(self.seen.settings.get("calibration", "calibration"))
            write_imatrix(folder / IMATRIX, found, (self.seen.windows, self.seen.window), dataset)
            said = {
                "quantize.imatrix.file": IMATRIX,
                "quantize.imatrix.dataset": dataset,
                "quantize.imatrix.entries_count": len(found),
                "quantize.imatrix.chunks_count": self.seen.windows,
            }
        kinds = {decision.tensor: TYPES[self._fitted(decision).name] for decision in self.plan}
        if self.program is not None:
            quantized_by(self.program, self.stored, kinds, folder / IMATRIX if found else None, folder / FILE)
        else:
            copy = GgufCopy(self.stored, kinds, self._blocks, file_type(self.plan), said)
            copy.write(folder / FILE, lambda done, total: progress("writing tensors", done, total))
        with open_checkpoint(folder / FILE) as written:
            tensors = tuple(self._reached(decision, written) for decision in self.plan)
        return Applied(folder, self.plan.operator, tensors, 0.0, packed="gguf", loads=LOADS)

    def _fitted(self, decision: Decision) -> NumberFormat:
        return decision.number_format.fitting(self.stored.tensors[decision.tensor].shape[-1])

    def _blocks(self, name: str) -> torch.Tensor:
        made = self.seen.rounded.get(name)
        if made is None:
            decision, stored = self._decisions[name], self.stored.read(name).float()
            seen, matrices = self.seen.inputs.get(name), stored.reshape(-1, *stored.shape[-2:])
            done = [decision.treatment.do(W, self._how, reaching(seen, group)) for group, W in enumerate(matrices)]
            made = RoundedTensor.of(decision, stored, done)
        self._made[name] = made.error, made.digest
        return made.blocks

    def _reached(self, decision: Decision, written: Checkpoint) -> Reached:
        """`UnreadableError` where the file decodes to other values than were chosen, or takes other bytes."""
        spec, name = written.tensors[decision.tensor], self._fitted(decision).name
        planned = decision.number_format.bits_per_weight(spec.numel // spec.shape[-1], spec.shape[-1])
        reached = 8 * spec.nbytes / spec.numel
        found = written.read(decision.tensor).float()
        if self.program is not None:
            error = relative_error(self.stored.read(decision.tensor), found)
        else:
            error, digest = self._made[decision.tensor]
            if digest_of(found) != digest:
                raise UnreadableError("decodes to other values than the operator chose", where=spec.name, fix=REPORT)
        if abs(reached - planned) * spec.numel >= 8:
            what = f"is stored as {spec.dtype} in {spec.nbytes} bytes, and the plan has {name}"
            raise UnreadableError(what, where=spec.name, fix=REPORT)
        return Reached(spec.name, spec.numel, planned, reached, name, relative_error=error)


def _notes(run: _Rewriting, *, looks: bool) -> Iterator[str]:
    plan, stored, seen = run.plan, run.stored, run.seen
    yield from seen.notes
    if run.program is not None:
        yield f"rounded by {run.program}, since no library of ggml is installed"
    coded = sorted({
        spec.dtype.removeprefix("GGUF_") for decision in plan
        if (spec := stored.tensors[decision.tensor]).dtype not in _PLAIN
    })  # fmt: skip
    if coded:
        yield (
            f"its weights were rounded before ({', '.join(coded)}), and are rounded a second time: the model in its "
            "original precision gives better ones"
        )
    blind = [decision.tensor for decision in plan if decision.tensor not in seen.inputs]
    if looks and blind:
        yield f"rounded without importances, since their inputs are not seen: {listed(blind)}"
