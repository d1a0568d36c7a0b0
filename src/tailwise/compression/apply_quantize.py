"""`quantize()`: a plan to quantize and a checkpoint to a de-quantized checkpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec
from tailwise.checkpoints.draft import Draft, check_output, check_space
from tailwise.checkpoints.dtypes import torch_dtype
from tailwise.checkpoints.open import open_checkpoint
from tailwise.checkpoints.writer import Change, Layout, layout_of, write_checkpoint
from tailwise.compression.applied_quantize import AppliedBits, Grids, card, read_back
from tailwise.compression.calibrated_quantize import Quantizing, grids_in, jobs_of
from tailwise.compression.calibration_inputs import Draw, calibration_inputs, check_inputs
from tailwise.compression.card import PLAN_FILE
from tailwise.compression.data_free import as_matrices, from_matrices, input_size
from tailwise.compression.fingerprint import has_fingerprint
from tailwise.compression.hosts import load_host
from tailwise.compression.journal import Journal, digest_of_inputs, key_of_run
from tailwise.compression.plan import Decision, Plan
from tailwise.compression.plan_files import to_text
from tailwise.compression.quantize.quantizer import QUANTIZERS, Target
from tailwise.compression.walk import walk_blocks
from tailwise.errors import TailwiseError, UsageError
from tailwise.execution.device import checked_device
from tailwise.number_formats.formats import parse_format
from tailwise.number_formats.grid import Grid
from tailwise.number_formats.scaled import ScaledFormat

if TYPE_CHECKING:
    from tailwise.compression.apply import ApplyOptions

Progress = Callable[[str, int, int], None]  # what is done, steps done, steps in all

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_SHOWN = 5


def quantize(
    plan: Plan,
    model: str | os.PathLike[str],
    output: Path,
    options: ApplyOptions,
    progress: Progress | None = None,
) -> AppliedBits:
    """Write the model with the values that the plan's formats leave, and read back that each is one.

    The output has the same tensors, dtypes and files, the plan and a model card; it appears whole or not at all.
    `rtn` streams tensor by tensor and looks at no text; `gptq` goes block by block through the model, and a run that
    was killed goes on at the block where it was. Raises `UsageError` before any work where the plan does not fit.
    """
    plan.validate()
    started = time.perf_counter()
    name = os.fspath(model)
    checked_device(options.device)
    calibrated = _is_calibrated(plan, options)
    source = Path(name).expanduser()
    check_output(output, force=options.force, source=source if source.exists() else None)
    with open_checkpoint(name) as checkpoint:
        layout = layout_of(checkpoint, name)
        _check_fit(plan, checkpoint, force=options.force)
        planned = sum(checkpoint.tensors[decision.tensor].nbytes for decision in plan)
        check_space(output, layout.nbytes + (2 * planned if calibrated else 0) + (1 << 20))
        run = _Run(plan, name, checkpoint, layout, options, progress or _silent)
        found = run.calibrated(output) if calibrated else run.data_free(output)
    return replace(found, seconds=time.perf_counter() - started)


def _silent(what: str, done: int, total: int) -> None:
    """Without a progress bar."""


def _is_calibrated(plan: Plan, options: ApplyOptions) -> bool:
    if options.save_masks:
        raise UsageError("quantization removes nothing, so there are no masks", fix="leave --save-masks out")
    needs = QUANTIZERS[plan.operator].needs != "none"
    if needs and options.calibration is None:
        raise UsageError(
            f"{plan.operator} looks at the inputs of each layer, and there is no calibration text",
            fix="give --calibration TEXT, or plan with --operator rtn",
        )
    return needs


def _check_fit(plan: Plan, checkpoint: Checkpoint, *, force: bool) -> None:
    """`UsageError` where an entry has no tensor, or one that its format cannot hold."""
    sizes = {name: spec.numel for name, spec in checkpoint.tensors.items()}
    wrong = list(plan.misfits(sizes))
    for decision in plan:
        if decision.tensor in sizes:
            wrong += _misfits(decision, checkpoint.tensors[decision.tensor], checkpoint)
    if wrong:
        more = f"\n  … and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        what = "the plan does not fit the model:\n  " + "\n  ".join(wrong[:_SHOWN]) + more
        raise UsageError(what, where=checkpoint.uri, fix=f"plan for this model, or apply it to {plan.model}")
    if plan.fingerprint and not force and not has_fingerprint(checkpoint, plan.fingerprint):
        raise UsageError(
            "its weights are others than those that the plan was made from, or the audit was of a part of them",
            where=checkpoint.uri,
            fix="audit and plan again, or apply it all the same with --force",
        )


def _misfits(decision: Decision, spec: TensorSpec, checkpoint: Checkpoint) -> list[str]:
    if spec.dtype not in _FLOATS:
        return [f"{spec.name} is stored as {spec.dtype}, and only plain floating-point tensors can be quantized"]
    if len(spec.shape) < 2:
        return [f"{spec.name} has {len(spec.shape)} axes; a matrix needs two"]
    chosen, inputs = parse_format(decision.format or ""), input_size(spec.name, spec.shape, checkpoint.config)
    if chosen.group_size is not None and inputs % chosen.group_size:
        return [f"{spec.name} has {inputs} inputs, which groups of {chosen.group_size} ({chosen.name}) do not divide"]
    return []


class _Changes:
    """The tensors of a plan rounded to nearest, one at a time."""

    def __init__(self, plan: Plan, checkpoint: Checkpoint, device: str) -> None:
        self._decisions = {item.tensor: item for item in plan}
        self._quantizer = QUANTIZERS[plan.operator]
        self._checkpoint, self._device = checkpoint, device

    def __call__(self, name: str) -> torch.Tensor | None:
        """The new tensor, or None where the plan leaves it alone."""
        decision = self._decisions.get(name)
        if decision is None:
            return None
        target, config = Target(parse_format(decision.format or "")), self._checkpoint.config
        stored = self._checkpoint.read(name)
        matrices = as_matrices(stored, name, config).to(self._device)
        try:
            found = [self._quantizer(W, target).weight.to(stored.dtype).cpu() for W in matrices]
        except TailwiseError as error:
            raise type(error)(error.what, where=name, fix=error.fix) from error
        return from_matrices(torch.stack(found), stored, name, config)


def _own_grids(decision: Decision, matrices: torch.Tensor) -> list[Grid] | None:
    """The scales that rounding to nearest takes from the source."""
    chosen = parse_format(decision.format or "")
    return [chosen.grid(W) for W in matrices] if isinstance(chosen, ScaledFormat) else None


@dataclass(frozen=True)
class _Run:
    plan: Plan
    name: str
    checkpoint: Checkpoint
    layout: Layout
    options: ApplyOptions
    progress: Progress

    def data_free(self, output: Path) -> AppliedBits:
        changes = _Changes(self.plan, self.checkpoint, self.options.device)
        unused = self.options.calibration is not None
        notes = (f"{self.plan.operator} looks at no text: the calibration was not used",) if unused else ()
        with Draft(output) as draft:
            done = AppliedBits(output, self.plan.operator, (), 0.0, notes=notes)
            return self._write(draft, changes, _own_grids, done)

    def calibrated(self, output: Path) -> AppliedBits:
        """Round block by block into the draft's journal, then write."""
        options, plan = self.options, self.plan
        inputs, settings = calibration_inputs(
            self.name, options.calibration, Draw(options.samples, options.window, options.seed)
        )
        host = load_host(self.checkpoint, self.name, device=options.device, dtype=options.dtype)
        check_inputs(host, inputs, self.name)
        dtypes = {d.tensor: torch_dtype(self.checkpoint.tensors[d.tensor].dtype, where=d.tensor) for d in plan}
        jobs = jobs_of(plan, host, dtypes)
        act_order = plan.settings.get("act_order") is True
        facts: dict[str, Any] = {**settings, "dtype": options.dtype, "act_order": act_order}
        formats = {decision.tensor: decision.format for decision in plan}
        key = key_of_run(plan, self.checkpoint, {**facts, "formats": formats}, digest_of_inputs(inputs))
        with Draft(output, key=key, resume=options.resume) as draft:
            journal = Journal(draft.kept)
            work = Quantizing(jobs, journal, QUANTIZERS[plan.operator], act_order)
            if set(formats) - journal.tensors:
                advance = self._step("quantizing blocks")
                walk_blocks(host.home, inputs, work, batch=options.batch, progress=advance)
            done = AppliedBits(output, plan.operator, (), 0.0, journal.resumed, facts)
            done = replace(done, notes=(*host.notes, *journal.notes))
            return self._write(
                draft, journal.read, lambda decision, _: grids_in(journal, decision.tensor, decision.format or ""), done
            )

    def _step(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(what, done, total)

    def _write(self, draft: Draft, change: Change, grids: Grids, done: AppliedBits) -> AppliedBits:
        """Write all files into the draft, read them back, and put the draft in its place."""
        total = sum(len(shard.specs) for shard in self.layout.shards)
        written = iter(range(1, total + 1))

        def counted(name: str) -> torch.Tensor | None:
            self.progress("writing tensors", next(written), total)
            return change(name)

        notes = write_checkpoint(self.layout, self.checkpoint, draft.folder, counted)
        first = self.layout.shards[0].name if len(self.layout.shards) == 1 else ""
        with open_checkpoint(draft.folder / first if self.layout.index is None and first else draft.folder) as copy:
            tensors = read_back(self.plan, self.checkpoint, copy, grids)
        done = replace(done, tensors=tensors, notes=(*done.notes, *notes))
        (draft.folder / PLAN_FILE).write_text(to_text(self.plan), encoding="utf-8")
        (draft.folder / "README.md").write_text(card(self.plan, done, self.name), encoding="utf-8")
        draft.commit()
        return done
