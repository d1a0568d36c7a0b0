"""`apply()`: a plan and a checkpoint to a compressed checkpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec
from tailwise.checkpoints.draft import Draft, check_output, check_space
from tailwise.checkpoints.dtypes import torch_dtype
from tailwise.checkpoints.open import open_checkpoint
from tailwise.checkpoints.writer import Change, Layout, Shard, layout_of, write_shard
from tailwise.compression.applying.applied import Applied, masks_of, read_back
from tailwise.compression.applying.applied_quantize import AppliedBits
from tailwise.compression.applying.apply_both import prune_and_quantize
from tailwise.compression.applying.apply_quantize import quantize
from tailwise.compression.applying.calibrated import WITH_DATA, Pruning, jobs_of, prune_blocks
from tailwise.compression.applying.calibration_inputs import Draw, calibration_inputs, check_inputs
from tailwise.compression.applying.card import card
from tailwise.compression.applying.data_free import Changes, amount_of, does_nothing, input_size
from tailwise.compression.applying.fit import check_plan
from tailwise.compression.applying.journal import Journal, digest_of_inputs, key_of_run
from tailwise.compression.applying.shards import Shards, check_alone, settings_of
from tailwise.compression.applying.written import Progress, open_written, put_in_place, silent, write_tensors
from tailwise.compression.operators.table import OPERATORS
from tailwise.compression.plans.plan import BLOCK, BOTH, Decision, Plan
from tailwise.compression.shrinking.smaller import Source, reached_in, work_of, write_smaller
from tailwise.compression.shrinking.structured import Widths
from tailwise.compression.walking.calibrate import SAMPLES, WINDOW
from tailwise.compression.walking.hosts import load_host
from tailwise.compression.walking.load_pruned import PRUNED_FILE
from tailwise.errors import UsageError
from tailwise.execution.device import checked_device

if TYPE_CHECKING:
    from collections.abc import Iterable

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
MASKS = "masks/masks.safetensors"  # in a folder of its own: beside the weights it would be read as a part of them


@dataclass(frozen=True)
class ApplyOptions:
    """How a plan is applied. What calibrates is text unless it is tensors."""

    calibration: Any = None  # windows (n, window) of ids, model inputs by name, or what `tokens_of` takes
    samples: int = SAMPLES  # windows drawn from a text
    window: int = WINDOW
    seed: int = 0  # of the draw
    device: str = "cpu"
    dtype: str = "auto"  # what the model computes in
    batch: int = 8  # windows at once
    force: bool = False  # replace the output, and apply a plan made from other weights
    save_masks: bool = False
    resume: bool = True  # go on where a run that was killed had come to
    equal_widths: bool = False  # structured: the same in every block, which a config can say
    multiple: int = 8  # structured: of neurons, a multiple of this stays
    factored: bool = False  # low_rank: two matrices in place of their product
    packed: str | None = None  # plans to quantize: compressed-tensors, torchao or gguf in place of real numbers
    dequantize: bool = False  # plans to quantize: read a model that is quantized already as what it decodes to
    executor: Executor | str = "local"  # as of `RunOptions`: shards of what looks at no text, each by a worker
    workers: int | None = None
    patience: float = 600.0


def apply(
    plan: Plan,
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    options: ApplyOptions | None = None,
    progress: Progress | None = None,
) -> Applied | AppliedBits:
    """Write the model that `plan` asks for to the folder `output`, and read back what was reached.

    `model` is a folder, file or Hugging Face id with safetensors or PyTorch files. The output has the same tensors,
    dtypes and files, the plan and a model card; it appears whole or not at all. `magnitude`, and `low_rank` without
    calibration, stream tensor by tensor; the others go block by block through the model, and a run that was killed
    goes on at the block where it was. `structured`, and `low_rank` with `factored`, write smaller tensors; where the
    config cannot say their sizes, `tailwise.load_pruned` loads them. Raises `UsageError` before any work where the
    plan does not fit the model.
    """
    plan.validate()
    known: dict[str, Callable[..., Applied | AppliedBits]] = {
        "prune": _prune,
        "quantize": quantize,
        BOTH: lambda *given: prune_and_quantize(_prune, *given),
    }
    return known[plan.kind](plan, model, Path(output), options or ApplyOptions(), progress)


def _prune(
    plan: Plan, model: str | os.PathLike[str], output: Path, options: ApplyOptions, progress: Progress | None
) -> Applied:
    started = time.perf_counter()
    name = os.fspath(model)
    checked_device(options.device)
    calibrated = _is_calibrated(plan, options)
    source = Path(name).expanduser()
    check_output(output, force=options.force, source=source if source.exists() else None)
    with open_checkpoint(name) as checkpoint:
        layout = layout_of(checkpoint, name)
        check_plan(plan, checkpoint, _misfits, stored=checkpoint, force=options.force)
        planned = sum(checkpoint.tensors[decision.tensor].nbytes for decision in plan)
        check_space(output, layout.nbytes + (planned if calibrated else 0) + (1 << 20))
        run = _Run(plan, name, checkpoint, layout, options, progress or silent)
        if plan.operator == "structured" or options.factored:
            found = run.smaller(output, calibrated=calibrated)
        else:
            found = run.calibrated(output) if calibrated else run.data_free(output)
    return replace(found, seconds=time.perf_counter() - started)


def _is_calibrated(plan: Plan, options: ApplyOptions) -> bool:
    if options.packed is not None:
        raise UsageError("a pruned model has no codes to pack", fix="leave --packed out")
    if options.factored and plan.operator != "low_rank":
        raise UsageError(f"{plan.operator} has no factors", fix="leave --factored out, or plan with low_rank")
    if options.save_masks and (plan.operator == "structured" or options.factored):
        raise UsageError("what is taken out has no mask", fix="leave --save-masks out")
    if plan.operator == "structured":
        check_alone(options.executor, "heads and neurons are taken out of the whole model")
        return options.calibration is not None
    if options.factored:
        check_alone(options.executor, "factors are made tensor by tensor in the model")
    needs = OPERATORS[plan.operator].needs != "none"
    if needs and options.calibration is None:
        raise UsageError(
            f"{plan.operator} looks at the inputs of each layer, and there is no calibration text",
            fix="give --calibration TEXT, or plan with --operator magnitude",
        )
    if calibrated := needs or (options.calibration is not None and plan.operator in WITH_DATA):
        check_alone(options.executor, f"{plan.operator} goes block by block through one model")
    return calibrated


def _misfits(decision: Decision, spec: TensorSpec, checkpoint: Checkpoint) -> list[str]:
    if spec.dtype not in _FLOATS:
        return [f"{spec.name} is stored as {spec.dtype}, and only plain floating-point tensors can be pruned"]
    if len(spec.shape) < 2:
        return [f"{spec.name} has {len(spec.shape)} axes; a matrix needs two"]
    if decision.pattern == BLOCK or does_nothing(decision):
        return []
    pattern = amount_of(decision).pattern
    inputs = input_size(spec.name, spec.shape, checkpoint.config)
    if pattern is not None and inputs % pattern[1]:
        return [f"{spec.name} has {inputs} inputs, which {decision.pattern} does not divide"]
    most = min(inputs, spec.numel // max(inputs, 1))
    if decision.rank is not None and decision.rank > most:
        return [f"{spec.name} has a rank of {most} at most, not {decision.rank}"]
    return []


@dataclass(frozen=True)
class _Run:
    plan: Plan
    name: str
    checkpoint: Checkpoint
    layout: Layout
    options: ApplyOptions
    progress: Progress

    def data_free(self, output: Path) -> Applied:
        unused = self.options.calibration is not None
        notes = (f"{self.plan.operator} looks at no text: the calibration was not used",) if unused else ()
        done = Applied(output, self.plan.operator, (), 0.0, notes=notes)
        if self.options.executor != "local":
            return self._spread(output, done)
        changes = Changes(self.plan, self.checkpoint, self.options.device)
        with Draft(output, force=self.options.force) as draft:
            return self._write(draft, changes, done)

    def _spread(self, output: Path, done: Applied) -> Applied:
        """As `data_free`, shard by shard on an engine."""
        key = key_of_run(self.plan, self.checkpoint, {"shards": len(self.layout.shards)})
        step = self._step("writing shards")
        shards = Shards(self.plan, self.checkpoint, self.layout, Changes, settings_of(self.options), step)
        with Draft(output, key=key, resume=self.options.resume, force=self.options.force) as draft:
            notes, resumed = shards.write(draft)
            return self._finish(draft, replace(done, resumed=resumed, notes=(*done.notes, *notes)))

    def calibrated(self, output: Path) -> Applied:
        """Prune block by block into the draft's journal, then write."""
        inputs, settings = self._inputs()
        host = load_host(self.checkpoint, self.name, device=self.options.device, dtype=self.options.dtype)
        check_inputs(host, inputs, self.name)
        dtypes = {d.tensor: torch_dtype(self.checkpoint.tensors[d.tensor].dtype, where=d.tensor) for d in self.plan}
        jobs = jobs_of(self.plan, host, dtypes)
        facts = {**settings, "dtype": self.options.dtype}
        key = key_of_run(self.plan, self.checkpoint, facts, digest_of_inputs(inputs))
        with Draft(output, key=key, resume=self.options.resume, force=self.options.force) as draft:
            journal = Journal(draft.kept)
            pruner = OPERATORS[WITH_DATA.get(self.plan.operator, self.plan.operator)]
            work = Pruning(jobs, journal, pruner)
            if {job.decision.tensor for job in jobs.values()} - journal.tensors:
                advance = self._step("pruning blocks")
                prune_blocks(host, inputs, work, batch=self.options.batch, progress=advance)
            done = Applied(output, self.plan.operator, (), 0.0, journal.resumed, facts)
            return self._write(draft, journal.read, replace(done, notes=(*host.notes, *journal.notes)))

    def smaller(self, output: Path, *, calibrated: bool) -> Applied:
        """Take heads, neurons and blocks out, or store factors."""
        options = self.options
        if PRUNED_FILE in self.layout.folder.names():
            fix = "plan for the model that it was made from, or use an operator that leaves the shapes"
            raise UsageError("its layers were cut before, and cannot be cut again", where=self.name, fix=fix)
        inputs, settings = self._inputs() if calibrated else (None, {})
        host = load_host(self.checkpoint, self.name, device=options.device, dtype=options.dtype)
        if inputs is not None:
            check_inputs(host, inputs, self.name)
        widths = Widths(options.equal_widths, options.multiple)
        work = work_of(Source(self.plan, host, self.checkpoint, self.layout), widths)
        facts = {**settings, "dtype": options.dtype} if calibrated else {}
        inner = {**facts, "widths": [widths.equal, widths.multiple], "factored": options.factored}
        key = key_of_run(self.plan, self.checkpoint, inner, digest_of_inputs(inputs or {}))
        with Draft(output, key=key, resume=options.resume, force=options.force) as draft:
            journal = Journal(draft.kept)
            made = work.made(inputs, journal, options.batch, self._step("pruning blocks"))
            notes = write_smaller(work, made, draft.folder, self._step("writing tensors"))
            tensors = reached_in(self.plan, made, draft.folder)
            notes = (*host.notes, *journal.notes, *notes)
            done = Applied(output, self.plan.operator, tensors, 0.0, journal.resumed, facts, notes, smaller=True)
            return self._commit(draft, done)

    def _commit(self, draft: Draft, done: Applied) -> Applied:
        put_in_place(draft, self.plan, card(self.plan, done, self.name))
        return done

    def _inputs(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        options = self.options
        draw = Draw(options.samples, options.window, options.seed)
        return calibration_inputs(self.name, options.calibration, draw)

    def _step(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(what, done, total)

    def _write(self, draft: Draft, change: Change, done: Applied) -> Applied:
        """Write all files into the draft, read them back, and put the draft in its place."""
        notes = write_tensors(self.layout, self.checkpoint, draft.folder, change, self.progress)
        return self._finish(draft, replace(done, notes=(*done.notes, *notes)))

    def _finish(self, draft: Draft, done: Applied) -> Applied:
        with open_written(self.layout, draft.folder) as copy:
            done = replace(done, tensors=read_back(self.plan, copy))
            if self.options.save_masks:
                _save_masks(self.plan, copy, draft.folder)
        return self._commit(draft, done)


def _save_masks(plan: Plan, written: Checkpoint, folder: Path) -> None:
    """One boolean tensor for each that holds zeros: True where an entry was kept."""
    specs = tuple(
        TensorSpec(name, "BOOL", written.tensors[name].shape, written.tensors[name].numel) for name in masks_of(plan)
    )

    def kept(name: str) -> Iterable[torch.Tensor]:
        return (written.read(name) != 0,)

    path = folder / MASKS
    path.parent.mkdir()
    write_shard(path, Shard(path.name, specs), kept)
