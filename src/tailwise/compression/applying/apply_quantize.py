"""`quantize()`: a plan to quantize and a checkpoint to a checkpoint with the values of its formats, packed or not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.draft import Draft, check_output, check_space
from tailwise.checkpoints.dtypes import torch_dtype
from tailwise.checkpoints.open import open_checkpoint
from tailwise.checkpoints.writer import Change, Layout
from tailwise.compression.applying.applied import Applied
from tailwise.compression.applying.applied_quantize import AppliedBits, Grids, card, read_back
from tailwise.compression.applying.calibrated_quantize import Quantizing, grids_in, jobs_of
from tailwise.compression.applying.calibration_inputs import Draw, calibration_inputs, check_inputs
from tailwise.compression.applying.fit_quantize import check_fit, is_calibrated, source_of
from tailwise.compression.applying.journal import Journal, digest_of_inputs, key_of_run
from tailwise.compression.applying.rounded import Rounding, own_grids
from tailwise.compression.applying.shards import Shards, settings_of
from tailwise.compression.applying.written import Progress, open_written, put_in_place, silent, write_tensors
from tailwise.compression.operators.table import OPERATORS
from tailwise.compression.packing.output import coded_by, packed
from tailwise.compression.packing.packing import Packing, Work, check_packing
from tailwise.compression.packing.packings import packing_of
from tailwise.compression.plans.plan import Plan
from tailwise.compression.walking.hosts import load_host
from tailwise.compression.walking.walk import walk_blocks
from tailwise.execution.device import checked_device

if TYPE_CHECKING:
    from tailwise.compression.applying.apply import ApplyOptions


def quantize(
    plan: Plan,
    model: str | os.PathLike[str],
    output: Path,
    options: ApplyOptions,
    progress: Progress | None = None,
    pruned: Pruned | None = None,
) -> AppliedBits:
    """Write the model with the values that the plan's formats leave, and read back that each is one.

    The output has the same tensors, dtypes and files, the plan and a model card; with `options.packed` it has codes and
    scales in the layout of another tool instead. It appears whole or not at all.
    `rtn` streams tensor by tensor and looks at no text; `gptq` goes block by block through the model, and a run that
    was killed goes on at the block where it was. `pruned` says what was pruned before, of which zeros are kept. Raises
    `UsageError` before any work where the plan does not fit.
    """
    plan.validate()
    started = time.perf_counter()
    name = os.fspath(model)
    checked_device(options.device)
    calibrated = is_calibrated(plan, options)
    source = Path(name).expanduser()
    check_output(output, force=options.force, source=source if source.exists() else None)
    with open_checkpoint(name) as stored:
        checkpoint, layout, packing = _fitted(plan, stored, name, options)
        planned = sum(checkpoint.tensors[decision.tensor].nbytes for decision in plan)
        check_space(output, layout.nbytes + (2 * planned if calibrated else 0) + (1 << 20))
        run = _Run(plan, name, checkpoint, layout, options, progress or silent, packing, pruned)
        found = run.calibrated(output) if calibrated else run.data_free(output)
    return replace(found, seconds=time.perf_counter() - started)


def check_quantize(plan: Plan, model: str, options: ApplyOptions) -> None:
    """`UsageError` for what would only be found out at the time: `quantize` looks at the same before it works."""
    plan.validate()
    is_calibrated(plan, options)
    with open_checkpoint(model) as stored:
        _fitted(plan, stored, model, options)


def _fitted(
    plan: Plan, stored: Checkpoint, name: str, options: ApplyOptions
) -> tuple[Checkpoint, Layout, Packing | None]:
    packing = None if options.packed is None else packing_of(options.packed)
    checkpoint, layout = source_of(plan, stored, name, dequantize=options.dequantize)
    check_fit(plan, checkpoint, stored, force=options.force)
    if packing is not None:
        check_packing(packing, plan, checkpoint)
    return checkpoint, layout, packing


@dataclass(frozen=True)
class Pruned:
    """What was done before: the model that is read was pruned by the same plan."""

    plan: Plan  # of both, as it is recorded
    model: str  # that both began with
    applied: Applied  # what the pruning came to


@dataclass(frozen=True)
class _Run:
    plan: Plan
    name: str
    checkpoint: Checkpoint
    layout: Layout
    options: ApplyOptions
    progress: Progress
    packing: Packing | None = None
    pruned: Pruned | None = None

    def data_free(self, output: Path) -> AppliedBits:
        zeros = self.pruned is not None
        unused = self.options.calibration is not None
        notes = (f"{self.plan.operator} looks at no text: the calibration was not used",) if unused else ()
        done = AppliedBits(output, self.plan.operator, (), 0.0, notes=notes)
        if self.options.executor != "local":
            return self._spread(output, done)
        changes = Rounding(self.plan, self.checkpoint, self.options.device, keep_zeros=zeros)
        with Draft(output, force=self.options.force) as draft:
            return self._write(draft, changes, own_grids, done)

    def _spread(self, output: Path, done: AppliedBits) -> AppliedBits:
        """As `data_free`, shard by shard on an engine."""
        zeros = self.pruned is not None
        formats = {decision.tensor: decision.format for decision in self.plan}
        key = key_of_run(self.plan, self.checkpoint, {"formats": formats, "zeros": zeros})
        make = partial(Rounding, keep_zeros=zeros)
        step = self._step("writing shards")
        shards = Shards(self.plan, self.checkpoint, self.layout, make, settings_of(self.options), step)
        with Draft(output, key=key, resume=self.options.resume, force=self.options.force) as draft:
            notes, resumed = shards.write(draft)
            done = replace(done, resumed=resumed, notes=(*done.notes, *notes))
            return self._commit(draft, self._read_back(draft.folder, own_grids, done))

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
        zeros = self.pruned is not None
        kept = {**facts, "formats": formats, "kept": "whole grids", "zeros": zeros}
        key = key_of_run(plan, self.checkpoint, kept, digest_of_inputs(inputs))
        with Draft(output, key=key, resume=options.resume, force=options.force) as draft:
            journal = Journal(draft.kept)
            work = Quantizing(jobs, journal, OPERATORS[plan.operator], act_order, zeros)
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
        if self.packing is None:
            done = self._unpacked(draft.folder, change, grids, done)
        else:
            coded = coded_by(self.plan, self.checkpoint, change, grids)
            work = Work(self.plan, self.checkpoint, self.layout, coded, self.progress)
            done = packed(self.packing, work, draft.folder, done)
        return self._commit(draft, done)

    def _commit(self, draft: Draft, done: AppliedBits) -> AppliedBits:
        plan, source = self.plan, self.name
        if self.pruned is not None:
            plan, source, done = self.pruned.plan, self.pruned.model, replace(done, pruned=self.pruned.applied)
        put_in_place(draft, plan, card(plan, done, source))
        return done

    def _unpacked(self, folder: Path, change: Change, grids: Grids, done: AppliedBits) -> AppliedBits:
        notes = write_tensors(self.layout, self.checkpoint, folder, change, self.progress)
        return self._read_back(folder, grids, replace(done, notes=(*done.notes, *notes)))

    def _read_back(self, folder: Path, grids: Grids, done: AppliedBits) -> AppliedBits:
        with open_written(self.layout, folder) as copy:
            tensors = read_back(self.plan, self.checkpoint, copy, grids)
        return replace(done, tensors=tensors)
